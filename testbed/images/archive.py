"""Images in archives: what `docker save`, `podman save` and `skopeo copy` write, as a file or as a folder.

Two layouts: Docker's, with a ``manifest.json``, and the OCI's, with an ``index.json`` (image-spec, image-layout.md).
All content is checked against the digests in the image's configuration.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, cast

from testbed.errors import ImageBuildError
from testbed.images.found import FoundImage, content_of
from testbed.images.settings import of_config, platform_problem
from testbed.images.unpack import Lost, Unpacker
from testbed.text import several, shown

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_NAME = "org.opencontainers.image.ref.name"
_DEEPEST = 4
_DIGEST = re.compile(r"(?:blobs/sha256/|sha256:)?([0-9a-f]{64})(?:\.json)?")


@dataclass(frozen=True, kw_only=True)
class _Manifest:
    """An image in an archive: the names, in the archive, of its configuration and of its layers."""

    config: str
    layers: Sequence[str]
    names: Sequence[str]


class _ArchiveFiles:
    """The files of an archive, or of a folder laid out as one."""

    def __init__(self, path: Path, undo: ExitStack) -> None:
        self._path = path
        self._tar: tarfile.TarFile | None = None
        if not path.is_dir():
            self._tar = undo.enter_context(tarfile.open(path))  # noqa: SIM115  # it is one
            self._members = {member.name.removeprefix("./"): member for member in self._tar}

    def has(self, name: str) -> bool:
        return (self._path / name).is_file() if self._tar is None else name in self._members

    def open(self, name: str) -> BinaryIO:
        """Raises ImageBuildError."""
        content: BinaryIO | None = None
        if self._tar is None:
            content = (self._path / name).open("rb") if self.has(name) else None
        elif name in self._members:
            try:
                content = cast(BinaryIO | None, self._tar.extractfile(self._members[name]))
            except KeyError:  # a link to what is not there
                content = None
        if content is None:
            raise ImageBuildError(f"{shown(name)} is not in it: it is cut short, or no image")
        return content

    def json(self, name: str) -> Any:
        """Raises ImageBuildError."""
        with self.open(name) as file:
            try:
                return json.loads(file.read())
            except ValueError as error:
                raise ImageBuildError(f"{shown(name)} in it is damaged: {error}") from None


def find(path: Path, name: str, *, machine: str) -> FoundImage:
    """The image in an archive; of several, the one that has this name. Raises ImageBuildError."""
    with _opened(path) as files:
        manifest = _chosen(list(_manifests(files, machine)), name)
        with files.open(manifest.config) as file:
            text = file.read()
        digest = hashlib.sha256(text).hexdigest()
        if (match := _DIGEST.fullmatch(manifest.config)) is not None and match[1] != digest:
            raise ImageBuildError(f"its configuration {shown(manifest.config)} is damaged: its digest differs")
        config = json.loads(text)
        problem = platform_problem(
            os=config.get("os", ""), architecture=config.get("architecture", ""), machine=machine
        )
        if problem:
            raise ImageBuildError(problem)
        digests = (config.get("rootfs") or {}).get("diff_ids") or []
        if len(digests) != len(manifest.layers):
            raise ImageBuildError(f"it has {len(manifest.layers)} layers, and its configuration {len(digests)}")
        settings = of_config(config.get("config") or {})

    def unpack_into(folder: Path) -> Lost:
        with _opened(path) as files:
            unpacker, layers = Unpacker(folder), []
            for number, layer in enumerate(manifest.layers, start=1):
                with files.open(layer) as blob:
                    layers.append(unpacker.read(_plain(blob), str(number)))
            return unpacker.place(layers, digests, owners=os.geteuid() == 0)

    return FoundImage(
        id=f"sha256:{digest}",
        content=content_of(digests, digest),
        name=name,
        source=f"the archive {path}",
        settings=settings,
        unpack=unpack_into,
    )


@contextmanager
def _opened(path: Path) -> Iterator[_ArchiveFiles]:
    """An archive's files. Raises ImageBuildError, which names it, for all that is wrong with them meanwhile."""
    with _named(str(path)), ExitStack() as undo:
        yield _ArchiveFiles(path, undo)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Name an archive in ImageBuildError, which is raised for all that is wrong with it meanwhile."""
    try:
        yield
    except ImageBuildError as error:
        raise ImageBuildError(f"{name}: {error}") from None
    except (tarfile.TarError, EOFError) as error:
        raise ImageBuildError(f"{name} is no whole archive: {error}") from None
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ImageBuildError(f"{name} is no image of a known layout: {type(error).__name__}: {error}") from None


def _manifests(files: _ArchiveFiles, machine: str) -> Iterator[_Manifest]:
    if files.has("manifest.json"):
        for item in files.json("manifest.json"):
            yield _Manifest(config=item["Config"], layers=item["Layers"] or (), names=item.get("RepoTags") or ())
    elif files.has("index.json"):
        for item in files.json("index.json")["manifests"]:
            name = (item.get("annotations") or {}).get(_NAME)
            yield from _of_descriptor(files, item, [name] if name else [], machine, 0)
    else:
        raise ImageBuildError(
            "it has neither manifest.json nor index.json: write it with `docker save`, `podman save` or `skopeo copy`"
        )


def _of_descriptor(
    files: _ArchiveFiles, descriptor: Mapping[str, Any], names: Sequence[str], machine: str, depth: int
) -> Iterator[_Manifest]:
    """The images behind a descriptor; of an index of platforms, those that run here, or else all."""
    content = files.json(_blob(descriptor))
    if "manifests" not in content or depth > _DEEPEST:
        yield _Manifest(
            config=_blob(content["config"]), layers=[_blob(layer) for layer in content["layers"]], names=names
        )
        return
    platforms = [(item, item.get("platform") or {}) for item in content["manifests"]]
    fitting = [
        item
        for item, platform in platforms
        if platform_problem(os=platform.get("os", ""), architecture=platform.get("architecture", ""), machine=machine)
        is None
    ]
    for item in fitting[:1] or content["manifests"][:1]:
        yield from _of_descriptor(files, item, names, machine, depth + 1)


def _blob(descriptor: Mapping[str, Any]) -> str:
    return "blobs/" + str(descriptor["digest"]).replace(":", "/")


def _chosen(manifests: Sequence[_Manifest], name: str) -> _Manifest:
    """Of one image, that; of several, the one of this name. Raises ImageBuildError."""
    if len(manifests) == 1:
        return manifests[0]
    full = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
    named = [item for item in manifests if any(known == full or known.endswith(f"/{full}") for known in item.names)]
    if len(named) != 1:
        names = [known for item in manifests for known in item.names]
        raise ImageBuildError(
            f"it has {len(manifests)} images{f' ({several(names)})' if names else ''}: "
            f"write which under the service's `image:`"
        )
    return named[0]


def _plain(blob: BinaryIO) -> BinaryIO:
    """A layer's archive as it is without compression. Raises ImageBuildError."""
    magic = cast(BufferedReader, blob).peek(4)
    if magic.startswith(_GZIP):
        return cast(BinaryIO, gzip.GzipFile(fileobj=blob))
    if magic.startswith(_ZSTD):
        try:
            zstd = importlib.import_module("compression.zstd")
        except ImportError:
            raise ImageBuildError(
                "a layer is compressed by zstd, which Python reads from 3.14 on: write the archive with gzip "
                "(skopeo copy --dest-compress-format gzip)"
            ) from None
        return cast(BinaryIO, zstd.ZstdFile(blob))
    return blob
