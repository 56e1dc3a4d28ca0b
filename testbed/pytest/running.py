"""One test on a lab: its links before, during and after it, and its verdict.

What is known of the attempt that runs now lies in the test's stash, and is begun anew when it is run again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from testbed.errors import ImpairmentNotAppliedError, LabError
from testbed.evidence.verdict import Verdict, words
from testbed.pytest.markers import WANTED, id_of, marked, needs_lab, profile_of, wanted
from testbed.pytest.state import KEPT_OPTIONS, LAB, SEED, chosen, fail_if_not_up, is_told
from testbed.text import shortened

if TYPE_CHECKING:
    from testbed.evidence.results import Attempt, TestResult
    from testbed.lab.keeping import KeptCaptures
    from testbed.lab.lab import Lab
    from testbed.pytest.markers import Wanted

SESSION_LAB = "_testbed_stack"
"""The fixture that brings the session's own lab up."""


@dataclass
class Run:
    """What is known of a test's attempt while it runs."""

    seed: int
    attempt: Attempt | None = None
    """What is written of it, if it needs a lab."""
    lab: Lab | None = None
    wanted: Wanted | None = None
    captures: KeptCaptures | None = None
    lost: list[str] = field(default_factory=list)
    """Which packets each link lost, by their numbers."""
    vacuous: list[str] = field(default_factory=list)
    """Markers whose links no packet met."""
    facts: dict[str, Any] | None = None
    """What its lab was, while it was up: see `testbed.evidence.machine`."""
    properties: list[tuple[str, str]] = field(default_factory=list)
    """What was added to the test's, for JUnit."""


RUN: pytest.StashKey[Run] = pytest.StashKey()
RESULT: pytest.StashKey[TestResult] = pytest.StashKey()


def run_of(item: pytest.Item) -> Run:
    """The attempt that runs now."""
    if RUN not in item.stash:
        item.stash[RUN] = Run(seed=item.config.stash[SEED])
    return item.stash[RUN]


def lab_on(item: pytest.Item) -> Lab | None:
    """The lab that a test has its links on, from the time when they were set."""
    return item.stash[RUN].lab if RUN in item.stash else None


def tell(item: pytest.Item, name: str, value: str) -> None:
    """Add a property to a test, for JUnit."""
    item.user_properties.append((name, value))
    run_of(item).properties.append((name, value))


# --- before the body ---------------------------------------------------------------------------------


def begin(item: pytest.Item) -> None:
    """Begin an attempt: nothing of one before is in it."""
    if RUN in item.stash:
        for each in item.stash[RUN].properties:
            if each in item.user_properties:
                item.user_properties.remove(each)
        del item.stash[RUN]
    earlier = len(item.stash[RESULT].attempts) if RESULT in item.stash else 0
    run_of(item).seed = _seed_of(item.config, earlier)
    if needs_lab(item):
        _attempt_of(item)


def _seed_of(config: pytest.Config, earlier: int) -> int:
    """Of an attempt: the session's, unless re-runs are asked to have others."""
    seed = config.stash[SEED]
    if not earlier or not config.getoption("--testbed-reseed-reruns"):
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} attempt {earlier + 1}".encode()).digest()[:4])


def result_of(item: pytest.Item) -> TestResult:
    """What is known so far of a test, its earlier attempts included."""
    from testbed.evidence.results import TestResult

    if RESULT not in item.stash:
        item.stash[RESULT] = TestResult(id=id_of(item), profile=profile_of(item))
    return item.stash[RESULT]


def _seeded_by(item: pytest.Item) -> str:
    """What tells a test's seeds from others': its file's name and its own, not the folder.

    Which folder pytest counts from depends on the files among its arguments, too.
    """
    return "::".join([item.path.name, *id_of(item).split("::")[1:]])


def _attempt_of(item: pytest.Item) -> Attempt:
    """What is written of the attempt that runs."""
    from testbed.evidence.results import Attempt

    run = run_of(item)
    if run.attempt is None:
        run.attempt = Attempt(seed=run.seed)
        result_of(item).attempts.append(run.attempt)
    return run.attempt


@contextmanager
def links_of_markers(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a marked test asks of its links, in force; whether it asks for our fixtures or not, and whoever made them.

    On the lab that its fixture ``lab`` or ``stack`` gives, if one of them does: else on the session's own.
    """
    item: pytest.Item = request.node
    if not marked(item):
        yield
        return
    from testbed.lab.lab import Lab

    for name in ("lab", "stack"):
        if name in request.fixturenames:
            given = request.getfixturevalue(name)
            if lab_on(item) is not None:  # ours, perhaps beneath another
                yield
                return
            if isinstance(given, Lab):
                break
    else:
        given = request.getfixturevalue(SESSION_LAB)
        fail_if_not_up(item.config)
    with impaired(item, given):
        yield


@contextmanager
def impaired(item: pytest.Item, lab: Lab) -> Iterator[Lab]:
    """A lab with this test's impairments in force and no others; healed afterwards."""
    if lab_on(item) is lab:
        yield lab
        return
    from testbed.lab import keeping
    from testbed.lab.connections import LeftOverWarning
    from testbed.spec.timeline import LateStepWarning, late_in_words, steps_in_words

    run, config = run_of(item), item.config
    ours = config.stash.get(LAB, None) is lab
    asked = item.stash[WANTED] if ours and WANTED in item.stash else wanted(item, lambda: lab)
    lab.carriage.warn_only = config.getoption("--testbed-lateness") == "warn"
    run.lab, run.wanted = lab, asked  # at once: an agent may die while it begins
    # Heals also what a test that uses `stack` alone may have put there.
    lab.begin(f"{run.seed}:{_seeded_by(item)}", asked.links)
    if (mode := config.getoption("--testbed-capture")) != "never":
        folder = config.rootpath / "report" / "captures" / keeping.file_name(id_of(item))
        run.captures = captures = keeping.KeptCaptures(lab, folder, below=config.rootpath)
        lab.impairer.putting = captures.putting
    try:
        for ref in lab.there(asked.links):
            impairment, name = asked.links[ref]
            applied = lab.impairer.arm(ref, impairment, profile=name)
            tell(item, f"impaired {ref}", f"{impairment.describe()} ({lab.netem_engine} engine)")
            tell(item, f"tc {ref}", applied.command)
        for ref in lab.there(sorted(asked.prove)):
            lab.prove(f"{ref.src} -> {ref.dst} {ref.traffic}".strip() + f" on {ref.network}")
        lab.carriage.settle()
        yield lab
    finally:
        end_captures(item, save=mode == "always")
        keep(item, lab)
        lab.end()
        if lab.left_over:
            warnings.warn(LeftOverWarning(f"may send in the next test: {lab.left_over}"), stacklevel=1)
        for ref, steps in lab.ledger.stepped.items():
            tell(item, f"timeline {ref}", steps_in_words(steps))
            if late := late_in_words(steps):
                warnings.warn(LateStepWarning(f"{ref}: {late}"), stacklevel=1)
        for metric in lab.ledger.metrics.values():
            tell(item, metric.name, metric.describe())


# --- around and after the body ------------------------------------------------------------------------


def play(item: pytest.Item) -> None:
    """Begin its links' sequences and timelines with a test's body.

    Raises ImpairmentNotAppliedError if what they ask was not set at all: that cannot be a test's doing.
    """
    lab = lab_on(item)
    if lab is not None:
        lab.begin_body()
    elif marked(item):
        said = ", ".join(item.stash[WANTED].by_marker)
        raise ImpairmentNotAppliedError(
            f"{said}: not set: the fixture `_testbed_links` of testbed was not run, which something else has replaced"
        )


def verify(item: pytest.Item) -> None:
    """Read back, after a test's body, that its links are still in force. Raises ImpairmentNotAppliedError."""
    lab = lab_on(item)
    if lab is not None:
        lab.verify()
        run_of(item).vacuous[:] = _vacuous(run_of(item), lab)


def _vacuous(run: Run, lab: Lab) -> Iterator[str]:
    """The markers none of whose links a packet met, as far as that is known."""
    for said, refs in (run.wanted.by_marker if run.wanted else {}).items():
        met = [
            each.met_packets for each in lab.evidence for ref in refs
            if (each.link, each.network) == (str(ref), ref.network)
        ]  # fmt: skip
        if met and not any(count is None or count for count in met):
            yield (
                f"{said}: no packet met what it impairs: the test would pass without it, too. Does its traffic go "
                f"another way, or to another lab? --testbed-vacuous warn lets it pass"
            )


def end_captures(item: pytest.Item, *, save: bool) -> str:
    """End what is captured for a test, and keep it or not; what to say of it. Says so too if it cannot be had."""
    run = run_of(item)
    captures, run.captures = run.captures, None
    if captures is None:
        return ""
    if run.lab is not None:
        run.lab.impairer.putting = lambda _ref, _again: contextlib.nullcontext()
    try:
        if not save:
            captures.drop()
            return ""
        said = [str(path) for path in captures.save()]
        run.lost = captures.losses
        if captures.failed:
            said.append(f"not kept: {captures.failed}")
    except (LabError, OSError) as error:
        said = [f"not kept: {getattr(error, 'strerror', None) or error}"]
    for line in said:
        tell(item, "capture", line)
    return "\n".join(said)


def keep(item: pytest.Item, lab: Lab) -> None:
    """Keep what was found of the test's links, for the results file and JUnit."""
    attempt = _attempt_of(item)
    attempt.links, attempt.replay = tuple(lab.evidence), replay_command(item, lab)
    attempt.hosts = tuple(lab.whole.changes)
    for each in lab.whole.changes:
        tell(item, f"host {each.host}", str(each))
    run_of(item).facts = lab.facts()
    attempt.metrics = tuple(lab.ledger.metrics.values())
    for link in lab.evidence:
        levels = f"read-back {link.read_back}, counters {link.counters}, probe {link.probe}"
        tell(item, f"proof {link.link}", levels)
        for check in link.checks:
            seen = f"asked {check.asked}, kernel {check.kernel}, seen {check.seen}: {check.verdict}"
            tell(item, f"{link.link} {check.field}", seen)
        for warning in link.warnings:
            tell(item, f"{link.link} warning", warning)


# --- the verdict --------------------------------------------------------------------------------------


def judge(item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
    """Report a test whose impairment was not in force as INVALID, whatever it was expected to do.

    And one that passed, or failed as it was expected to, though no packet met what a marker impairs.
    """
    error = _not_in_force(call.excinfo.value) if call.excinfo is not None else None
    reason = None if error is None else str(error)
    lab = lab_on(item)
    if reason is None and report.failed and lab is not None:  # an agent's death is none of the test's failures
        reason = "\n".join(map(str, lab.succession.look())) or None
    green = report.when == "call" and (report.passed or hasattr(report, "wasxfail"))
    if reason is None and green and item.config.getoption("--testbed-vacuous") == "invalid":
        reason = "\n".join(run_of(item).vacuous) or None
    if reason is not None:
        from testbed.report.junit import INVALID_PROPERTY

        report.outcome, report.longrepr = "failed", f"INVALID: {reason}"
        vars(report).pop("wasxfail", None)
        vars(report).update(
            testbed_verdict=Verdict.INVALID.of("test"), testbed_reason=reason
        )  # reports carry plugins' words this way
        tell(item, *INVALID_PROPERTY)
        report.user_properties.append(INVALID_PROPERTY)
    if report.failed and lab is not None:
        _explain(item, lab, report)
    if lab is not None or RESULT in item.stash:
        _keep_phase(item, report, words("test")[report.outcome] if reason is None else Verdict.INVALID)


def _not_in_force(error: BaseException) -> ImpairmentNotAppliedError | None:
    """The first in what was raised, which may be several errors at once, that says that the result must not count."""
    if isinstance(error, ImpairmentNotAppliedError):
        return error
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return next((found for each in inner if (found := _not_in_force(each)) is not None), None)


def _explain(item: pytest.Item, lab: Lab, report: pytest.TestReport) -> None:
    sections: list[tuple[str, str]] = []
    if kept := end_captures(item, save=True):
        sections.append(("what passed the impaired ports, before and after", kept))
    if lab.evidence:
        from testbed.report import evidence

        seen = "\n".join(line for link in lab.evidence for line in evidence.lines(link))
        sections.append(("asked, kernel, seen", seen))
    sections.append(("to run it again under the same network", _replay(item, lab)))
    report.sections += [(f"testbed: {title}", text) for title, text in sections]
    vars(report).update(testbed_sections=[text for _, text in sections])


def _keep_phase(item: pytest.Item, report: pytest.TestReport, outcome: Verdict) -> None:
    attempt = _attempt_of(item)
    attempt.add(outcome, None if report.passed else report.longreprtext)
    attempt.duration_s = report.duration if report.when == "call" else attempt.duration_s
    if report.when == "teardown":  # all is known by now; with pytest-xdist, the report alone reaches the controller
        vars(report).update(
            testbed_result=result_of(item).as_json(),
            testbed_lab=run_of(item).facts,
        )


def replay_command(item: pytest.Item, lab: Lab) -> str:
    """The command that repeats a test under the same network."""
    config, run = item.config, run_of(item)
    _, *inside = id_of(item).split("::")  # which has no path where the file lies outside pytest's root
    path = os.path.relpath(item.path, config.invocation_params.dir)  # the line is for where pytest was started
    words = ["pytest", "::".join([path, *inside]), "--testbed-seed", str(run.seed)]
    words += ["--netem", lab.netem_engine, "--lab", chosen(config)[0]]
    for option in ("--compose-file", "--compose-profile"):
        for name in config.getoption(option):
            words += [option, name]
    for option, usual in KEPT_OPTIONS:
        said: str = config.getoption(option)
        if said != usual and not (option == "--testbed-results" and is_told(config)):  # else it is a pass's own
            words += [option, said]
    return shlex.join(words)


def _replay(item: pytest.Item, lab: Lab) -> str:
    """That command, what was put on the links, and what they lost; each line short enough for a terminal."""
    links = [f"{applied.link}: {applied.describe()}" for applied in lab.ledger.history]
    unseeded = [] if lab.seedable else ["(unseeded: this kernel's netem takes no seed; --netem carried does)"]
    captured = item.config.getoption("--testbed-capture") != "never"
    lost = run_of(item).lost or _counted_losses(lab, captured=captured)
    return "\n".join([replay_command(item, lab), *map(shortened, (*links, *unseeded, *lost, *_earlier(lab)))])


def _earlier(lab: Lab) -> Iterator[str]:
    """Which links carried packets of connections that began before the test: in another run there may be others."""
    from testbed.lab.rows import EARLIER

    for each in lab.evidence:
        if each.earlier_packets is not None:
            said = next(check.seen for check in each.checks if check.field == EARLIER)
            yield f"{each.link}: {said}, which began before the test, took numbers of the sequence"


def _counted_losses(lab: Lab, *, captured: bool) -> Iterator[str]:
    """What each link lost, where no capture tells which packets these were."""
    which = "" if captured else "; which, --testbed-capture on-failure tells"
    for each in lab.evidence:
        if each.tally is not None and each.tally.dropped_packets:
            yield (f"{each.link}: lost {each.tally.dropped_packets} of {each.tally.arrived_packets} packets{which}")
