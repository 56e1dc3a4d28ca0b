"""A process whose labs are on other engines than its surroundings name: on a Swarm of several, or on one of them.

A worker of pytest-xdist is on one, and this is what it does when that engine dies.

What happens in a test is told to the controller once the test is over, so that of a test that is given back nothing was
told. `testbed.pytest.engines` is the controller's part.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Generator, Mapping
from typing import Any

import pytest

from testbed.pytest.manymachines import engines
from testbed.pytest.state import ENGINE_LOST, IMAGES_FROM

_ENDS_WITHIN_S = 30.0
"""How long fixtures may take to tear down what they made, on an engine that does not answer."""


class EngineLostWarning(UserWarning):
    """An engine does not answer any more; its name, and why."""

    def __str__(self) -> str:
        name, why = self.args
        return f"engine {name} does not answer any more ({why}): the tests of its workers are run on others"


def move(config: pytest.Config, place: Mapping[str, Any]) -> None:
    """Have this worker's labs on the engine that the controller has chosen; before anything looks for one."""
    _lead(place["lead"])
    config.stash[IMAGES_FROM] = [environment(lead) for lead in place["all"]]
    config.pluginmanager.register(OnEngine(config, place["name"]))


def span(config: pytest.Config) -> None:
    """Have this process's labs on all engines of ``--testbed-engines``, the first of which manages their Swarm."""
    leads = list(engines(config.getoption("--testbed-engines"), config.invocation_params.dir).values())
    _lead(leads[0])
    config.stash[IMAGES_FROM] = [environment(lead) for lead in leads]


def _lead(lead: Mapping[str, str]) -> None:
    """Point this process at an engine."""
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT"):
        os.environ.pop(name, None)
    os.environ.update(lead)


def environment(lead: Mapping[str, str]) -> dict[str, str]:
    """Variables of a process like this one, leading to another engine."""
    others = {key: value for key, value in os.environ.items() if key not in ("DOCKER_HOST", "DOCKER_CONTEXT")}
    return {**others, **lead}


class OnEngine:
    """Holds back what happens in a test, and drops it if the engine is lost meanwhile."""

    def __init__(self, config: pytest.Config, name: str) -> None:
        """``name``: the engine's."""
        self._config, self._name = config, name
        self._held: list[tuple[str, dict[str, Any]]] | None = None
        self._lost = False
        # pytest-xdist has no hook before its worker tells the controller something.
        worker = next(plugin for plugin in config.pluginmanager.get_plugins() if hasattr(plugin, "sendevent"))
        self._send = worker.sendevent
        worker.sendevent = self._take

    def _take(self, name: str, **content: Any) -> None:
        if name == "internal_error":
            self._look()
        if self._lost:
            return
        if name == "logstart":
            self._held = []
        if self._held is None or name == "internal_error":
            self._send(name, **content)
            return
        self._held.append((name, content))
        if name == "runtest_protocol_complete":
            held, self._held = self._held, None
            for event, its_content in held:
                self._send(event, **its_content)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """After a failure, see whether the engine answers, before its lab is asked for evidence."""
        report = yield
        if report.failed:
            self._look()
            if self._lost:
                item.session.shouldstop = f"engine {self._name} does not answer any more"
                item.config.stash[ENGINE_LOST] = True
        return report

    def _look(self) -> None:
        """If the engine does not answer, give the tests back and end this worker."""
        if self._lost or (why := _unreachable()) is None:
            return
        self._held = None
        lost = EngineLostWarning(self._name, why)
        message = warnings.WarningMessage(lost, EngineLostWarning, "", 0)
        self._config.hook.pytest_warning_recorded.call_historic(
            kwargs={"warning_message": message, "when": "runtest", "nodeid": "", "location": None}
        )
        self._lost = True
        end = threading.Timer(_ENDS_WITHIN_S, os._exit, (1,))
        end.daemon = True
        end.start()


def _unreachable() -> str | None:
    """Why the engine does not answer; None if it does."""
    from testbed.backends.docker.connecting import NoEngineError
    from testbed.backends.docker.engine import Engine

    try:
        Engine()
    except NoEngineError as error:
        return error.reason
    return None
