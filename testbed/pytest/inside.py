"""The part of a session that runs in one of several kernels with a simulated clock: its tests or seeds, its events.

What happens goes to a file, a JSON line per event, which the session outside reads
(`testbed.pytest.kernels`).
To other plugins this session is a worker of pytest-xdist.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Generator
from typing import Any

import pytest

from testbed.kernel.variables import EVENTS
from testbed.pytest import state
from testbed.pytest.markers import needs_lab
from testbed.pytest.share import VARIABLE, Share, run_id


def take(config: pytest.Config) -> None:
    """Make this session the worker of its share, if it has one; before anything is configured."""
    if (text := os.environ.get(VARIABLE)) is None:
        return
    share = Share(**json.loads(text))
    alone(config)
    config.stash[state.SHARE] = share
    worker_input = {
        "workerid": share.worker,
        "workercount": share.count,
        "testrunuid": run_id(state.seed_of(config)),
        "mainargv": [*map(str, config.invocation_params.args)],
        "testbed_seed": state.seed_of(config),
        "testbed_dist": "no",  # its stack is alone in its kernel
        "testbed_lab": None,
        "testbed_controller": None,
    }
    vars(config).update(workerinput=worker_input, workeroutput={})
    if (rerunning := config.pluginmanager.get_plugin("rerunfailures")) is not None:
        # It would count tries at a port of the session outside, which no kernel reaches, for workers that crash.
        rerunning.HAS_PYTEST_HANDLECRASHITEM = False


def alone(config: pytest.Config) -> None:
    """Have pytest-xdist, if it is there, start no workers."""
    for name, value in (
        ("numprocesses", None),
        ("maxprocesses", None),
        ("dist", "no"),
        ("distload", False),
        ("tx", []),
    ):
        if hasattr(config.option, name):
            setattr(config.option, name, value)


class Worker:
    """Tells what happens; and runs the share's tests, unless another plugin runs them under several seeds."""

    def __init__(self, config: pytest.Config, share: Share) -> None:
        self._config = config
        self._share = share
        self._events = os.open(os.environ[EVENTS], os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def _tell(self, event: str, **content: object) -> None:
        line = f"{json.dumps({'event': event, **content}, default=str)}\n".encode()
        while line:
            line = line[os.write(self._events, line) :]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Tell what could not be collected."""
        if not report.passed:
            self._tell("collectreport", report=self._serialized(report))

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Tell the number of tests, and whether results will be written."""
        self._tell("collected", tests=len(session.items), labs=any(map(needs_lab, session.items)))

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run the tests of this share."""
        if session.testsfailed and not session.config.option.continue_on_collection_errors:
            raise session.Interrupted(f"{session.testsfailed} errors during collection")
        if not session.config.option.collectonly:
            items = self._share.of_tests(session.items)
            for item, following in zip(items, [*items[1:], None], strict=False):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if session.shouldfail:
                    raise session.Failed(session.shouldfail)
                if session.shouldstop:
                    raise session.Interrupted(session.shouldstop)
        return True

    def pytest_runtest_logstart(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        """Tell that a test begins."""
        self._tell("logstart", nodeid=nodeid, location=location, seed=self._config.stash[state.SEED])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Tell a report."""
        additions = {"worker_id": self._share.worker, "testbed_seed": self._config.stash[state.SEED]}
        self._tell("logreport", report={**self._serialized(report), **additions})

    def _serialized(self, report: pytest.CollectReport | pytest.TestReport) -> Any:
        return self._config.hook.pytest_report_to_serializable(config=self._config, report=report)

    def pytest_runtest_logfinish(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        """Tell that a test is over."""
        self._tell("logfinish", nodeid=nodeid, location=location)

    def pytest_warning_recorded(
        self,
        warning_message: warnings.WarningMessage,
        when: str,
        nodeid: str,
        location: tuple[str, int, str] | None,
    ) -> None:
        """Tell a warning."""
        category = warning_message.category
        self._tell(
            "warning",
            module=category.__module__,
            category=category.__qualname__,
            text=str(warning_message.message),
            filename=warning_message.filename,
            lineno=warning_message.lineno,
            when=when,
            nodeid=nodeid,
            location=location,
        )

    def pytest_internalerror(self, excrepr: object) -> None:
        """Tell a fault of pytest or of a plugin."""
        self._tell("internalerror", text=str(excrepr))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> Generator[None, object, object]:
        """Tell the end, after all others have had it."""
        result = yield
        self._tell(
            "end",
            status=int(exitstatus),
            stopped=str(session.shouldfail or session.shouldstop or ""),
            output=vars(self._config)["workeroutput"],
        )
        return result
