"""Results files on the disk."""

from __future__ import annotations

from pathlib import Path

from testbed.evidence import stored
from testbed.evidence.results import HEAD_CHARACTERS, is_head
from testbed.evidence.stored import Session
from testbed.reading import read_text

_MOST_BYTES = 1 << 30


def is_results(path: Path) -> bool:
    """Whether a path is a session's results; a FIFO or a device is none, and is not opened."""
    try:
        if not path.is_file():
            return False
        with path.open(encoding="utf-8") as lines:
            return is_head(lines.readline(HEAD_CHARACTERS))
    except (OSError, ValueError):
        return False


def load(path: Path) -> Session:
    """The session of a results file. Raises UnreadableError, or InvalidValueError with every problem."""
    return stored.read(read_text(path, most_bytes=_MOST_BYTES).splitlines(keepends=True), name=str(path))
