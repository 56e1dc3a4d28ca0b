"""A session spread over several kernels with a simulated clock: ``-n``, or ``--testbed-jobs`` of ``--testbed-seeds``.

Here, outside, nothing is collected or run. What happens in the kernels is reported as if it happened here, so output,
JUnit and results are written as with pytest-xdist (`testbed.pytest.inside` is the other end). A kernel that ends early
fails the test that it ran, and another kernel runs the rest of its share.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, Protocol

import pytest

from testbed.errors import TestbedError
from testbed.evidence.replaying import Replay
from testbed.pytest import results, state, workers
from testbed.pytest.share import Share
from testbed.text import shortened

_INTERNAL_ERROR = 3  # pytest's
_ENDED_WITHIN_S = 30.0


class RunKernel(Protocol):
    """Runs a share of this session in a kernel, or the whole of it."""

    def __call__(
        self,
        share: Share | None,
        say: Callable[[str], None],
        event: Callable[[str], None] | None,
        stop: threading.Event | None = None,
        again: Replay | None = None,
    ) -> int:
        """Run it; returns the exit status.

        ``say`` takes a line for the user, ``event`` each event of the share; ``stop`` ends the kernel early. ``again``:
        what this repeats of an earlier run, without its output. Raises UserError and EnvironmentUnfitError.
        """


@dataclass(eq=False)
class _Kernel:
    """One that runs, as pytest-xdist's hooks know a worker."""

    config: pytest.Config
    share: Share
    gateway: SimpleNamespace
    """Its ``id`` is the name that the terminal shows."""
    workerinfo: Mapping[str, Any]
    running: tuple[str, Any, int] | None = None
    """The test that it runs, where that is, and the seed."""
    runs: int = 0
    """Number of runs that are over."""
    over: bool = False
    """Whether its session has ended by itself."""
    workeroutput: dict[str, Any] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)


class Kernels:
    """Takes the place of pytest's own collection and loop over the tests."""

    def __init__(
        self,
        config: pytest.Config,
        shares: list[Share],
        *,
        run: RunKernel,
        say: Callable[[str], None],
        undo: ExitStack,
        replay: Callable[[Mapping[str, Share]], None],
    ) -> None:
        """``say`` takes a line for the user; ``undo`` is closed when the session is over.

        ``replay``: replays what failed then; it takes the share of each test, by the test's id.
        """
        self._config = config
        self._shares = shares
        self._run = run
        self._say = say
        self._undo = undo
        self._replay = replay
        self._ran: dict[str, Share] = {}
        self._whole = False
        """Whether the session came to its end."""
        self._events: queue.SimpleQueue[tuple[_Kernel, str | int | Exception]] = queue.SimpleQueue()
        self._threads: dict[_Kernel, threading.Thread] = {}
        self._uncollected: set[str] = set()
        self._prepared = False

    def pytest_sessionstart(self) -> None:
        """Print test by test, not file by file."""
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if terminal is not None:
            terminal.showfspath = False

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Take note of how it ended."""
        self._whole = exitstatus == pytest.ExitCode.TESTS_FAILED

    def pytest_unconfigure(self) -> None:
        """Replay what failed, and undo what was made for the kernels."""
        with self._undo:
            if self._whole:
                self._replay(self._ran)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> bool:
        """Collect nothing: the kernels do."""
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run all shares, and report what happens."""
        with self._ended():
            kernels = [self._start(share) for share in self._shares]
            while kernels:
                kernel, event = self._events.get()
                if kernel not in kernels:
                    continue
                if isinstance(event, str):
                    if not self._report(session, kernel, json.loads(event)):  # the test has more reports
                        continue
                elif isinstance(event, Exception) and not isinstance(event, TestbedError):
                    raise event
                else:
                    kernels.remove(kernel)
                    for text in kernel.said:
                        self._say(f"{kernel.gateway.id}: {text}")
                    if not kernel.over:
                        rest = self._rest(kernel, event)
                        if not session.shouldfail:
                            kernels.append(self._start(rest))
                if session.shouldfail and kernel in kernels and self._config.getvalue("maxfail") == 1:
                    for other in kernels:
                        if other is not kernel:
                            other.stop.set()
                    kernels = [kernel]  # it ends by itself, and may make its failure smaller before
                elif session.shouldfail:
                    raise session.Failed(session.shouldfail)
                elif session.shouldstop:
                    raise session.Interrupted(session.shouldstop)
        if session.testsfailed and self._uncollected and not session.config.option.continue_on_collection_errors:
            number = len(self._uncollected)
            raise session.Interrupted(f"{number} error{'s'[: number > 1]} during collection")
        return True

    @contextmanager
    def _ended(self) -> Iterator[None]:
        """End all kernels at the end."""
        try:
            yield
        finally:
            for kernel in self._threads:
                kernel.stop.set()
            for thread in self._threads.values():
                thread.join(_ENDED_WITHIN_S)

    def _start(self, share: Share) -> _Kernel:
        name = f"gw{share.number}"
        information = {
            "id": name,
            "sysplatform": sys.platform,
            "version_info": sys.version_info,
            "executable": sys.executable,
        }
        gateway = SimpleNamespace(id=name)
        kernel = _Kernel(config=self._config, share=share, gateway=gateway, workerinfo=information)

        def run() -> None:
            outcome: int | Exception
            try:
                outcome = self._run(
                    share, kernel.said.append, lambda line: self._events.put((kernel, line)), kernel.stop
                )
            except Exception as error:  # noqa: BLE001  # raised where events are read, or they would be awaited for ever
                outcome = error
            self._events.put((kernel, outcome))

        self._threads[kernel] = threading.Thread(target=run, name=f"{state.KERNELS} {share.number}")
        self._threads[kernel].start()
        return kernel

    def _rest(self, kernel: _Kernel, outcome: int | TestbedError) -> Share:
        """What is left of the share of a kernel that ended early; the test that it ran has failed."""
        why = "; ".join([*kernel.said, str(outcome) if isinstance(outcome, TestbedError) else f"status {outcome}"])
        if kernel.running is None and not kernel.runs:
            pytest.exit(f"kernel {kernel.gateway.id} ended before it ran a test: {why}", returncode=state.WRONG_USE)
        crashed = 0
        if kernel.running is not None:
            nodeid, location, seed = kernel.running
            text = f"kernel {kernel.gateway.id} ended while it ran this test: {why}"
            report = pytest.TestReport(nodeid, location, {}, "failed", text, "???")  # type: ignore[arg-type]  # as xdist
            vars(report).update(node=kernel, testbed_seed=seed, testbed_result=results.of_lost(report, seed))
            self._config.hook.pytest_runtest_logreport(report=report)
            self._config.hook.pytest_runtest_logfinish(nodeid=nodeid, location=location)
            crashed = 1
        self._say(f"kernel {kernel.gateway.id} ended early ({shortened(why)}); another runs the rest of its share")
        return replace(kernel.share, done=kernel.share.done + kernel.runs + crashed)

    def _report(self, session: pytest.Session, kernel: _Kernel, event: Mapping[str, Any]) -> bool:
        """Report an event of a kernel; returns whether a test is over with it."""
        hook = self._config.hook
        match event["event"]:
            case "collected":
                session.testscollected = max(session.testscollected, event["tests"])
                if event["labs"] and not self._prepared:
                    self._prepared = True
                    results.make_room(self._config)
            case "collectreport":
                report = self._deserialized(event)
                if report.nodeid not in self._uncollected:  # each kernel tells of it, perhaps in other words
                    if report.failed:
                        self._uncollected.add(report.nodeid)
                    hook.pytest_collectreport(report=report)
            case "logstart":
                kernel.running = (event["nodeid"], event["location"], event["seed"])
                hook.pytest_runtest_logstart(nodeid=event["nodeid"], location=tuple(event["location"]))
            case "logreport":
                report = self._deserialized(event)
                vars(report).update(node=kernel)
                hook.pytest_runtest_logreport(report=report)
                if (result := getattr(report, "testbed_result", None)) is not None:  # by now under the name of its seed
                    self._ran[result["id"]] = kernel.share
            case "logfinish":
                hook.pytest_runtest_logfinish(nodeid=event["nodeid"], location=tuple(event["location"]))
                kernel.running, kernel.runs = None, kernel.runs + 1
            case "warning":
                self._warn(event)
            case "internalerror":
                pytest.exit(f"kernel {kernel.gateway.id}: {event['text']}", returncode=_INTERNAL_ERROR)
            case "end":
                kernel.over, kernel.workeroutput = True, event["output"]
                workers.hear_worker(kernel)
                if (counts := self._config.pluginmanager.get_plugin(state.COUNTS)) is not None:
                    counts.hear(kernel.workeroutput)
                if event["stopped"] and not session.shouldfail:
                    session.shouldstop = event["stopped"]
        return bool(event["event"] == "logfinish")

    def _deserialized(self, event: Mapping[str, Any]) -> Any:
        """A report; JSON has no tuples, and pytest wants one as the reason of a skip."""
        data = event["report"]
        if isinstance(data["longrepr"], list):
            data["longrepr"] = tuple(data["longrepr"])
        return self._config.hook.pytest_report_from_serializable(config=self._config, data=data)

    def _warn(self, event: Mapping[str, Any]) -> None:
        """Record a warning. Its category may be unknown here: it is shown by name."""
        category = type(event["category"], (Warning,), {"__module__": event["module"]})
        message = warnings.WarningMessage(category(event["text"]), category, event["filename"], event["lineno"])
        location = event["location"]
        self._config.hook.pytest_warning_recorded.call_historic(
            kwargs={
                "warning_message": message,
                "when": event["when"],
                "nodeid": event["nodeid"],
                "location": location and tuple(location),
            }
        )
