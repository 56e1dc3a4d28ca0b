"""The user's files, read in one way: regular files only, of bounded size, as UTF-8.

A FIFO, a device or a folder in place of a file is refused at once. YAML is read by `testbed.reading.yamltree`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from testbed.errors import InvalidValueError
from testbed.text import shortened, visible

MOST_BYTES = 8 << 20
MOST_TRACE_BYTES = 64 << 20
"""The largest trace."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


class UnreadableError(InvalidValueError):
    """A file that cannot be read, or is not a file; ``reason`` without its path, ``line`` 0 for the whole file."""

    def __init__(self, path: str | os.PathLike[str], reason: str, *, line: int = 0) -> None:
        self.reason, self.line = reason, line
        super().__init__(f"{shortened(visible(os.fspath(path)))}{f':{line}' if line else ''}: {reason}")


def read_bytes(path: str | os.PathLike[str], *, most_bytes: int = MOST_BYTES) -> bytes:
    """The content of a file. Raises UnreadableError if it is not a regular file, too large, or unreadable."""
    try:
        _check(path, os.stat(path), most_bytes)  # a device does something as soon as it is opened
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            _check(path, status, most_bytes)  # the file may have been replaced meanwhile
            return file.read(status.st_size)  # in /proc, files have no size, and some have no end
    except OSError as error:
        raise UnreadableError(path, f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UnreadableError(path, f"is no path: {error}") from None


def _check(path: str | os.PathLike[str], status: os.stat_result, most_bytes: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableError(path, f"is {_KINDS.get(stat.S_IFMT(status.st_mode), 'something else')}, and no file")
    if status.st_size > most_bytes:
        raise UnreadableError(path, f"has {status.st_size} bytes; at most {most_bytes} are read")


def read_text(path: str | os.PathLike[str], *, most_bytes: int = MOST_BYTES) -> str:
    """The text of a file. Raises UnreadableError, with the line that is not UTF-8."""
    data = read_bytes(path, most_bytes=most_bytes)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        wide = " (UTF-16, by its first bytes)" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise UnreadableError(
            path, f"is not UTF-8: byte 0x{data[error.start]:02x}{wide}; save it as UTF-8", line=line
        ) from None


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether a path exists, of whatever kind; a dangling symbolic link does."""
    try:
        return os.path.lexists(path)
    except ValueError:
        return False


def is_below(path: str | os.PathLike[str], folders: Iterable[Path]) -> bool:
    """Whether a file lies in one of the folders, symbolic links followed: its content may be quoted."""
    real = os.path.realpath(path)
    return any(real.startswith(f"{os.path.realpath(folder)}{os.sep}") for folder in folders)
