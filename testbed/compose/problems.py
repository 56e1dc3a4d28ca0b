"""What is wrong with a Compose file, each problem with its file and line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from testbed.errors import InvalidComposeError
from testbed.reading.yamltree import Where

FileLine = tuple[Path, int]
"""A file and a line of it."""


class NeedsComposeError(Exception):
    """The file uses what only Compose can read; the message says what, and on which line."""


class FileProblems:
    """The problems of a Compose file."""

    def __init__(self, path: Path, places: Mapping[Where, FileLine]) -> None:
        self._path = path
        self._places = places
        self._unread: set[Where] = set()
        self._problems: set[tuple[str, int, str]] = set()

    def add(self, where: Where, text: str, *, place: FileLine | None = None) -> None:
        """Note a part that cannot be read, at ``place`` or where it begins.

        Nothing is added for a part of something that could not be read: it follows from an earlier problem.
        """
        if place is not None or not self.known(where[:-1]):
            self._note(where, text, place)
        self._unread.add(where)

    def of_part(self, where: Where, text: str) -> None:
        """Note what is wrong with a part that was read."""
        if not self.known(where):
            self._note(where, text, None)

    def _note(self, where: Where, text: str, place: FileLine | None) -> None:
        path, line = place or self.place(where) or (self._path, 0)
        self._problems.add((str(path), line, text))

    def known(self, where: Where) -> bool:
        """Whether a part, or what contains it, could not be read."""
        return any(where[:end] in self._unread for end in range(1, len(where) + 1))

    def place(self, where: Where) -> FileLine | None:
        """Where a part stands, or the nearest one that contains it; None if that is not known."""
        return next(
            (self._places[where[:end]] for end in range(len(where), 0, -1) if where[:end] in self._places), None
        )

    def copy(self) -> FileProblems:
        """The same, to add more."""
        copied = FileProblems(self._path, self._places)
        copied._unread, copied._problems = set(self._unread), set(self._problems)
        return copied

    def __bool__(self) -> bool:
        return bool(self._problems)

    def raise_if_any(self) -> None:
        """Raise InvalidComposeError with all of them, in the order of the lines."""
        if self._problems:
            raise InvalidComposeError(
                f"{path}:{f'{line}:' if line else ''} {text}" for path, line, text in sorted(self._problems)
            )
