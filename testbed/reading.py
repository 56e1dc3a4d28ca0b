"""Files of the user's: the one way in which they are read. Regular files alone, of a bounded size, as UTF-8.

A FIFO, a device or a folder where a file is meant is refused and never waited for; a file of YAML is looked through for
its depth and its parts, aliases multiplied out, before anything is built of it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from testbed.errors import InvalidValueError
from testbed.text import shortened, visible

MOST_BYTES = 8 << 20
MOST_TRACE_BYTES = 64 << 20
"""Of a trace, or a table of delays."""
_MOST_PARTS = 100_000
_DEEPEST = 64
_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}  # fmt: skip


class UnreadableError(InvalidValueError):
    """A file that cannot be read, or is none; ``reason`` without its path, ``line`` 0 for the whole file."""

    def __init__(self, path: str | os.PathLike[str], reason: str, *, line: int = 0) -> None:
        self.reason, self.line = reason, line
        super().__init__(f"{shortened(visible(os.fspath(path)))}{f':{line}' if line else ''}: {reason}")


def read_bytes(path: str | os.PathLike[str], *, most_bytes: int = MOST_BYTES) -> bytes:
    """What is in a file. Raises UnreadableError for one that is no regular file, too large, or not to be read."""
    try:
        _check(path, os.stat(path), most_bytes)  # a device does something as soon as it is opened
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            _check(path, found, most_bytes)  # it may be another by now
            return file.read(found.st_size)  # in /proc, files have no size, and some no end
    except OSError as error:
        raise UnreadableError(path, f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UnreadableError(path, f"is no path: {error}") from None


def _check(path: str | os.PathLike[str], found: os.stat_result, most_bytes: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise UnreadableError(path, f"is {_KINDS.get(stat.S_IFMT(found.st_mode), 'something else')}, and no file")
    if found.st_size > most_bytes:
        raise UnreadableError(path, f"has {found.st_size} bytes; at most {most_bytes} are read")


def read_text(path: str | os.PathLike[str], *, most_bytes: int = MOST_BYTES) -> str:
    """What a file says. Raises UnreadableError, with the line that is not UTF-8."""
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
    """Whether there is something of this name, of whatever kind; a symbolic link that leads nowhere is."""
    try:
        return os.path.lexists(path)
    except ValueError:
        return False


def is_below(path: str | os.PathLike[str], folders: Iterable[Path]) -> bool:
    """Whether a file lies in one of the folders, symbolic links followed: what is in it may be quoted."""
    real = os.path.realpath(path)
    return any(real.startswith(f"{os.path.realpath(folder)}{os.sep}") for folder in folders)


def yaml_excess(text: str) -> tuple[int, str] | None:
    """The line on which a document has become larger or deeper than one that is meant, and the words for it.

    Aliases count as what they stand for. What is not YAML is for the reader of it to tell.
    """
    import yaml  # 30 ms, of no use to a session without files

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    known: dict[str, int] = {}
    stack: list[tuple[str | None, int]] = []
    parts = 0
    try:
        for event in yaml.parse(text, Loader=loader):
            anchor = getattr(event, "anchor", None)
            if isinstance(event, yaml.AliasEvent):
                parts += known.get(str(anchor), 1)  # of something that it is in, the reader of the document tells
            elif isinstance(event, yaml.ScalarEvent):
                parts += 1
                known[str(anchor)] = 1
            elif isinstance(event, yaml.CollectionStartEvent):
                stack.append((anchor, parts))
                parts += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, before = stack.pop()
                known[str(anchor)] = parts - before
            line = event.start_mark.line + 1 if event.start_mark is not None else 1
            if len(stack) > _DEEPEST:
                return line, f"nested more than {_DEEPEST} deep"
            if parts > _MOST_PARTS:
                return line, f"more than {_MOST_PARTS} keys and values, aliases multiplied out"
    except (yaml.YAMLError, ValueError, OverflowError):
        return None
    return None
