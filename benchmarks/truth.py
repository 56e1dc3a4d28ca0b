"""Whether nothing passes that was not in force: every fault in a running test, with every impairment, on both labs.

A cell is right if its test was INVALID, or what was asked was in force by what arrived; and the next test, without a
fault, found all in order. ``--quick`` takes the local lab and each fault once.
"""

from __future__ import annotations

import itertools
import time

from benchmarks import common
from benchmarks.common import Check, Report
from testbed.labs.compose import ComposeLab
from testbed.labs.lab import Lab
from testbed.labs.local import LocalLab
from tests.lab import truth

_QUICK_S = 38.0
_QUICK_FAULTS = (
    "kernel frozen 0.3 s", "kernel stopped", "splice deleted", "link down at the veth", "qdisc deleted",
    "machine starved", "kernel killed", "container paused", "container gone", "address added", "fragments",
)  # fmt: skip


def measure(report: Report) -> None:
    """The matrix. Raises EnvironmentUnfitError if a lab cannot run here."""
    kinds = (LocalLab,) if report.quick else (LocalLab, ComposeLab)
    for kind in kinds:
        with kind(common.STACK, netem="carried", say=report.say) as lab:
            cells = _cells(lab, report)
            for each in cells:
                report.note(
                    f"{'right' if each.right else 'WRONG'}: {kind.__name__}, {each.fault}, {each.impairment}: "
                    f"{each.verdict}, in force: {each.in_force}, next: {each.next_verdict[:120]}"
                    + (f"; run again {each.late} times: the machine was late" if each.late else "")
                )
            wrong = [each for each in cells if not each.right]
            report.check(
                Check(
                    name=f"{kind.__name__}: cells of {len(cells)} that passed and should not, or spoiled the next test",
                    value=len(wrong), bound=0, unit="", bound_words="none",
                    rivals={each.fault: each.impairment for each in wrong},
                )
            )  # fmt: skip


def _cells(lab: Lab, report: Report) -> list[truth.Cell]:
    """All of them, or, if it must be quick, each fault with another impairment, until the time is up."""
    if not report.quick:
        return [truth.cell(lab, fault, asked) for fault in truth.FAULTS for asked in truth.IMPAIRMENTS]
    until = time.monotonic() + _QUICK_S
    found = []
    for fault, asked in zip(_QUICK_FAULTS, itertools.cycle(truth.IMPAIRMENTS), strict=False):
        if time.monotonic() > until:
            report.note(f"no time was left for: {fault}")
            continue
        found.append(truth.cell(lab, fault, asked))
    return found


if __name__ == "__main__":
    common.run("Nothing passes that was not in force", measure)
