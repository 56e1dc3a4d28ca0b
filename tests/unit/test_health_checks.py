"""Health checks that we run in an engine's place, on an engine that is made up."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.backends.docker.engine import Engine
from testbed.backends.docker.healthchecks import HealthChecks
from testbed.lab.waiting import await_condition

OFTEN_NS = 20_000_000


class _FakeEngine(Engine):
    """Knows containers with and without a check."""

    def __init__(self) -> None:
        self.checks: list[str] = []
        self.hanging = threading.Event()
        self.states = {"app": "running", "slow": "running", "bare": "running", "off": "running", "ended": "exited"}
        self.ends = dict.fromkeys(self.states, 0)
        self.of_its_own: set[str] = set()
        """The containers whose checks it runs by itself."""

    def listing(self, **labels: str) -> list[dict[str, Any]]:
        assert labels == {"run": "1"}
        return [{"Id": name, "State": state} for name, state in self.states.items()]

    def container(self, id_: str) -> Any:
        if id_ in self.of_its_own:
            self.ends[id_] += 1
        test = {"bare": None, "off": {"Test": ["NONE"]}}.get(id_, {"Test": ["CMD", "true"], "Interval": OFTEN_NS})
        log = [{"End": f"{self.ends[id_]}"}] if self.ends[id_] else None
        return SimpleNamespace(attrs={"Config": {"Healthcheck": test}, "State": {"Health": {"Log": log}}})

    def check_health(self, id_: str) -> None:
        self.checks.append(id_)
        if id_ == "slow":
            self.hanging.wait(30)
        self.ends[id_] += 1


@pytest.fixture
def engine() -> _FakeEngine:
    return _FakeEngine()


def test_running_containers_are_checked_again_and_again_and_a_check_that_hangs_holds_nobody_up(
    engine: _FakeEngine,
) -> None:
    with HealthChecks(engine, run="1"):
        await_condition(lambda: engine.checks.count("app"), lambda count: count >= 3, deadline_s=30)
        engine.hanging.set()
        await_condition(lambda: engine.checks.count("slow"), lambda count: count >= 2, deadline_s=30)
        engine.states["ended"] = "running"
        await_condition(lambda: engine.checks.count("ended"), bool, deadline_s=30)
    assert {"bare", "off"}.isdisjoint(engine.checks)


def test_one_check_of_a_container_runs_at_a_time(engine: _FakeEngine) -> None:
    with HealthChecks(engine, run="1"):
        await_condition(lambda: engine.checks.count("app"), lambda count: count >= 5, deadline_s=30)
        assert engine.checks.count("slow") == 1
        engine.hanging.set()
    assert "ended" not in engine.checks


def test_what_the_engine_checks_by_itself_is_left_to_it(engine: _FakeEngine) -> None:
    engine.of_its_own = {"app"}
    engine.hanging.set()
    with HealthChecks(engine, run="1"):
        await_condition(lambda: engine.checks.count("slow"), lambda count: count >= 3, deadline_s=30)
    assert "app" not in engine.checks
