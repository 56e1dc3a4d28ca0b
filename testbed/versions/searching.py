"""Runs of a test on better and worse links, until it is known up to where it passes; each run's results are kept.

Each version, and each value of the second word, has a search of its own (`testbed.judge.envelope`). They take turns.
A run passes if all its tests do. One with an INVALID test does not count and is made again, with another seed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testbed.errors import UserError
from testbed.evidence.verdict import Verdict
from testbed.judge.cells import Run
from testbed.judge.envelope import Interval, Search, staircase
from testbed.spec.axis import Axis
from testbed.text import several, shortened
from testbed.versions.arm import Arm, BudgetSpentError
from testbed.versions.arms import Arms, seed_of
from testbed.versions.runs import read
from testbed.writing import LineFile

SCHEMA = "testbed-envelope/1"


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """What is to be found, and how long at the most."""

    folder: Path
    seed: int
    budget_s: float
    axis: Axis
    """What is searched."""
    across: Axis | None
    """The second word: for each of its values the worst of the first is searched."""
    probability: float
    alpha: float
    """How often any of the intervals may be wrong."""
    width: int
    """How many levels wide an interval may be at the end."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What was searched, for whoever reads the folder later."""

    @property
    def columns(self) -> int:
        """How many searches a version has."""
        return 1 if self.across is None else len(self.across.texts)

    def words(self, column: int, level: int) -> list[str]:
        """The values of a run: ``["loss=3%", "delay=100ms"]``."""
        return [self.axis.at(level), *([] if self.across is None else [self.across.at(column)])]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A run that failed, and the commands that repeat its failed tests."""

    level: int
    column: int
    replays: tuple[str, ...]


class Envelope:
    """What is known of one version."""

    def __init__(self, plan: SearchPlan, *, versions: int) -> None:
        self._plan = plan
        alpha = plan.alpha / (plan.columns * versions)
        self.searches = [
            Search(levels=len(plan.axis.texts), probability=plan.probability, alpha=alpha, width=plan.width)
            for _ in range(plan.columns)
        ]
        self.failures: list[Failure] = []

    @property
    def intervals(self) -> list[Interval]:
        """By column."""
        return staircase([search.interval for search in self.searches])

    @property
    def open(self) -> list[int]:
        """The columns whose intervals are not narrow yet."""
        levels, width = len(self._plan.axis.texts), self.searches[0].width
        return [column for column, interval in enumerate(self.intervals) if not interval.narrow(levels, width)]

    @property
    def runs(self) -> int:
        """Runs that count."""
        return sum(sum(search.passed) + sum(search.failed) for search in self.searches)


@dataclass(frozen=True, kw_only=True)
class SearchProgress:
    """How far it has come."""

    last: str
    """The last run, in words."""
    invalid: int
    spent_s: float


class Searching:
    """Runs the searches; what is known so far is there at any time, also after an interrupt."""

    def __init__(self, plan: SearchPlan, arms: Mapping[str, Arm], tell: Callable[[SearchProgress], None]) -> None:
        """``arms``: by the word for the version, ``head`` or ``base``."""
        self._plan, self.arms, self._tell = plan, Arms(arms), tell
        self.envelopes = {name: Envelope(plan, versions=len(arms)) for name in arms}
        self.invalid = 0
        self._number = 0

    def run(self, say: Callable[[str], None]) -> bool:
        """Run until every interval is narrow, or the budget is spent; whether all are.

        Raises ArmError, EnvironmentUnfitError, UserError for tests that cannot be varied so.
        """
        lines = LineFile(self._plan.folder / "envelope.jsonl", below=self._plan.folder)
        lines.append(json.dumps({"schema": SCHEMA, "seed": self._plan.seed, **self._plan.about}))
        try:
            self._check(say)
            return self._search(lines, say)
        finally:
            lines.close()

    def _check(self, say: Callable[[str], None]) -> None:
        """See that every link of the search can be had, before any is set."""
        plan = self._plan
        problems: list[str] = []
        for arm in self.arms.by_name.values():
            say(f"{arm.name}: collecting its tests")
            variations = [plan.words(column, 0) for column in range(plan.columns)]
            variations += [plan.words(plan.columns - 1, level) for level in range(len(plan.axis.texts))]
            problems += arm.check(variations)
        problems += alone(self.arms.by_name)
        if problems:
            raise UserError(dict.fromkeys(problems))
        self.arms.separate(say)

    def _search(self, lines: LineFile, say: Callable[[str], None]) -> bool:
        for name, arm in self.arms.by_name.items():
            say(f"{arm.name}: the first run, on the mildest link")
            with self.arms.first_run(name) as until:
                while not self.envelopes[name].runs:
                    self._one(name, 0, until, lines, spent_s=0.0)
        begun = time.monotonic()
        turn = 0
        while pending := [(name, column) for name, envelope in self.envelopes.items() for column in envelope.open]:
            spent_s = time.monotonic() - begun
            if spent_s >= self._plan.budget_s:
                return False
            name, column = pending[turn % len(pending)]
            turn += 1
            try:
                self._one(name, column, begun + self._plan.budget_s, lines, spent_s=spent_s)
            except BudgetSpentError:
                self.arms.by_name[name].close()
                return False
        return True

    def _one(self, name: str, column: int, until: float, lines: LineFile, *, spent_s: float) -> None:
        """One run, on the link that its search wants next. Raises BudgetSpentError."""
        plan, envelope, arm = self._plan, self.envelopes[name], self.arms.by_name[name]
        search = envelope.searches[column]
        level = search.next_level()
        self._number += 1
        seed = seed_of(f"{plan.seed} run {self._number}")
        file = plan.folder / name / f"{self._number:05}.jsonl"
        words = plan.words(column, level)
        entry: dict[str, Any] = {"run": self._number, "version": name, "seed": seed, "vary": words}
        try:
            entry["seconds"] = arm.run(seed=seed, results=file, until=until, vary=words)
            passed, reason, replays = outcome(read(file), arm.tests)
        except BudgetSpentError:
            lines.append(json.dumps({**entry, "outcome": None, "why": "not over when the budget was spent"}))
            raise
        word = "invalid" if passed is None else "passed" if passed else "failed"
        lines.append(json.dumps({**entry, "outcome": word, "why": reason, "again": replays}))
        self.invalid += passed is None
        self.arms.take(reason if passed is None else None, "runs in a row")
        if passed is not None:
            search.take(level, passed=passed)
            if not passed:
                envelope.failures.append(Failure(level=level, column=column, replays=replays))
        last = f"run {self._number}, {name}, {' '.join(words)}: {word}"
        self._tell(SearchProgress(last=last, invalid=self.invalid, spent_s=spent_s))


def alone(arms: Mapping[str, Arm]) -> Iterator[str]:
    """A problem for each version that has tests which another does not have: what they hold cannot be compared."""
    for arm in arms.values():
        others = [other for other in arms.values() if set(arm.tests) - set(other.tests)]
        for other in others:
            tests = [test for test in arm.tests if test not in other.tests]
            yield f"{other.name} does not have {several(tests)}, which {arm.name} has: name only tests that both have"


def outcome(run: Run, tests: Sequence[str]) -> tuple[bool | None, str | None, tuple[str, ...]]:
    """Whether a run passed (None: it does not count), why not, and the commands that repeat its failed tests.

    Raises UserError if a test was skipped, as then nothing is known of it.
    """
    results = [run.tests[test] for test in tests if test in run.tests]
    for verdict in (Verdict.INVALID, Verdict.SKIPPED):
        for test in results:
            if test.outcome is verdict:
                why = shortened(test.reason or "no reason given")
                if verdict is Verdict.SKIPPED:
                    raise UserError(f"{test.id}: skipped: {why}; name only tests that run")
                return None, f"{test.id}: {why}", ()
    failed = [test for test in results if test.failed]
    if failed:
        reason = f"{failed[0].id}: {shortened(failed[0].reason or '')}"
        return False, reason, tuple(test.replay for test in failed if test.replay)
    if missing := [test for test in tests if test not in run.tests]:
        return None, f"{missing[0]}: has no result", ()
    return True, None, ()
