"""What a session of tests found, as it is written: line by line as tests end, and as one file at the close.

The file (``--testbed-results``, ``report/results.json``) has schema 1; a change that breaks readers has another
number. It is one JSON object::

    schema        "testbed-results/1"
    started       ISO 8601, UTC
    duration_s    of the session
    seed          from which the seeds of random impairments are derived (--testbed-seed)
    netem         who executed it: host or carried; null if no test needed a lab
    exit_status   pytest's: 2 if the machine, the Compose file, the markers or the options are at fault
    problems      what was wrong with markers and options, so that nothing was started
    not_up        why the stack did not start; null if it did, or was not needed
    tests         one object a test with a lab, those that failed in their set-up or were skipped included:
        id            pytest's node id, without what pytest-xdist adds to it
        profile       under which `impair_each` ran it; null without
        outcome       passed, failed, skipped or invalid (an impairment was not in force, or no packet met it: the
                      result does not count)
        duration_s    of its body
        reason        why it did not pass; null if it did
        seed          from which the seeds of this attempt are derived: with --testbed-reseed-reruns another each time
        replay        the command that repeats it under the same network; null for a test without a lab
        records       [{name, value, unit, better}]
        links         one object an impaired link: link, network, profile (its name; empty if it was asked in words),
                      asked (words, the seed included), command (the tc
                      line), proof {read_back, counters, probe: holds, fails, shown, unknown or not asked}, checks
                      [{field, asked, kernel, seen, verdict, how, cause}], counters {sent_packets, dropped_packets,
                      queued_packets, tail_drops (a number, or {at_least, at_most}), tail_drops_from,
                      duplicated, reordered, corrupted ({packets, from}, or {at_least, at_most, from}; from says
                      whether it was counted or derived)} or null, at_taps {came_packets, refused_packets (lost before
                      the carried kernels on its way, of all links that share them)} or null, lateness of its
                      carrier {carrier, frames, median_s, worst_s, late, tolerance_s, late_ratio} or null (not
                      watched), problems (why the result does not count),
                      met_packets (that came to it; null if not known), warnings,
                      steps (of a timeline, or of a link that flaps) [{planned_s and actual_s since its begin, unix_s,
                      in_force (from here on), passed_over, complaint (why it was not in force, or null)}],
                      steps_left_out (of the end, beyond 10,000).
                      A cut is such an object, too; its asked is {cut}
        flaky         whether a re-run passed what an attempt before had not
        earlier_attempts  of a test that was run again: [{outcome, duration_s, reason, seed, replay, records, links}];
                      what stands above is the last attempt's, which counts

The lines (the same name and an ``l``: ``report/results.jsonl``) have schema 1, too. Each is one JSON object, appended
as a test ends, so that they are whole whatever becomes of the session. `merged` reads them::

    {"schema": "testbed-results-lines/1", "started": …, "seed": …}      the first
    {"test": {…}}     a test, as above; a later line of the same id, of a test that was run again, takes its place
    {"end": {…}}      the last, of a session that came to its end: the rest of the file, as above
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from testbed.evidence.hoststate import HostChange
from testbed.evidence.proof import LinkEvidence

SCHEMA = "testbed-results/1"
LINES_SCHEMA = "testbed-results-lines/1"
OUTCOMES = ("passed", "failed", "skipped", "invalid")
_WORST_FIRST = ("invalid", "failed", "skipped", "passed")


@dataclass(kw_only=True)
class Attempt:
    """One run of a test."""

    seed: int
    outcome: str = "passed"
    duration_s: float = 0.0
    reason: str | None = None
    replay: str | None = None
    records: Sequence[Mapping[str, Any]] = ()
    links: Sequence[LinkEvidence] = field(default_factory=tuple)
    hosts: Sequence[HostChange] = field(default_factory=tuple)
    """What became of hosts meanwhile, by the test and by others."""

    def add(self, outcome: str, reason: str | None) -> None:
        """One of its phases (set-up, body, tear-down) ended so; the worst one counts."""
        if _WORST_FIRST.index(outcome) < _WORST_FIRST.index(self.outcome):
            self.outcome, self.reason = outcome, reason

    def as_json(self) -> dict[str, Any]:
        """As the results file has it."""
        return {**vars(self), "records": list(self.records), "links": [link.as_json() for link in self.links],
                "hosts": [host.as_json() for host in self.hosts]}  # fmt: skip


@dataclass(kw_only=True)
class TestResult:
    """One test, and its attempts in order: more than one if it was run again."""

    __test__ = False  # pytest must not collect it

    id: str
    profile: str | None = None
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def flaky(self) -> bool:
        """Whether it passed in the end, and had not before."""
        *earlier, last = self.attempts
        return last.outcome == "passed" and any(each.outcome in ("failed", "invalid") for each in earlier)

    def as_json(self) -> dict[str, Any]:
        """As the results file has it."""
        *earlier, last = self.attempts
        said = {"id": self.id, "profile": self.profile, **last.as_json(), "flaky": self.flaky}
        return {**said, "earlier_attempts": [each.as_json() for each in earlier]}


def as_text(value: Any, *, indent: int | None = None) -> str:
    """JSON that every reader takes: a number that is none, or not finite, is null."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def merged(lines: Iterable[str]) -> dict[str, Any]:
    """What a file of lines says, as the one file would; without its end if the session did not come to it.

    A last line that was cut off in mid-write is left out. Raises ValueError for what is no such file.
    """
    head: dict[str, Any] | None = None
    tests: dict[str, Any] = {}
    end: dict[str, Any] = {}
    for line in lines:
        if not line.endswith("\n"):
            break
        said = json.loads(line)
        if head is None:
            if said.get("schema") != LINES_SCHEMA:
                raise ValueError(f"schema {said.get('schema')!r}: must be {LINES_SCHEMA}")
            head = said
        elif "test" in said:
            tests.pop(said["test"]["id"], None)
            tests[said["test"]["id"]] = said["test"]
        else:
            end = said.get("end", {})
    if head is None:
        raise ValueError("no line at all")
    return {**head, **end, "schema": SCHEMA, "tests": list(tests.values())}


def session_json(
    tests: Iterable[Mapping[str, Any]],
    *,
    started: str,
    duration_s: float,
    seed: int,
    netem: str | None,
    exit_status: int,
    problems: Sequence[str] = (),
    not_up: str | None = None,
) -> dict[str, Any]:
    """The whole file, of the tests as each of them is written."""
    return {
        "schema": SCHEMA,
        "started": started,
        "duration_s": duration_s,
        "seed": seed,
        "netem": netem,
        "exit_status": exit_status,
        "problems": list(problems),
        "not_up": not_up,
        "tests": list(tests),
    }
