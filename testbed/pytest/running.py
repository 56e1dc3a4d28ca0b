"""One test on a lab: its links before, during and after it, and its verdict.

The state of the running attempt is in the test's stash; another attempt begins with a new one.
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
from testbed.pytest.markers import WANTED, id_of, marked, needs_lab, profile_of, under, wanted
from testbed.pytest.stacks import OWN, SESSION_LAB, stack_of
from testbed.pytest.state import (
    DIVISION,
    KEPT_OPTIONS,
    SEED,
    STACKS_S,
    chosen,
    fail_if_not_up,
    is_told,
    lab_of,
    metric_groups,
)
from testbed.text import shortened

if TYPE_CHECKING:
    from testbed.evidence.results import Attempt, TestResult
    from testbed.evidence.trail import Passed
    from testbed.lab.keeping import KeptCaptures, LinkLosses
    from testbed.lab.lab import Lab
    from testbed.lab.ledger import Applied
    from testbed.pytest.markers import Wanted
    from testbed.pytest.trails import Following
    from testbed.spec.links import LinkRef

_MOST_PROGRAMS = 100
"""Of one attempt are in the results; the metrics are of all."""
_MOST_SERIES = 40


@dataclass
class RunningAttempt:
    """An attempt of a test while it runs."""

    seed: int
    attempt: Attempt | None = None
    """Its entry in the results, if it needs a lab."""
    lab: Lab | None = None
    wanted: Wanted | None = None
    captures: KeptCaptures | None = None
    following: Following | None = None
    passed: Passed | None = None
    """What passed at every port; None in real time."""
    kept: list[str] = field(default_factory=list)
    """The files of packets, from where pytest was started."""
    lost: list[LinkLosses] = field(default_factory=list)
    """The packets that each link lost, by number."""
    vacuous: list[str] = field(default_factory=list)
    """Markers whose links no packet met."""
    facts: dict[str, Any] | None = None
    """The facts of its lab while it was up: see `testbed.evidence.machine`."""
    properties: list[tuple[str, str]] = field(default_factory=list)
    """The properties that were added to the test, for JUnit."""


RUN: pytest.StashKey[RunningAttempt] = pytest.StashKey()
RESULT: pytest.StashKey[TestResult] = pytest.StashKey()


def run_of(item: pytest.Item) -> RunningAttempt:
    """The running attempt."""
    if RUN not in item.stash:
        item.stash[RUN] = RunningAttempt(seed=item.config.stash[SEED])
    return item.stash[RUN]


def work(config: pytest.Config, count: object, name: object) -> int:
    """How much work a test does: ``count``, or less while its failure is made smaller. Raises InvalidValueError."""
    from testbed.errors import InvalidValueError
    from testbed.pytest.trial import TRIAL
    from testbed.text import shown

    if isinstance(count, bool) or not isinstance(count, int) or count < 1 or not isinstance(name, str):
        raise InvalidValueError(
            f'at_most({shown(count)}, {shown(name)}): write a whole number, at_most(20, "messages")'
        )
    trial = config.stash.get(TRIAL, None)
    return count if trial is None else trial.at_most(count, name)


def lab_on(item: pytest.Item) -> Lab | None:
    """The lab of a test's links, once they are set."""
    return item.stash[RUN].lab if RUN in item.stash else None


def add_property(item: pytest.Item, name: str, value: str) -> None:
    """Add a property to a test, for JUnit."""
    item.user_properties.append((name, value))
    run_of(item).properties.append((name, value))


# --- before the body ---------------------------------------------------------------------------------


def begin(item: pytest.Item) -> None:
    """Begin an attempt, without anything of an earlier one."""
    if RUN in item.stash:
        for entry in item.stash[RUN].properties:
            if entry in item.user_properties:
                item.user_properties.remove(entry)
        del item.stash[RUN]
    earlier = len(item.stash[RESULT].attempts) if RESULT in item.stash else 0
    run_of(item).seed = _seed_of(item.config, earlier)
    if needs_lab(item):
        _attempt_of(item)


def _seed_of(config: pytest.Config, earlier: int) -> int:
    """The seed of an attempt: the session's, unless re-runs are to have others."""
    seed = config.stash[SEED]
    if not earlier or not config.getoption("--testbed-reseed-reruns"):
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} attempt {earlier + 1}".encode()).digest()[:4])


def result_of(item: pytest.Item) -> TestResult:
    """The result of a test so far, earlier attempts included."""
    from testbed.evidence.results import TestResult

    if RESULT not in item.stash:
        item.stash[RESULT] = TestResult(id=id_of(item), profile=profile_of(item), stack=stack_of(item).name)
    return item.stash[RESULT]


def _seeded_by(item: pytest.Item) -> str:
    """The text that makes a test's seeds its own: its file's name and its own, not the folder.

    pytest's root, from which a path is relative, depends also on its arguments.
    """
    return "::".join([item.path.name, *id_of(item).split("::")[1:]])


def _attempt_of(item: pytest.Item) -> Attempt:
    """The entry of the running attempt in the results."""
    from testbed.evidence.results import Attempt

    run = run_of(item)
    if run.attempt is None:
        run.attempt = Attempt(seed=run.seed)
        result_of(item).attempts.append(run.attempt)
    return run.attempt


@contextmanager
def links_of_markers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Impair the links of a marked test, whether it uses our fixtures or not.

    On the lab that its fixture ``lab`` or ``stack`` gives, if one of them does; else on the session's own, or that of
    its marker ``stack``, which is up even if nothing is impaired.
    """
    item: pytest.Item = request.node
    if not marked(item):
        if stack_of(item) is not OWN:
            fail_if_not_up(item.config, request.getfixturevalue(SESSION_LAB))
        yield
        return
    from testbed.lab.lab import Lab

    for name in ("lab", "stack"):
        if name in request.fixturenames:
            given = request.getfixturevalue(name)
            if lab_on(item) is not None:  # our fixture, perhaps wrapped by the user's
                yield
                return
            if isinstance(given, Lab):
                break
    else:
        given = request.getfixturevalue(SESSION_LAB)
        fail_if_not_up(item.config, given)
    with impaired(item, given):
        yield


def put(lab: Lab, requests: Wanted) -> Iterator[tuple[LinkRef, Applied]]:
    """Shape the ports of markers, and impair the links, one after the other. Raises ImpairmentNotAppliedError."""
    for refs, bottleneck, profile in requests.shapes:
        lab.shaper.shape(lab.whole.there(refs), bottleneck, profile=profile or "", with_links=profile is not None)
    for ref in lab.whole.there(requests.links):
        impairment, name = requests.links[ref]
        yield ref, lab.impairer.apply(ref, impairment, profile=name)


@contextmanager
def impaired(item: pytest.Item, lab: Lab) -> Iterator[Lab]:
    """A lab with this test's impairments in force and no others; healed afterwards."""
    if lab_on(item) is lab:
        yield lab
        return
    from testbed.lab import impairer, keeping
    from testbed.lab.connections import LeftOverWarning
    from testbed.pytest import trails
    from testbed.pytest import trial as trials
    from testbed.spec.timeline import LateStepWarning, late_in_words, steps_in_words

    run, config = run_of(item), item.config
    known = item.stash.get(WANTED, None) if lab_of(config, stack_of(item)) is lab else None
    requests = wanted(item, lambda: lab) if known is None or known.unknown else known
    lab.measuring.groups = metric_groups(config.getoption("--testbed-metrics"))
    lab.carriage.warn_only = config.getoption("--testbed-lateness") == "warn"
    trial = config.stash.get(trials.TRIAL, None)
    lab.impairer.instead = impairer.as_asked if trial is None else trial.instead
    run.lab, run.wanted = lab, requests  # at once: an agent may die while it begins
    # This also heals the impairments of a test that uses `stack` alone.
    lab.lifecycle.begin(f"{run.seed}:{_seeded_by(item)}", requests.all_links)
    name = id_of(item) if config.getoption("--testbed-seeds") is None else under(id_of(item), run.seed)
    folder = config.invocation_params.dir / "report" / "captures" / keeping.file_name(name)
    if (mode := config.getoption("--testbed-capture")) != "never":
        run.captures = captures = keeping.KeptCaptures(lab, folder, below=config.invocation_params.dir)
        lab.impairer.putting = captures.putting
    try:
        for ref, applied in put(lab, requests):
            impairment, _ = requests.links[ref]
            add_property(item, f"impaired {ref}", f"{impairment.describe()} ({lab.netem_engine} engine)")
            add_property(item, f"tc {ref}", applied.command)
        for ref in lab.whole.there(sorted(requests.prove)):
            lab.prove(f"{ref.src} -> {ref.dst} {ref.traffic}".strip() + f" on {ref.network}")
        lab.carriage.settle()
        run.following = trails.follow(item, lab, folder)
        yield lab
    finally:
        _end_following(item)
        end_captures(item, save=mode == "always")
        keep(item, lab)
        lab.lifecycle.end()
        if lab.lifecycle.left_over:
            warnings.warn(LeftOverWarning(f"may send in the next test: {lab.lifecycle.left_over}"), stacklevel=1)
        for ref, steps in lab.ledger.stepped.items():
            add_property(item, f"timeline {ref}", steps_in_words(steps))
            if late := late_in_words(steps):
                warnings.warn(LateStepWarning(f"{ref}: {late}"), stacklevel=1)
        for metric in _attempt_of(item).metrics:
            add_property(item, metric.name, metric.describe())


# --- around and after the body ------------------------------------------------------------------------


def play(item: pytest.Item) -> None:
    """Begin the sequences and timelines of a test's links with its body.

    Raises ImpairmentNotAppliedError if its markers were not applied at all, which is not the test's fault.
    """
    lab = lab_on(item)
    if lab is not None:
        lab.lifecycle.begin_body()
    elif marked(item):
        markers = ", ".join(item.stash[WANTED].by_marker)
        raise ImpairmentNotAppliedError(
            f"{markers}: not set: testbed's fixture `_testbed_links` did not run; something else has replaced it"
        )


def verify(item: pytest.Item) -> None:
    """Read back after a test's body that its impairments are still in force. Raises ImpairmentNotAppliedError."""
    lab = lab_on(item)
    if lab is not None:
        lab.lifecycle.end_body()
        lab.verifier.verify()
        run_of(item).vacuous[:] = _vacuous(run_of(item), lab)


def _vacuous(run: RunningAttempt, lab: Lab) -> Iterator[str]:
    """A sentence for each marker of whose links none carried a packet, as far as that is known."""
    for marker, names in (run.wanted.by_marker if run.wanted else {}).items():
        counts = [link.met_packets for link in lab.ledger.evidence if (link.link, link.network) in names]
        if counts and all(count == 0 for count in counts):
            yield (
                f"{marker}: no packet met what it impairs: the test would pass without it, too. Does its traffic go "
                f"another way, or to another lab? --testbed-vacuous warn lets it pass"
            )


def end_captures(item: pytest.Item, *, save: bool) -> str:
    """End the captures of a test, and save them or not; the paths of the files, or why there are none."""
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
        saved = captures.save()
        lines = [str(path) for path in saved]
        run.kept += [os.path.relpath(path, item.config.invocation_params.dir) for path in saved]
        run.lost = captures.losses
        if captures.failed:
            lines.append(f"not kept: {captures.failed}")
    except (LabError, OSError) as error:
        lines = [f"not kept: {getattr(error, 'strerror', None) or error}"]
    for line in lines:
        add_property(item, "capture", line)
    return "\n".join(lines)


def _end_following(item: pytest.Item) -> None:
    run = run_of(item)
    following, run.following = run.following, None
    if following is not None:
        with contextlib.suppress(LabError):  # the agent has died, which the verdict tells
            run.passed, files = following.end(item)
            run.kept += [os.path.relpath(path, item.config.invocation_params.dir) for path in files]


def keep(item: pytest.Item, lab: Lab) -> None:
    """Keep the evidence of a test, for the results file and JUnit."""
    from testbed.lab import overtime

    attempt = _attempt_of(item)
    attempt.links, attempt.replay = tuple(lab.ledger.evidence), replay_command(item, lab)
    attempt.hosts = tuple(lab.whole.changes)
    for change in lab.whole.changes:
        add_property(item, f"host {change.host}", str(change))
    run_of(item).facts = lab.facts()
    programs = [run for program in lab.ledger.programs if (run := program.account) is not None]
    attempt.programs, attempt.captures = programs[:_MOST_PROGRAMS], run_of(item).kept
    attempt.series = [series for seen in lab.ledger.observed for series in overtime.series(seen)][:_MOST_SERIES]
    attempt.metrics = (
        *lab.ledger.metrics.values(),
        *lab.measuring.metrics(programs, lab.ledger.evidence, lab.ledger.flows),
    )
    attempt.flows = lab.ledger.flows
    attempt.packets = run_of(item).passed
    for link in lab.ledger.evidence:
        levels = f"read-back {link.read_back}, counters {link.counters}, probe {link.probe}"
        add_property(item, f"proof {link.link}", levels)
        for check in link.checks:
            seen = f"asked {check.asked}, kernel {check.kernel}, seen {check.seen}: {check.verdict}"
            add_property(item, f"{link.link} {check.field}", seen)
        for warning in link.warnings:
            add_property(item, f"{link.link} warning", warning)


# --- the verdict --------------------------------------------------------------------------------------


def judge(item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
    """Report a test as INVALID if its impairment was not in force, whatever its outcome.

    Also if it passed, or failed as expected, although no packet met what a marker impairs.
    """
    error = _not_in_force(call.excinfo.value) if call.excinfo is not None else None
    reason = None if error is None else str(error)
    lab = lab_on(item)
    if reason is None and report.failed and lab is not None:  # the death of an agent is not the test's failure
        reason = "\n".join(map(str, lab.succession.look())) or None
    green = report.when == "call" and (report.passed or hasattr(report, "wasxfail"))
    if reason is None and green and item.config.getoption("--testbed-vacuous") == "invalid":
        reason = "\n".join(run_of(item).vacuous) or None
    if reason is not None:
        from testbed.report.junit import INVALID_PROPERTY

        report.outcome, report.longrepr = "failed", f"INVALID: {reason}"
        vars(report).pop("wasxfail", None)
        # A report carries the data of plugins as attributes.
        vars(report).update(testbed_verdict=Verdict.INVALID.of("test"), testbed_reason=reason)
        add_property(item, *INVALID_PROPERTY)
        report.user_properties.append(INVALID_PROPERTY)
    if report.failed and lab is not None:
        _explain(item, lab, report)
    if lab is not None or RESULT in item.stash:
        _keep_phase(item, report, words("test")[report.outcome] if reason is None else Verdict.INVALID)


def _not_in_force(error: BaseException) -> ImpairmentNotAppliedError | None:
    """The first error, of a group of errors too, that says that an impairment was not in force."""
    if isinstance(error, ImpairmentNotAppliedError):
        return error
    members = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return next(filter(None, map(_not_in_force, members)), None)


def _explain(item: pytest.Item, lab: Lab, report: pytest.TestReport) -> None:
    sections: list[tuple[str, str]] = []
    if captures := end_captures(item, save=True):
        sections.append(("packets at the impaired ports, before and after", captures))
    if lab.ledger.evidence:
        from testbed.report import evidence

        seen = "\n".join(line for link in lab.ledger.evidence for line in evidence.lines(link))
        sections.append(("asked, kernel, seen", seen))
    sections.append(("to repeat it under the same network", _replay(item, lab)))
    report.sections += [(f"testbed: {title}", text) for title, text in sections]
    vars(report).update(testbed_sections=[text for _, text in sections])


def _keep_phase(item: pytest.Item, report: pytest.TestReport, outcome: Verdict) -> None:
    attempt = _attempt_of(item)
    attempt.add(outcome, None if report.passed else report.longreprtext)
    attempt.duration_s = report.duration if report.when == "call" else attempt.duration_s
    stacks_s = item.config.stash.get(STACKS_S, 0.0)
    item.config.stash[STACKS_S] = 0.0
    attempt.stacks_s += stacks_s
    attempt.elapsed_s += max(report.duration - stacks_s, 0.0)
    if report.when == "teardown":  # the last phase; with pytest-xdist, only reports reach the controller
        vars(report).update(
            testbed_result=result_of(item).as_json(),
            testbed_lab=run_of(item).facts,
            testbed_shard=division.as_json() if (division := item.config.stash.get(DIVISION, None)) else None,
        )


def replay_command(item: pytest.Item, lab: Lab) -> str:
    """The command that repeats a test under the same network."""
    config, run = item.config, run_of(item)
    _, *inside = id_of(item).split("::")  # the id has no path where the file is outside pytest's root
    path = os.path.relpath(item.path, config.invocation_params.dir)
    words = ["pytest", "::".join([path, *inside]), "--testbed-seed", str(run.seed)]
    if config.getoption("--virtual-time"):
        words.append("--virtual-time")  # which has one netem and one lab
    else:
        words += ["--netem", lab.netem_engine, "--lab", chosen(config)[0]]
    for option in ("--compose-file", "--compose-profile", "--testbed-image", "--testbed-vary"):
        for name in config.getoption(option):
            words += [option, name]
    for option, default in KEPT_OPTIONS:
        value: str = config.getoption(option)
        if value != default and not (option == "--testbed-results" and is_told(config)):  # else it is a pass's own
            words += [option, value]
    return shlex.join(words)


def _replay(item: pytest.Item, lab: Lab) -> str:
    """That command, the impairments of the links, and their losses; each line short enough for a terminal."""
    links = [f"{applied.link}: {applied.describe()}" for applied in lab.ledger.history]
    unseeded = [] if lab.seedable else ["(unseeded: this kernel's netem takes no seed; --netem carried does)"]
    captured = item.config.getoption("--testbed-capture") != "never"
    lost = [*map(str, run_of(item).lost)] or _counted_losses(lab, captured=captured)
    network = (*links, *lab.ledger.shaped)
    return "\n".join([replay_command(item, lab), *map(shortened, (*network, *unseeded, *lost, *_earlier(lab)))])


def _earlier(lab: Lab) -> Iterator[str]:
    """A line for each link with packets of connections that began before the test: another run may have others."""
    from testbed.lab.rows import EARLIER

    for link in lab.ledger.evidence:
        if link.earlier_packets is not None:
            seen = next(check.seen for check in link.checks if check.field == EARLIER)
            yield f"{link.link}: {seen}, which began before the test, took numbers of the sequence"


def _counted_losses(lab: Lab, *, captured: bool) -> Iterator[str]:
    """The number of packets that each link lost, where there is no capture to number them."""
    which = "" if captured else "; --testbed-capture on-failure tells which"
    for link in lab.ledger.evidence:
        if link.tally is not None and link.tally.dropped_packets:
            yield f"{link.link}: lost {link.tally.dropped_packets} of {link.tally.arrived_packets} packets{which}"
