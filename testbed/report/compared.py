"""A comparison of two versions as a page: tests and links with what became of them, and every sample. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from testbed.evidence.verdict import Verdict
from testbed.judge.cells import Cell, Kind, Run
from testbed.judge.changes import Change, Judged
from testbed.judge.comparison import Comparison
from testbed.report import comparison as words
from testbed.report.page import Chart, Charts, MatrixCell, Page, Pairs, Part, Points, Table, Text, Tone
from testbed.report.results import machine_rows
from testbed.report.run import details, links
from testbed.text import visible

_TONES: dict[Change, Tone] = {
    Change.REGRESSED: "bad",
    Change.UNDECIDED: "mild",
    Change.IMPROVED: "good",
    Change.SAME: "none",
}
_ORDER = list(Change)
_MOST_SAMPLES, _MOST_SAMPLES_OF_ONE = 60_000, 1000
"""Samples that are drawn: on the page, and of one metric and version; of more, as many as evenly as that goes."""
_MOST_OUTPUT, _MOST_OUTPUT_OF_ONE = 200_000, 4000
"""Characters of programs' outputs on the page, if each cell shows one of each version; and of one output."""
_HEADS = ("metric", "base", "head", "change", "for sure", "findable", "verdict")


def page(
    comparison: Comparison, *, base: str, head: str, base_runs: Sequence[Run] = (), head_runs: Sequence[Run] = ()
) -> Page:
    """The report of a comparison. ``base``, ``head``: what the versions are; of their runs come the samples."""
    groups: dict[tuple[str, str], list[Judged]] = {}
    for judged in comparison.judged:
        groups.setdefault((judged.cell.test, judged.cell.links), []).append(judged)
    most_output = min(_MOST_OUTPUT // (len(groups) or 1), _MOST_OUTPUT_OF_ONE)
    samples = {id(judged): _samples(judged.cell, base_runs, head_runs) for judged in comparison.judged}
    drawn = sum(map(bool, samples.values()))
    most_samples = min(_MOST_SAMPLES // (2 * drawn or 1), _MOST_SAMPLES_OF_ONE)
    charts = {
        id(judged): list(_charts(judged, samples[id(judged)], paired=comparison.paired, most=most_samples))
        for judged in comparison.judged
    }
    rows = {id(judged): row for judged, row in words.rows(comparison)}
    cells = [
        _cell(comparison, group, rows, charts, base_runs, head_runs, most_output=most_output)
        for group in sorted(groups.values(), key=_worst)
    ]
    counts = [(str(change), sum(cell.word == change for cell in cells), tone) for change, tone in _TONES.items()]
    machine = next((run.machine for run in (*base_runs, *head_runs) if run.machine), {})
    return Page(
        title=f"testbed: {visible(head)} against {visible(base)}",
        lead=words.headline(comparison),
        facts=list(machine_rows(machine)) if machine else [],
        counts=[count for count in counts if count[1]],
        notes=[
            visible(note)
            for note in (*comparison.problems, *words.notes(comparison, packets=False), words.how(comparison))
        ],
        cells=cells,
        open_first=bool(cells) and cells[0].word in (Change.REGRESSED, Change.IMPROVED),
    )


def _worst(group: Sequence[Judged]) -> int:
    return min(_ORDER.index(judged.change) for judged in group)


def _cell(
    comparison: Comparison,
    group: list[Judged],
    rows: Mapping[int, tuple[str, ...]],
    charts: Mapping[int, list[Chart]],
    base: Sequence[Run],
    head: Sequence[Run],
    *,
    most_output: int,
) -> MatrixCell:
    """A test under its links: its metrics, those that matter first. ``rows``, ``charts``: by the judgement's id()."""
    ordered = sorted(group, key=lambda judged: _ORDER.index(judged.change))
    first, change = ordered[0], ordered[0].change
    parts: list[Part] = []
    for broken in comparison.broken:
        if (broken.test, broken.links) == (first.cell.test, first.cell.links):
            parts.append(Text(title="It fails more often now", text=visible(words.broken_line(broken))))
            if broken.replay:
                parts.append(Text(title="To run it again", text=visible(broken.replay), copied=True))
    for parting in comparison.parted:
        if parting.test == first.cell.test and parting.packets:
            text = "\n".join(map(visible, parting.packets))
            parts.append(Text(title=f"Where its packets first part, under seed {parting.seed}", text=text))
    parts.append(
        Table(
            title="Metrics",
            heads=_HEADS,
            numeric_from=1,
            tones=[_TONES[judged.change] for judged in ordered],
            rows=[[visible(text) for text in (*rows[id(judged)][3:], rows[id(judged)][0])] for judged in ordered],
        )
    )
    drawn = [chart for judged in ordered for chart in charts[id(judged)]]
    if drawn:
        parts.append(Charts(title="Base and head", charts=drawn))
    for name, runs in (("base", base), ("head", head)):
        parts += _one_run(name, runs, first.cell.test, most_output=most_output)
    changed = [judged.cell.name for judged in ordered if judged.change is change]
    brief = "" if change is Change.SAME else f"{changed[0]}{f' and {len(changed) - 1} more' if changed[1:] else ''}"
    return MatrixCell(
        row=visible(first.cell.test),
        column=visible(first.cell.links),
        word=str(change),
        tone=_TONES[change],
        brief=visible(brief),
        parts=parts,
    )


def _one_run(name: str, runs: Sequence[Run], test: str, *, most_output: int) -> Iterator[Part]:
    """The last run of a version in which a test failed, else the last: what its links did, and its programs."""
    known = [run for run in runs if test in run.tests and run.tests[test].content]
    if not known:
        return
    run = next((run for run in reversed(known) if run.tests[test].failed), known[-1])
    result = run.tests[test]
    outputs = [program["output"][-most_output:] for program in result.content["programs"]]
    parts: list[Part] = [*links(result.content["links"]), *details(result.content, outputs)]
    if result.replay:
        parts.append(Text(title="to run it again", text=visible(result.replay), copied=True))
    for part in parts:
        yield replace(part, title=f"{name}, seed {run.seed}{f': {part.title}' if part.title else ''}")


def _charts(judged: Judged, samples: Mapping[str, list[float]], *, paired: bool, most: int) -> Iterator[Chart]:
    cell = judged.cell
    if cell.of_outcome:
        return
    yield Pairs(
        title=f"{visible(cell.name)}: {judged.change}",
        unit=cell.unit,
        base=cell.base,
        head=cell.head,
        paired=paired,
        ratio=cell.kind is Kind.RATIO,
    )
    if samples:
        groups = {name: thinned(values, most=most) for name, values in samples.items()}
        yield Points(title=f"{visible(cell.metric)}: every sample of runs that passed", unit=cell.unit, groups=groups)


def _samples(cell: Cell, base: Sequence[Run], head: Sequence[Run]) -> dict[str, list[float]]:
    """Every sample of each version; none if no run has more than one: those are drawn as what the cell compares."""
    if cell.of_outcome or cell.part not in ("", "median"):
        return {}
    samples = {name: samples_of(runs, cell.test, cell.metric) for name, runs in (("base", base), ("head", head))}
    more = any(len(values) > len(runs) for values, runs in zip(samples.values(), (base, head), strict=True))
    return samples if more and all(samples.values()) else {}


def samples_of(runs: Sequence[Run], test: str, metric: str) -> list[float]:
    """Every sample of the runs in which the test passed."""
    passed = [run.tests[test] for run in runs if test in run.tests and run.tests[test].outcome is Verdict.HOLDS]
    return [value for result in passed if metric in result.metrics for value in result.metrics[metric].values]


def thinned(samples: list[float], *, most: int) -> list[float]:
    """The samples, or as many of them, evenly by size, as may be drawn."""
    step = math.ceil(len(samples) / max(most, 1))
    return sorted(samples)[::step] if step > 1 else samples
