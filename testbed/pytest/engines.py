"""``--testbed-engines A,B,C``: the workers of pytest-xdist have their labs on several engines.

The controller places each worker on an engine. A worker whose engine dies reports nothing of the test that it runs, and
ends; pytest-xdist starts another in its place, on an engine that answers, and the tests that were not over are run
there. `testbed.pytest.onengine` is the worker's part.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from xdist.scheduler import LoadScheduling  # type: ignore[import-untyped]

from testbed.errors import EnvironmentUnfitError
from testbed.judge.division import longest_first
from testbed.pytest import manymachines
from testbed.pytest.onengine import EngineLostWarning, environment
from testbed.pytest.state import DURATIONS, STACKS, WRONG_USE
from testbed.text import several, shown


class Engines:
    """The controller's part: who is where, which engines are lost, which tests were given back."""

    def __init__(self, config: pytest.Config) -> None:
        """Ends the session if an engine does not answer now."""
        from testbed.backends.docker.engine import Engine

        self._config = config
        self._engines = manymachines.engines(config.getoption("--testbed-engines"), config.invocation_params.dir)
        self._placed: dict[str, str] = {}
        """By worker, its engine; those of workers that ended, too."""
        self._ended: set[str] = set()
        self._lost: dict[str, str] = {}
        """Why an engine does not answer any more."""
        self._given_back: dict[str, list[str]] = {}
        self._stacks: Mapping[str, str | None] = config.stash.get(STACKS, {})
        problems = []
        for name, lead in self._engines.items():
            try:
                Engine(environment(lead))
            except EnvironmentUnfitError as error:
                problems.append(f"--testbed-engines: {shown(name)}: {error}")
        if problems:
            pytest.exit("\n".join(problems), returncode=WRONG_USE)

    def place(self, worker: str) -> dict[str, Any]:
        """The engine of a new worker, for its input: of those that answer, the one with the fewest workers."""
        here = Counter(name for other, name in self._placed.items() if other not in self._ended)
        left = [name for name in self._engines if name not in self._lost]
        if not left:
            reasons = "; ".join(f"{name}: {why}" for name, why in self._lost.items())
            pytest.exit(f"no engine of --testbed-engines answers any more: {reasons}", returncode=WRONG_USE)
        name = self._placed[worker] = min(left, key=lambda engine: here[engine])
        return {"name": name, "lead": self._engines[name], "all": [self._engines[other] for other in left]}

    def has_lost(self, worker: str) -> bool:
        """Whether a worker's engine does not answer any more."""
        return self._placed.get(worker) in self._lost

    def give_back(self, worker: str, tests: Sequence[str]) -> None:
        """Note that a worker leaves these tests to others."""
        for test in tests:
            self._given_back.setdefault(test, []).append(self._placed[worker])

    def of(self, worker: str, test: str) -> dict[str, Any]:
        """What a test's result says of engines."""
        return {"engine": self._placed.get(worker), "given_back_by": self._given_back.get(test, [])}

    @property
    def notable(self) -> Iterator[str]:
        """What is told at the end: engines that were lost."""
        for name, why in self._lost.items():
            tests = [test for test, engines in self._given_back.items() if name in engines]
            yield f"engine {name} does not answer any more ({why}); run on others: {several(tests) or 'no test'}"

    def pytest_warning_recorded(self, warning_message: warnings.WarningMessage) -> None:
        """Hear from a worker that its engine is lost."""
        if isinstance(warning_message.message, EngineLostWarning):
            name, why = warning_message.message.args
            self._lost.setdefault(name, why)

    @pytest.hookimpl(tryfirst=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Count a worker as ended."""
        self._ended.add(node.gateway.id)

    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> LoadScheduling:
        """Schedule the longest tests first, and take tests back."""
        return _LongestFirst(config, log, self)

    def order(self, tests: Sequence[str]) -> list[int]:
        """In which order tests are begun, by their places."""
        return longest_first(tests, self._config.stash.get(DURATIONS, {}), self._stacks)


class _LongestFirst(LoadScheduling):  # type: ignore[misc]  # xdist has no types for others
    """Each worker has the test that it runs and the next one: it begins none before it knows what follows."""

    def __init__(self, config: pytest.Config, log: Any, engines: Engines) -> None:
        super().__init__(config, log)
        self._engines = engines
        self.collection: list[str] | None = None

    def schedule(self) -> None:
        if self.collection is None:
            if not self._check_nodes_have_same_collection():
                return
            self.collection = collection = list(next(iter(self.node2collection.values())))
            self.pending[:] = self._engines.order(collection)
            for node in self.nodes:  # the longest go to different workers
                self._send_tests(node, 1)
        for node in self.nodes:
            self.check_schedule(node)

    def check_schedule(self, node: Any, duration: float = 0) -> None:  # noqa: ARG002  # xdist's
        if node.shutting_down:
            return
        if (count := _AHEAD - len(self.node2pending[node])) > 0:
            self._send_tests(node, count)
        if not self.pending:
            node.shutdown()

    def remove_node(self, node: Any) -> str | None:
        pending = self.node2pending.get(node, [])
        if self.collection is None or not self._engines.has_lost(node.gateway.id):
            running: str | None = super().remove_node(node)
            return running
        self._engines.give_back(node.gateway.id, [self.collection[index] for index in pending])
        self.pending[:0] = pending
        del self.node2pending[node]
        for other in self.nodes:
            self.check_schedule(other)
        return None


_AHEAD = 2
