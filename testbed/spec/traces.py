"""The rows of a trace file. Pure: callers read the files.

A file whose name ends in ``.csv`` has a header with ``time`` and any of ``rate``, ``delay``, ``loss``; units stand in
the header (``delay_ms``, ``rate [kbit]``) or in each cell; an empty cell changes nothing; rate 0 holds packets back
until there is a rate again. Any other file is a Mahimahi packet-delivery trace (mm-link(1)): each line is a
millisecond at which 1500 bytes may leave, and after its last line the trace begins again.
"""

from __future__ import annotations

import csv
import math
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from testbed import units
from testbed.errors import InvalidValueError
from testbed.spec.features import WORDS
from testbed.spec.words import unknown
from testbed.text import shown

OPPORTUNITY_BYTES = 1500
"""Bytes that may leave at each line of a Mahimahi trace (Netravali et al., "Mahimahi", USENIX ATC 2015)."""
WINDOW_S = 0.1
"""Default window over which a Mahimahi trace's opportunities are averaged; seconds."""
COLUMNS = ("time", "rate", "delay", "loss")
"""The columns that a CSV may have."""
LONGEST_S = 86_400.0
"""The latest time of a trace, and of a timeline: a day; seconds."""
_MOST_ROWS = 100_000
_MOST_DIGITS = 12
_HEADING = re.compile(r"\s*(?P<name>[A-Za-z]+)(?:[\s_/(\[]+(?P<unit>[^\s\])]+)[\])]?)?\s*")
_LINE = re.compile(r"[^\n]*(?:\n|\Z)")
_ZERO = re.compile(r"\s*0*\.?0+\s*(?:[a-zA-Z/]*)\s*")


def is_csv(name: str) -> bool:
    """Whether a trace is a CSV, by its name; any other is a Mahimahi trace."""
    return name.lower().endswith(".csv")


@dataclass(frozen=True, kw_only=True)
class TraceRow:
    """What a trace sets from a time on."""

    line: int
    at_s: float
    words: Mapping[str, object]
    rate_bps: float | None = None
    """Bits per second; 0: packets are held; None: not set."""


def csv_rows(text: str) -> list[TraceRow]:
    """The rows of a CSV trace. Lines that are empty or begin with ``#`` are skipped.

    Raises InvalidValueError with every problem, behind its line's number.
    """
    if text.count("\n") > 2 * _MOST_ROWS:
        raise InvalidValueError(f"has {text.count(chr(10))} lines; at most {_MOST_ROWS}")
    lines = [
        (number, line)
        for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not lines:
        raise InvalidValueError("is empty; its first line must name the columns: time, rate, delay, loss")
    if len(lines) > _MOST_ROWS:
        raise InvalidValueError(f"has {len(lines)} lines; at most {_MOST_ROWS}")
    cells = [_cells(number, line) for number, line in lines]
    columns = _headings(lines[0][0], cells[0])
    problems: list[str] = []
    rows: list[TraceRow] = []
    rate_bps: float | None = None
    for (number, _), row in zip(lines[1:], cells[1:], strict=True):
        if len(row) != len(columns):
            problems.append(f"line {number}: {len(row)} cells where the header has {len(columns)} columns")
            continue
        words = {
            column: cell.strip() + (unit or "")
            for (column, unit), cell in zip(columns, row, strict=True)
            if cell.strip() or column == "time"
        }
        try:
            at_s = units.parse_time(words.pop("time"), name="time")
            if "rate" in words:
                rate = words.pop("rate")
                rate_bps = 0.0 if _ZERO.fullmatch(rate) else units.parse_rate(rate, name="rate")
            for column, value in words.items():
                WORDS[column].read(value)
        except InvalidValueError as error:
            problems += [f"line {number}: {problem}" for problem in error.problems]
            continue
        if rows and at_s <= rows[-1].at_s:
            last = units.format_time(rows[-1].at_s)
            problems.append(f"line {number}: time={shown(row[0])}: not after {last}, the line before it")
            continue
        if at_s > LONGEST_S:
            problems.append(f"line {number}: time={units.format_time(at_s)}: later than a day")
            continue
        rows.append(TraceRow(line=number, at_s=at_s, words=words, rate_bps=rate_bps))
    if not rows and not problems:
        problems.append("has a header and no line behind it")
    if problems:
        raise InvalidValueError(problems)
    return rows


def _cells(number: int, line: str) -> list[str]:
    """The cells of a line. Raises InvalidValueError."""
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error as error:
        raise InvalidValueError(f"line {number}: {error}: {shown(line)}") from None


def _headings(number: int, cells: Sequence[str]) -> list[tuple[str, str | None]]:
    """The columns of a header, each with its unit, if it has one."""
    columns: list[tuple[str, str | None]] = []
    problems: list[str] = []
    for cell in cells:
        match = _HEADING.fullmatch(cell)
        name = match["name"].lower() if match else cell.strip()
        if match is None or name not in COLUMNS:
            problems.append(f"line {number}: column {shown(cell.strip())}: {unknown(name, COLUMNS)}")
            continue
        if name in [known for known, _ in columns]:
            problems.append(f"line {number}: column {shown(name)} stands twice")
        unit = match["unit"]
        if unit is not None:
            read = WORDS["delay" if name == "time" else name].read
            try:
                read(f"1{unit}")
            except InvalidValueError as error:
                problems += [f"line {number}: column {shown(cell.strip())}: {problem}" for problem in error.problems]
        columns.append((name, unit))
    names = [name for name, _ in columns]
    if not problems and ("time" not in names or len(names) < 2):
        problems.append(f"line {number}: needs a column time and at least one of rate, delay, loss")
    if problems:
        raise InvalidValueError(problems)
    return columns


def mahimahi_rows(text: str, *, window_s: float = WINDOW_S) -> list[TraceRow]:
    """The rates of a Mahimahi trace, averaged over windows; the last row is the trace's end and sets nothing.

    A window's packets leave at its mean rate: the bytes of each window, and of the whole, are the trace's, bursts
    within a window are not. A rest shorter than half a window belongs to the window before it. A window without
    opportunities is a hold.
    """
    times = array("q")
    problems: list[str] = []
    for number, line in enumerate(_LINE.finditer(text), start=1):
        word = line[0].strip()
        if not word:
            continue
        if not word.isdecimal() or len(word) > _MOST_DIGITS:
            problems.append(f"line {number}: {shown(word[:40])}: not a whole number of milliseconds")
            continue
        time_ms = int(word)
        if times and time_ms < times[-1]:
            problems.append(f"line {number}: {time_ms} comes before {times[-1]}, the line before it")
            continue
        times.append(time_ms)
    if not problems and (not times or times[-1] == 0):
        problems.append("has no opportunity after 0 ms, so it would begin again at once; is it a Mahimahi trace?")
    elif not problems and times[-1] / 1000 > LONGEST_S:
        problems.append(f"lasts {times[-1]} ms; at most a day")
    if problems:
        raise InvalidValueError(problems)
    window_ms = round(window_s * 1000)
    windows = max(1, math.floor(times[-1] / window_ms + 0.5))
    counts = [0] * windows
    for time_ms in times:
        counts[min(max(time_ms - 1, 0) // window_ms, windows - 1)] += 1
    edges = [number * window_ms for number in range(windows)] + [times[-1]]
    rows: list[TraceRow] = []
    for (begin, end), count in zip(pairwise(edges), counts, strict=True):
        rate_bps = count * OPPORTUNITY_BYTES * 8 * 1000 / (end - begin)
        if not rows or rows[-1].rate_bps != rate_bps:
            rows.append(TraceRow(line=len(rows) + 1, at_s=begin / 1000, words={}, rate_bps=rate_bps))
    return [*rows, TraceRow(line=0, at_s=times[-1] / 1000, words={})]
