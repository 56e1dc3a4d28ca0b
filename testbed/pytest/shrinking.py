"""The failure of a seed made smaller: its test runs again and again, with fewer losses, until it would pass.

`testbed.judge.shrinking` decides what is tried. A try is told to nobody: no report of it reaches another plugin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pytest

from testbed.evidence.verdict import Verdict
from testbed.judge.shrinking import Put, Scenario, Shrinking
from testbed.pytest import running, state
from testbed.pytest.again import After, forget
from testbed.pytest.markers import id_of
from testbed.pytest.trial import TRIAL, Trial
from testbed.spec.impairment import Impairment
from testbed.spec.links import LinkRef
from testbed.spec.steps import write_steps
from testbed.spec.timeline import Timeline


class Crash(NamedTuple):
    """What makes two failures the same: as different messages may have the same cause, it has none."""

    when: str
    kind: str
    path: str
    line: int


@dataclass(frozen=True, kw_only=True)
class Shrunk:
    """A failure, made smaller."""

    seed: int
    tries: int
    found: Scenario
    best: Scenario
    lost_packets: int
    """How many packets were lost when the failure was found, as far as that is known."""
    marked: frozenset[LinkRef]
    """The links that markers impair."""
    complete: bool
    repeated: bool = True
    """Whether the test failed in the same way when it was run again."""

    @property
    def is_smaller(self) -> bool:
        """Whether anything could be left out."""
        return self.best.key != self.found.key

    @property
    def is_random(self) -> bool:
        """Whether the seed still decides something of the network."""
        return any(wanted.is_random for wanted in self.best.puts.values())

    def as_json(self) -> dict[str, Any]:
        """As the file of the search has it."""
        return {
            "seed": self.seed,
            "tries": self.tries,
            "complete": self.complete,
            "same_failure_again": self.repeated,
            "lost_packets": {"found": self.lost_packets, "by_number": len(self.best.dropped)},
            "links": [
                {**put.link.state(), "number": put.number, "impairment": _words(wanted)}
                for put, wanted in self.best.puts.items()
            ],
            "at_most": dict(self.best.work),
        }

    def lines(self) -> list[str]:
        """For the terminal: what to write into the test in place of its impairments."""
        if not self.repeated:
            return [f"seed {self.seed} does not fail in the same way when it is run again, so it is not made smaller"]
        tries = f"{self.tries} tries"
        if not self.is_smaller:
            return [f"not made smaller by {tries}"]
        fewer = f"{self.lost_packets} lost packets, now {len(self.best.dropped)} by number" if self.lost_packets else ""
        more = "" if self.complete else "; the most tries were made, so it may become smaller still"
        seeded = f" (with --testbed-seed {self.seed})" if self.is_random else ""
        return [
            f"made smaller by {tries}{more}: {fewer or 'fewer words'}; the same failure comes{seeded} of",
            *(f"  {_pasted(put, wanted, marked=put.link in self.marked)}" for put, wanted in self.best.puts.items()),
            *(
                f"  at_most({count}{f', {name!r}' * bool(name)}), not {self.found.work[name]}"
                for name, count in self.best.work.items()
                if count < self.found.work[name]
            ),
        ]


def _words(wanted: Impairment | Timeline) -> object:
    return wanted.words() if isinstance(wanted, Impairment) else write_steps(wanted) or wanted.describe()


def _pasted(put: Put, wanted: Impairment | Timeline, *, marked: bool) -> str:
    """An impairment as a test has it, in a marker or in its body."""
    link = f"{put.link} on {put.link.network}"
    if wanted.is_clean:
        return f"no impairment of {link}{_which(put)}"
    if isinstance(wanted, Impairment):
        arguments = ", ".join(f"{name}={value!r}" for name, value in wanted.words().items())
    else:
        arguments = str(_words(wanted))
    if marked and not put.number:
        return f'@pytest.mark.impair("{link}", {arguments})'
    return f'lab.impair("{link}", {arguments}){_which(put)}'


def _which(put: Put) -> str:
    return f"  # its impairment {put.number + 1}" if put.number else ""


_When = Literal["setup", "call", "teardown"]
_NO_RESULT = Crash("", "", "", 0)
"""Of a try that is INVALID."""


class Tries:
    """A plugin, as long as tests are run under many seeds: it knows how each failed, and runs tries."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._trying = False
        self.crash: Crash | None = None
        """Of the last test that ran; None if it passed."""

    def begin(self) -> None:
        """A test is run."""
        self.crash = None

    def pytest_exception_interact(
        self, call: pytest.CallInfo[Any], report: pytest.TestReport | pytest.CollectReport
    ) -> None:
        """Note how a test fails; only its first failure."""
        where = getattr(report.longrepr, "reprcrash", None)
        if call.excinfo is not None and self.crash is None:
            path, line = (where.path, where.lineno) if where is not None else ("", 0)
            self.crash = Crash(call.when, call.excinfo.typename, str(path), line)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        """Run a try without any report of it; leave other tests to pytest.

        This is pytest's own way to run a test that ran before, but for the reports. Plugins that run tests again do so.
        """
        if not self._trying:
            return None
        item._initrequest()  # type: ignore[attr-defined]  # a function's
        try:
            if self._phase(item, "setup", lambda: item.ihook.pytest_runtest_setup(item=item)):
                self._phase(item, "call", lambda: item.ihook.pytest_runtest_call(item=item))
            self._phase(item, "teardown", lambda: item.ihook.pytest_runtest_teardown(item=item, nextitem=nextitem))
        finally:
            vars(item).update(_request=False, funcargs=None)
        return True

    def _phase(self, item: pytest.Item, when: _When, run: Callable[[], object]) -> bool:
        """One phase of a try; whether it passed."""
        call = pytest.CallInfo.from_call(run, when=when, reraise=(pytest.exit.Exception, KeyboardInterrupt))
        report: pytest.TestReport = item.ihook.pytest_runtest_makereport(item=item, call=call)
        if getattr(report, "testbed_verdict", None) == Verdict.INVALID.of("test"):
            self.crash = _NO_RESULT
        elif report.failed:
            self.pytest_exception_interact(call, report)
        return report.passed

    def _run(self, item: pytest.Item, after: pytest.Item, scenario: Scenario | None) -> Trial:
        """One try; None: as the test asks."""
        self._config.stash[TRIAL] = trial = Trial() if scenario is None else Trial(scenario)
        forget(item)
        self.begin()
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
        return trial

    def shrink(self, item: pytest.Item, seed: int, crash: Crash, most_tries: int) -> Shrunk | None:
        """The test's failure under a seed, made smaller; None where nothing could be. An interrupt keeps the best."""
        after = After.from_parent(item.session, name="after")
        option = self._config.option
        captured, option.testbed_capture = option.testbed_capture, "on-failure"
        self._config.stash[state.SEED] = seed
        self._trying = True
        try:
            first = self._run(item, after, None)
            run = item.stash[running.RUN]
            whole = Scenario(dict(first.puts), dict(first.work))
            if not whole.puts and not whole.work:
                return None
            option.testbed_capture = "never"

            def fails(scenario: Scenario) -> bool:
                self._run(item, after, scenario)
                return self.crash == crash

            shrinking = Shrinking(whole, fails, most_tries=most_tries - 1)
            repeated = self.crash == crash
            lost = {losses.link: losses.numbers for losses in run.lost if not losses.unknown}
            if repeated:
                state.sayer(self._config)(f"{id_of(item)}: the failure of seed {seed} is made smaller")
                try:
                    shrinking.run(lost)
                except KeyboardInterrupt:
                    item.session.shouldstop = "interrupted"
            return Shrunk(
                seed=seed,
                tries=shrinking.tries + 1,
                found=whole,
                best=shrinking.best,
                lost_packets=sum(map(len, lost.values())),
                marked=frozenset(run.wanted.links if run.wanted else ()),
                complete=shrinking.complete,
                repeated=repeated,
            )
        finally:
            self._trying = False
            option.testbed_capture = captured
            del self._config.stash[TRIAL]
