"""What a session of tests found, as it is written to the results file.

The schema, version 1. The file is one JSON object::

    schema        "testbed-results/1"; a change that breaks readers has another number
    started       ISO 8601, UTC
    duration_s    of the session
    seed          from which the seeds of random impairments are derived (--testbed-seed)
    netem         who executed it: host or carried; null if no test needed a lab
    exit_status   pytest's
    tests         one object a test:
        id            pytest's node id
        outcome       passed, failed, skipped or invalid (an impairment was not in force: the result does not count)
        duration_s    of its body
        reason        why it did not pass; null if it did
        replay        the command that repeats it under the same network; null for a test without a lab
        records       [{name, value, unit, better}]
        links         one object an impaired link: link, network, asked (words, the seed included), command (the tc
                      line), proof {read_back, counters, probe: holds, fails, shown, unknown or not asked}, checks
                      [{field, asked, kernel, seen, verdict, how, cause}], counters {sent_packets, dropped_packets,
                      queued_packets, tail_drops (a number, or {at_least, at_most}), tail_drops_from,
                      duplicated, reordered, corrupted ({packets, from}, or {at_least, at_most, from}; from says
                      whether it was counted or derived)} or null, lateness of its
                      carrier {carrier, frames, median_s, worst_s, late, tolerance_s, late_ratio} or null (not
                      watched), problems (why the result does not count), warnings,
                      steps (of a timeline, or of a link that flaps) [{planned_s and actual_s since its begin, unix_s,
                      in_force (from here on), passed_over, complaint (why it was not in force, or null)}],
                      steps_left_out (of the end, beyond 10,000).
                      A cut is such an object, too; its asked is {cut}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from testbed.model.evidence import LinkEvidence
from testbed.model.hoststate import HostChange

SCHEMA = "testbed-results/1"
OUTCOMES = ("passed", "failed", "skipped", "invalid")
_WORST_FIRST = ("invalid", "failed", "skipped", "passed")


@dataclass(kw_only=True)
class TestResult:
    """One test."""

    __test__ = False  # pytest must not collect it

    id: str
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


def session_json(
    tests: Sequence[Mapping[str, Any]],
    *,
    started: str,
    duration_s: float,
    seed: int,
    netem: str | None,
    exit_status: int,
) -> dict[str, Any]:
    """The whole file, of the tests as each of them is written."""
    return {
        "schema": SCHEMA,
        "started": started,
        "duration_s": duration_s,
        "seed": seed,
        "netem": netem,
        "exit_status": exit_status,
        "tests": list(tests),
    }
