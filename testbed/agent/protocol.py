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
    """An operation was not carried out; the message says what was attempted, on what, and what was seen.

    ``kind`` is for the other side's program where it can do something about it: ``gone``, the port as it was
    attached is no more, because a host at it was started again or the kernel that carried it died: attach it anew.
    """

    def __init__(self, message: str, *, kind: str = "refused") -> None:
        super().__init__(message)
        self.kind = kind


class Ended(BaseException):
    """The agent was told to end by a signal; like KeyboardInterrupt, for no handler of ours to swallow."""


def serve(operations: Mapping[str, Operation], requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until stdin ends, ``stop`` is asked, or SIGTERM or SIGINT arrives; then return.

    An operation's keyword arguments are the request's fields other than ``id`` and ``op``. One that raises
    Refused is answered with its message; a crash is answered with its traceback, never with success. ``alive`` is
    answered, and no more.

    A signal's handler runs at once, though nobody asks for anything: see `_lines`.
    """

    def end(_number: int, _frame: object) -> None:
        raise Ended

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    try:
        for line in _lines(requests.fileno()):
            answer, stop = _answer(operations, line)
            answers.write(answer)
            answers.flush()
            if stop:
                return
    except (Ended, BrokenPipeError):
        # Whoever asked is gone or told us to go: what was changed is put back by the caller's `with`.
        return
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # putting back must not be cut short


def _lines(descriptor: int) -> Iterator[bytes]:
    """The lines that come by a descriptor, the last also without its newline.

    Python runs a signal's handler when it comes back from what it waits in. A signal that came just before it began to
    wait, or through another thread, ends no wait; the byte that Python writes for each signal does.
    """
    woken, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    try:
        waiting = select.poll()
        for each in (descriptor, woken):
            waiting.register(each, select.POLLIN)
        pending: list[bytes] = []
        while True:
            ready = [each for each, _ in waiting.poll()]
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


def _answer(operations: Mapping[str, Operation], line: bytes) -> tuple[bytes, bool]:
    """The line to answer a request with, and whether it is the last one."""
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
    except Exception:  # noqa: BLE001  # whatever broke, the other side must hear of it and go on
        return _line(id=number, ok=False, error=f"{name} crashed:\n{traceback.format_exc()}"), False


def _line(**answer: Any) -> bytes:
    return json.dumps(answer).encode() + b"\n"
