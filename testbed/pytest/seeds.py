"""``--testbed-seeds FIRST..LAST``: each test under many seeds in one session, and the share of them that fails.

The stack stays up from seed to seed; all else is set up anew. Of runs that passed no result is kept. The smallest seed
under which a test fails is made smaller at the end (`testbed.pytest.shrinking`). What becomes known is in
``report/seeds.json``: ``{"schema": "testbed-seeds/1", "seeds": [first, last], "tests": {id: {…}}}``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from testbed.evidence.verdict import Verdict
from testbed.pytest import running, state
from testbed.pytest.again import afresh
from testbed.pytest.markers import id_of

if TYPE_CHECKING:
    from testbed.pytest.shrinking import Crash, Shrunk

SCHEMA = "testbed-seeds/1"
_MOST_NAMED = 20
_MOST_METRICS = 8
_CONFIDENCE = 0.95
_QUANTILES = (0.05, 0.5, 0.95)


@dataclass
class Outcomes:
    """One test's, by seed."""

    replay: str = ""
    """Repeats the run with the smallest failing seed."""
    failed: list[int] = field(default_factory=list)
    invalid: list[int] = field(default_factory=list)
    runs: int = 0
    """Those that count: without the invalid ones."""
    metrics: dict[str, Spread] = field(default_factory=dict)
    first: tuple[pytest.Item, Crash] | None = None
    """The smallest seed's failure."""
    shrunk: Shrunk | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """Between which the share of all seeds that fail lies, but for `_CONFIDENCE`."""
        from testbed.judge.statistics import interval

        return interval(len(self.failed), self.runs, 1 - _CONFIDENCE)

    def as_json(self) -> dict[str, Any]:
        """As the file has it."""
        return {
            "runs": self.runs,
            "failed": self.failed,
            "invalid": self.invalid,
            "interval": {"confidence": _CONFIDENCE, "low": self.interval[0], "high": self.interval[1]},
            "replay": self.replay or None,
            "metrics": {name: vars(spread) for name, spread in self.metrics.items()},
            "shrunk": None if self.shrunk is None else self.shrunk.as_json(),
        }


@dataclass
class Spread:
    """A metric over the seeds."""

    unit: str
    group: str
    by_seed: dict[int, float] = field(default_factory=dict)
    """The median of each run."""

    def describe(self) -> str:
        """Its quantiles over the seeds, and its range."""
        from testbed.evidence.metric import in_unit

        values = sorted(self.by_seed.values())
        numbers = (values[0], *(values[round(share * (len(values) - 1))] for share in _QUANTILES), values[-1])
        least, low, middle, high, most = (in_unit(value, self.unit) for value in numbers)
        return f"median {middle}, 5 to 95% of seeds {low} to {high}, all {least} to {most}"


class Seeds:
    """Takes the place of pytest's own loop over the tests."""

    def __init__(self, config: pytest.Config, seeds: range) -> None:
        from testbed.pytest.shrinking import Tries

        self._config = config
        self._seeds = seeds
        self._tests: dict[str, Outcomes] = {}
        self._running: Outcomes = Outcomes()
        self._worst: Verdict | None = None
        self._tries = Tries(config)
        config.pluginmanager.register(self._tries, "testbed-tries")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run all tests under each seed."""
        if session.testsfailed and not session.config.option.continue_on_collection_errors:
            raise session.Interrupted(f"{session.testsfailed} errors during collection")
        if session.config.option.collectonly:
            return True
        for item, seed in self._until_stopped(session):
            self._count(item, seed)
        if not session.shouldstop:
            self._shrink(state.shrink_tries(self._config))
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
        return True

    def _until_stopped(self, session: pytest.Session) -> Iterator[tuple[pytest.Item, int]]:
        """Each run of a test, when it has ended."""
        for seed in self._seeds:
            self._config.stash[state.SEED] = seed
            for item, following in afresh(session):
                self._running, self._worst = self._tests.setdefault(id_of(item), Outcomes()), None
                self._tries.begin()
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                yield item, seed
                if session.shouldfail or session.shouldstop:
                    return

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
            if of_test.first is None and self._tries.crash is not None:
                of_test.first = item, self._tries.crash

    def _shrink(self, most_tries: int) -> None:
        """Make the failure of each test's smallest failing seed smaller, unless a debugger is to see failures."""
        if not most_tries or self._config.getoption("usepdb", False):
            return
        for outcomes in self._tests.values():
            if outcomes.first is not None and not outcomes.first[0].session.shouldstop:
                item, crash = outcomes.first
                outcomes.shrunk = self._tries.shrink(item, outcomes.failed[0], crash, most_tries)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the outcome, and keep the results of runs that did not pass, each under a name of its own."""
        if report.failed:
            invalid = getattr(report, "testbed_verdict", None) == Verdict.INVALID.of("test")
            self._worst = self._worst or (Verdict.INVALID if invalid else Verdict.FAILS)
        result = getattr(report, "testbed_result", None)
        if result is not None:
            seed = self._config.stash[state.SEED]
            if self._worst is not Verdict.INVALID:
                self._measure(seed, result["metrics"])
            kept = {**result, "id": f"{result['id']} (seed {seed})"} if self._worst is not None else None
            vars(report).update(testbed_result=kept)

    def _measure(self, seed: int, metrics: list[Mapping[str, Any]]) -> None:
        from statistics import median

        for metric in metrics:
            spread = self._running.metrics.setdefault(
                metric["name"], Spread(unit=metric["unit"], group=metric["group"])
            )
            spread.by_seed[seed] = median(metric["values"])

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write what is known. An error of writing is told, and changes nothing else."""
        from testbed.writing import make_room, write_whole

        if not self._tests:
            return
        path = session.config.rootpath / "report" / "seeds.json"
        tests = {name: outcomes.as_json() for name, outcomes in self._tests.items()}
        content = {"schema": SCHEMA, "seeds": [self._seeds[0], self._seeds[-1]], "tests": tests}
        try:
            make_room(path, session.config.rootpath)
            write_whole(path, json.dumps(content), below=session.config.rootpath)
        except OSError as error:
            state.told_at_close(session.config, f"{path}: not written: {error.strerror or error}")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """For each test: how many seeds fail, of how many; and how to repeat the smallest."""
        terminalreporter.section(f"testbed: seeds {self._seeds[0]} to {self._seeds[-1]}")
        for name, outcomes in self._tests.items():
            for line in summary(name, outcomes):
                terminalreporter.write_line(line)


def summary(name: str, outcomes: Outcomes) -> list[str]:
    """The lines on one test. Pure."""
    from testbed.evidence.metric import AUTOMATIC

    low, high = outcomes.interval
    share = f"{len(outcomes.failed)} of {outcomes.runs} seeds fail"
    lines = [f"{name}: {share}; {_CONFIDENCE:.0%} interval {low:.2%} to {high:.2%}"]
    for word, seeds in (("failing", outcomes.failed), ("INVALID", outcomes.invalid)):
        if seeds:
            more = f" and {len(seeds) - _MOST_NAMED} more" if len(seeds) > _MOST_NAMED else ""
            lines.append(f"  {word} seeds: {', '.join(map(str, seeds[:_MOST_NAMED]))}{more}")
    lines += [f"  {outcomes.replay}"] if outcomes.replay else []
    lines += [f"  {line}" for line in outcomes.shrunk.lines()] if outcomes.shrunk is not None else []
    own = {metric: spread for metric, spread in outcomes.metrics.items() if spread.group not in AUTOMATIC}
    lines += [f"  {metric}: {spread.describe()}" for metric, spread in list(own.items())[:_MOST_METRICS]]
    return lines
