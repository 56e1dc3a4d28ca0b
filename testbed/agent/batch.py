"""One long-lived ``tc`` or ``ip``: lines in, JSON out, 0.4 ms per change instead of one process each.

``tc -force -s -j -batch -`` reads commands from stdin until its end. It prints one JSON array per ``show``, errors as
they occur, and after each error ``Command failed -:N`` with the number of the line. There is no other framing. So each
batch ends with a line that always fails, and takes two system calls where the cheapest show takes four.
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
_END = "testbed"
"""No command of tc or ip, and no abbreviation of one."""

# A carried kernel's console is a terminal, whose line discipline holds 4096 unread bytes and drops the rest.
_CHUNK_BYTES = 2048
LONGEST_LINE = _CHUNK_BYTES - 128
"""In bytes; a chunk ends with a show."""

_ARRAY = ("[{", "[]")


def _array(line: str) -> Any:
    """The JSON array in a line, or None; words in brackets, as in a tool's usage text, are not an array."""
    return json.loads(line) if line.startswith(_ARRAY) else None


@dataclass
class BatchOutput:
    """The output of a batch."""

    shown: list[Any] = field(default_factory=list)
    """One parsed JSON array for each show that succeeded, in order."""
    complaints: list[dict[str, Any]] = field(default_factory=list)
    """One entry for each failed line: the ``line`` itself, and the reason as ``text``."""
    notes: list[str] = field(default_factory=list)
    """Warnings of lines that succeeded."""


class Batch:
    """A tool in batch mode at the other end of two descriptors; thread-safe.

    The lines of one thread may come between those of another, but each thread gets its own output.
    """

    def __init__(self, write_fd: int, read_fd: int, name: str, *, alive: Callable[[], str | None]) -> None:
        """``alive``: why the tool has ended, or None while it has not."""
        self._write_fd = write_fd
        self._read_fd = read_fd
        self._readable = select.poll()  # not select(2): an agent of many hosts has descriptors beyond its 1024
        self._readable.register(read_fd, select.POLLIN)
        self._name = name
        self._alive = alive
        # Held for one exchange: a chunk and its output.
        self._lock = threading.RLock()
        self._sent = 0
        self._synchronisations = 0
        self._pending = b""
        # The last lines that were not JSON, for error messages.
        self._messages: deque[str] = deque(maxlen=5)
        # Whether output may still come that nobody waits for, or the line count is unknown.
        self._lost = True
        self.closed = False
        """Whether the tool has closed its end."""

    def run(self, lines: Sequence[str], output: BatchOutput | None = None, *, deadline_s: float = 5.0) -> BatchOutput:
        """Run the lines in order, continuing after one that fails; the output is added to ``output``.

        Raises Refused, with the tool's last lines, if it ends or does not answer before the deadline. The next run
        skips output that comes late.
        """
        output = output or BatchOutput()
        chunk: list[str] = []
        for line in lines:
            if "\n" in line or len(line) > LONGEST_LINE:
                raise Refused(f"{self._name}: not one short line: {line[:120]!r}")
            if sum(map(len, (*chunk, line))) + len(chunk) + 1 > _CHUNK_BYTES - 64:
                self._run_chunk(chunk, output, deadline_s)
                chunk = []
            chunk.append(line)
        self._run_chunk(chunk, output, deadline_s)
        return output

    def checked(self, lines: Sequence[str], *, deadline_s: float = 5.0) -> BatchOutput:
        """As ``run``, but raise Refused naming every line that failed."""
        output = self.run(lines, deadline_s=deadline_s)
        if output.complaints:
            raise Refused("; ".join(f"`{self._name} {row['line']}`: {row['text']}" for row in output.complaints))
        return output

    def await_ready(self, *, deadline_s: float) -> None:
        """Wait for the line ``ready``, which a carried kernel prints when its console can be written to."""
        deadline = time.monotonic() + deadline_s
        while self._read_line(deadline) != "ready":
            pass

    def close(self) -> None:
        """Refuse further use of the descriptors, which are about to be closed. Waits for an exchange to end."""
        with self._lock:
            self.closed = True

    def synchronise(self, *, deadline_s: float) -> None:
        """Wait until the tool answers, and learn its line count: at the start, and after output was lost."""
        with self._lock:
            self._synchronise(deadline_s)

    def _synchronise(self, deadline_s: float) -> None:
        # A new name distinguishes this output from lost output, even that of a lost synchronisation.
        self._synchronisations += 1
        name = f"{_END}-{self._synchronisations % 10**6}"
        self._write(f"{name}\n")
        deadline = time.monotonic() + deadline_s
        while f'"{name}"' not in self._read_line(deadline):
            pass
        while (match := _FAILED.search(self._read_line(deadline))) is None:
            pass
        self._sent = int(match[1])
        self._messages.clear()
        self._lost = False

    def _run_chunk(self, lines: Sequence[str], output: BatchOutput, deadline_s: float) -> None:
        with self._lock:
            if self.closed:
                raise Refused(self._ended())
            if self._lost:
                self._synchronise(deadline_s)
            self._exchange(lines, output, deadline_s)

    def _exchange(self, lines: Sequence[str], output: BatchOutput, deadline_s: float) -> None:
        numbered = dict(enumerate((*lines, _END), start=self._sent + 1))
        self._sent += len(numbered)
        self._messages.clear()
        self._lost = True
        self._write("".join(f"{line}\n" for line in numbered.values()))
        text: list[str] = []
        deadline = time.monotonic() + deadline_s
        while self._lost:
            line = self._read_line(deadline)
            if (array := _array(line)) is not None:
                output.shown.append(array)
                output.notes += text
                text = []
            elif match := _FAILED.search(line):
                number = int(match[1])
                if number == self._sent:
                    output.notes += text[:-1]  # the last is about our own line
                    self._lost = False
                else:
                    reason = "; ".join(text) or "no reason given"
                    output.complaints.append({"line": numbered.get(number, f"line {number}"), "text": reason})
                text = []
            elif line:
                text.append(line)

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
            self._messages.append(line)
        return line

    def _ended(self) -> str:
        reason = self._alive() or "it closed its end"
        last = self._last_seen()
        return f"{self._name} ended: {reason}; last seen: {last!r}" if last else f"{self._name} ended: {reason}"

    def _last_seen(self) -> str:
        return "; ".join([*self._messages, self._pending.decode(errors="replace")])[-300:].removesuffix("; ")


def in_root(root: Path | None) -> Callable[[], None] | None:
    """A ``preexec_fn`` that enters another root file system; None for this one. The agent has one thread."""
    return None if root is None else functools.partial(_enter, root)


def _enter(root: Path) -> None:
    os.chroot(root)
    os.chdir("/")


class LocalTool:
    """``tc`` or ``ip`` of this kernel, as a child process; restarted if a line made it exit."""

    def __init__(
        self, argv: Sequence[str], *, environment: Mapping[str, str] | None = None, root: Path | None = None
    ) -> None:
        """``root``: the root file system that has the tool, if not this one."""
        self._root = root
        self.argv = list(argv)
        self._environment = environment
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
                self.argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                env=self._environment,
                preexec_fn=in_root(self._root),
            )
            assert process.stdin is not None  # noqa: S101  # for the type checker: it is a PIPE
            assert process.stdout is not None  # noqa: S101

            def ended() -> str | None:
                if batch.closed:  # it is about to end, if it has not yet
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(0.2)
                return None if process.poll() is None else f"exit status {process.returncode}"

            self._batch = batch = Batch(process.stdin.fileno(), process.stdout.fileno(), self.argv[0], alive=ended)
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
            assert self.process.stdin is not None  # noqa: S101  # for the type checker: it is a PIPE
            assert self.process.stdout is not None  # noqa: S101
            self.process.stdin.close()
            self.process.stdout.close()
            self.process.kill()
            self.process.wait()
        self.process = self._batch = None
