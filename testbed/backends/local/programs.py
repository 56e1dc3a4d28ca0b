"""Programs in the hosts of a local lab: one thread reads the output and the exit status of all."""

from __future__ import annotations

import os
import selectors
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from testbed.backends.local.child import ChildAgent
from testbed.errors import AgentError, LabError
from testbed.lab.channel import Channel
from testbed.lab.output import Lines, ReadProgram

_ENDED_WITH_THE_LAB = 137


_END = struct.Struct("=id")


def how_it_ended(answer: bytes) -> tuple[int, float | None]:
    """What the agent tells of a program's end: its status and its processor time; 137 if it ended with the lab."""
    status, cpu_s = _END.unpack(answer) if len(answer) == _END.size else (_ENDED_WITH_THE_LAB, None)
    return status, cpu_s


class LocalProgram(ReadProgram):
    """A program in a host; an `OutputReader` reads what it prints."""

    def __init__(
        self,
        agent: ChildAgent,
        channel: Channel,
        reader: OutputReader,
        argv: Sequence[str],
        circumstances: Mapping[str, Any],
        *,
        on_end: Callable[[int], None] = lambda _code: None,
    ) -> None:
        """Nothing is started yet: see `start`. ``circumstances``: host, environment, folder and user, for the agent.

        ``on_end`` is called with its status, in the thread that reads the output of all programs.
        """
        super().__init__(circumstances["host"], argv)
        self._agent = channel
        self._on_end = on_end
        self.lines = Lines()
        """What it prints to stdout."""
        self._exit_code = -1
        self._cpu_s: float | None = None
        with ExitStack() as theirs:
            ends: list[int] = []
            ours: list[int] = []
            for _ in range(3):
                read, write = os.pipe()
                ours.append(read)
                ends.append(write)
                theirs.callback(os.close, write)
            null = os.open(os.devnull, os.O_RDONLY)
            theirs.callback(os.close, null)
            ticket = agent.passed([null, *ends])
        reader.watch(self, ours)
        self.request = {"argv": list(argv), "ticket": ticket, "tty": False, **circumstances}
        """How the agent is asked to start it."""
        self.number = 0
        self.refused = ""
        """Why it could not be started; its exit status is then as a shell's. Empty if it was started."""

    def printed(self, stream: int, data: bytes) -> None:
        """It printed something."""
        super().printed(stream, data)
        if stream == 1:
            self.lines.feed(data)

    def has_ended(self, code: int, cpu_s: float | None) -> None:
        """It ended with this status, or its status is lost."""
        self._exit_code, self._cpu_s = code, cpu_s
        self.lines.end()
        self._on_end(code)
        self.end_output()

    def await_status(self, *, left_s: float, timeout: str) -> int:  # noqa: ARG002  # it is known
        """The status that came with the end of the output."""
        return self._exit_code

    @property
    def cpu_s(self) -> float | None:
        """What the agent told with it."""
        return self._cpu_s

    def signal(self, name: str) -> None:
        """Have the agent signal it, and all it started."""
        self._agent.call("signal", programs=[self.number], name=name)


def start(channel: Channel, programs: Sequence[LocalProgram]) -> None:
    """Start programs, all at once. Raises LabError."""
    try:
        answers = channel.call("start", programs=[program.request for program in programs])
    except AgentError as error:
        first, more = programs[0], f" (or one of {len(programs) - 1} more)" if programs[1:] else ""
        raise LabError(f"`{first.host}`: cannot start {' '.join(first.argv)}{more}: {error}") from None
    for program, answer in zip(programs, answers, strict=True):
        program.number, program.refused = answer["program"], answer["refused"]


class AttachedProgram:
    """A program on descriptors of ours. It has no output here; `fileno` is readable once the program has ended."""

    def __init__(self, status: int) -> None:
        self._status = status

    def fileno(self) -> int:
        """For select(2)."""
        return self._status

    def wait(self) -> int:
        """Wait for its end; its exit status."""
        with os.fdopen(self._status, "rb") as status:
            return how_it_ended(status.read(_END.size))[0]


class OutputReader:
    """One thread that reads the output and the exit status of every program of a lab."""

    def __init__(self) -> None:
        self._waiting: selectors.BaseSelector | None = None
        self._wake = -1
        self._thread: threading.Thread | None = None
        self._new: list[tuple[LocalProgram, list[int]]] = []
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin to read."""
        self._waiting = selectors.DefaultSelector()
        read, self._wake = os.pipe()
        self._waiting.register(read, selectors.EVENT_READ, None)
        self._thread = threading.Thread(
            target=self._read, args=[self._waiting, read], name="testbed-reader", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop reading; programs that still run count as ended."""
        os.close(self._wake)
        if self._thread is not None:
            self._thread.join(5.0)

    def watch(self, program: LocalProgram, descriptors: list[int]) -> None:
        """Read its stdout, its stderr and its exit status from now on."""
        with self._lock:
            self._new.append((program, descriptors))
        os.write(self._wake, b"+")

    def _read(self, waiting: selectors.BaseSelector, wake: int) -> None:
        live: dict[LocalProgram, list[int]] = {}
        while True:
            ready = [key for key, _ in waiting.select()]
            for key in ready:
                if key.data is None:
                    if not os.read(wake, 4096):
                        self._end(waiting, live)
                        return
                    self._take_new(waiting, live)
            for key in sorted((key for key in ready if key.data is not None), key=lambda key: key.data[1] == 0):
                program, stream = key.data
                if stream:
                    self._hear(waiting, key.fd, program, stream)
                else:
                    self._ended(waiting, live, key.fd, program)

    def _take_new(self, waiting: selectors.BaseSelector, live: dict[LocalProgram, list[int]]) -> None:
        with self._lock:
            new, self._new = self._new, []
        for program, descriptors in new:
            live[program] = descriptors
            for descriptor, stream in zip(descriptors, (1, 2, 0), strict=True):
                os.set_blocking(descriptor, False)
                waiting.register(descriptor, selectors.EVENT_READ, (program, stream))

    def _hear(self, waiting: selectors.BaseSelector, descriptor: int, program: LocalProgram, stream: int) -> bool:
        """Read from one stream. Returns whether it may have more."""
        try:
            data = os.read(descriptor, 1 << 18)
        except BlockingIOError:
            return False
        if data:
            program.printed(stream, data)
        else:
            waiting.unregister(descriptor)
        return bool(data)

    def _ended(
        self,
        waiting: selectors.BaseSelector,
        live: dict[LocalProgram, list[int]],
        descriptor: int,
        program: LocalProgram,
    ) -> None:
        """Its status came: read what is still in its pipes. Pipes that its children hold open are not waited for."""
        answer = os.read(descriptor, _END.size)
        waiting.unregister(descriptor)
        stdout, stderr, status = live.pop(program)
        registered = waiting.get_map()
        for pipe, stream in ((stdout, 1), (stderr, 2)):
            while pipe in registered and self._hear(waiting, pipe, program, stream):
                pass
            if pipe in registered:
                waiting.unregister(pipe)
            os.close(pipe)
        os.close(status)
        program.has_ended(*how_it_ended(answer))

    def _end(self, waiting: selectors.BaseSelector, live: dict[LocalProgram, list[int]]) -> None:
        self._take_new(waiting, live)
        for program, descriptors in live.items():
            for descriptor in descriptors:
                os.close(descriptor)
            program.has_ended(*how_it_ended(b""))
        for key in list(waiting.get_map().values()):
            if key.data is None:
                os.close(key.fd)
        waiting.close()
