"""One version's pytest process, which runs its tests each time it is told to (`testbed.pytest.passes`)."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from testbed.errors import EnvironmentUnfitError, LabError
from testbed.text import visible
from testbed.writing import to_append

_COLLECTS_WITHIN_S = 300.0
_ENDS_WITHIN_S = 60.0
_LAST_LINES = 15
_PART_S = 1.0


def _alone() -> list[str]:
    """What keeps pytest-xdist's workers away, whatever the project's own options say."""
    return [] if find_spec("xdist") is None else ["-n", "0"]


class ArmError(EnvironmentUnfitError):
    """A version whose tests cannot be run: its pytest ends, or its stack does not start."""


class BudgetSpentError(LabError):
    """A run was not over when it had to be."""


class Arm:
    """A version: its folder, what pytest is given, and the process while there is one."""

    def __init__(self, *, name: str, folder: Path, words: Sequence[str], log: Path, fresh: bool) -> None:
        """``name``: for messages, such as ``base (main, 1a2b3c4d)``. ``fresh``: a new process for each run."""
        self.name = name
        self.fresh = fresh
        self._folder = folder
        self._words = tuple(words)
        self._log = log
        self.process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._received = b""
        self.tests: tuple[str, ...] = ()
        """The ids of its tests, once it has started."""
        self.once: tuple[str, ...] = ()
        """What a machine has once, so that two such stacks cannot be up at the same time."""

    def start(self) -> None:
        """Start pytest and have it collect its tests. Raises ArmError."""
        our_end, their_end = socket.socketpair()
        with their_end, to_append(self._log, below=self._log.parent) as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pytest", *self._words, *_alone(), "--testbed-passes", str(their_end.fileno())],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[their_end.fileno()],
                start_new_session=True,
            )
        self._channel, self._received = our_end, b""
        message = self._hear(time.monotonic() + _COLLECTS_WITHIN_S)
        if message is None or "tests" not in message:
            problems = "\n".join((message or {}).get("problems", ()))
            self.close()
            raise ArmError(f"{self.name}: its tests cannot be run: {problems or self._last_lines()}")
        self.tests, self.once = tuple(message["tests"]), tuple(message["once"])
        if not self.tests:
            self.close()
            raise ArmError(f"{self.name}: pytest {' '.join(self._words)} finds no test there")

    def check(self, variations: Sequence[Sequence[str]]) -> list[str]:
        """What is wrong with other values of the words that its tests' links are impaired with. Raises ArmError."""
        if self.process is None:
            self.start()
        message = self._ask({"check": variations}, time.monotonic() + _COLLECTS_WITHIN_S)
        if message is None or "problems" not in message:
            self.close()
            raise ArmError(f"{self.name}: pytest ended: {self._last_lines()}")
        return [*message["problems"]]

    def run(self, *, seed: int, results: Path, until: float, vary: Sequence[str] = ()) -> float:
        """Run all tests once under a seed; the seconds it took. ``until``: when it must be over (time.monotonic()).

        ``vary``: the values that links are given instead of their markers', such as ``loss=3%``.

        Raises ArmError if its stack is not up or pytest ended, BudgetSpentError.
        """
        if self.process is None:
            self.start()
        begun = time.monotonic()
        message = self._ask({"seed": seed, "results": str(results), "vary": [*vary]}, until)
        if message is None or "not_up" not in message:
            self.close()
            raise ArmError(f"{self.name}: pytest ended during its tests: {self._last_lines()}")
        if message["not_up"]:
            self.close()
            raise ArmError(f"{self.name}: its stack does not start: {message['not_up']}")
        if self.fresh:
            self.close()
        return time.monotonic() - begun

    def close(self) -> None:
        """End the process, also in the middle of its tests; its session takes its stack down."""
        process, channel = self.process, self._channel
        self.process = self._channel = None
        if channel is not None:
            channel.close()
        if process is None:
            return
        for number, within_s in ((None, _ENDS_WITHIN_S), (signal.SIGINT, _ENDS_WITHIN_S), (signal.SIGKILL, None)):
            if number is not None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            try:
                process.wait(within_s)
            except subprocess.TimeoutExpired:
                continue
            return

    @property
    def connected(self) -> socket.socket:
        """The socket to its pytest. Raises ArmError if that does not run."""
        if self._channel is None:
            raise ArmError(f"{self.name}: pytest does not run")
        return self._channel

    def _ask(self, request: Mapping[str, Any], until: float) -> Mapping[str, Any] | None:
        """The answer to a request; None if its pytest ended. Raises BudgetSpentError."""
        try:
            self.connected.sendall(f"{json.dumps(request)}\n".encode())
            return self._hear(until)
        except OSError:
            return None

    def _hear(self, until: float) -> Mapping[str, Any] | None:
        """The next line; None at the end. Raises BudgetSpentError."""
        channel = self.connected
        while b"\n" not in self._received:
            left = until - time.monotonic()
            if left <= 0:
                raise BudgetSpentError(f"{self.name}: not over in time")
            channel.settimeout(min(left, _PART_S))
            try:
                data = channel.recv(1 << 16)
            except TimeoutError:
                continue
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            self._received += data
        line, self._received = self._received.split(b"\n", 1)
        message: Mapping[str, Any] = json.loads(line)
        return message

    def _last_lines(self) -> str:
        text = self._log.read_text(encoding="utf-8", errors="replace")
        lines = [line for line in visible(text).splitlines() if line.strip()]
        status = "" if self.process is None else f" (exit status {self.process.poll()})"
        return f"its last lines{status}, of {self._log}:\n" + "\n".join(lines[-_LAST_LINES:])
