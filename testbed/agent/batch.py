"""One long-lived ``tc`` or ``ip``: lines in, JSON out, 0.4 ms a change instead of a process each.

``tc -force -s -j -batch -`` reads commands from stdin for ever. It prints a JSON array a ``show``, its
complaints as they come, and ``Command failed -:N`` behind them, N being the number of the line. That is all
the framing there is, so each batch ends with a show that always succeeds, and we read until as many arrays
came as shows did not fail.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import select
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .protocol import Refused

_FAILED = re.compile(r"Command failed .*:(\d+)$")

# A terminal line discipline holds 4096 bytes that nobody has read yet and drops the rest, and a carried
# kernel's console is a terminal.
_CHUNK_BYTES = 2048
LONGEST_LINE = _CHUNK_BYTES - 128
"""Of a chunk, with the show behind it."""


_ARRAY = ("[{", "[]")


def _array(line: str) -> Any:
    """The JSON array in a line, or None; words in brackets, as in a tool's usage, are none."""
    return json.loads(line) if line.startswith(_ARRAY) else None


@dataclass
class Outcome:
    """What a batch brought."""

    shown: list[Any] = field(default_factory=list)
    """One parsed JSON array for each show that succeeded, in order."""
    complaints: list[dict[str, Any]] = field(default_factory=list)
    """One entry for each failed line: ``line`` as it was given, and ``text``, the reason."""
    notes: list[str] = field(default_factory=list)
    """Warnings of lines that succeeded."""


class Batch:
    """A tool in batch mode at the other end of two descriptors; safe to use from several threads.

    The lines of one thread may come between those of another, never into the answer to them.
    """

    def __init__(self, write_fd: int, read_fd: int, name: str, *, sync: str, alive: Callable[[], str | None]) -> None:
        """``sync`` is a show that always succeeds; ``alive`` says why nobody answers any more, or None."""
        self._write_fd = write_fd
        self._read_fd = read_fd
        self._readable = select.poll()  # not select(2): an agent of many hosts has descriptors beyond its 1024
        self._readable.register(read_fd, select.POLLIN)
        self._name = name
        self._sync = sync
        self._alive = alive
        # Of one exchange: a chunk and its answer.
        self._lock = threading.RLock()
        self._sent = 0
        self._synchronisations = 0
        self._pending = b""
        # What it said last that was no JSON, for error messages.
        self._said: deque[str] = deque(maxlen=5)
        # Whether answers may still come that nobody waits for, or the line count is not known.
        self._lost = True
        self.closed = False
        """Whether the tool was seen to have closed its end."""

    def run(self, lines: Sequence[str], outcome: Outcome | None = None, *, deadline_s: float = 5.0) -> Outcome:
        """Run the lines in order, going on after one that fails; what they bring is added to ``outcome``.

        Raises Refused if the tool ends or does not answer before the deadline; says what it printed last. The next
        run passes over whatever answer comes late.
        """
        outcome = outcome or Outcome()
        chunk: list[str] = []
        for line in lines:
            if "\n" in line or len(line) > LONGEST_LINE:
                raise Refused(f"{self._name}: not one short line: {line[:120]!r}")
            if sum(len(each) + 1 for each in (*chunk, line)) > _CHUNK_BYTES - 64:
                self._run_chunk(chunk, outcome, deadline_s)
                chunk = []
            chunk.append(line)
        self._run_chunk(chunk, outcome, deadline_s)
        return outcome

    def checked(self, lines: Sequence[str], *, deadline_s: float = 5.0) -> Outcome:
        """As ``run``, but raise Refused naming every line that failed."""
        outcome = self.run(lines, deadline_s=deadline_s)
        if outcome.complaints:
            said = "; ".join(f"`{self._name} {each['line']}`: {each['text']}" for each in outcome.complaints)
            raise Refused(said)
        return outcome

    def await_ready(self, *, deadline_s: float) -> None:
        """Wait for the line ``ready``, which a carried kernel prints when its console can be written to."""
        deadline = time.monotonic() + deadline_s
        while self._read_line(deadline) != "ready":
            pass

    def close(self) -> None:
        """Let nobody use the descriptors any more: they are about to be closed. Waits for an exchange to end."""
        with self._lock:
            self.closed = True

    def synchronise(self, *, deadline_s: float) -> None:
        """Wait until the tool answers; learn its line count. For the start, and after a lost answer."""
        with self._lock:
            self._synchronise(deadline_s)

    def _synchronise(self, deadline_s: float) -> None:
        # A name that was never asked for tells this answer from one that was lost, even of a lost synchronisation.
        self._synchronisations += 1
        nobody = f"testbed-{self._synchronisations % 10**6}"
        self._write(f"{self._sync.split()[0]} show dev {nobody}\n{self._sync}\n")
        deadline = time.monotonic() + deadline_s
        named = failed = False
        while True:
            line = self._read_line(deadline)
            if f'"{nobody}"' in line:
                named = True
            elif named and (match := _FAILED.search(line)):
                self._sent = int(match[1]) + 1
                failed = True
            elif failed and _array(line) is not None:
                self._said.clear()
                self._lost = False
                return

    def _run_chunk(self, lines: Sequence[str], outcome: Outcome, deadline_s: float) -> None:
        with self._lock:
            if self.closed:
                raise Refused(self._ended())
            if self._lost:
                self._synchronise(deadline_s)
            self._exchange(lines, outcome, deadline_s)

    def _exchange(self, lines: Sequence[str], outcome: Outcome, deadline_s: float) -> None:
        first = self._sent + 1
        numbered = dict(enumerate((*lines, self._sync), start=first))
        self._sent += len(numbered)
        self._said.clear()
        self._lost = True
        self._write("".join(f"{line}\n" for line in numbered.values()))
        shows = [number for number, line in numbered.items() if " show " in line or " get " in line]
        arrays: list[Any] = []
        failed: set[int] = set()
        text: list[str] = []
        deadline = time.monotonic() + deadline_s
        while len(arrays) + len(failed.intersection(shows)) < len(shows):
            line = self._read_line(deadline)
            if (array := _array(line)) is not None:
                arrays.append(array)
                outcome.notes += text
                text = []
            elif match := _FAILED.search(line):
                number = int(match[1])
                failed.add(number)
                said = "; ".join(text) or "no reason given"
                outcome.complaints.append({"line": numbered.get(number, f"line {number}"), "text": said})
                text = []
            elif line:
                text.append(line)
        outcome.shown += arrays[:-1]
        self._lost = False

    def _write(self, text: str) -> None:
        data = text.encode()
        try:
            while data:
                data = data[os.write(self._write_fd, data) :]
        except BrokenPipeError:
            self.closed = True
            raise Refused(self._ended()) from None

    def _read_line(self, deadline: float) -> str:
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            ready = self._readable.poll(max(0.0, min(left, 0.1)) * 1e3)
            if ready:
                data = os.read(self._read_fd, 65536)
                if not data:
                    self.closed = True
                    raise Refused(self._ended())
                self._pending += data
            elif self._alive():
                raise Refused(self._ended())
            elif left <= 0:
                raise Refused(f"{self._name} did not answer in time; last seen: {self._last_seen()!r}")
        raw, _, self._pending = self._pending.partition(b"\n")
        line = raw.decode(errors="replace").strip("\r ")
        if line and not line.startswith(_ARRAY):
            self._said.append(line)
        return line

    def _ended(self) -> str:
        reason = self._alive() or "it closed its end"
        seen = self._last_seen()
        return f"{self._name} ended: {reason}; last seen: {seen!r}" if seen else f"{self._name} ended: {reason}"

    def _last_seen(self) -> str:
        return "; ".join([*self._said, self._pending.decode(errors="replace")])[-300:].removesuffix("; ")


def in_root(root: Path | None) -> Callable[[], None] | None:
    """What a child does before it becomes its program, to run it in another root. The agent has one thread."""
    return None if root is None else functools.partial(_enter, root)


def _enter(root: Path) -> None:
    os.chroot(root)
    os.chdir("/")


class LocalTool:
    """``tc`` or ``ip`` of this kernel, as a child process; started anew if a line made it exit."""

    def __init__(
        self, argv: Sequence[str], *, sync: str, environment: Mapping[str, str] | None = None, root: Path | None = None
    ) -> None:
        """``root``: the root file system that the tool comes from, if not this one."""
        self._root = root
        self.argv = list(argv)
        self._environment = environment
        self._sync = sync
        self.process: subprocess.Popen[bytes] | None = None
        self._batch: Batch | None = None
        self._lock = threading.RLock()

    def batch(self) -> Batch:
        """The running tool."""
        with self._lock:
            return self._running()

    def _running(self) -> Batch:
        running = self.process is not None and self.process.poll() is None
        if self._batch is None or self._batch.closed or not running:
            self.close()
            self.process = process = subprocess.Popen(
                self.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0,
                env=self._environment, preexec_fn=in_root(self._root),
            )  # fmt: skip
            assert process.stdin is not None  # noqa: S101  # for the type checker: PIPE was asked
            assert process.stdout is not None  # noqa: S101

            def ended() -> str | None:
                if batch.closed:  # it is about to end, if it has not yet
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(0.2)
                return None if process.poll() is None else f"exit status {process.returncode}"

            self._batch = batch = Batch(
                process.stdin.fileno(), process.stdout.fileno(), self.argv[0], sync=self._sync, alive=ended
            )
            batch.synchronise(deadline_s=5.0)
        return self._batch

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._batch is not None:
            self._batch.close()
        if self.process is not None:
            assert self.process.stdin is not None  # noqa: S101  # for the type checker: PIPE was asked
            assert self.process.stdout is not None  # noqa: S101
            self.process.stdin.close()
            self.process.stdout.close()
            self.process.kill()
            self.process.wait()
        self.process = self._batch = None
