"""The protocol loop: JSON lines in, JSON lines out, one at a time, until stdin ends."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

Operation = Callable[..., Any]

_AT_ONCE_BYTES = 1 << 16


class Refused(Exception):  # noqa: N818  # the word of the protocol
    """An operation failed; the message says what was attempted, on what, and what was observed.

    ``kind`` is for the caller's program, if it can react: ``gone`` means that the port must be attached again, because
    a host at it was started again or its carried kernel died.
    """

    def __init__(self, message: str, *, kind: str = "refused") -> None:
        super().__init__(message)
        self.kind = kind


class Ended(BaseException):
    """A signal asked the agent to end; a BaseException, so that no handler swallows it."""


def serve(operations: Mapping[str, Operation], requests: BinaryIO, replies: BinaryIO) -> None:
    """Reply to requests until stdin ends, a ``stop`` request or SIGTERM or SIGINT arrives; then return.

    An operation's keyword arguments are the request's fields other than ``id`` and ``op``. If it raises Refused, the
    reply has its message; if it crashes, the reply has the traceback. ``alive`` does nothing but reply.

    A signal's handler runs at once, also while no request arrives: see `_lines`.
    """

    def end(_number: int, _frame: object) -> None:
        raise Ended

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    try:
        for line in _lines(requests.fileno()):
            reply, stop = _reply(operations, line)
            replies.write(reply)
            replies.flush()
            if stop:
                return
    except (Ended, BrokenPipeError):
        # The client is gone, or asked us to end: the caller's `with` puts everything back.
        return
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # putting back must not be interrupted


def _lines(descriptor: int) -> Iterator[bytes]:
    """The lines that arrive at a descriptor, the last also without a newline.

    Python runs a signal's handler when a system call returns. A signal that arrives just before the call, or in another
    thread, does not interrupt it; the byte that Python writes for each signal does.
    """
    woken, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    try:
        waiting = select.poll()
        waiting.register(descriptor, select.POLLIN)
        waiting.register(woken, select.POLLIN)
        pending: list[bytes] = []
        while True:
            ready = [file for file, _ in waiting.poll()]
            if woken in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(woken, _AT_ONCE_BYTES)
            if descriptor not in ready:
                continue
            data = os.read(descriptor, _AT_ONCE_BYTES)
            first, *further = data.split(b"\n")
            pending.append(first)
            for beginning in further:
                yield b"".join(pending) + b"\n"
                pending = [beginning]
            if not data:
                break
        if last := b"".join(pending):
            yield last
    finally:
        signal.set_wakeup_fd(before)
        os.close(woken)
        os.close(wakes)


def _reply(operations: Mapping[str, Operation], line: bytes) -> tuple[bytes, bool]:
    """The reply to a request, and whether it is the last one."""
    try:
        request = json.loads(line)
        number, name = request.pop("id"), request.pop("op")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        return _line(id=None, ok=False, error=f"not a request with id and op ({error!r}): {line[:200]!r}"), False
    if name in ("stop", "alive"):
        return _line(id=number, ok=True, result=None), name == "stop"
    operation = operations.get(str(name))
    if operation is None:
        known = ", ".join([*sorted(operations), "alive", "stop"])
        return _line(id=number, ok=False, error=f"unknown operation {name!r}; known: {known}"), False
    try:
        return _line(id=number, ok=True, result=operation(**request)), False
    except Refused as refused:
        return _line(id=number, ok=False, kind=refused.kind, error=str(refused)), False
    except Exception:  # noqa: BLE001  # the client must get a reply whatever broke
        return _line(id=number, ok=False, error=f"{name} crashed:\n{traceback.format_exc()}"), False


def _line(**reply: Any) -> bytes:
    return json.dumps(reply).encode() + b"\n"
