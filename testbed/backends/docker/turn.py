"""Whose turn it is: one process at a time uses a stack that stays.

The stack's agent has one channel, and keeps the state that the last process left there.
"""

from __future__ import annotations

import errno
import hashlib
import socket
from collections.abc import Callable

from testbed.backends.starting import said_if_slow
from testbed.errors import UserError
from testbed.lab.waiting import NotSeenError, await_condition

_DEADLINE_S = 60.0


def take(
    stack: str, *, say: Callable[[str], None], deadline_s: float = _DEADLINE_S, what: str = "this stack"
) -> socket.socket:
    """Wait until nobody on this machine uses a stack, or ``what`` else it is the name of.

    Closing the socket, or the death of the process, ends the turn.

    The socket has an abstract name (unix(7)), which needs no file. Raises UserError at the deadline.
    """
    try:
        with said_if_slow(say, f"waiting for another testbed command, which uses {what}"):
            turn = await_condition(lambda: _bound(stack), lambda bound: bound is not None, deadline_s=deadline_s)
    except NotSeenError:
        raise UserError(
            f"another testbed command still uses {what} after {deadline_s:g} s; end it, or wait for it"
        ) from None
    assert turn is not None  # noqa: S101  # for mypy: it was awaited
    return turn


def _bound(stack: str) -> socket.socket | None:
    """A socket with the stack's name; None if another process has one."""
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        bound.bind(f"\0testbed-{hashlib.sha256(stack.encode()).hexdigest()}")  # names have 108 bytes at most
    except OSError as error:
        bound.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return None
    return bound
