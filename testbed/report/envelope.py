"""What `testbed envelope` found, in words, as JSON, and as a page. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.judge.envelope import Interval
from testbed.report.comparison import escaped, markdown_table
from testbed.report.page import Charts, Curves, MatrixCell, Page, Part, Table, Text
from testbed.spec.axis import Axis
from testbed.units import format_ratio


@dataclass(frozen=True, kw_only=True)
class Column:
    """One search of one version."""

    version: str
    """``head`` or ``base``."""
    link: str
    """The value of the second word, as in ``delay=100ms``; empty without one."""
    interval: Interval
    runs: Sequence[tuple[int, int]]
    """By level: passed, failed."""
    replay: str | None
    """The command that repeats a failed run on the mildest link that had one."""


def held(axis: Axis, interval: Interval) -> str | None:
    """The worst value that holds for sure."""
    return axis.texts[interval.first - 1] if interval.first else None


def fails_from(axis: Axis, interval: Interval) -> str | None:
    """The mildest value that fails for sure."""
    return axis.texts[interval.last] if interval.last < len(axis.texts) else None


def sentence(axis: Axis, interval: Interval) -> str:
    """What is known, as a clause."""
    good, bad = held(axis, interval), fails_from(axis, interval)
    if bad == axis.texts[0]:
        return f"already fails at the mild end, {axis.word} {bad}"
    if good == axis.texts[-1]:
        return f"still passes at the bad end, {axis.word} {good}"
    known = [f"held to {axis.word} {good}"] * (good is not None) + [f"fails from {bad} on"] * (bad is not None)
    return ", ".join(known) or f"nothing known yet between {axis.word} {axis.texts[0]} and {axis.texts[-1]}"


def change(base: Interval, head: Interval) -> str:
    """``worse``, ``better``, or ``no difference found``: whether there is a level where one holds and one fails."""
    if head.last < base.first:
        return "worse"
    return "better" if base.last < head.first else "no difference found"


def sentences(axis: Axis, columns: Sequence[Column], *, probability: float, confidence: float) -> Iterator[str]:
    """The result, the most important first."""
    yield (
        f"a run passes with a probability of at least {format_ratio(probability)} "
        f"(all lines together with {format_ratio(confidence)} confidence):"
    )
    bases = _bases(columns)
    for column in columns:
        if column.version == "base":
            continue
        yield f"{column.link}: ".removeprefix(": ") + _of_head(axis, column, bases.get(column.link))
        if column.replay:
            yield f"  a failed run again: {column.replay}"


def _bases(columns: Sequence[Column]) -> dict[str, Column]:
    """Base's columns by the value of the second word."""
    return {column.link: column for column in columns if column.version == "base"}


def _of_head(axis: Axis, head: Column, base: Column | None) -> str:
    """One line; against base first in what they differ for sure."""
    if base is None:
        return f"{sentence(axis, head.interval)} ({_runs(head)})"
    direction = change(base.interval, head.interval)
    known = f"head {sentence(axis, head.interval)}; base {sentence(axis, base.interval)}"
    runs = f"{_runs(head)}, {_runs(base)}"
    if direction == "worse":
        first = f"head fails from {axis.word} {fails_from(axis, head.interval)} on; base held to"
        return f"worse: {first} {held(axis, base.interval)} ({known}; {runs})"
    if direction == "better":
        first = f"head held to {axis.word} {held(axis, head.interval)}; base fails from"
        return f"better: {first} {fails_from(axis, base.interval)} on ({known}; {runs})"
    return f"{direction}: {known} ({runs})"


def _runs(column: Column) -> str:
    passed, failed = (sum(counts) for counts in zip(*column.runs, strict=True))
    return f"{passed + failed} runs of {column.version}, {failed} failed"


def markdown(
    axis: Axis, columns: Sequence[Column], *, versions: Mapping[str, str], ended: str, probability: float,
    confidence: float,
) -> str:  # fmt: skip
    """For a pull request: the result, and every value that was run, folded away."""
    lead, *lines = sentences(axis, columns, probability=probability, confidence=confidence)
    rows = [
        (column.version, *([column.link] if column.link else []), axis.texts[level], str(passed), str(failed))
        for column in columns
        for level, (passed, failed) in enumerate(column.runs)
        if passed + failed
    ]
    heads = ("version", *(["link"] if columns[0].link else []), axis.word, "passed", "failed")
    return "\n".join(
        [
            f"### testbed: resilience envelope of {escaped(' against '.join(versions.values()))}", "",
            f"{escaped(lead)}", "", *(f"* {escaped(line)}" for line in lines), "",
            "<details>", f"<summary>{escaped(ended)}; the runs by value</summary>", "",
            *markdown_table(heads, rows), "", "</details>", "",
        ]
    )  # fmt: skip


def as_json(axis: Axis, columns: Sequence[Column]) -> Mapping[str, Any]:
    """The result as data."""
    bases = _bases(columns)
    return {
        "word": axis.word,
        "values": list(axis.texts),
        "columns": [
            {
                "version": column.version,
                "link": column.link,
                "held": held(axis, column.interval),
                "fails_from": fails_from(axis, column.interval),
                "levels_that_hold": [column.interval.first, column.interval.last],
                "passed": [passed for passed, _ in column.runs],
                "failed": [failed for _, failed in column.runs],
                "replay": column.replay,
                **(
                    {"change": change(base.interval, column.interval)}
                    if column.version == "head" and (base := bases.get(column.link))
                    else {}
                ),
            }
            for column in columns
        ],
    }


# --- the page ----------------------------------------------------------------------------------------


def page_of(
    axis: Axis, across: Axis | None, columns: Sequence[Column], *, facts: Sequence[tuple[str, str]], confidence: float
) -> Page:
    """The report: a map where two words were varied, and by column the runs at each value."""
    return Page(
        title="Resilience envelope",
        rows="version",
        lead="; ".join(_lead(axis, columns)) + f". All together with {format_ratio(confidence)} confidence.",
        facts=facts,
        before=[*_overview(axis, across, columns)],
        cells=[_cell(axis, column) for column in columns],
        open_first=True,
    )


def _overview(axis: Axis, across: Axis | None, columns: Sequence[Column]) -> Iterator[Part]:
    """What the cells below have apart: the map, or both versions in one chart."""
    if across is not None:
        yield Charts(title="Map", charts=[_map(axis, across, columns)])
    elif len(columns) > 1:
        yield Charts(title="Base and head", charts=[_shares(axis, columns)])


def _lead(axis: Axis, columns: Sequence[Column]) -> Iterator[str]:
    bases = _bases(columns)
    for column in columns:
        base = bases.get(column.link) if column.version == "head" else None
        against = f" ({change(base.interval, column.interval)})" if base is not None else ""
        yield f"{column.version} {column.link}".strip() + f": {sentence(axis, column.interval)}{against}"


def _map(axis: Axis, across: Axis, columns: Sequence[Column]) -> Curves:
    """For each value of the second word, the worst of the first that holds, and the mildest that fails.

    Between two values of the second word holds what holds at the worse one, and fails what fails at the milder one.
    """
    xs, ys = _drawn(across), _drawn(axis)
    curves: dict[str, list[tuple[float, float]]] = {}
    places = {across.at(number): x for number, x in enumerate(xs)}
    for column in columns:
        x, interval = places[column.link], column.interval
        if interval.first:
            line = curves.setdefault(f"{column.version} held to", [])
            line += [*([(line[-1][0], ys[interval.first - 1])] if line else []), (x, ys[interval.first - 1])]
        if interval.last < len(ys):
            line = curves.setdefault(f"{column.version} fails from", [])
            line += [*([(x, line[-1][1])] if line else []), (x, ys[interval.last])]
    return Curves(
        title=f"The worst {axis.word} that holds",
        x=f"{across.word} ({_unit(across)})",
        y=f"{axis.word} ({_unit(axis)})",
        curves=curves,
        dashed=[name for name in curves if name.endswith("fails from")],
    )


def _unit(axis: Axis) -> str:
    unit = re.sub(r"[\d.]", "", axis.texts[-1])
    return "bit/s" if unit.endswith("bit") else "s" if unit.endswith("s") else unit or "count"


def _drawn(axis: Axis) -> list[float]:
    """The values in the unit of `_unit`."""
    return [value * 100 if _unit(axis) == "%" else value for value in axis.values]


def _cell(axis: Axis, column: Column) -> MatrixCell:
    interval = column.interval
    known = held(axis, interval) is not None or fails_from(axis, interval) is not None
    rows = [
        (axis.texts[level], str(passed), str(failed))
        for level, (passed, failed) in enumerate(column.runs)
        if passed + failed
    ]
    parts: list[Part] = [
        Charts(title="Runs", charts=[_shares(axis, [column])]),
        Table(title="Runs by value", heads=(axis.word, "passed", "failed"), rows=rows, numeric_from=1),
    ]
    if column.replay:
        parts.append(
            Text(title="A failed run again, on the mildest link that had one", text=column.replay, copied=True)
        )
    return MatrixCell(
        row=column.version,
        column=column.link or axis.word,
        word=sentence(axis, interval),
        tone="none" if known else "odd",
        parts=parts,
    )


def _shares(axis: Axis, columns: Sequence[Column]) -> Curves:
    """By version, the share of runs that passed at each value."""
    xs = _drawn(axis)
    curves = {
        column.version: [
            (xs[level], passed / (passed + failed))
            for level, (passed, failed) in enumerate(column.runs)
            if passed + failed
        ]
        for column in columns
    }
    return Curves(title="Share of runs that passed", x=f"{axis.word} ({_unit(axis)})", y="share", curves=curves)
