"""Reads and checks the journal of a program: JSON lines. The programs in images/ write it (images/README.md).

A row is the array of one line, as it was written: the kind, then the columns of its record in `ROWS`. Rows are lists,
because a journal has millions of them. Times are nanoseconds of CLOCK_MONOTONIC, which all containers of one engine
share; sizes are bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, get_args, get_type_hints

from testbed.errors import InvalidValueError

VERSION = 1
TRANSPORTS = ("tcp", "udp")
STATES = ("whole", "truncated", "corrupt")


class BeginRow(NamedTuple):
    """A process began to write."""

    kind: str
    time_ns: int
    pid: int


class ConnectRow(NamedTuple):
    """A connection was opened; connecting began at ``began_ns``."""

    kind: str
    time_ns: int
    conn: int
    began_ns: int
    local: str
    peer: str


class AcceptRow(NamedTuple):
    """A connection was accepted."""

    kind: str
    time_ns: int
    conn: int
    local: str
    peer: str


class SentRow(NamedTuple):
    """A message was sent: its size, what the program believes sent, and what the kernel took."""

    kind: str
    time_ns: int
    conn: int
    flow: int
    sequence: int
    size_bytes: int
    believed_bytes: int
    taken_bytes: int


class ReceivedRow(NamedTuple):
    """A message arrived; None where it is unreadable."""

    kind: str
    time_ns: int
    conn: int
    flow: int | None
    sequence: int | None
    size_bytes: int
    sent_ns: int | None
    state: str
    """One of `STATES`."""


class ControlRow(NamedTuple):
    """A datagram without a message was ``sent`` or ``received``."""

    kind: str
    time_ns: int
    conn: int
    flow: int
    direction: str


class ErrorRow(NamedTuple):
    """An operation failed."""

    kind: str
    time_ns: int
    conn: int | None
    operation: str
    errno: int | None
    text: str


class CloseRow(NamedTuple):
    """A connection was closed, with bytes unread or not acknowledged; None where unknown."""

    kind: str
    time_ns: int
    conn: int
    why: str
    unread_bytes: int | None
    unsent_bytes: int | None


class EndRow(NamedTuple):
    """A process ended after writing so many lines."""

    kind: str
    time_ns: int
    pid: int
    lines: int


ROWS: dict[str, type[NamedTuple]] = {
    "begin": BeginRow,
    "connect": ConnectRow,
    "accept": AcceptRow,
    "sent": SentRow,
    "received": ReceivedRow,
    "control": ControlRow,
    "error": ErrorRow,
    "close": CloseRow,
    "end": EndRow,
}
"""The record of each kind of row: ``SentRow._make(row).size_bytes``."""
_COLUMNS = {
    kind: {name: get_args(types) or (types,) for name, types in get_type_hints(record).items() if name != "kind"}
    for kind, record in ROWS.items()
}
"""Columns of each kind of row, in order, with the types of their values."""

_LINES_AT_ONCE = 1000
_MOST_PROBLEMS = 10

JournalRow = list[Any]


@dataclass(frozen=True, kw_only=True)
class Header:
    """The first line of a journal."""

    program: str
    transport: str


class Journal:
    """A program's journal: its header, and its rows in blocks, read on demand.

    ``lines``: as bytes or text; ``name``: the program's, for errors and accounts. Raises InvalidValueError naming the
    lines: at once for a wrong header, while reading for wrong rows.
    """

    def __init__(self, lines: Iterable[str | bytes], *, name: str) -> None:
        self.name = name
        self._lines = iter(lines)
        self.header = self._read_header()
        self.cut_short: str | None = None
        """Once all was read: why the journal is incomplete; None if it is complete."""

    @classmethod
    def of(cls, content: bytes, *, name: str) -> Journal:
        """The journal in a file's content."""
        return cls(content.splitlines(keepends=True), name=name)

    def _read_header(self) -> Header:
        line = next(self._lines, b"")
        try:
            first = json.loads(line)
        except ValueError:
            first = None
        if not isinstance(first, dict) or first.get("journal") != "testbed":
            raise InvalidValueError(
                f"journal of {self.name}: line 1 is {_quoted(line)}; "
                f'a journal begins with {{"journal": "testbed", "version": {VERSION}, …}}'
            )
        problems = []
        if first.get("version") != VERSION:
            problems.append(f"journal of {self.name}: version {first.get('version')!r}; this testbed reads {VERSION}")
        if first.get("transport") not in TRANSPORTS:
            problems.append(
                f"journal of {self.name}: transport {first.get('transport')!r}; known: {', '.join(TRANSPORTS)}"
            )
        if problems:
            raise InvalidValueError(problems)
        return Header(program=str(first.get("program", "")), transport=first["transport"])

    def blocks(self) -> Iterator[list[JournalRow]]:
        """The rows, up to a thousand at a time. Raises InvalidValueError with the first ten wrong lines."""
        number, begun, ended, counted = 2, 0, 0, 0
        cut = None
        while lines := list(islice(self._lines, _LINES_AT_ONCE)):
            if lines[-1][-1:] not in (b"\n", "\n"):
                cut = f"its last line breaks off: {_quoted(lines.pop())}"
            rows = self._rows(lines, number)
            for row in rows:
                if row[0] == "begin":
                    begun += 1
                elif row[0] == "end":
                    ended += 1
                    counted += EndRow(*row).lines
            number += len(rows)
            if rows:
                yield rows
        written = number - 2
        if cut is None and (not begun or ended < begun):
            cut = f"{begun - ended} of its {begun} processes wrote no end: killed?"
        if cut is None and counted != written:
            cut = f"its processes report {counted} lines, it has {written}"
        self.cut_short = cut

    def rows(self, kind: str) -> Iterator[JournalRow]:
        """Its rows of one kind; see `blocks`."""
        return (row for block in self.blocks() for row in block if row[0] == kind)

    def _rows(self, lines: list[Any], number: int) -> list[JournalRow]:
        """The rows of some lines, by one call of the JSON reader; one call per line only to find errors."""
        if not lines:
            return []
        try:
            rows = json.loads(b"[%b]" % b",".join(lines) if isinstance(lines[0], bytes) else f"[{','.join(lines)}]")
            if len(rows) == len(lines) and _all_well(rows):
                return rows  # type: ignore[no-any-return]  # all were checked
        except (ValueError, TypeError, LookupError):
            pass  # reported below, with its line
        problems = []
        for offset, line in enumerate(lines):
            try:
                problem = _problem(json.loads(line))
            except ValueError as error:
                problem = f"no JSON: {error}"
            if problem is not None:
                problems.append(f"journal of {self.name}, line {number + offset}: {_quoted(line)}: {problem}")
        raise InvalidValueError(problems[:_MOST_PROBLEMS])


def _all_well(rows: list[JournalRow]) -> bool:
    """Whether nothing is wrong with any row; messages, the most frequent rows, are checked column by column."""
    for kind in ("sent", "received"):
        if not (alike := [row for row in rows if row[0] == kind]):
            continue
        columns = list(zip(*alike, strict=True))[1:]
        if [set(map(type, column)) for column in columns] != _USUAL[kind] or (
            kind == "received" and not set(columns[-1]) <= _KNOWN_STATES
        ):
            break  # null columns, for instance: every row is checked below
    else:
        return all(row[0] in _USUAL or _problem(row) is None for row in rows)
    return all(_problem(row) is None for row in rows)


_USUAL = {"sent": [{int}] * 7, "received": [{int}] * 6 + [{str}]}
_KNOWN_STATES = set(STATES)


def _problem(row: Any) -> str | None:
    """What is wrong with a row; None if nothing is."""
    if not isinstance(row, list) or not row or not isinstance(row[0], str):
        return 'not an array that begins with a word, as ["sent", …]'
    columns = _COLUMNS.get(row[0])
    if columns is None:
        return f"unknown kind {row[0]!r}; known: {', '.join(_COLUMNS)}"
    if len(row) != len(columns) + 1:
        return f"{len(row) - 1} columns; {row[0]!r} has {len(columns)}: {', '.join(columns)}"
    for (name, types), value in zip(columns.items(), row[1:], strict=True):
        if type(value) not in types:
            return f"{name} is {json.dumps(value)}; it is {' or '.join(_WORDS[kind] for kind in types)}"
    if row[0] == "received" and (state := ReceivedRow(*row).state) not in STATES:
        return f"state {state!r}; known: {', '.join(STATES)}"
    return None


_WORDS: dict[type, str] = {int: "a whole number", str: "a text", type(None): "null"}


def _quoted(line: str | bytes, most: int = 120) -> str:
    text = line.decode(errors="replace") if isinstance(line, bytes) else line
    text = text.rstrip("\n")
    return repr(text if len(text) <= most else text[:most] + "…")
