"""A pytest run as a page: tests and links, and for each what was asked, held, seen, measured and printed. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from testbed.evidence.metric import Metric
from testbed.evidence.stored import Session, StoredAttempt, StoredTest
from testbed.evidence.verdict import Verdict
from testbed.report import replayed
from testbed.report.page import Chart, Charts, Line, MatrixCell, OverTime, Page, Part, Points, Table, Text, Tone
from testbed.report.results import asked_words, machine_rows
from testbed.text import shortened, visible

TONES: dict[Verdict, Tone] = {
    Verdict.HOLDS: "good",
    Verdict.FAILS: "bad",
    Verdict.INVALID: "odd",
    Verdict.SKIPPED: "mild",
    Verdict.UNKNOWN: "mild",
}
_MOST_OUTPUT = 2_000_000
"""Characters of programs' output in a whole report: so that its size has an end; of what did not pass first."""
_MOST_REASON = 20_000
_CHART_FROM = 3
"""So many samples are drawn; fewer are in the table."""


def page(session: Session) -> Page:
    """The report of a session."""
    tests = session.tests
    counts = Counter(test.last.outcome for test in tests)
    outputs = _outputs(tests)
    lead = f"{counts[Verdict.HOLDS]} of {len(tests)} tests passed."
    if counts[Verdict.INVALID]:
        lead += f" {counts[Verdict.INVALID]} INVALID: the network was not as asked, or no packet met what was asked."
    end = session.end or {}
    notes = [f"{session.incomplete}: it was killed, or broke off."] if session.incomplete else []
    notes += [*end.get("problems", ()), *([end["not_up"]] if end.get("not_up") else [])]
    if end.get("exit_status") == 1 and not counts[Verdict.FAILS] + counts[Verdict.INVALID]:
        notes.append("pytest ended with status 1: a test failed that has no lab of this session; it is not shown.")
    notes += [
        f"{test.id}: flaky: {', '.join(attempt.outcome.of('test') for attempt in test.attempts)}"
        for test in tests
        if test.flaky
    ]
    facts = [
        ("started", session.started),
        ("seed", str(session.seed)),
        *machine_rows(session.machine),
        *_engines(tests),
    ]
    return Page(
        title="testbed: tests over bad networks",
        lead=lead,
        facts=facts,
        notes=[visible(note) for note in notes],
        counts=[(verdict.of("test"), counts[verdict], tone) for verdict, tone in TONES.items() if counts[verdict]],
        cells=[_cell(test, outputs[test.id]) for test in tests],
        open_first=len(tests) == 1,
    )


def column(test: StoredTest) -> str:
    """The links that a test ran over, in a few words."""
    if test.profile is not None:
        return test.profile
    return "\n".join(asked_words(test.last.content)) or "no impairment"


def row(test: StoredTest) -> str:
    """A test without the profile that `impair_each` gave it."""
    return test.id if test.profile is None else test.id.replace(f"[{test.profile}]", "")


def _cell(test: StoredTest, outputs: Sequence[str]) -> MatrixCell:
    last = test.last
    brief = [f"{last.duration_s:.2f} s"] + ["flaky"] * test.flaky
    parts: list[Part] = []
    if last.reason:
        parts.append(Text(title="Why it did not pass", text=visible(last.reason[:_MOST_REASON])))
    if last.replay:
        parts.append(Text(title="To run it again under the same network", text=visible(last.replay), copied=True))
    parts += links(last.content["links"])
    parts += metrics(last.metrics)
    parts += _engine(last.content)
    parts += _replayed(last.content.get("replayed"))
    parts += details(last.content, outputs)
    parts += _earlier(test.attempts[:-1])
    return MatrixCell(
        row=row(test),
        column=column(test),
        word=last.outcome.of("test"),
        tone=TONES.get(last.outcome, "none"),
        brief=", ".join(brief),
        parts=parts,
    )


def _engines(tests: Sequence[StoredTest]) -> Iterator[tuple[str, str]]:
    """The engines that tests ran on, with the number of tests of each, and those that gave tests back."""
    ran = Counter(engine for test in tests if (engine := test.last.content.get("engine")))
    gave_back = Counter(engine for test in tests for engine in test.last.content.get("given_back_by") or ())
    for engine in sorted(ran | gave_back):
        back = f", gave back {gave_back[engine]}" if engine in gave_back else ""
        yield visible(engine), f"tests: {ran[engine]}{back}"


def _engine(content: Mapping[str, Any]) -> Iterator[Text]:
    """The engine that a test ran on, and those that gave it back."""
    if engine := content.get("engine"):
        before = "".join(f"{other}: gave it back\n" for other in content.get("given_back_by") or ())
        yield Text(title="Engine", text=visible(f"{before}{engine}"))


def _replayed(content: Mapping[str, Any] | None) -> Iterator[Part]:
    """The replay of a failed test, with the packets at every port and TCP_INFO."""
    if content:
        text = "\n".join(map(visible, (*replayed.lines(content), *content["captures"])))
        yield Text(title="Replayed after the session", text=text)
        if content["tcp_info"] is not None and content["tcp_info"]["series"]:
            yield Charts(title="TCP_INFO in the replay", charts=[over_time("over time", content["tcp_info"]["series"])])


def details(content: Mapping[str, Any], outputs: Sequence[str]) -> Iterator[Part]:
    """What was observed in an attempt, what became of its hosts and programs, and its packets."""
    if content["series"]:
        yield Charts(title="Observed", charts=[over_time("over time", content["series"])])
    yield from _hosts(content["hosts"])
    yield from _programs(content["programs"], outputs)
    if content["captures"]:
        yield Text(title="Packets, for Wireshark", text="\n".join(map(visible, content["captures"])))


def links(evidence: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """What each link was asked, held and was seen to do."""
    for link in evidence:
        rows, tones = check_rows(link["checks"])
        proof = ", ".join(f"{level.replace('_', '-')} {verdict}" for level, verdict in link["proof"].items())
        yield Table(
            title=f"{link['link']} on {link['network']}: {proof}",
            heads=("field", "asked", "kernel", "seen", "how", "verdict"),
            rows=rows,
            tones=tones,
        )
        notes = [("problem", note) for note in link["problems"]] + [("warning", note) for note in link["warnings"]]
        if notes:
            tones = ["bad" if kind == "problem" else "mild" for kind, _ in notes]
            yield Table(title="", heads=("", "said of it"), rows=[_shown(note) for note in notes], tones=tones)


def check_rows(checks: Sequence[Mapping[str, Any]]) -> tuple[list[list[str]], list[Tone]]:
    """Each check as a row, and the tone of its verdict."""
    verdicts = {str(verdict): tone for verdict, tone in TONES.items()}
    keys = ("field", "asked", "kernel", "seen", "how", "verdict")
    return [_shown([check[key] for key in keys]) for check in checks], [
        verdicts.get(check["verdict"], "none") for check in checks
    ]


def metrics(recorded: Sequence[Metric]) -> Iterator[Table | Charts]:
    """Each metric; of several samples, every one as a point."""
    if not recorded:
        return
    rows = []
    for metric in recorded:
        several = len(metric.values) > 1
        ends = [metric.text(min(metric.values)), metric.text(max(metric.values))] if several else ["", ""]
        better = metric.better or ""
        rows.append([metric.name, better, metric.group, str(len(metric.values)), metric.text(metric.median), *ends])
    yield Table(
        title="Metrics",
        heads=("metric", "better", "group", "samples", "median", "least", "most"),
        numeric_from=3,
        rows=[_shown(cells) for cells in rows],
    )
    charts: list[Chart] = [
        Points(title=metric.name, unit=metric.unit, groups={"samples": metric.values})
        for metric in recorded
        if len(metric.values) >= _CHART_FROM
    ]
    if charts:
        yield Charts(title="Samples", charts=charts)


def over_time(title: str, series: Sequence[Mapping[str, Any]]) -> OverTime:
    """What was observed, on one axis of time."""
    return OverTime(
        title=title,
        lines=[
            Line(name=line["name"], unit=line["unit"], times_s=line["times_s"], values=line["values"])
            for line in series
        ],
    )


def _hosts(states: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    if states:
        rows = [
            [
                state["host"],
                state["what"],
                "the test" if state["by_test"] else "not the test",
                " | ".join(state["last_lines"]),
            ]
            for state in states
        ]
        yield Table(
            title="Hosts",
            heads=("host", "what became of it", "by", "its last lines"),
            rows=[_shown(cells) for cells in rows],
        )


def _programs(programs: Sequence[Mapping[str, Any]], outputs: Sequence[str]) -> Iterator[Table | Text]:
    if not programs:
        return
    rows = []
    for program in programs:
        ended = "ran on" if program["exit_code"] is None else f"status {program['exit_code']}"
        took = "" if program["duration_s"] is None else f"{program['duration_s']:.3f} s"
        used = "" if program["cpu_s"] is None else f"{program['cpu_s']:.3f} s"
        rows.append(
            [
                program["host"],
                shortened(" ".join(program["argv"])),
                "stopped" if program["stopped"] else ended,
                took,
                used,
            ]
        )
    yield Table(
        title="Programs",
        heads=("host", "program", "ended", "took", "processor"),
        numeric_from=3,
        rows=[_shown(cells) for cells in rows],
    )
    for program, output in zip(programs, outputs, strict=True):
        if output:
            left = (
                f", the last {len(output)} characters"
                if program["output_left_out"] or output != program["output"]
                else ""
            )
            yield Text(title=f"Output of {program['argv'][0][:80]} in {program['host']}{left}", text=visible(output))


def _outputs(tests: Sequence[StoredTest]) -> dict[str, list[str]]:
    """How much of each program's output has room: what did not pass comes first."""
    left, kept = _MOST_OUTPUT, dict[str, list[str]]()
    for test in sorted(tests, key=lambda test: test.last.outcome in (Verdict.HOLDS, Verdict.SKIPPED)):
        kept[test.id] = []
        for program in test.last.content["programs"]:
            text = program["output"][-left:] if left else ""
            kept[test.id].append(text)
            left -= len(text)
    return kept


def _earlier(attempts: Sequence[StoredAttempt]) -> Iterator[Table]:
    if attempts:
        rows = [[str(number), str(attempt.seed), f"{attempt.duration_s:.2f} s", (attempt.reason or "").strip()[-500:],
                 attempt.outcome.of("test")] for number, attempt in enumerate(attempts, start=1)]  # fmt: skip
        tones = [TONES.get(attempt.outcome, "none") for attempt in attempts]
        yield Table(
            title="Earlier attempts",
            heads=("attempt", "seed", "took", "reason", "outcome"),
            tones=tones,
            rows=[_shown(cells) for cells in rows],
        )


def _shown(cells: Sequence[object]) -> list[str]:
    return [visible(str(cell)) for cell in cells]
