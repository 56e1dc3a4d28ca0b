"""A program's journal: what it sent and received, as JSON lines; buffered, and written out at exit and on signals.

The first line is an object; each other line an array, whose first word says what the rest is. Times are
CLOCK_MONOTONIC in nanoseconds, sizes bytes with the header of 28::

    {"journal": "testbed", "version": 1, "program": …, "transport": "tcp" | "udp", "clock": "CLOCK_MONOTONIC"}
    ["begin",    time, pid]
    ["connect",  time, conn, began, local, peer]           the handshake took time - began
    ["accept",   time, conn, local, peer]
    ["sent",     time, conn, flow, sequence, size, believed, taken]
                 time: before the first send; believed: what the program takes for sent; taken: by the kernel
    ["received", time, conn, flow, sequence, size, sent_ns, "whole" | "truncated" | "corrupt"]
                 flow, sequence and sent_ns are null where nothing of the message can be read
    ["control",  time, conn, flow, "sent" | "received"]    a datagram that carries no message (end of a flow, …)
    ["error",    time, conn, operation, errno, text]       conn is null where there is none
    ["close",    time, conn, why, unread, unsent]          why: eof, done, reset, error, stop; bytes in the kernel
    ["end",      time, pid, lines]                         lines that this process wrote, this one included

Each process begins and ends; without its "end" a journal was cut short.
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

VERSION = 1
_LINES_AT_ONCE = 256  # half a millisecond of writing at a time
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


class Journal:
    """What one program writes; without a path it forgets everything. Safe to use from threads."""

    def __init__(self, path: str | None, *, program: str, transport: str) -> None:
        self._rows: list[tuple[Any, ...]] = []
        self._lines = 0
        self._lock = threading.Lock()
        self._file: int | None = None
        if path:
            # Appending, so that the processes of a program that forks write whole lines into one file.
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
            first = {
                "journal": "testbed", "version": VERSION, "program": program, "transport": transport,
                "clock": "CLOCK_MONOTONIC",
            }  # fmt: skip
            self._write(_encode(first) + "\n")
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
        """Begin anew in a child process: what the parent has not written yet is the parent's."""
        self._lock = threading.Lock()
        if self._file is not None:
            self._begin()

    def connect(self, conn: int, began_ns: int, sock: socket.socket) -> None:
        """A connection that this side opened stands."""
        self._add("connect", now_ns(), conn, began_ns, _name(sock.getsockname()), _name(sock.getpeername()))

    def accept(self, conn: int, sock: socket.socket, peer: Any) -> None:
        """A connection was taken from the listener's queue."""
        self._add("accept", now_ns(), conn, _name(sock.getsockname()), _name(peer))

    def sent(self, at_ns: int, conn: int, flow: int, sequence: int, *, size: int, believed: int, taken: int) -> None:
        """A message was given to the kernel, or was to be."""
        self._add("sent", at_ns, conn, flow, sequence, size, believed, taken)

    def received(
        self, conn: int, flow: int | None, sequence: int | None, *, size: int, sent_ns: int | None, state: str
    ) -> None:
        """A message, or some of one, arrived in the program."""
        self._add("received", now_ns(), conn, flow, sequence, size, sent_ns, state)

    def control(self, conn: int, flow: int, direction: str) -> None:
        """A datagram that carries no message was ``sent`` or ``received``."""
        self._add("control", now_ns(), conn, flow, direction)

    def error(self, conn: int | None, operation: str, error: BaseException) -> None:
        """An operation failed."""
        self._add("error", now_ns(), conn, operation, getattr(error, "errno", None), f"{type(error).__name__}: {error}")

    def close(self, conn: int, why: str, sock: socket.socket) -> None:
        """The program is about to close a socket; with what is still in the kernel's buffers."""
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
        """Write everything, and the line without which a journal counts as cut short."""
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
