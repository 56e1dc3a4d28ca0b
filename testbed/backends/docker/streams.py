"""The engine's attached streams: what a program reads and prints, in frames."""

from __future__ import annotations

import contextlib
import io
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

_STDOUT = 1


class Chunks(io.RawIOBase):
    """A stream of what comes in chunks; a read gives what is left of one, at most."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = memoryview(b"")

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a part of a buffer; 0 at the end."""
        while not self._left:
            if (chunk := next(self._chunks, None)) is None:
                return 0
            self._left = memoryview(chunk)
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size


class Demultiplexed:
    """An attached stream of the engine: frames of an 8-byte header (stream number, length) and a body."""

    def __init__(self, raw: Any) -> None:
        # On a plain socket docker-py hands out a SocketIO around it, on TLS and SSH the socket itself.
        self._holder = raw
        self._socket: socket.socket = getattr(raw, "_sock", raw)
        self._pending = _read_ahead(raw, self._socket)
        self._stderr: deque[bytes] = deque(maxlen=50)

    def send(self, data: bytes, deadline_s: float) -> None:
        """Write to the program's stdin. Raises TimeoutError."""
        self._socket.settimeout(deadline_s)
        self._socket.sendall(data)

    def frame(self, deadline_s: float) -> tuple[int, bytes] | None:
        """The next stream number and body; None at the end. Raises TimeoutError, or OSError for an incomplete frame."""
        deadline = time.monotonic() + deadline_s
        if not self._has(1, deadline):
            return None
        number, length = struct.unpack(">BxxxI", self._exactly(8, deadline))
        return number, self._exactly(length, deadline)

    def receive(self, deadline_s: float) -> bytes:
        """What the program wrote to stdout next; its stderr is kept for `last_words`."""
        while (frame := self.frame(deadline_s)) is not None:
            number, body = frame
            if number == _STDOUT:
                return body
            self._stderr.append(body)
        return b""

    def last_words(self) -> str:
        """What it wrote to stderr last."""
        return b"".join(self._stderr).decode(errors="replace").strip()

    def close(self) -> None:
        """End the stream, and with it the program's stdin."""
        with contextlib.suppress(OSError):  # the other side may have closed first
            self._socket.shutdown(socket.SHUT_RDWR)
        # docker-py keeps the answer here that the stream came with. It goes first: its finaliser would flush a file
        # whose socket is closed, which Python 3.13 reports.
        answer = getattr(self._holder, "_response", None)
        if answer is not None:
            answer.close()
        self._holder.close()

    def _exactly(self, length: int, deadline: float) -> bytes:
        if not self._has(length, deadline):
            raise ConnectionError(f"the engine's stream ended within a frame, {len(self._pending)} of {length} bytes")
        taken, self._pending = self._pending[:length], self._pending[length:]
        return taken

    def _has(self, length: int, deadline: float) -> bool:
        """Wait for so many bytes. Returns whether they came before the end."""
        while len(self._pending) < length:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            data = self._socket.recv(65536)
            if not data:
                return False
            self._pending += data
        return True


def _read_ahead(holder: Any, below: socket.socket) -> bytes:
    """Bytes that came with the head of the engine's answer: on a busy machine, all output of a short program.

    docker-py returns the socket below the reader that has read the head; other bytes in the reader would be lost.
    """
    reader = getattr(getattr(getattr(getattr(holder, "_response", None), "raw", None), "_fp", None), "fp", None)
    if not isinstance(reader, io.BufferedReader):
        return bytes(getattr(reader, "_rbuffer", b""))  # paramiko's, of an engine behind ssh://
    below.setblocking(False)  # with nothing in the reader, `peek` reads once
    with contextlib.suppress(OSError):  # no bytes yet; the next read raises if the stream is broken
        return reader.peek()
    return b""
