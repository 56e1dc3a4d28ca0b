"""The results of a session on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from testbed.evidence.stored import Session, StoredTest
from testbed.evidence.verdict import Verdict
from testbed.text import shortened, visible

if TYPE_CHECKING:
    from rich.console import Console

_COLOURS = {Verdict.HOLDS: "green", Verdict.SKIPPED: "yellow", Verdict.FAILS: "red", Verdict.INVALID: "magenta"}


def print_session(console: Console, session: Session) -> None:
    """What it ran on, its tests, and their metrics."""
    # Here, because each run of pytest with a lab imports this module, for its report.
    from rich import box
    from rich.table import Table
    from rich.text import Text

    facts = "; ".join(f"{key}: {value}" for key, value in machine_rows(session.machine))
    console.print(f"{session.started}, seed {session.seed}; {facts}", markup=False, soft_wrap=True)
    tests = Table("outcome", "test", "impaired", "duration", box=box.SIMPLE_HEAD, pad_edge=False)
    metrics = Table("test", "metric", "median", "least", "most", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in (*metrics.columns[2:], tests.columns[3]):
        column.justify = "right"
    for test in session.tests:
        last = test.last
        word = Text(last.outcome.of("test") + (" (flaky)" if test.flaky else ""), style=_COLOURS.get(last.outcome, ""))
        links = "\n".join(asked_words(last.content)) or "—"
        tests.add_row(word, Text(visible(test.id)), Text(visible(links)), f"{last.duration_s:.2f} s")
        for row in _metric_rows(test):
            metrics.add_row(*(Text(visible(cell)) for cell in row))
    console.print(tests)
    if metrics.row_count:
        console.print(metrics)
    for test in session.tests:
        if test.last.reason and test.last.outcome is not Verdict.HOLDS:
            console.print(Text(f"{test.id}: {shortened(visible(test.last.reason), 2_000)}"), soft_wrap=True)
    for problem in (session.end or {}).get("problems", ()):
        console.print(Text(visible(str(problem))), soft_wrap=True)


def _metric_rows(test: StoredTest) -> Iterator[tuple[str, ...]]:
    for metric in test.last.metrics:
        yield (
            test.id,
            metric.name,
            metric.text(metric.median),
            *(
                ("", "")
                if len(metric.values) == 1
                else (metric.text(min(metric.values)), metric.text(max(metric.values)))
            ),
        )


def asked_words(test: Mapping[str, Any]) -> list[str]:
    """Each impaired link of a test, and what was asked of it, without seeds."""
    lines = []
    for link in test["links"]:
        words = {word: value for word, value in link["asked"].items() if word != "seed"}
        requested = link["profile"] or " ".join(f"{word}={value}" for word, value in words.items())
        lines.append(f"{link['link']}: {requested}")
    return lines


def machine_rows(machine: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is known of a machine, as names and values for people."""
    git = machine.get("git")
    for key, name in (
        ("kernel", "kernel"),
        ("lab", "lab"),
        ("netem", "netem"),
        ("netem_kernel", "netem's kernel"),
        ("tc", "tc"),
        ("processor", "processor"),
        ("processors", "processors"),
        ("congestion_control", "congestion control"),
    ):
        if machine.get(key) is not None:
            yield name, str(machine[key])
    if git is not None:
        yield "commit", git["commit"][:12] + (" and uncommitted changes" if git["dirty"] else "")
    yield from machine.get("versions", {}).items()
