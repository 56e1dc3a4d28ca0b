"""A program's output as it comes: bytes, lines and their times, the end. The same in every kind of lab."""

from __future__ import annotations

import abc
import threading
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from testbed.errors import CommandTimeoutError
from testbed.evidence.programs import MOST_OUTPUT, ProgramRun
from testbed.lab import readiness
from testbed.lab.host import Program, Result, seconds

_STOPS_WITHIN = "10s"


class ReadProgram(Program):
    """A program whose output a thread of ours reads; the thread calls `printed` and `end_output`."""

    def __init__(self, host: str, argv: Sequence[str]) -> None:
        """``host``: the name of the host it runs in."""
        self.host = host
        self.argv = tuple(argv)
        self.command = f"`{host}`: {' '.join(argv)}"
        """Host and program, for the beginning of an error."""
        self._chunks: list[tuple[int, bytes]] = []
        self._done = threading.Event()
        self._started = time.perf_counter()
        self._duration_s = 0.0
        self._result: Result | None = None
        self._stopped = False

    def printed(self, stream: int, data: bytes) -> None:
        """It printed something to stdout (1) or stderr (2)."""
        self._chunks.append((stream, data))

    def end_output(self) -> None:
        """Nothing more comes of it."""
        self._duration_s = time.perf_counter() - self._started
        self._done.set()

    def await_end(self, deadline_s: float) -> bool:
        """Wait for the end of its output. Returns whether it came in time."""
        return self._done.wait(deadline_s)

    @property
    def ended(self) -> bool:
        """Whether its output has ended."""
        return self._done.is_set()

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return b"".join(data for _, data in list(self._chunks)).decode(errors="replace")

    def wait(self, timeout: str = "30s") -> Result:
        """Wait for its end; see `Program.wait`."""
        deadline_s = seconds(timeout)
        started = time.monotonic()
        if not self._done.wait(deadline_s):
            raise CommandTimeoutError(f"{self.command}: no end after {timeout}; {readiness.last_output(self)}")
        self._result = self.result(left_s=deadline_s - (time.monotonic() - started), timeout=timeout)
        return self._result

    def result(self, *, left_s: float, timeout: str) -> Result:
        """Its result, now that its output has ended; ``left_s`` of ``timeout`` are left."""
        return Result(
            argv=self.argv,
            exit_code=self.await_status(left_s=left_s, timeout=timeout),
            stdout=self.printed_to(1),
            stderr=self.printed_to(2),
            duration_s=self._duration_s,
            cpu_s=self.cpu_s,
        )

    @property
    def cpu_s(self) -> float | None:
        """Processor time of it and of what it waited for, once it has ended; seconds. None where nobody tells."""
        return None

    @property
    def account(self) -> ProgramRun:
        """Its result, if somebody waited for it, and the last part of its output."""
        known = self._result
        output = self.output
        return ProgramRun(
            host=self.host,
            argv=self.argv,
            exit_code=None if known is None else known.exit_code,
            duration_s=None if known is None else known.duration_s,
            cpu_s=None if known is None else known.cpu_s,
            stopped=self._stopped,
            output=output[-MOST_OUTPUT:],
            output_left_out=max(len(output) - MOST_OUTPUT, 0),
            began_s=self._started,
        )

    @abc.abstractmethod
    def await_status(self, *, left_s: float, timeout: str) -> int:
        """Its exit status, now that its output has ended. Raises CommandTimeoutError."""

    def stop(self, signal: str = "SIGTERM", timeout: str = _STOPS_WITHIN) -> Result:
        """Signal it, wait, and kill it if need be; see `Program.stop`."""
        if not self.ended:
            self._stopped = True
            self.signal(signal)
            if not self._done.wait(seconds(timeout)) and signal != "SIGKILL":
                self.signal("SIGKILL")
        return self.wait(_STOPS_WITHIN)

    @abc.abstractmethod
    def signal(self, name: str) -> None:
        """Send a signal to it and all it started."""

    def printed_to(self, stream: int) -> str:
        """What it has printed to stdout (1) or stderr (2)."""
        return b"".join(data for number, data in list(self._chunks) if number == stream).decode(errors="replace")


class Lines:
    """The lines that a program has printed, and when each came first."""

    def __init__(self) -> None:
        self._pending = b""
        self._seen: dict[str, int] = {}
        self._ended = False
        self._grown = threading.Condition()

    def feed(self, data: bytes) -> None:
        """It printed this, now."""
        *lines, self._pending = (self._pending + data).split(b"\n")
        now_ns = time.time_ns()
        self.add((line.decode(errors="replace").rstrip("\r"), now_ns) for line in lines)

    def add(self, lines: Iterable[tuple[str, int]]) -> None:
        """It printed these whole lines, each at that time in nanoseconds since the epoch."""
        with self._grown:
            for line, at_ns in lines:
                self._seen.setdefault(line, at_ns)
            self._grown.notify_all()

    def end(self) -> None:
        """Nothing more comes."""
        with self._grown:
            self._ended = True
            self._grown.notify_all()

    def when(self, line: str, deadline_s: float) -> int | None:
        """Wait for a line. Returns when it was first printed, in ns since the epoch; None after the deadline."""
        with self._grown:
            self._grown.wait_for(lambda: line in self._seen or self._ended, timeout=deadline_s)
            return self._seen.get(line)

    def __enter__(self) -> Self:
        """See `Log`: another thread reads."""
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Nothing is held."""
