"""A comparison of two versions in words: lines, a table, Markdown, JSON. What matters most comes first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from testbed.evidence.metric import in_unit
from testbed.judge.cells import Cell, Kind
from testbed.judge.changes import Change, Judged, Seeds
from testbed.judge.comparison import Broken, Comparison
from testbed.judge.exact import Parting
from testbed.text import several, shortened, visible

LINES_THAT_MATTER = 5
_MOST_LISTED = 3
_MOST_REASON = 200
_MOST_SAME = 20
"""Cells without a change that are in the terminal's table."""
_STYLES = {Change.REGRESSED: "bold red", Change.IMPROVED: "green", Change.UNDECIDED: "yellow", Change.SAME: "dim"}
_ORDER = list(Change)


def headline(comparison: Comparison) -> str:
    """The verdict in one line."""
    counts = ", ".join(f"{len(cells)} {change}" for change in Change if (cells := comparison.of(change)))
    runs = (
        f"{comparison.base_runs} {'seeds in virtual time' if comparison.exact else 'pairs'}"
        if comparison.paired
        else (f"{comparison.base_runs} runs of base and {comparison.head_runs} of head")
    )
    across = f", across different {' and '.join(comparison.across)}" if comparison.across else ""
    return f"{str(comparison.change).upper()}{across}: {counts or 'nothing could be judged'} ({runs})"


def matters(comparison: Comparison, most: int = LINES_THAT_MATTER) -> list[str]:
    """The lines that matter most: tests that fail now, what regressed, what is undecided, what does not count."""
    lines = [headline(comparison), *map(broken_line, comparison.broken)]
    lines += [f"{test}: failed in every run of both, so nothing else of it was compared" for test in comparison.failing]
    lines += [cell_line(judged) for judged in _by_size(comparison.of(Change.REGRESSED)) if not judged.cell.of_outcome]
    lines += [f"cannot be compared: {problem}" for problem in comparison.problems]
    lines += [cell_line(judged) for judged in comparison.waiting if not _is_broken(comparison, judged)]
    lines += [cell_line(judged) for judged in _by_size(comparison.of(Change.IMPROVED))]
    lines.append(how(comparison))
    return lines[:most]


def broken_line(broken: Broken) -> str:
    """A test that fails more often now, and the line that repeats it."""
    reason = shortened(" ".join(broken.reason.split()), _MOST_REASON)
    return (
        f"{broken.test} ({broken.links}): failed in {broken.head_failed} of {broken.head_runs} runs of head, "
        f"{broken.base_failed} of {broken.base_runs} of base ({broken.change})"
        f"{f': {reason}' if reason else ''}{f'; again: {broken.replay}' if broken.replay else ''}"
    )


def cell_line(judged: Judged) -> str:
    """A cell and its verdict in a sentence."""
    cell = judged.cell
    seeds = f"; {seeds_in_words(judged.seeds)}" if judged.seeds is not None else ""
    return f"{cell.test}: {cell.name} ({cell.links}): {judged.change}: {effect(judged)}{seeds}{_outlook(judged)}"


def seeds_in_words(seeds: Seeds) -> str:
    """Under how many seeds a cell is what."""
    if seeds.identical == seeds.of:
        return f"identical under all {seeds.of} seeds"
    counts = [
        f"{word} under {count}" for word, count in (("worse", seeds.worse), ("better", seeds.better)) if count
    ] or ["different, by less than matters, under " + str(seeds.of - seeds.identical)]
    return f"{' and '.join(counts)} of {seeds.of} seeds"


def parting_line(parting: Parting) -> str:
    """Where a test of head first is not what it was on base."""
    return (
        f"{parting.test}: differs under {parting.differing} of {parting.seeds} seeds; first under seed {parting.seed}, "
        f"in {parting.what}: {parting.base} in base, {parting.head} in head"
    )


def how(comparison: Comparison) -> str:
    """By what the versions were compared."""
    pairing = "paired by seed" if comparison.paired else "two independent samples: no seed is in both"
    if comparison.exact:
        pairing = (
            "seed by seed in virtual time: what is identical is so for certain, and each difference is the version's"
        )
    parts = [f"{pairing}, false alarms at most {comparison.alpha:.0%} over {len(comparison.judged)} cells"]
    if comparison.one_after_other:
        parts.append("one version was run after the other, so what the machine did meanwhile counts as a difference")
    if comparison.thrown_away:
        parts.append(f"{len(comparison.thrown_away)} thrown away as INVALID ({comparison.thrown_away[0]})")
    if comparison.unmatched:
        parts.append(f"{comparison.unmatched} runs left out: their seed is in one version alone")
    return "; ".join(parts)


def effect(judged: Judged) -> str:
    """The difference between base and head, and where it lies for sure."""
    cell = judged.cell
    low, high = (_amount(cell, bound) for bound in (judged.low, judged.high))
    base, head = (_value(cell, values) for values in (cell.base, cell.head))
    sure = "" if math.isinf(judged.low) and math.isinf(judged.high) else f" [{low} to {high}]"
    return f"{_amount(cell, judged.effect)}{sure}, {base} to {head}"


def _outlook(judged: Judged) -> str:
    if judged.change is not Change.UNDECIDED:
        return ""
    findable = "" if judged.findable is None else f"; {_amount(judged.cell, judged.findable)} would have been found"
    return f"{findable}; {more_in_words(judged)}"


def more_in_words(judged: Judged) -> str:
    """What it would take to decide an undecided cell."""
    return "no number like these would decide it" if judged.more is None else f"about {judged.more} more decide it"


def _is_broken(comparison: Comparison, judged: Judged) -> bool:
    return judged.cell.of_outcome and judged.cell.test in {broken.test for broken in comparison.broken}


def _by_size(judged: Sequence[Judged]) -> list[Judged]:
    return sorted(judged, key=lambda cell: -abs(cell.effect) if math.isfinite(cell.effect) else -math.inf)


def _amount(cell: Cell, value: float) -> str:
    if not math.isfinite(value):
        return "?"
    if cell.kind is Kind.DIFFERENCE or cell.unit == "count":
        return f"{value + 0:+.3g}"
    return f"{round(value * 100, 1) + 0:+.1f} points" if cell.kind is Kind.COUNT else f"{value:+.1%}"


def _value(cell: Cell, values: Sequence[float]) -> str:
    middle = sum(values) / len(values) if cell.kind is Kind.COUNT else sorted(values)[len(values) // 2]
    if cell.kind is Kind.COUNT and cell.unit != "count":
        return f"{middle:.1%}"
    return in_unit(middle, cell.unit)


def rows(comparison: Comparison) -> Iterator[tuple[Judged, tuple[str, ...]]]:
    """The table: the worst verdict first, then by test."""
    for judged in sorted(comparison.judged, key=lambda judged: _ORDER.index(judged.change)):
        cell, change = judged.cell, str(judged.change)
        low, high = _amount(cell, judged.low), _amount(cell, judged.high)
        findable = "—" if judged.findable is None else _amount(cell, judged.findable)
        yield judged, (
            change, cell.test, cell.links, cell.name, _value(cell, cell.base), _value(cell, cell.head),
            _amount(cell, judged.effect), f"{low} to {high}", findable,
        )  # fmt: skip


HEADINGS = ("verdict", "test", "links", "metric", "base", "head", "change", "for sure", "findable")


def print_comparison(console: Console, comparison: Comparison) -> None:
    """The lines that matter, and the table."""
    for line in matters(comparison, most=LINES_THAT_MATTER + len(comparison.broken) + len(comparison.problems)):
        console.print(visible(line), markup=False, soft_wrap=True)
    if comparison.judged:
        _print_table(console, comparison)
    for line in notes(comparison):
        console.print(visible(line), markup=False, soft_wrap=True)


def _print_table(console: Console, comparison: Comparison) -> None:
    """A row per cell, in columns few enough for a narrow terminal."""
    table = Table(Column("verdict", no_wrap=True), "cell", "base", "head", "change", "findable")
    same = len(comparison.of(Change.SAME))
    for judged, (change, test, links, metric, base, head, amount, sure, findable) in rows(comparison):
        if judged.change is not Change.SAME or same <= _MOST_SAME:
            cell = f"{metric}\n{test}\n{links}"
            row = (change, cell, base, head, f"{amount}\n{sure}", findable)
            table.add_row(*(Text(visible(text)) for text in row), style=_STYLES[judged.change])
    console.print(table)
    if same > _MOST_SAME:
        console.print(f"and {same} cells that are the same; --json and --markdown have them", markup=False)


def notes(comparison: Comparison, *, packets: bool = True) -> Iterator[str]:
    """Where versions part in virtual time, with the packets there or without; what was left out."""
    if comparison.exact and comparison.base_runs:
        for parting in comparison.parted:
            yield parting_line(parting)
            yield from (f"  {line}" for line in parting.packets if packets)
        if comparison.identical:
            listed = several(comparison.identical, _MOST_LISTED)
            yield f"identical to the last bit under every one of {comparison.base_runs} seeds: {listed}"
    for side, tests in comparison.only.items():
        yield f"only in {side}, and not compared: {several(tests, _MOST_LISTED)}"
    if comparison.not_judged:
        yield f"not judged, as neither more nor less is worse: {', '.join(comparison.not_judged)}"
    yield from (f"thrown away: {reason}" for reason in comparison.thrown_away)


def markdown(comparison: Comparison, *, base: str, head: str) -> str:
    """For a pull request: the lines that matter, the table, and the details folded away."""
    lines = [f"### testbed: {escaped(head)} against {escaped(base)}", ""]
    lines += [f"* {escaped(line)}" for line in matters(comparison)]
    table = [row for judged, row in rows(comparison) if judged.change is not Change.SAME]
    if table:
        lines += ["", *markdown_table(HEADINGS, table)]
    same = [row for judged, row in rows(comparison) if judged.change is Change.SAME]
    if same:
        summary = f"<summary>{len(same)} cells are the same</summary>"
        lines += ["", "<details>", summary, "", *markdown_table(HEADINGS, same), "", "</details>"]
    details = [*map(broken_line, comparison.broken), *comparison.problems, *notes(comparison), how(comparison)]
    lines += ["", "<details>", "<summary>details</summary>", "", *(f"* {escaped(line)}" for line in details), ""]
    return "\n".join([*lines, "</details>", ""])


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    head = [f"| {' | '.join(headings)} |", f"|{' --- |' * len(headings)}"]
    return head + [f"| {' | '.join(map(escaped, row))} |" for row in rows]


def escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    for character in "\\`*_[]<>|&~#":
        text = text.replace(character, f"\\{character}")
    return " ".join(visible(text).split())


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Everything, for programs."""
    return {
        "change": str(comparison.change),
        "paired": comparison.paired,
        "one_after_other": comparison.one_after_other,
        "base_runs": comparison.base_runs,
        "head_runs": comparison.head_runs,
        "alpha": comparison.alpha,
        "across": list(comparison.across),
        "thrown_away": list(comparison.thrown_away),
        "unmatched": comparison.unmatched,
        "problems": list(comparison.problems),
        "failing": comparison.failing,
        "not_judged": list(comparison.not_judged),
        "only": {side: list(tests) for side, tests in comparison.only.items()},
        "exact": comparison.exact,
        "parted": [{**vars(parting), "packets": list(parting.packets)} for parting in comparison.parted],
        "identical": list(comparison.identical),
        "broken": [{**vars(broken), "change": str(broken.change)} for broken in comparison.broken],
        "cells": [_cell_json(judged) for judged in comparison.judged],
    }


def _cell_json(judged: Judged) -> dict[str, Any]:
    cell = judged.cell
    return {
        "test": cell.test, "metric": cell.metric, "part": cell.part, "links": cell.links, "unit": cell.unit,
        "kind": str(cell.kind), "better": cell.better, "least_effect": cell.least_effect, "decides": cell.decides,
        "change": str(judged.change), "effect": judged.effect, "low": judged.low, "high": judged.high,
        "findable": judged.findable, "more": judged.more,
        "seeds": vars(judged.seeds) if judged.seeds is not None else None,
        "base": list(cell.base), "head": list(cell.head),
    }  # fmt: skip


def exit_status(comparison: Comparison, fail_on: str = "undecided") -> int:
    """0 nothing regressed, 1 regressed, 2 something or everything could not be compared, 3 undecided.

    ``fail_on``: ``undecided``; ``regressed``, to which undecided is 0; ``never``, to which all is.
    """
    if fail_on == "never":
        return 0
    if comparison.change is Change.REGRESSED:
        return 1
    if comparison.problems or not comparison.judged:
        return 2
    return 3 if comparison.change is Change.UNDECIDED and fail_on != "regressed" else 0
