"""Archives of images, made in memory: layers, configurations, and the two layouts."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


def entry(name: str, content: bytes | None = None, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """An entry: a file with this content; or, without, of the kind that ``type`` says. Fields: tarfile's."""
    info = tarfile.TarInfo(name)
    info.type, info.mode = (tarfile.DIRTYPE, 0o755) if content is None else (tarfile.REGTYPE, 0o644)
    info.size = len(content or b"")
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content or b""


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    """A symbolic link, or a hard one."""
    return entry(name, type=kind, linkname=target, mode=0o777)


def layer(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A layer's archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def configuration(layers: Sequence[bytes], *, architecture: str = MACHINE, **config: Any) -> bytes:
    """The configuration of an image with these layers. ``config``: Cmd, User, …"""
    digests = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers]
    rootfs = {"type": "layers", "diff_ids": digests}
    return json.dumps({"os": "linux", "architecture": architecture, "config": config, "rootfs": rootfs}).encode()


def image_id(config: bytes) -> str:
    """The id of an image with this configuration."""
    return f"sha256:{hashlib.sha256(config).hexdigest()}"


def docker_files(layers: Sequence[bytes], config: bytes, names: Sequence[str] = ("image:1",)) -> dict[str, bytes]:
    """The files of an archive as `docker save` writes it."""
    files = {f"{number}/layer.tar": data for number, data in enumerate(layers)}
    files[f"{hashlib.sha256(config).hexdigest()}.json"] = config
    manifest = [{"Config": list(files)[-1], "RepoTags": list(names), "Layers": list(files)[:-1]}]
    return {**files, "manifest.json": json.dumps(manifest).encode()}


def oci_files(layers: Sequence[bytes], config: bytes, *, gzipped: bool = True) -> dict[str, bytes]:
    """The files of an OCI layout."""
    files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}

    def add(data: bytes) -> Mapping[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        files[f"blobs/sha256/{digest}"] = data
        return {"digest": f"sha256:{digest}", "size": len(data)}

    stored = [add(gzip.compress(data, mtime=0) if gzipped else data) for data in layers]
    manifest = add(json.dumps({"schemaVersion": 2, "config": add(config), "layers": stored}).encode())
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [manifest]}).encode()
    return files


def archive(files: Mapping[str, bytes]) -> bytes:
    """The tar archive of these files."""
    return layer(*(entry(name, content) for name, content in files.items()))


def write(files: Mapping[str, bytes], folder: Path) -> Path:
    """The same files in a folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder
