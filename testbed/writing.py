"""Files written whole or not at all, and files of lines; never through a symbolic link."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path
from typing import BinaryIO

_MODE = 0o666  # minus the user's umask


def refuse_links(path: Path, below: Path) -> None:
    """Raise OSError if a path, or a folder between ``below`` and it, is a symbolic link.

    Links above ``below``, or on the way to a path elsewhere, are the user's own arrangement.
    """
    path, below = path.absolute(), below.absolute()
    inside = path.relative_to(below).parts if path.is_relative_to(below) else (path.name,)
    place = below if path.is_relative_to(below) else path.parent
    for part in inside:
        place /= part
        if place.is_symlink():
            raise OSError(errno.ELOOP, f"{place} is a symbolic link; testbed does not write through links")


def make_room(path: Path, below: Path) -> None:
    """Make the folder of a file, and check that a file can be written there. Raises OSError."""
    refuse_links(path, below)
    if path.parent.exists() and not path.parent.is_dir():
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    _temporary(path, b"").unlink()


def write_whole(path: Path, content: str | bytes, *, below: Path) -> None:
    """Write a file so that a reader sees the old file or the new one, never a part. Raises OSError."""
    refuse_links(path, below)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = _temporary(path, content.encode() if isinstance(content, str) else content)
    try:
        beside.replace(path)
    except OSError:
        beside.unlink()
        raise


def _temporary(path: Path, data: bytes) -> Path:
    beside = path.with_name(f".testbed-{secrets.token_hex(6)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(beside, flags, _MODE), "wb") as file:
        try:
            file.write(data)
            file.flush()
        except OSError:
            beside.unlink()
            raise
    return beside


def to_append(path: Path, *, below: Path) -> BinaryIO:
    """A file open for more at its end. Raises OSError."""
    refuse_links(path, below)
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE), "ab")


class LineFile:
    """A new file of lines; a line that was appended stays, even if the process is killed."""

    def __init__(self, path: Path, *, below: Path) -> None:
        """Raises OSError."""
        refuse_links(path, below)
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = open(os.open(path, flags, _MODE), "wb", buffering=0)  # noqa: SIM115  # closed by `close`

    def append(self, line: str) -> None:
        """Write a line. Raises OSError."""
        data = memoryview(f"{line}\n".encode())
        while data:
            data = data[self._file.write(data) :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()
