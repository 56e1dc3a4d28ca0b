"""The lab's end of an agent: requests out, answers in, over any stream of bytes."""

from __future__ import annotations

import json
import secrets
import threading
import time
from typing import Any, Protocol

from testbed.errors import AgentError


class Stream(Protocol):
    """The seam: how bytes reach an agent, in a container or in a child process."""

    def send(self, data: bytes) -> None:
        """Write all of it. Raises OSError if the agent is gone."""

    def receive(self, deadline_s: float) -> bytes:
        """Whatever came, at least a byte. Empty at the end of the stream; raises TimeoutError at the deadline."""

    def last_words(self) -> str:
        """What the agent wrote to stderr last, for an error message."""

    def close(self) -> None:
        """End the stream; the agent puts everything back and exits."""


class Channel:
    """Calls to one agent; safe to use from several threads, one call at a time."""

    def __init__(self, stream: Stream, *, name: str) -> None:
        self._stream = stream
        self._name = name
        self._lock = threading.Lock()
        # Several channels may be attached to one agent, one after the other: their answers must not be mixed up.
        self._number = secrets.randbits(40)
        self._pending = b""
        self.lives = True
        """Whether its stream is whole; of one that has ended there is no more use."""

    def call(self, operation: str, *, answer_within_s: float = 20.0, **arguments: Any) -> Any:
        """Run an operation and return its result. Raises AgentError if it is refused or the agent is gone."""
        with self._lock:
            self._number += 1
            number = self._number
            request = {"id": number, "op": operation, **arguments}
            deadline = time.monotonic() + answer_within_s
            try:
                self._stream.send(json.dumps(request).encode() + b"\n")
                while True:
                    answer = _answer(self._line(deadline))
                    # A request that timed out earlier may still be answered: that answer is not ours.
                    # One without a number says that what we sent was no request: it is nobody else's.
                    if answer["id"] in (number, None):
                        break
            except TimeoutError:
                raise AgentError(f"{self._name}: no answer to {operation!r} within {answer_within_s:g} s") from None
            except (OSError, EOFError, ValueError) as error:
                self.lives = False
                reason = self._stream.last_words() or str(error)
                raise AgentError(f"{self._name}: ended during {operation!r}: {reason}") from None
        if not answer["ok"]:
            raise AgentError(f"{self._name}: {answer['error']}", kind=answer.get("kind", ""))
        return answer["result"]

    def close(self) -> None:
        """Close the stream."""
        self._stream.close()

    def _line(self, deadline: float) -> bytes:
        while b"\n" not in self._pending:
            data = self._stream.receive(max(deadline - time.monotonic(), 0.0))
            if not data:
                raise EOFError("its output ended")
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return line


def _answer(line: bytes) -> dict[str, Any]:
    """The answer in a line. Raises ValueError quoting it if it is none."""
    try:
        answer: dict[str, Any] = json.loads(line)
        if {"id", "ok"} <= answer.keys():
            return answer
    except (ValueError, AttributeError):
        pass  # said below, with the line
    raise ValueError(f"not an answer: {line[:200]!r}")
