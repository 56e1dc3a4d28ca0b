"""Programs that the engine runs in containers, and what a container's main program prints."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

import docker.errors
from docker.models.containers import Container

from testbed.backends.docker.engine import Engine, Exec
from testbed.errors import CommandTimeoutError, LabError
from testbed.lab import readiness
from testbed.lab.host import Result
from testbed.lab.output import Lines, ReadProgram
from testbed.lab.waiting import NotSeenError, await_condition

_CANNOT_BE_STARTED = (126, 127)  # as a shell has it
_LONGEST_S = 86400.0


class ComposeProgram(ReadProgram):
    """A program that the engine runs in a container."""

    def __init__(
        self,
        engine: Engine,
        container: Container,
        argv: Sequence[str],
        *,
        host: str,
        send_signal: Callable[[int, str], None],
        env: Mapping[str, str] | None,
        workdir: str | None,
        user: str,
    ) -> None:
        """Start it. ``send_signal``: sends a signal to the program of a number on the engine's machine."""
        super().__init__(host, argv)
        self._engine = engine
        self._send_signal = send_signal
        self._lost = ""
        """The error that ended its output; empty if the output is complete."""
        try:
            self._exec: Exec = engine.exec(container, argv, env=env or {}, workdir=workdir, user=user)
        except docker.errors.APIError as error:
            raise LabError(f"`{host}`: cannot start {' '.join(argv)}: {error.explanation or error}") from None
        threading.Thread(target=self._read, name=f"testbed-{host}", daemon=True).start()

    def _read(self) -> None:
        try:
            while (frame := self._exec.stream.frame(_LONGEST_S)) is not None:
                self.printed(*frame)
        except OSError as error:
            self._lost = str(error)
        finally:
            self._exec.stream.close()
            self.end_output()

    def await_status(self, *, left_s: float, timeout: str) -> int:
        """By the engine; a program may close its output a moment before it ends."""
        try:
            status, _ = await_condition(
                self._state,
                lambda state: state[0] is not None,
                deadline_s=max(1.0, left_s),
                every_s=0.002,
            )
        except NotSeenError:
            raise CommandTimeoutError(f"{self.command}: closed its output but did not end within {timeout}") from None
        if self._lost:
            raise LabError(
                f"{self.command}: exit status {status}, but a part of its output is missing: {self._lost}; "
                f"{readiness.last_output(self)}"
            )
        return -1 if status is None else status

    def _state(self) -> tuple[int | None, int]:
        try:
            return self._engine.exec_state(self._exec)
        except LabError as error:
            raise LabError(f"{self.command}: {error}") from None

    def result(self, *, left_s: float, timeout: str) -> Result:
        """Its result; the engine's message about a missing program is not part of its stdout."""
        ended = super().result(left_s=left_s, timeout=timeout)
        if ended.exit_code in _CANNOT_BE_STARTED and ended.stdout.startswith("OCI runtime exec failed"):
            return replace(ended, stdout="", stderr=ended.stderr + ended.stdout)
        return ended

    def await_begun(self) -> tuple[int | None, int]:
        """Its exit status and its number, once the engine knows either: it accepts a program before that."""
        return await_condition(
            self._state,
            lambda state: state[0] is not None or state[1] > 0,
            deadline_s=5,
            every_s=0.01,
        )

    def signal(self, name: str) -> None:
        """Signal it."""
        status, pid = self.await_begun()
        if status is None:
            self._send_signal(pid, name)


class FollowedLog(Lines):
    """The output of a container's main program as it comes; a thread of ours reads it."""

    def __init__(self, engine: Engine, container: Container) -> None:
        super().__init__()
        self._chunks, self._has_stamps = engine.follow(container), not engine.is_podman
        self._thread = threading.Thread(target=self._read, name="testbed-log", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._chunks.close()
        self._thread.join(5.0)

    def _read(self) -> None:
        try:
            pending = b""
            for chunk in self._chunks:
                *lines, pending = (pending + chunk).split(b"\n")
                self.add(_stamped(lines) if self._has_stamps else _arrived(lines))
        finally:
            self.end()


def _stamped(lines: Sequence[bytes]) -> Iterator[tuple[str, int]]:
    """Each line, and the engine's time stamp that stands before it."""
    for line in lines:
        stamp, _, text = line.decode(errors="replace").partition(" ")
        yield text, nanoseconds(stamp)


def _arrived(lines: Sequence[bytes]) -> Iterator[tuple[str, int]]:
    """Each line, and the time now, by this process's clock."""
    now_ns = time.time_ns()
    for line in lines:
        yield line.decode(errors="replace"), now_ns


def nanoseconds(stamp: str) -> int:
    """An RFC 3339 time stamp with nanoseconds, as the engine writes it in UTC, since the epoch."""
    whole, _, fraction = stamp.rstrip("Z").partition(".")
    second = datetime.strptime(whole, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    return int(second.timestamp()) * 1_000_000_000 + int(fraction.ljust(9, "0")[:9])
