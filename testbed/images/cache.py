"""The cache of unpacked images: a folder for each, by the digests of its layers, complete or not there.

An image is unpacked beside its place and moved there in one step. It is not forced onto the disk, which would wait for
everybody's files; so it counts until the machine starts again, and is then unpacked anew. A lock of its own, which the
kernel takes from a process that dies, keeps others away meanwhile; whoever uses the image shares that lock, so that it
is not removed.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from testbed.errors import ImageBuildError
from testbed.images.unpack import Lost, OwnedFile

_RECIPE = 1
"""Incremented when images are unpacked differently."""
_NEW = "new-"
_RECORD = "image.json"

Unpack = Callable[[Path], Lost]
"""Unpacks an image into ``root`` of a folder. Raises ImageBuildError, OSError."""


@dataclass(frozen=True, kw_only=True)
class CachedImage:
    """An image in the cache."""

    content: str
    """See `FoundImage.content`."""
    folder: Path
    names: tuple[str, ...]
    size_bytes: int
    """Of its files."""
    used_at: float
    """When it was used last; seconds since the epoch."""
    lost: str
    """What could not be kept of it, in words."""
    boot: str
    """The start of the machine since which it is here."""

    @property
    def root(self) -> Path:
        """Its files."""
        return self.folder / "root"


class Owners(Protocol):
    """Gives files the owners that this user cannot give."""

    def give(self, root: Path, files: Sequence[OwnedFile]) -> int:
        """Give files below a folder their owners, modes and capabilities; returns how many could not be given."""

    def remove(self, folder: Path) -> None:
        """Remove a folder with such files."""


class Cache:
    """The unpacked images of a user."""

    def __init__(self, folder: Path, owners: Owners | None = None, *, boot: str | None = None) -> None:
        """``owners``: for a user without root who has others to give files to.

        ``boot``: the start of the machine whose cache it is, if that is not this one (`start_of_machine`).
        """
        self.folder = folder
        self._owners = owners
        self._boot = start_of_machine() if boot is None else boot

    def _place(self, content: str) -> Path:
        """Where an image is: by its layers, and by what could be kept of its owners."""
        kind = "root" if os.geteuid() == 0 else "user" if self._owners is None else "users"
        return self.folder / f"{content}-{kind}-{_RECIPE}"

    def hold(self, content: str, name: str, unpack: Unpack, undo: ExitStack) -> CachedImage:
        """An image, unpacked if it is not there yet; until ``undo`` ends nobody removes it. Raises ImageBuildError."""
        place = self._place(content)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            while True:
                with ExitStack() as held:
                    held.enter_context(_locked(place, fcntl.LOCK_SH))
                    if (image := self._present(place)) is not None:
                        undo.push(held.pop_all())
                        return _noted(image, name)
                with _locked(place, fcntl.LOCK_EX):
                    if self._present(place) is None:
                        self._clear_up(place)
                        self._add(place, content, unpack)
        except OSError as error:
            raise ImageBuildError(f"image {name} cannot be unpacked into {self.folder}: {error.strerror}") from None

    def _present(self, place: Path) -> CachedImage | None:
        """The image in a folder, if it was unpacked since the machine started."""
        image = _read(place)
        return image if image is not None and image.boot == self._boot else None

    def _add(self, place: Path, content: str, unpack: Unpack) -> None:
        new = self.folder / f"{_NEW}{secrets.token_hex(6)}-{place.name}"
        new.mkdir(mode=0o700)
        try:
            lost, size_bytes = unpack(new), _size(new / "root")
            if self._owners is not None:
                lost.owners, lost.capabilities = self._owners.give(new / "root", lost.owned), 0
            record = {
                "content": content,
                "boot": self._boot,
                "names": [],
                "size_bytes": size_bytes,
                "lost": lost.words(),
            }
            (new / _RECORD).write_text(json.dumps(record), encoding="utf-8")
            if place.exists():  # of no use any more
                self._remove(place)
            new.rename(place)
        except BaseException:
            self._remove(new)
            raise

    def _clear_up(self, place: Path) -> None:
        """Remove what was left of an image by processes that were killed. Needs its lock, which one at work has."""
        for left in self.folder.glob(f"{_NEW}*-{place.name}"):
            self._remove(left)

    def images(self) -> list[CachedImage]:
        """All of them, the one that was used last first."""
        if not self.folder.is_dir():
            return []
        known = filter(None, map(_read, (path for path in self.folder.iterdir() if not path.name.startswith(_NEW))))
        return sorted(known, key=lambda image: -image.used_at)

    def remove(self, image: CachedImage) -> bool:
        """Remove an image; returns whether it could be: not if somebody uses it."""
        try:
            with _locked(image.folder, fcntl.LOCK_EX | fcntl.LOCK_NB) as lock:
                gone = self.folder / f"{_NEW}{secrets.token_hex(6)}-{image.folder.name}"
                with suppress(FileNotFoundError):  # another has just done the same
                    image.folder.rename(gone)
                    self._remove(gone)
                lock.unlink()
        except BlockingIOError:
            return False
        return True

    def remove_unfinished(self) -> None:
        """Remove what killed processes have left of any image."""
        for left in self.folder.glob(f"{_NEW}*"):
            place = self.folder / left.name.removeprefix(_NEW).partition("-")[2]
            with suppress(BlockingIOError), _locked(place, fcntl.LOCK_EX | fcntl.LOCK_NB):
                self._remove(left)

    def _remove(self, folder: Path) -> None:
        """Remove a folder, also one with folders that are closed to us."""
        if self._owners is not None:
            self._owners.remove(folder)
            return
        if os.geteuid() != 0:
            for place, names, _ in os.walk(folder):
                for name in names:
                    if not os.path.islink(inner := f"{place}/{name}"):
                        os.chmod(inner, 0o700)
        shutil.rmtree(folder)


@contextmanager
def _locked(place: Path, operation: int) -> Iterator[Path]:
    path = place.with_name(f"{place.name}.lock")
    while True:
        with path.open("a") as lock:
            fcntl.flock(lock, operation)
            if not _is(path, lock.fileno()):  # it was removed with its image before we had it
                continue
            yield path
            return


def _is(path: Path, descriptor: int) -> bool:
    """Whether an open file still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@cache
def start_of_machine() -> str:
    """The id of this start of the machine; proc_sys_kernel(5)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _read(place: Path) -> CachedImage | None:
    """The image in a folder; None if there is none."""
    try:
        record: Mapping[str, Any] = json.loads((place / _RECORD).read_text(encoding="utf-8"))
        used_at = (place / _RECORD).stat().st_mtime
        return CachedImage(
            content=record["content"],
            folder=place,
            names=tuple(record["names"]),
            size_bytes=record["size_bytes"],
            used_at=used_at,
            lost=record["lost"],
            boot=record["boot"],
        )
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None


def _noted(image: CachedImage, name: str) -> CachedImage:
    """Note that an image is used, and under which name."""
    path = image.folder / _RECORD
    if name in image.names:
        with suppress(OSError):  # a cache that is only shown to us
            os.utime(path, (time.time(), time.time()))
        return image
    record = {**json.loads(path.read_text(encoding="utf-8")), "names": [*image.names, name]}
    beside = image.folder / f".{secrets.token_hex(6)}"
    with suppress(OSError):  # likewise
        beside.write_text(json.dumps(record), encoding="utf-8")
        beside.replace(path)
    return image


def _size(root: Path) -> int:
    size = 0
    for folder, _, names in os.walk(root):
        for name in names:
            status = os.lstat(f"{folder}/{name}")
            size += status.st_size // status.st_nlink if stat.S_ISREG(status.st_mode) else 0
    return size
