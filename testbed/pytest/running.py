"""One test on a lab: its links before, during and after it, and its verdict."""

from __future__ import annotations

import contextlib
import os
import shlex
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from testbed.errors import ImpairmentNotAppliedError, LabError
from testbed.pytest.markers import PROVE, WANTED
from testbed.pytest.state import KEPT_OPTIONS, LAB, SEED, chosen

if TYPE_CHECKING:
    from testbed.labs.keeping import KeptCaptures
    from testbed.labs.lab import Lab
    from testbed.model.results import TestResult

RUNNING: pytest.StashKey[Lab] = pytest.StashKey()
CAPTURES: pytest.StashKey[KeptCaptures] = pytest.StashKey()
LOST: pytest.StashKey[list[str]] = pytest.StashKey()
RESULTS: pytest.StashKey[dict[str, TestResult]] = pytest.StashKey()


@contextmanager
def impaired(node: pytest.Item, stack: Lab) -> Iterator[Lab]:
    """The stack, with this test's impairments in force and no others; healed afterwards."""
    from testbed.labs import keeping
    from testbed.labs.between import LeftOverWarning
    from testbed.model.timeline import LateStepWarning, late_in_words, steps_in_words

    stack.heal()  # of what a test that uses `stack` alone may have put there
    stack.carriage.warn_only = node.config.getoption("--testbed-lateness") == "warn"
    stack.begin(f"{node.config.stash[SEED]}:{node.nodeid}")
    node.stash[RUNNING] = stack
    if (mode := node.config.getoption("--testbed-capture")) != "never":
        folder = node.config.rootpath / "report" / "captures" / keeping.file_name(node.nodeid)
        node.stash[CAPTURES] = captures = keeping.KeptCaptures(stack, folder)
        stack.putting = captures.putting
    try:
        wanted = node.stash.get(WANTED, {})
        for ref in stack.there(wanted):
            impairment, name = wanted[ref]
            applied = stack.arm(ref, impairment, profile=name)
            node.user_properties.append((f"impaired {ref}", f"{impairment.describe()} ({stack.netem_engine} engine)"))
            node.user_properties.append((f"tc {ref}", applied.command))
        for ref in stack.there(sorted(node.stash.get(PROVE, ()))):
            stack.prove(f"{ref.src} -> {ref.dst} {ref.traffic}".strip() + f" on {ref.network}")
        stack.carriage.settle()
        yield stack
    finally:
        end_captures(node, save=mode == "always")
        keep(node, stack)
        stack.end()
        if stack.left_over:
            warnings.warn(LeftOverWarning(f"may send in the next test: {stack.left_over}"), stacklevel=1)
        for ref, steps in stack.stepped.items():
            node.user_properties.append((f"timeline {ref}", steps_in_words(steps)))
            if late := late_in_words(steps):
                warnings.warn(LateStepWarning(f"{ref}: {late}"), stacklevel=1)
        for record in stack.records:
            node.user_properties.append((record.name, f"{record.value:g} {record.unit} ({record.better} is better)"))


def end_captures(item: pytest.Item, *, save: bool) -> str:
    """End what is captured for a test, and keep it or not; what to say of it. Says so too if it cannot be had."""
    captures = item.stash.get(CAPTURES, None)
    if captures is None:
        return ""
    del item.stash[CAPTURES]
    item.stash[RUNNING].putting = lambda _ref, _again: contextlib.nullcontext()
    try:
        if not save:
            captures.drop()
            return ""
        said = [str(path) for path in captures.save()]
        item.stash[LOST] = captures.losses
        if captures.failed:
            said.append(f"not kept: {captures.failed}")
    except (LabError, OSError) as error:
        said = [f"not kept: {error}"]
    item.user_properties += [("capture", line) for line in said]
    return "\n".join(said)


def verify(item: pytest.Item) -> None:
    """Read back, after a test's body, that its links are still in force. Raises ImpairmentNotAppliedError."""
    if RUNNING in item.stash:
        item.stash[RUNNING].verify()


def keep(item: pytest.Item, lab: Lab) -> None:
    """Keep what was found of the test's links, for the results file and JUnit."""
    result = result_of(item)
    result.links, result.replay = tuple(lab.evidence), replay(item).splitlines()[0]
    result.hosts = tuple(lab.whole.changes)
    item.user_properties += [(f"host {each.host}", str(each)) for each in lab.whole.changes]
    result.records = [vars(record) for record in lab.records]
    for link in lab.evidence:
        levels = f"read-back {link.read_back}, counters {link.counters}, probe {link.probe}"
        item.user_properties.append((f"proof {link.link}", levels))
        for check in link.checks:
            seen = f"asked {check.asked}, kernel {check.kernel}, seen {check.seen}: {check.verdict}"
            item.user_properties.append((f"{link.link} {check.field}", seen))
        item.user_properties += [(f"{link.link} warning", warning) for warning in link.warnings]


def result_of(item: pytest.Item) -> TestResult:
    """What is known so far of a test on a lab."""
    from testbed.model.results import TestResult

    return item.config.stash[RESULTS].setdefault(item.nodeid, TestResult(id=item.nodeid))


def judge(item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
    """Report a test whose impairment was not in force as INVALID, whatever it was expected to do."""
    if call.excinfo is not None and call.excinfo.errisinstance(ImpairmentNotAppliedError):
        report.outcome, report.longrepr = "failed", f"INVALID: {call.excinfo.value}"
        vars(report).pop("wasxfail", None)
        report.testbed_invalid = True  # type: ignore[attr-defined]  # reports carry plugins' words this way
    if report.failed and RUNNING in item.stash:
        if kept := end_captures(item, save=True):
            report.sections.append(("testbed: what passed the impaired ports, before and after", kept))
        if links := item.stash[RUNNING].evidence:
            from testbed.report import evidence

            seen = "\n".join(line for link in links for line in evidence.lines(link))
            report.sections.append(("testbed: asked, kernel, seen", seen))
        report.sections.append(("testbed: to run it again under the same network", replay(item)))
    if RUNNING in item.stash or item.nodeid in item.config.stash[RESULTS]:
        result = result_of(item)
        invalid = getattr(report, "testbed_invalid", False)
        result.add("invalid" if invalid else report.outcome, None if report.passed else report.longreprtext)
        result.duration_s = report.duration if report.when == "call" else result.duration_s
        if report.when == "teardown":  # all is known by now; with pytest-xdist, the report alone reaches the controller
            vars(report).update(
                testbed_result=result.as_json(),
                testbed_netem=getattr(item.config.stash.get(LAB, None), "netem_engine", None),
            )


def replay(item: pytest.Item) -> str:
    """The command that repeats a test under the same network, and what was put on its links."""
    lab, config = item.stash[RUNNING], item.config
    _, *inside = item.nodeid.split("::")  # which has no path where the file lies outside pytest's root
    path = os.path.relpath(item.path, config.invocation_params.dir)  # the line is for where pytest was started
    words = ["pytest", "::".join([path, *inside]), "--testbed-seed", str(config.stash[SEED])]
    words += ["--netem", lab.netem_engine, "--lab", chosen(config)[0]]
    if file := config.getoption("--compose-file"):
        words += ["--compose-file", file]
    for name in config.getoption("--compose-profile"):
        words += ["--compose-profile", name]
    for option, usual in KEPT_OPTIONS:
        said: str = config.getoption(option)
        if said != usual:
            words += [option, said]
    links = [f"{each.link}: {each.describe()}" for each in lab.history]
    unseeded = [] if lab.seedable else ["(unseeded: this kernel's netem takes no seed; --netem carried does)"]
    lost = item.stash.get(LOST, None) or _counted_losses(lab, captured=config.getoption("--testbed-capture") != "never")
    return "\n".join([shlex.join(words), *links, *unseeded, *lost, *_earlier(lab)])


def _earlier(lab: Lab) -> Iterator[str]:
    """Which links carried packets of connections that began before the test: in another run there may be others."""
    for each in lab.evidence:
        if each.earlier_packets is not None:
            said = next(check.seen for check in each.checks if check.field == "earlier connections")
            yield f"{each.link}: {said}, which began before the test, took numbers of the sequence"


def _counted_losses(lab: Lab, *, captured: bool) -> Iterator[str]:
    """What each link lost, where no capture tells which packets these were."""
    which = "" if captured else "; which, --testbed-capture on-failure tells"
    for each in lab.evidence:
        if each.tally is not None and each.tally.dropped_packets:
            yield (f"{each.link}: lost {each.tally.dropped_packets} of {each.tally.arrived_packets} packets{which}")
