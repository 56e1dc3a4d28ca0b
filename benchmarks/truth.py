"""Whether a test passes over a wrong network: every fault during a test, with every impairment, on both labs.

A cell is right if its test was INVALID, or what was asked was in force by what arrived; and the next test, without a
fault, found all in order. ``--quick`` takes each kind of fault once, on two labs of each kind at the same time.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from benchmarks import common
from benchmarks.common import Check, Report
from testbed.backends.choice import decide
from testbed.backends.docker.lab import ComposeLab
from testbed.backends.local.lab import LocalLab
from testbed.errors import TestbedError
from tests.lab import truth

_QUICK_S = 36.0
# One of each kind, those that take longest first.
_QUICK_FAULTS = (
    "agent killed", "container recreated", "container restarted", "container gone", "kernel frozen 0.3 s",
    "splice deleted", "link down at the veth", "qdisc deleted", "container paused", "address added", "fragments",
    "stray network", "kernel starved",
)  # fmt: skip


@dataclass
class _Run:
    """Some cells on one lab."""

    kind: type[LocalLab | ComposeLab]
    wanted: list[tuple[str, truth.Asked]]
    report: Report
    ended: threading.Event
    """Set once nobody waits for more."""
    until: float = float("inf")
    """When no more cell is begun; by the monotonic clock."""
    cells: list[truth.Cell] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """Why the lab did not come up, or went down badly."""

    def measure(self) -> None:
        """Run all cells; start a new lab where a fault has spoiled one."""
        left = iter(enumerate(self.wanted, 1))
        try:
            while self._on_one_lab(left):
                pass
        except TestbedError as error:
            self.broken.append(f"{type(error).__name__}: {error}")
        self.left_out += [fault for _, (fault, _) in left]

    def _on_one_lab(self, left: Iterator[tuple[int, tuple[str, truth.Asked]]]) -> bool:
        """Run the remaining cells; whether the lab was spoiled before the end."""
        with self.kind(truth.STACK, netem="carried") as lab:
            for number, (fault, impairment) in left:
                if self.ended.is_set() or time.monotonic() > self.until:
                    self.left_out.append(fault)
                    return False
                began = time.monotonic()
                cell = truth.cell(lab, fault, impairment)
                self.cells.append(cell)
                took_s = time.monotonic() - began
                self.report.say(f"{self.kind.__name__} {number} of {len(self.wanted)}: {_told(cell)} ({took_s:.1f} s)")
                if not cell.mended:
                    return True
        return False


def _tell(name: str, runs: Sequence[_Run], report: Report) -> None:
    """The table of cells of a kind of lab, the wrong ones in words, and the check."""
    cells = [cell for run in runs for cell in run.cells]
    names = [impairment.name for impairment in truth.IMPAIRMENTS]
    for fault in truth.FAULTS:
        row = {cell.impairment: cell.told for cell in cells if cell.fault == fault}
        if row:
            report.note(f"{name}, {fault}: " + "; ".join(f"{word}: {row[word]}" for word in names if word in row))
    for fault in (fault for run in runs for fault in run.left_out):
        report.note(f"{name}: no time was left for: {fault}")
    broken = [text for run in runs for text in run.broken]
    for text in broken:
        report.note(f"WRONG: {name}: {text}")
    wrong = [cell for cell in cells if not cell.right]
    for problem in wrong:
        report.note(f"WRONG: {name}, {_told(problem)}: {problem.reason or 'no reason'}; next: {problem.next_verdict}")
    report.check(
        Check(
            name=f"{name}: cells of {len(cells)} that passed and should not, or spoiled the next test",
            value=len(wrong) + len(broken) if cells else None,
            bound=0,
            unit="",
            bound_words="none",
            rivals={problem.fault: problem.impairment for problem in wrong},
        )
    )


def _told(cell: truth.Cell) -> str:
    again = f"; run again {cell.late} times: the machine was late" if cell.late else ""
    return f"{cell.fault}, {cell.impairment}: {cell.told}{again}"


def measure(report: Report) -> None:
    """Run the matrix; a lab that does not come up counts as a wrong cell."""
    chosen, why = decide("auto")
    kinds: list[type[LocalLab | ComposeLab]] = [LocalLab]
    if chosen == "compose":
        kinds.append(ComposeLab)
    else:
        report.note(f"ComposeLab: not run: {why}")
    ended = threading.Event()
    runs: dict[type[LocalLab | ComposeLab], list[_Run]] = {}
    for kind in kinds:
        wanted = [(fault, impairment) for fault in truth.faults(kind) for impairment in truth.IMPAIRMENTS]
        parts = [wanted]
        if report.quick:
            wanted = list(zip(_QUICK_FAULTS, itertools.cycle(truth.IMPAIRMENTS), strict=False))
            parts = [wanted[::2], wanted[1::2]]
        until = time.monotonic() + _QUICK_S if report.quick else float("inf")
        runs[kind] = [_Run(kind, part, report, ended, until) for part in parts]
    try:
        if report.quick:
            together = [run for some in runs.values() for run in some]
            with ThreadPoolExecutor(len(together)) as pool:
                try:
                    for future in [pool.submit(run.measure) for run in together]:
                        future.result()
                finally:
                    ended.set()
        else:
            for (run,) in runs.values():
                run.measure()
    finally:
        for kind, some in runs.items():
            _tell(kind.__name__, some, report)


if __name__ == "__main__":
    common.run("Nothing passes that was not in force", measure)
