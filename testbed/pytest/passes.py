"""The tests of a session run again and again, as another process asks: one side of `testbed ab`, `testbed envelope`.

What has session scope, the stack with it, stays up from pass to pass; all else is set up anew. Each pass has a seed and
a results file of its own. The other process holds the far end of a socket, whose number ``--testbed-passes`` gives. It
sends a JSON line per pass, ``{"seed": …, "results": …, "vary": […]}``, and hears ``{"tests": […], "once": […]}`` when
the tests are collected, ``{"not_up": …}`` after each pass, and ``{"problems": […]}`` where none can begin. ``vary`` is
what ``--testbed-vary`` is given in this pass. ``{"check": [[…], …]}`` asks, without a pass, what is wrong with such
values. When the other process closes the socket, the session ends as any other does; when it dies in the middle of a
pass, the session is interrupted as by Ctrl-C, so that its stack is taken down at once.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import pytest

from testbed.errors import UserError
from testbed.pytest import results, state
from testbed.pytest.again import afresh
from testbed.pytest.markers import WANTED, id_of, marked, wanted
from testbed.pytest.stacks import stack_of

_NAME = "testbed-passes"
_INTERRUPTED_WITHIN_S = 60.0
"""How long an interrupted session may take to end, before it is killed: then its agents heal what it impaired."""


def listen(config: pytest.Config) -> None:
    """Have this session run its tests as it is told, if it is asked to."""
    number = config.getoption("--testbed-passes")
    if number is not None:
        os.set_inheritable(number, False)  # the programs that tests start must not hold it open
        config.pluginmanager.register(Passes(config, socket.socket(fileno=number)), _NAME)


class Passes:
    """Takes the place of pytest's own loop over the tests."""

    def __init__(self, config: pytest.Config, channel: socket.socket) -> None:
        self._config = config
        self._channel = channel
        self._lines = channel.makefile("r", encoding="utf-8")
        self._started = False
        self._ends_itself = False
        """Whether the session awaits a line, and so the socket's end, or ends already."""
        self._turn = threading.Lock()
        """For `_ends_itself`: what ends by itself is not interrupted."""
        self._over = threading.Event()
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # inherited, from `nohup` for example
            signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Thread(target=self._end_with_owner, name=_NAME, daemon=True).start()

    def _end_with_owner(self) -> None:
        """Interrupt the session when the other process closes the socket or dies, unless it ends by itself."""
        closed = select.poll()
        closed.register(self._channel, select.POLLRDHUP)
        closed.poll()
        with self._turn:
            if self._ends_itself:
                return
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        if not self._over.wait(_INTERRUPTED_WITHIN_S):
            os.kill(os.getpid(), signal.SIGKILL)

    def _requests(self) -> Iterator[Mapping[str, Any]]:
        """What the other process asks, until it closes the socket."""
        while line := self._lines.readline():
            with self._turn:
                self._ends_itself = False
            yield json.loads(line)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run all tests for each line that comes."""
        if session.testsfailed and not session.config.option.continue_on_collection_errors:
            raise session.Interrupted(f"{session.testsfailed} errors during collection")
        self._started = True
        self._answer(tests=[id_of(item) for item in session.items], once=self._once())
        for request in self._requests():
            if "check" in request:
                self._answer(problems=list(dict.fromkeys(self._problems(session, request["check"]))))
                continue
            self._run(session, request)
            self._answer(not_up=state.why_not_up(self._config))
        return True

    def _answer(self, **words: object) -> None:
        """Tell the other process something on which it may close the socket."""
        with self._turn:
            self._ends_itself = True
        self._tell(**words)

    def _vary(self, session: pytest.Session, words: list[str]) -> None:
        """Have the links of all tests impaired with these values. Raises UserError."""
        self._config.option.testbed_vary = words
        for item in session.items:
            item.stash[WANTED] = wanted(item, partial(state.lab_of, self._config, stack_of(item)))

    def _problems(self, session: pytest.Session, variations: list[list[str]]) -> Iterator[str]:
        """What is wrong with these variations of the tests' links."""
        for item in session.items:
            if not marked(item):
                yield f"{id_of(item)}: no marker impairs a link of it, so there is nothing to vary; leave it out"
        before: list[str] = self._config.option.testbed_vary
        for words in variations:
            try:
                self._vary(session, words)
            except UserError as error:
                yield from error.problems
        self._vary(session, before)

    def pytest_sessionfinish(self) -> None:
        """Say why no pass could begin, if that is so."""
        with self._turn:
            self._ends_itself = True
        if not self._started:
            problems: list[str] = self._config.stash[state.PROBLEMS]
            self._tell(problems=[*dict.fromkeys(problems)])

    def pytest_unconfigure(self) -> None:
        """Close the socket."""
        self._over.set()
        self._lines.close()
        self._channel.close()

    def _once(self) -> list[str]:
        """What a machine has once, so that two stacks of this kind cannot be up at the same time."""
        return list(state.lab_of(self._config).only_one) if state.has_stack(self._config) else []

    def _run(self, session: pytest.Session, request: Mapping[str, Any]) -> None:
        self._config.stash[state.SEED] = request["seed"]
        self._config.option.testbed_results = request["results"]
        if request["vary"] != self._config.option.testbed_vary:
            self._vary(session, request["vary"])
        plugins = self._config.pluginmanager
        if (before := plugins.get_plugin(results.NAME)) is not None:
            plugins.unregister(before)
        written = results.ResultsFile(self._config)
        plugins.register(written, results.NAME)
        most_failed = self._config.getvalue("maxfail")
        session.testsfailed = 0
        for item, following in afresh(session):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            # Not `shouldfail`, which stays set from pass to pass.
            if session.shouldstop or (most_failed and session.testsfailed >= most_failed) or self._is_alone():
                break
        session.exitstatus = pytest.ExitCode.TESTS_FAILED if session.testsfailed else pytest.ExitCode.OK
        written.pytest_sessionfinish(session)
        plugins.unregister(written)

    def _is_alone(self) -> bool:
        """Whether the other process has closed the socket, or is dead: nobody waits for the rest of the tests."""
        try:
            return not self._channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False

    def _tell(self, **message: object) -> None:
        try:
            self._channel.sendall(f"{json.dumps(message)}\n".encode())
        except OSError:  # whoever asked has gone: the next line will not come
            return
