"""The lab's end of an agent: requests out, answers in, over any stream of bytes."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from testbed.errors import AgentError

ANSWERS_WITHIN_S = 20.0
"""How long to wait for an answer by default; seconds."""
_ONCE_MORE_S = 2.0
"""How long to wait for an answer of an agent that did not answer the last request; seconds."""


class Stream(Protocol):
    """How bytes reach an agent, in a container or in a child process."""

    def send(self, data: bytes, deadline_s: float) -> None:
        """Write all of it. Raises OSError if the agent is gone, TimeoutError if it does not take it in time."""

    def receive(self, deadline_s: float) -> bytes:
        """The next bytes, at least one. Empty at the end of the stream; raises TimeoutError at the deadline."""

    def last_words(self) -> str:
        """What the agent wrote to stderr last, for an error message."""

    def close(self) -> None:
        """End the stream; the agent puts everything back and exits."""


class Channel:
    """Calls to one agent; safe to use from several threads, one call at a time."""

    def __init__(self, stream: Stream, *, name: str, kill: Callable[[], object] = lambda: None) -> None:
        """``kill``: ends an agent that neither answers nor notices that its stream is closed."""
        self.stream = stream
        self._name = name
        self._kill = kill
        self._lock = threading.Lock()
        # Several channels may use one agent, one after the other; their answers must not be confused.
        self._number = secrets.randbits(40)
        self._pending = b""
        self.lives = True
        """Whether its stream is whole."""
        self._over = ""
        """Why the channel cannot be used any more."""
        self.silent_s = 0.0
        """How long the agent has not answered; seconds."""

    def call(self, operation: str, *, answer_within_s: float | None = None, **arguments: Any) -> Any:
        """Run an operation and return its result. Raises AgentError if it is refused or the agent is gone."""
        with self._lock:
            if not self.lives:
                raise AgentError(f"{self._name}: {operation!r} was not sent: {self._over}")
            self._number += 1
            number = self._number
            request = {"id": number, "op": operation, **arguments}
            within_s = ANSWERS_WITHIN_S if answer_within_s is None else answer_within_s
            within_s = min(within_s, _ONCE_MORE_S) if self.silent_s else within_s
            deadline = time.monotonic() + within_s
            try:
                self._send(json.dumps(request).encode() + b"\n", within_s)
                while True:
                    answer = _answer(self._line(deadline))
                    self.silent_s = 0.0
                    # An earlier request that timed out may still be answered; that answer is skipped.
                    # An answer without a number says that our line was no request, so it is ours.
                    if answer["id"] in (number, None):
                        break
            except TimeoutError:
                self.silent_s += within_s
                raise AgentError(f"{self._name}: no answer to {operation!r} within {within_s:g} s") from None
            except (OSError, EOFError, ValueError) as error:
                self.give_up(f"ended during {operation!r}: {self.stream.last_words() or error}")
                raise AgentError(f"{self._name}: {self._over}") from None
        if not answer["ok"]:
            raise AgentError(f"{self._name}: {answer['error']}", kind=answer.get("kind", ""))
        return answer["result"]

    @property
    def answers(self) -> bool:
        """Whether it lives and has answered the last request."""
        return self.lives and not self.silent_s

    def give_up(self, why: str = "it did not answer") -> None:
        """Say nothing more to it."""
        self.lives, self._over = False, self._over or why

    def close(self) -> None:
        """Close the stream; an agent that does not notice is killed."""
        self.stream.close()
        if self.silent_s:
            self._kill()

    def _send(self, data: bytes, within_s: float) -> None:
        try:
            self.stream.send(data, within_s)
        except TimeoutError:  # the agent may have read a part of the line, so the next line would be damaged
            self.give_up()
            raise

    def _line(self, deadline: float) -> bytes:
        while b"\n" not in self._pending:
            data = self.stream.receive(max(deadline - time.monotonic(), 0.0))
            if not data:
                raise EOFError("its output ended")
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return line


def _answer(line: bytes) -> dict[str, Any]:
    """The answer in a line. Raises ValueError that quotes the line if it is none."""
    try:
        answer: dict[str, Any] = json.loads(line)
        if {"id", "ok"} <= answer.keys():
            return answer
    except (ValueError, AttributeError):
        pass  # said below, with the line
    raise ValueError(f"not an answer: {line[:200]!r}")
