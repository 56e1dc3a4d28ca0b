"""The results of a session: JSON lines, written as tests end. Pure; `testbed.evidence.stored` reads them.

The file is ``report/results.jsonl``, or what ``--testbed-results`` says. Each line is one object with one of these
forms, and is written as a whole. Their JSON Schema, which the tables below are made of, is in the package: ``testbed
results --schema`` prints it. The schema has number 2; a change that breaks readers gets another number. Times are in
seconds.

* The first line, the *head*: ``{"schema": "testbed-results/2", "started": …, "seed": …, "machine": {…}}``. It is
  written when the first test ends, so ``machine`` has the facts of that test's lab as well.
* ``{"machine": {…}}``: the whole of it again, where more became known of the lab, or another lab is used. It holds for
  the tests that follow.
* ``{"test": {…}}``: a test, written when its tear-down has ended. A test that is run again has a line after each
  attempt, each with all attempts so far: the last line counts.
* ``{"end": {…}}``: the last line of a session that came to its end. A session that was killed has none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from testbed.evidence.flows import TrafficFlow
from testbed.evidence.hoststate import HostChange
from testbed.evidence.metric import Metric
from testbed.evidence.programs import ProgramRun
from testbed.evidence.proof import LinkEvidence
from testbed.evidence.series import Series
from testbed.evidence.trail import Passed
from testbed.evidence.verdict import Verdict, worst

SCHEMA = "testbed-results/2"
SCHEMA_FILE = "results.schema.json"
"""Beside this module."""
HEAD_CHARACTERS = 1 << 20
"""Of the first line of a file, to tell whether it is a session's results."""


def is_head(line: str) -> bool:
    """Whether the first line of a file is that of a session's results, of any schema of ours."""
    try:
        head = json.loads(line)
    except ValueError:
        return False
    return isinstance(head, dict) and str(head.get("schema", "")).startswith(SCHEMA.partition("/")[0])


@dataclass(kw_only=True)
class Attempt:
    """One run of a test."""

    seed: int
    outcome: Verdict = Verdict.HOLDS
    duration_s: float = 0.0
    """Of its body."""
    elapsed_s: float = 0.0
    """Of its set-up, its body and its tear-down, without `stacks_s`."""
    stacks_s: float = 0.0
    """How long stacks took to come up and to go down in them."""
    reason: str | None = None
    replay: str | None = None
    metrics: Sequence[Metric] = ()
    programs: Sequence[ProgramRun] = ()
    series: Sequence[Series] = ()
    captures: Sequence[str] = ()
    """Paths of the files of packets that were kept, from where pytest was started."""
    flows: Sequence[TrafficFlow] = ()
    """The competing traffic."""
    links: Sequence[LinkEvidence] = field(default_factory=tuple)
    hosts: Sequence[HostChange] = field(default_factory=tuple)
    """What became of hosts meanwhile, by the test and by others."""
    packets: Passed | None = None
    """What passed at every port; None in real time."""

    def add(self, outcome: Verdict, reason: str | None) -> None:
        """One of its phases (set-up, body, tear-down) ended so; the worst one counts."""
        if worst(self.outcome, outcome) is not self.outcome:
            self.outcome, self.reason = outcome, reason

    def as_json(self) -> dict[str, Any]:
        """As the results file has it."""
        return {
            **vars(self),
            "outcome": self.outcome.of("test"),
            "metrics": [metric.as_json() for metric in self.metrics],
            "programs": [program.as_json() for program in self.programs],
            "series": [line.as_json() for line in self.series],
            "captures": list(self.captures),
            "flows": [flow.as_json() for flow in self.flows],
            "links": [link.as_json() for link in self.links],
            "hosts": [host.as_json() for host in self.hosts],
            "packets": None if self.packets is None else self.packets.as_json(),
        }


@dataclass(kw_only=True)
class TestResult:
    """One test, and its attempts in order: more than one if it was run again."""

    __test__ = False  # pytest must not collect it

    id: str
    profile: str | None = None
    stack: str | None = None
    """The name of the stack that its marker named."""
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def flaky(self) -> bool:
        """Whether it passed in the end, and had not before."""
        *earlier, last = self.attempts
        bad = (Verdict.FAILS, Verdict.INVALID)
        return last.outcome is Verdict.HOLDS and any(attempt.outcome in bad for attempt in earlier)

    def as_json(self) -> dict[str, Any]:
        """As the results file has it: the last attempt counts, the earlier ones stand apart."""
        *earlier, last = self.attempts
        result = {"id": self.id, "profile": self.profile, "stack": self.stack, **last.as_json(), "flaky": self.flaky}
        return {**result, "earlier_attempts": [attempt.as_json() for attempt in earlier]}


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
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def head(
    *, started: str, seed: int, machine: Mapping[str, Any], shard: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The first line. ``started``: ISO 8601, UTC; ``machine``: `testbed.evidence.machine`; ``shard``: if it is one."""
    whole = {"schema": SCHEMA, "started": started, "seed": seed, "machine": dict(machine)}
    return whole if shard is None else {**whole, "shard": dict(shard)}


def end(
    *, duration_s: float, exit_status: int, problems: Sequence[str] = (), not_up: str | None = None
) -> dict[str, Any]:
    """The last line."""
    content = {"duration_s": duration_s, "exit_status": exit_status, "problems": list(problems), "not_up": not_up}
    return {"end": content}
