"""Unpack an image: its layers are read once, each as a stream; its files get their places when all layers are read.

The folder is new and ours alone, every folder on the way to a file is one that was made here, and nothing is followed:
so nothing outside it is ever touched.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import RawIOBase
from pathlib import Path
from typing import BinaryIO, cast

from testbed.errors import ImageBuildError
from testbed.images.tree import EntryKind, LayerEntry, LayerError, Node, Tree
from testbed.text import shown

_KINDS: dict[bytes, EntryKind] = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.GNUTYPE_SPARSE: "file",
    tarfile.LNKTYPE: "hardlink",
    tarfile.SYMTYPE: "symlink",
    tarfile.DIRTYPE: "folder",
    tarfile.FIFOTYPE: "fifo",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
}
_XATTR = "SCHILY.xattr."
_CAPABILITY = "security.capability"
_NEEDS = "which need root, or newuidmap and subordinate ids (subuid(5))"
_CHUNK, _BUFFER = 1 << 16, 1 << 15
"""Small enough for memory that is used again: the C library maps anew what is larger than 128 KiB, mallopt(3)."""
_END_BYTES = 1024
_OF_CONTAINERS = ".dockerenv"
"""An empty file by which programs know that they run in an engine's container."""


@dataclass(frozen=True, kw_only=True)
class ReadLayer:
    """A layer that was read: its entries, whose content is in the spool, and the digest of its archive."""

    entries: Sequence[LayerEntry]
    digest: str


@dataclass(frozen=True, kw_only=True)
class OwnedFile:
    """A file whose owner, or whose capabilities, this user cannot give."""

    path: str
    uid: int
    gid: int
    mode: int
    capability: bytes = b""


@dataclass(kw_only=True)
class Lost:
    """What could not be kept of an image's files."""

    owners: int = 0
    """Files of others than root."""
    capabilities: int = 0
    """Files with capabilities."""
    attributes: int = 0
    """Further extended attributes."""
    devices: int = 0
    """Device nodes: a host has those in /dev alone."""
    owned: list[OwnedFile] = field(default_factory=list)
    """The files of the first two, for whoever can give them later."""

    def words(self) -> str:
        """In a few words; empty if nothing is lost."""
        reasons = {
            f"owners of files, {_NEEDS}": self.owners,
            f"capabilities of files, {_NEEDS}": self.capabilities,
            "extended attributes": self.attributes,
            "device nodes, which a host has in /dev alone": self.devices,
        }
        return ", ".join(f"{count:,} {what}" for what, count in reasons.items() if count)


class Unpacker:
    """Unpacks an image into ``root`` of a new folder. Raises ImageBuildError; the folder is then of no use."""

    def __init__(self, folder: Path) -> None:
        self._root, self._spool = folder / "root", folder / "spool"
        self._spool.mkdir()
        self._read = 0

    def read(self, stream: BinaryIO, name: str) -> ReadLayer:
        """Read the archive of a layer, uncompressed, to its end. ``name``: in messages."""
        hashed = _Hashed(stream)
        entries = self.entries(cast(BinaryIO, hashed), f"layer {name}")
        return ReadLayer(entries=entries, digest=f"sha256:{hashed.hash.hexdigest()}")

    def entries(self, stream: BinaryIO, what: str) -> Sequence[LayerEntry]:
        """Read an archive to its end. ``what``: in messages."""
        try:
            entries = list(_entries(stream, str(self._spool), self._read))
            while stream.read(_CHUNK):  # what comes after the end of the archive counts for its digest
                pass
        except LayerError as error:
            raise ImageBuildError(f"{what}: {error}") from None
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise ImageBuildError(f"{what} is cut short or damaged: {error}") from None
        self._read += len(entries)
        return entries

    def place(self, layers: Sequence[ReadLayer], digests: Sequence[str], *, owners: bool) -> Lost:
        """Give all files their places, once all layers are read; the lowest is the first.

        ``digests``: those of the layers in the image's configuration. ``owners``: whether files can be given to others.
        """
        for number, (layer, digest) in enumerate(zip(layers, digests, strict=True), start=1):
            if layer.digest != digest:
                raise ImageBuildError(f"layer {number} is not the one of the image's configuration: its digest differs")
        named = [(f"layer {number}", layer.entries) for number, layer in enumerate(layers, start=1)]
        return self.place_entries(named, owners=owners)

    def place_entries(self, layers: Sequence[tuple[str, Sequence[LayerEntry]]], *, owners: bool) -> Lost:
        """See `place`; layers with their names for messages."""
        tree = Tree()
        for name, entries in layers:
            try:
                tree.add_layer(entries)
            except LayerError as error:
                raise ImageBuildError(f"{name}: {error}") from None
        lost = _place(tree, self._spool, self._root, owners=owners)
        shutil.rmtree(self._spool)
        return lost


def unpack_exported(stream: BinaryIO, folder: Path) -> Lost:
    """Unpack a container's files, as an engine exports them, into ``root`` of a new folder.

    The engine walks through its own files, and tells no digest of them. Raises ImageBuildError, OSError.
    """
    what, unpacker, ended = "the engine's export", Unpacker(folder), _TailKept(stream)
    entries = unpacker.entries(cast(BinaryIO, ended), what)
    if any(ended.last):
        raise ImageBuildError(f"{what} is cut short")
    files = [entry for entry in entries if entry.name != _OF_CONTAINERS]
    return unpacker.place_entries([(what, files)], owners=os.geteuid() == 0)


class _Hashed(RawIOBase):
    """A stream, and the digest of what was read of it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.hash.update(data)
        return data


class _TailKept(RawIOBase):
    """An archive's stream, and what it ended with: two blocks of zeros, if it is whole; see tar(5)."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.last = b"x"

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        if data:
            self.last = (self.last + data)[-_END_BYTES:] if len(data) < _END_BYTES else data[-_END_BYTES:]
        return data


def _entries(stream: BinaryIO, spool: str, first: int) -> Iterator[LayerEntry]:
    """The entries of a layer; the content of each file is put into the spool under its number."""
    with tarfile.open(fileobj=stream, mode="r|", bufsize=_BUFFER, errors="surrogateescape") as archive:
        for number, member in enumerate(archive, start=first):
            kind = _KINDS.get(member.type)
            if kind is None:
                raise LayerError(f"entry {shown(member.name)} is of a kind that no layer has: {shown(member.type)}")
            if kind == "file" and (content := archive.extractfile(member)) is not None:
                with open(f"{spool}/{number}", "xb", buffering=0) as file:
                    shutil.copyfileobj(content, file, _CHUNK)
            yield LayerEntry(
                name=member.name,
                kind=kind,
                mode=member.mode & 0o7777,
                uid=member.uid,
                gid=member.gid,
                mtime_ns=int(float(member.mtime) * 1e9),
                link=member.linkname,
                xattrs={
                    key.removeprefix(_XATTR): value.encode(errors="surrogateescape")
                    for key, value in member.pax_headers.items()
                    if key.startswith(_XATTR)
                },
                content=number,
            )


def _place(tree: Tree, spool: Path, root: Path, *, owners: bool) -> Lost:
    """Give every file its place, its owner, its mode and its time; folders last, for they may be read-only."""
    lost = Lost(devices=tree.devices)
    places: dict[Node, str] = {}
    folders = [("", tree.root.entry)]
    root.mkdir(mode=0o700)
    for path, node in tree.walk():
        place, entry = f"{root}/{path}", node.entry
        if node in places:
            os.link(places[node], place, follow_symlinks=False)
            continue
        places[node] = place
        try:
            match entry.kind:
                case "folder":
                    os.mkdir(place, 0o700)
                    folders.append((path, entry))
                    continue
                case "symlink":
                    os.symlink(entry.link, place)
                case "fifo":
                    os.mkfifo(place, 0o600)
                case _:
                    os.rename(spool / str(entry.content), place)
        except ValueError as error:
            raise ImageBuildError(f"{shown(path)} cannot be made: {error}") from None
        _settle(root, path, entry, lost, owners=owners)
    for path, entry in reversed(folders):
        _settle(root, path, entry, lost, owners=owners)
    return lost


def _settle(root: Path, path: str, entry: LayerEntry, lost: Lost, *, owners: bool) -> None:
    place = f"{root}/{path}" if path else str(root)
    if entry.uid or entry.gid:
        if owners:
            os.chown(place, entry.uid, entry.gid, follow_symlinks=False)
        else:
            lost.owners += 1
    capability = entry.xattrs.get(_CAPABILITY, b"")
    if not owners and (entry.uid or entry.gid or capability):
        lost.owned.append(OwnedFile(path=path, uid=entry.uid, gid=entry.gid, mode=entry.mode, capability=capability))
    for name, value in entry.xattrs.items():
        if name != _CAPABILITY and not name.startswith("user."):
            continue
        if ".overlay." in name:  # the kernel's own, of the file system that a host's root is
            lost.attributes += 1
        elif name == _CAPABILITY and not owners:
            lost.capabilities += 1
        else:
            try:
                os.setxattr(place, name, value, follow_symlinks=False)
            except OSError as error:
                if error.errno not in (errno.ENOTSUP, errno.EPERM):
                    raise
                lost.attributes += 1
    if entry.kind != "symlink":
        os.chmod(place, entry.mode)
    os.utime(place, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)
