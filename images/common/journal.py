"""A program's journal: what it sent and received, as JSON lines; buffered, and written at exit and on signals.

The format is described in images/README.md.
"""

import fcntl
import json
import os
import socket
import struct
import termios
import threading
import time
from types import TracebackType
from typing import Any, Self

import wire

VERSION = 1
_LINES_AT_ONCE = 256  # half a millisecond of writing at a time
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


class JournalWriter:
    """Writes a program's journal; without a path it writes nothing. Thread-safe."""

    def __init__(self, path: str | None, *, program: str, transport: str) -> None:
        self._rows: list[tuple[Any, ...]] = []
        self._lines = 0
        self._lock = threading.Lock()
        self._file: int | None = None
        if path:
            # Appending, so that the processes of a program that forks write complete lines into one file.
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
            what = {"journal": "testbed", "version": VERSION, "program": program, "transport": transport}
            self._write(_encode({**what, "clock": "CLOCK_MONOTONIC"}) + "\n")
            self._begin()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.end()

    def _begin(self) -> None:
        self._rows, self._lines = [("begin", now_ns(), os.getpid())], 0
        self.flush()

    def forked(self) -> None:
        """Start again in a child process: lines that the parent has not written yet are the parent's."""
        self._lock = threading.Lock()
        if self._file is not None:
            self._begin()

    def connect(self, conn: int, began_ns: int, sock: socket.socket) -> None:
        """A connection was opened by this side."""
        self._add("connect", now_ns(), conn, began_ns, _name(sock.getsockname()), _name(sock.getpeername()))

    def accept(self, conn: int, sock: socket.socket, peer: Any) -> None:
        """A connection was accepted."""
        self._add("accept", now_ns(), conn, _name(sock.getsockname()), _name(peer))

    def sent(self, at_ns: int, conn: int, flow: int, sequence: int, *, size: int, believed: int, taken: int) -> None:
        """A message was given to the kernel, or should have been."""
        self._add("sent", at_ns, conn, flow, sequence, size, believed, taken)

    def received(self, conn: int, message: wire.Message) -> None:
        """A message, or part of one, reached the program."""
        row = (message.flow, message.sequence, message.size_bytes, message.sent_ns, message.state)
        self._add("received", now_ns(), conn, *row)

    def unreadable(self, conn: int, size: int, state: str = wire.CORRUPT) -> None:
        """Bytes reached the program that are not a message, or too few of one."""
        self._add("received", now_ns(), conn, None, None, size, None, state)

    def control(self, conn: int, flow: int, direction: str) -> None:
        """A datagram without a message was ``sent`` or ``received``."""
        self._add("control", now_ns(), conn, flow, direction)

    def error(self, conn: int | None, operation: str, error: BaseException) -> None:
        """An operation failed."""
        self._add("error", now_ns(), conn, operation, getattr(error, "errno", None), f"{type(error).__name__}: {error}")

    def close(self, conn: int, why: str, sock: socket.socket) -> None:
        """The program is about to close a socket; notes the bytes in the kernel's buffers."""
        self._add("close", now_ns(), conn, why, _queued(sock, termios.FIONREAD), _queued(sock, termios.TIOCOUTQ))

    def _add(self, *row: Any) -> None:
        if self._file is None:
            return
        with self._lock:
            self._rows.append(row)
            if len(self._rows) >= _LINES_AT_ONCE:
                self._flush()

    def flush(self) -> None:
        """Write what is buffered."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        self._lines += len(rows)
        if rows and self._file is not None:
            self._write("\n".join(map(_encode, rows)) + "\n")

    def end(self) -> None:
        """Write everything, and the last line, without which a journal counts as cut short."""
        if self._file is None:
            return
        self.flush()
        self._rows.append(("end", now_ns(), os.getpid(), self._lines + 1))
        self.flush()
        os.close(self._file)
        self._file = None

    def _write(self, text: str) -> None:
        data = memoryview(text.encode())
        while data and self._file is not None:
            data = data[os.write(self._file, data) :]


def now_ns() -> int:
    """CLOCK_MONOTONIC, which containers of one engine share."""
    return time.monotonic_ns()


def _name(address: Any) -> str:
    return f"{address[0]}:{address[1]}"


def _queued(sock: socket.socket, request: int) -> int | None:
    """Bytes in a socket's receive (FIONREAD) or send (TIOCOUTQ, here SIOCOUTQ: tcp(7)) queue; None once it is gone."""
    try:
        return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), request, b"\0\0\0\0"))[0])
    except OSError:
        return None
