"""A comparison of two versions as a page: tests and links with what became of them, and every sample. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from testbed.evidence.verdict import Verdict
from testbed.judge.cells import Kind, Run
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
_MOST_SAMPLES = 1000
"""Of one metric and version that are drawn; of more, as many as evenly as that goes."""
_MOST_OUTPUT, _MOST_OUTPUT_OF_ONE = 400_000, 4000
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
    cells = [
        _cell(comparison, group, base_runs, head_runs, most_output=most_output)
        for group in sorted(groups.values(), key=_worst)
    ]
    counts = [(str(change), sum(cell.word == change for cell in cells), tone) for change, tone in _TONES.items()]
    machine = next((run.machine for run in (*base_runs, *head_runs) if run.machine), {})
    return Page(
        title=f"testbed: {visible(head)} against {visible(base)}",
        lead=words.headline(comparison),
        facts=list(machine_rows(machine)) if machine else [],
        counts=[count for count in counts if count[1]],
        notes=[visible(note) for note in (*comparison.problems, *words.notes(comparison), words.how(comparison))],
        cells=cells,
        open_first=bool(cells) and cells[0].word in (Change.REGRESSED, Change.IMPROVED),
    )


def _worst(group: Sequence[Judged]) -> int:
    return min(_ORDER.index(judged.change) for judged in group)


def _cell(
    comparison: Comparison, group: list[Judged], base: Sequence[Run], head: Sequence[Run], *, most_output: int
) -> MatrixCell:
    """A test under its links: its metrics, those that matter first."""
    ordered = sorted(group, key=lambda judged: _ORDER.index(judged.change))
    first, change = ordered[0], ordered[0].change
    parts: list[Part] = []
    for broken in comparison.broken:
        if (broken.test, broken.links) == (first.cell.test, first.cell.links):
            parts.append(Text(title="It fails more often now", text=visible(words.broken_line(broken))))
            if broken.replay:
                parts.append(Text(title="To run it again", text=visible(broken.replay), copied=True))
    rows = {id(judged): row for judged, row in words.rows(comparison)}
    parts.append(
        Table(
            title="Metrics",
            heads=_HEADS,
            numeric_from=1,
            tones=[_TONES[judged.change] for judged in ordered],
            rows=[[visible(text) for text in (*rows[id(judged)][3:], rows[id(judged)][0])] for judged in ordered],
        )
    )
    charts = [chart for judged in ordered for chart in _charts(comparison, judged, base, head)]
    if charts:
        parts.append(Charts(title="Base and head", charts=charts))
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


def _charts(comparison: Comparison, judged: Judged, base: Sequence[Run], head: Sequence[Run]) -> Iterator[Chart]:
    cell = judged.cell
    if cell.of_outcome:
        return
    yield Pairs(
        title=f"{visible(cell.name)}: {judged.change}",
        unit=cell.unit,
        base=cell.base,
        head=cell.head,
        paired=comparison.paired,
        ratio=cell.kind is Kind.RATIO,
    )
    samples = {name: samples_of(runs, cell.test, cell.metric) for name, runs in (("base", base), ("head", head))}
    if cell.part in ("", "median") and all(samples.values()) and sum(map(len, samples.values())) > len(cell.base) * 2:
        yield Points(title=f"{visible(cell.metric)}: every sample of runs that passed", unit=cell.unit, groups=samples)


def samples_of(runs: Sequence[Run], test: str, metric: str) -> list[float]:
    """Every sample of the runs in which the test passed; thinned out evenly where that is too many to be drawn."""
    passed = [run.tests[test] for run in runs if test in run.tests and run.tests[test].outcome is Verdict.HOLDS]
    samples = [value for result in passed if metric in result.metrics for value in result.metrics[metric].values]
    step = -(-len(samples) // _MOST_SAMPLES) if samples else 1
    return sorted(samples)[::step] if step > 1 else samples
