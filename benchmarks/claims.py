"""Whether the paper's claims have the same findings in every run and on both labs.

The quick experiments of `testbed paper`, three times on each lab, in turns; with ``--quick`` once on each, and only
those that take a few seconds. What is compared is the finding of each claim and of each of its conditions.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks import common
from benchmarks.common import Check, Report
from testbed.backends.choice import decide, make_lab
from testbed.evidence.verdict import Verdict
from testbed.paper import CLAIMS, chosen, examine
from testbed.paper.outcomes import ClaimOutcome

_RUNS = 3
_BRIEF = ("C3", "C5", "C11", "C12")


def measure(report: Report) -> None:
    """Run them. Raises EnvironmentUnfitError if a lab cannot run here."""
    by_lab: dict[str, dict[str, ClaimOutcome]] = {}
    took_s: dict[str, float] = {}
    for name, kind in _runs(1 if report.quick else _RUNS):
        began_s = time.monotonic()
        by_lab[name] = _examined(kind, _BRIEF if report.quick else (), report, name)
        took_s[name] = time.monotonic() - began_s
    for claim in chosen(_BRIEF if report.quick else ()):
        outcomes = {name: outcomes[claim.id] for name, outcomes in by_lab.items()}
        report.check(
            Check(
                name=f"{claim.id} {claim.name}: different outcomes in {len(outcomes)} runs",
                value=len({_told(outcome) for outcome in outcomes.values()}),
                bound=1,
                unit="",
                rivals={f"{count} ×": words for words, count in Counter(map(_told, outcomes.values())).items()},
            )
        )
    invalid = [
        (name, claim, outcome)
        for name, outcomes in by_lab.items()
        for claim, outcome in outcomes.items()
        if outcome.finding is Verdict.INVALID
    ]
    report.check(Check(name="outcomes that say nothing (INVALID)", value=len(invalid), bound=0, unit=""))
    for name, number, outcome in invalid:
        report.note(f"{number}, {name}: {outcome.sentence}")
    report.note("took " + ", ".join(f"{name}: {lasted_s:.0f} s" for name, lasted_s in took_s.items()))


def _runs(count: int) -> Iterator[tuple[str, str]]:
    for number in range(1, count + 1):
        for kind in ("compose", "local"):
            yield f"{kind} {number}", kind


def _examined(kind: str, ids: tuple[str, ...], report: Report, name: str) -> dict[str, ClaimOutcome]:
    outcomes: dict[str, ClaimOutcome] = {}
    with (
        tempfile.TemporaryDirectory(prefix="testbed-claims-") as folder,
        make_lab(decide(kind)[0], common.STACK, netem="auto", say=report.say) as lab,
    ):
        for claim in chosen(ids):
            outcomes[claim.id] = examine(CLAIMS[claim.id], lab, Path(folder), quick=True, earlier=outcomes)
            report.say(f"{name}: {claim.id} {outcomes[claim.id].finding.of('claim')}")
    return outcomes


def _told(outcome: ClaimOutcome) -> str:
    """The finding, and under how many of the conditions it held."""
    held = Counter(row.held for row in outcome.rows)
    return f"{outcome.finding.of('claim')} ({held[True]} of {held[True] + held[False]} conditions)"


if __name__ == "__main__":
    common.run("The paper's claims, time and again", measure)
