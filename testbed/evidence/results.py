"""The results of a session: a JSON line per test as tests end, and one JSON file at the close.

The file is written to ``--testbed-results`` (default: ``report/results.json``). Its schema has number 1; a change that
breaks readers gets another number. Times are seconds. The file is one object::

    schema            "testbed-results/1"
    started           ISO 8601, UTC
    duration_s        of the session
    seed              from which the seeds of random impairments are derived (--testbed-seed)
    netem             who executed netem: "host" or "carried"; null if no test needed a lab
    exit_status       pytest's; 2 if the machine, the Compose file, the markers or the options are at fault
    problems          what was wrong with markers and options, so that nothing was started
    not_up            why the stack did not start; null if it did, or was not needed
    tests             one object per test that has a lab, whether it ran, failed in its set-up or was skipped

A test::

    id                pytest's node id, without what pytest-xdist adds to it
    profile           the profile of `impair_each` that it ran under; null without one
    outcome           "passed", "failed", "skipped" or "invalid"
    duration_s        of its body
    reason            why it did not pass; null if it did
    seed              from which the seeds of this attempt are derived; differs between attempts with
                      --testbed-reseed-reruns alone
    replay            the command that repeats it under the same network; null if there is none
    records           what `lab.record` was given: {name, value, unit, better}
    links             one object per link that was impaired or cut
    hosts             one object per host that stopped, started, was paused or was replaced: {host, what, by_test,
                      before, after, last_lines}; by_test: whether the test did it; before and after are {status, id,
                      started, restarts, exit_code, endpoints}
    flaky             whether it passed after an attempt that had not
    earlier_attempts  of a test that was run again: {seed, outcome, duration_s, reason, replay, records, links, hosts}
                      per attempt; the fields above are the last attempt's, which counts

A link::

    link, network     such as "client -> server", and the network's name in the Compose file
    profile           the profile that asked for the impairment; empty if words did
    asked             the words, the seed included; {cut} for a cut
    command           the tc command
    proof             {read_back, counters, probe}, each "holds", "fails", "shown", "unknown" or "not asked"
    checks            one object per word or measurement: {field, asked, kernel, seen, verdict, how, cause}
    counters          of its netem, or null: {sent_packets, dropped_packets, queued_packets, tail_drops,
                      tail_drops_from, duplicated, reordered, corrupted}; tail_drops is a number, or {at_least,
                      at_most}; the last three are {packets, from} or {at_least, at_most, from}; "from" says whether the
                      number was counted or derived
    at_taps           of the queues before the carried kernels on its way, for all links that share them:
                      {came_packets, refused_packets}; refused packets are lost before netem sees them; or null
    lateness          of what carried its packets: {carrier, frames, median_s, worst_s, late, tolerance_s, late_ratio};
                      null if it was not watched
    problems          why the test's result does not count
    earlier_packets   packets of connections that began before the test; null if there were none
    met_packets       packets that came to the impairment; null if that is not known
    warnings          sentences
    steps             of a timeline, or of a link that flaps: {planned_s, actual_s, unix_s, in_force, passed_over,
                      complaint}; planned_s and actual_s count from its begin, in_force says what holds from then on,
                      complaint says why that was not in force, or is null
    steps_left_out    how many steps beyond the first 10,000 are not listed

The lines are in a file of the same name with an ``l`` (``report/results.jsonl``). Each line is appended as a test ends,
so the lines are complete whatever becomes of the session. `merged` reads them::

    {"schema": "testbed-results-lines/1", "started": …, "seed": …}      the first line
    {"test": {…}}     a test, as above; of a test that was run again, the last line counts
    {"end": {…}}      the last line of a session that came to its end: the rest of the file, as above
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from testbed.evidence.hoststate import HostChange
from testbed.evidence.proof import LinkEvidence
from testbed.evidence.verdict import Verdict, worst

SCHEMA = "testbed-results/1"
LINES_SCHEMA = "testbed-results-lines/1"


@dataclass(kw_only=True)
class Attempt:
    """One run of a test."""

    seed: int
    outcome: Verdict = Verdict.HOLDS
    duration_s: float = 0.0
    reason: str | None = None
    replay: str | None = None
    records: Sequence[Mapping[str, Any]] = ()
    links: Sequence[LinkEvidence] = field(default_factory=tuple)
    hosts: Sequence[HostChange] = field(default_factory=tuple)
    """What became of hosts meanwhile, by the test and by others."""

    def add(self, outcome: Verdict, reason: str | None) -> None:
        """One of its phases (set-up, body, tear-down) ended so; the worst one counts."""
        if worst(self.outcome, outcome) is not self.outcome:
            self.outcome, self.reason = outcome, reason

    def as_json(self) -> dict[str, Any]:
        """As the results file has it."""
        return {
            **vars(self),
            "outcome": self.outcome.of("test"),
            "records": list(self.records),
            "links": [link.as_json() for link in self.links],
            "hosts": [host.as_json() for host in self.hosts],
        }


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
        bad = (Verdict.FAILS, Verdict.INVALID)
        return last.outcome is Verdict.HOLDS and any(each.outcome in bad for each in earlier)

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
