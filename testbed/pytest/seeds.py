"""``--testbed-seeds FIRST..LAST``: each test under many seeds in one session, and the share of them that fails.

The stack stays up from seed to seed; all else is set up anew. Of runs that passed no result is kept. The smallest seed
under which a test fails is made smaller at the end (`testbed.pytest.shrinking`). What becomes known is in
``report/seeds.json``: ``{"schema": "testbed-seeds/1", "seeds": [first, last], "tests": {id: {…}}}``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest

from testbed.evidence.verdict import Verdict
from testbed.pytest import state
from testbed.pytest.again import afresh
from testbed.pytest.markers import under

if TYPE_CHECKING:
    from testbed.pytest.shrinking import Crash

SCHEMA = "testbed-seeds/1"
_OUTPUT_SMALLER = "testbed_smaller"
_MOST_NAMED = 20
_MOST_METRICS = 8
_CONFIDENCE = 0.95
_QUANTILES = (0.05, 0.5, 0.95)


@dataclass
class Outcomes:
    """One test's, by seed."""

    replay: str = ""
    """Repeats the run with the smallest failing seed, of those that ended by themselves."""
    failed: list[int] = field(default_factory=list)
    invalid: list[int] = field(default_factory=list)
    runs: int = 0
    """Those that count: without the invalid ones."""
    metrics: dict[str, Spread] = field(default_factory=dict)
    shrunk: Smaller | None = None

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
            "shrunk": None if self.shrunk is None else self.shrunk.content,
        }


@dataclass(frozen=True, kw_only=True)
class Smaller:
    """A failure made smaller: `testbed.pytest.shrinking.Shrunk`, as one process tells it another."""

    seed: int
    lines: list[str]
    """For the terminal."""
    content: dict[str, Any]
    """For the file."""


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


@dataclass
class _RunOfSeed:
    """A test under one seed."""

    worst: Verdict | None = None
    replay: str = ""
    over: bool = False


def register(config: pytest.Config, seeds: range) -> None:
    """Have the tests run under these seeds, here unless kernels run them; and counted, unless this is one of those."""
    share = config.stash.get(state.SHARE, None)
    if share is not None:
        config.pluginmanager.register(Loop(config, share.of_seeds(seeds), done=share.done))
        return
    config.pluginmanager.register(SeedCounts(config, seeds), state.COUNTS)
    if not config.pluginmanager.has_plugin(state.KERNELS):
        config.pluginmanager.register(Loop(config, seeds))


class Loop:
    """Takes the place of pytest's own loop over the tests."""

    def __init__(self, config: pytest.Config, seeds: range, *, done: int = 0) -> None:
        """``done``: number of runs that were done before."""
        from testbed.pytest.shrinking import Tries

        self._config = config
        self._seeds = seeds
        self._done = done
        self._worst: Verdict | None = None
        self._first: dict[str, tuple[pytest.Item, int, Crash]] = {}
        """The failure of each test's smallest seed."""
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
            if self._worst is Verdict.FAILS and self._tries.crash is not None:
                self._first.setdefault(item.nodeid, (item, seed, self._tries.crash))
        if not session.shouldstop:
            self._shrink(state.shrink_tries(self._config))
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
        return True

    def _until_stopped(self, session: pytest.Session) -> Iterator[tuple[pytest.Item, int]]:
        """Each run of a test, when it has ended."""
        done = self._done
        for seed in self._seeds:
            if done >= len(session.items):
                done -= len(session.items)
                continue
            self._config.stash[state.SEED] = seed
            for item, following in islice(afresh(session), done, None):
                self._worst = None
                self._tries.begin()
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                yield item, seed
                if session.shouldfail or session.shouldstop:
                    return
            done = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the outcome."""
        self._worst = self._worst or _verdict(report)

    def _shrink(self, most_tries: int) -> None:
        """Make the failure of each test's smallest failing seed smaller, unless a debugger is to see failures."""
        if not most_tries or self._config.getoption("usepdb", False):
            return
        for name, (item, seed, crash) in self._first.items():
            if item.session.shouldstop:
                return
            if (shrunk := self._tries.shrink(item, seed, crash, most_tries)) is not None:
                self._tell(name, Smaller(seed=seed, lines=shrunk.lines(), content=shrunk.as_json()))

    def _tell(self, name: str, smaller: Smaller) -> None:
        counts: SeedCounts | None = self._config.pluginmanager.get_plugin(state.COUNTS)
        if counts is not None:
            counts.smaller(name, smaller)
        else:  # it is outside: see `SeedCounts.hear`
            vars(self._config)["workeroutput"].setdefault(_OUTPUT_SMALLER, {})[name] = vars(smaller)


def _verdict(report: pytest.TestReport) -> Verdict | None:
    """Of a phase that did not pass."""
    if not report.failed:
        return None
    return Verdict.INVALID if getattr(report, "testbed_verdict", None) == Verdict.INVALID.of("test") else Verdict.FAILS


class SeedCounts:
    """Counts what is reported, wherever the tests are run."""

    def __init__(self, config: pytest.Config, seeds: range) -> None:
        self._config = config
        self._seeds = seeds
        self._runs: dict[str, dict[int, _RunOfSeed]] = {}
        """By test and seed."""
        self._metrics: dict[str, dict[str, Spread]] = {}
        """By test and name."""
        self._smaller: dict[str, Smaller] = {}

    def smaller(self, name: str, smaller: Smaller) -> None:
        """Take the failure of a test, made smaller; the smallest seed's is kept."""
        known = self._smaller.get(name)
        if known is None or smaller.seed < known.seed:
            self._smaller[name] = smaller

    def hear(self, output: Mapping[str, Any]) -> None:
        """Take what a kernel tells at its end."""
        for name, words in output.get(_OUTPUT_SMALLER, {}).items():
            self.smaller(name, Smaller(**words))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the outcome, and keep the results of runs that did not pass, each under a name of its own."""
        seed = getattr(report, "testbed_seed", self._config.stash[state.SEED])  # a kernel's report has it
        run = self._runs.setdefault(report.nodeid, {}).setdefault(seed, _RunOfSeed())
        run.worst = run.worst or _verdict(report)
        run.over = run.over or report.when not in ("setup", "call")
        result = getattr(report, "testbed_result", None)
        if result is not None:
            if run.worst is not Verdict.INVALID:
                self._measure(report.nodeid, seed, result["metrics"])
            run.replay = result["replay"]
            kept = {**result, "id": under(result["id"], seed)} if run.worst is not None else None
            vars(report).update(testbed_result=kept)

    def _measure(self, name: str, seed: int, metrics: list[Mapping[str, Any]]) -> None:
        from statistics import median

        of_test = self._metrics.setdefault(name, {})
        for metric in metrics:
            spread = of_test.setdefault(metric["name"], Spread(unit=metric["unit"], group=metric["group"]))
            spread.by_seed[seed] = median(metric["values"])

    def _outcomes(self) -> dict[str, Outcomes]:
        """Of each test, whose runs may have ended in any order."""
        outcomes = {}
        for name, runs in self._runs.items():
            over = {seed: run for seed, run in sorted(runs.items()) if run.over}
            failed = [seed for seed, run in over.items() if run.worst is Verdict.FAILS]
            invalid = [seed for seed, run in over.items() if run.worst is Verdict.INVALID]
            outcomes[name] = Outcomes(
                replay=next(filter(None, (over[seed].replay for seed in failed)), ""),  # a kernel that died told none
                failed=failed,
                invalid=invalid,
                runs=len(over) - len(invalid),
                metrics={
                    metric: replace(spread, by_seed=dict(sorted(spread.by_seed.items())))
                    for metric, spread in self._metrics.get(name, {}).items()
                },
                shrunk=self._smaller.get(name),
            )
        return outcomes

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write what is known. An error of writing is told, and changes nothing else."""
        from testbed.writing import make_room, write_whole

        if not self._runs:
            return
        folder = session.config.invocation_params.dir
        path = folder / "report" / "seeds.json"
        tests = {name: outcomes.as_json() for name, outcomes in self._outcomes().items()}
        content = {"schema": SCHEMA, "seeds": [self._seeds[0], self._seeds[-1]], "tests": tests}
        try:
            make_room(path, folder)
            write_whole(path, json.dumps(content), below=folder)
        except OSError as error:
            state.told_at_close(session.config, f"{path}: not written: {error.strerror or error}")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """For each test: how many seeds fail, of how many; and how to repeat the smallest."""
        terminalreporter.section(f"testbed: seeds {self._seeds[0]} to {self._seeds[-1]}")
        for name, outcomes in self._outcomes().items():
            for line in summary(name, outcomes):
                terminalreporter.write_line(line)
            if left := len(self._seeds) - outcomes.runs - len(outcomes.invalid):
                terminalreporter.write_line(f"  seeds that were not run to their end: {left}")


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
    lines += [f"  {line}" for line in outcomes.shrunk.lines] if outcomes.shrunk is not None else []
    own = {metric: spread for metric, spread in outcomes.metrics.items() if spread.group not in AUTOMATIC}
    lines += [f"  {metric}: {spread.describe()}" for metric, spread in list(own.items())[:_MOST_METRICS]]
    return lines
