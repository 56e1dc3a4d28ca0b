"""``--testbed-seeds FIRST..LAST``: each test under many seeds in one session, and the share of them that fails.

The stack stays up from seed to seed; all else is set up anew. Of runs that passed no result is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from testbed.evidence.verdict import Verdict
from testbed.pytest import running, state
from testbed.pytest.again import afresh
from testbed.pytest.markers import id_of

_MOST_NAMED = 20
_CONFIDENCE = 0.95


@dataclass
class Outcomes:
    """One test's, by seed."""

    replay: str = ""
    """Repeats the run with the smallest failing seed."""
    failed: list[int] = field(default_factory=list)
    invalid: list[int] = field(default_factory=list)
    runs: int = 0
    """Those that count: without the invalid ones."""


class Seeds:
    """Takes the place of pytest's own loop over the tests."""

    def __init__(self, config: pytest.Config, seeds: range) -> None:
        self._config = config
        self._seeds = seeds
        self._tests: dict[str, Outcomes] = {}
        self._running: Outcomes = Outcomes()
        self._worst: Verdict | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run all tests under each seed."""
        if session.testsfailed and not session.config.option.continue_on_collection_errors:
            raise session.Interrupted(f"{session.testsfailed} errors during collection")
        if session.config.option.collectonly:
            return True
        for seed in self._seeds:
            self._config.stash[state.SEED] = seed
            for item, following in afresh(session):
                self._running, self._worst = self._tests.setdefault(id_of(item), Outcomes()), None
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                self._count(item, seed)
                if session.shouldfail:
                    raise session.Failed(session.shouldfail)
                if session.shouldstop:
                    raise session.Interrupted(session.shouldstop)
        return True

    def _count(self, item: pytest.Item, seed: int) -> None:
        of_test = self._running
        if self._worst is Verdict.INVALID:
            of_test.invalid.append(seed)
            return
        of_test.runs += 1
        if self._worst is Verdict.FAILS:
            of_test.failed.append(seed)
            lab = running.lab_on(item)
            if lab is not None and not of_test.replay:
                of_test.replay = running.replay_command(item, lab)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the outcome, and keep the results of runs that did not pass, each under a name of its own."""
        if report.failed:
            invalid = getattr(report, "testbed_verdict", None) == Verdict.INVALID.of("test")
            self._worst = self._worst or (Verdict.INVALID if invalid else Verdict.FAILS)
        result = getattr(report, "testbed_result", None)
        if result is not None:
            seed = self._config.stash[state.SEED]
            kept = {**result, "id": f"{result['id']} (seed {seed})"} if self._worst is not None else None
            vars(report).update(testbed_result=kept)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """For each test: how many seeds fail, of how many; and how to repeat the smallest."""
        terminalreporter.section(f"testbed: seeds {self._seeds[0]} to {self._seeds[-1]}")
        for name, outcomes in self._tests.items():
            for line in summary(name, outcomes):
                terminalreporter.write_line(line)


def summary(name: str, outcomes: Outcomes) -> list[str]:
    """The lines on one test. Pure."""
    from testbed.judge.statistics import interval

    failed, runs = len(outcomes.failed), outcomes.runs
    low, high = interval(failed, runs, 1 - _CONFIDENCE)
    lines = [f"{name}: {failed} of {runs} seeds fail; {_CONFIDENCE:.0%} interval {low:.2%} to {high:.2%}"]
    for word, seeds in (("failing", outcomes.failed), ("INVALID", outcomes.invalid)):
        if seeds:
            more = f" and {len(seeds) - _MOST_NAMED} more" if len(seeds) > _MOST_NAMED else ""
            lines.append(f"  {word} seeds: {', '.join(map(str, seeds[:_MOST_NAMED]))}{more}")
    return [*lines, *([f"  {outcomes.replay}"] if outcomes.replay else [])]
