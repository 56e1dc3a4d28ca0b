"""When a program is ready: it listens on a TCP port, has printed a string, or a callable returns true."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from testbed.errors import CommandTimeoutError, LabError
from testbed.lab.host import Program, seconds
from testbed.lab.waiting import NotSeenError, await_condition
from testbed.text import shown

Ready = int | str | Callable[[Program], bool]
ListenerLookup = Callable[[int, float], dict[str, Any]]
"""Port and deadline in seconds -> ``listening`` and the ``ports`` that are listened on."""

_LAST_LINES = 20


def last_output(program: Program) -> str:
    """A program's last lines, for an error message."""
    lines = last_lines(program.output)
    return f"last output:\n{indented(lines)}" if lines else "it printed nothing"


def last_lines(output: str) -> list[str]:
    """The last lines, as many as fit in an error message."""
    return output.splitlines()[-_LAST_LINES:]


def indented(lines: Sequence[str]) -> str:
    """Lines that a program printed, as a paragraph of a message."""
    return "\n".join(f"    {line}" for line in lines) or "    (it printed nothing)"


def check_argv(argv: Sequence[str]) -> None:
    """Raise TypeError unless this is a list of words."""
    if isinstance(argv, str) or not argv or not all(isinstance(word, str) for word in argv):
        raise TypeError(f"argv must be a list of strings such as ['ping', '-c1', 'server'], not {shown(argv)}")


def check_free(host: str, argv: Sequence[str], ready: Ready | None, listener: ListenerLookup) -> None:
    """Raise LabError if another program listens on the port that is to show readiness."""
    if isinstance(ready, int) and listener(ready, 0.0)["listening"]:
        raise LabError(
            f"`{host}`: {' '.join(argv)}: another program listens on tcp/{ready} already, so the port cannot show "
            f"when this program is ready; stop the other one first"
        )


def await_ready(
    host: str, argv: Sequence[str], program: Program, ready: Ready, timeout: str, listener: ListenerLookup
) -> None:
    """Wait until a program is ready. Raises CommandTimeoutError saying what was seen instead."""

    def not_ready(what: str) -> NoReturn:
        raise CommandTimeoutError(f"`{host}`: {' '.join(argv)}: {what}; {last_output(program)}")

    if isinstance(ready, int):
        _await_listener(program, ready, timeout, listener, not_ready)
        return
    check = ready if callable(ready) else (lambda running: ready in running.output)
    try:
        await_condition(lambda: check(program) or program.ended, bool, deadline_s=seconds(timeout), every_s=0.01)
    except NotSeenError:
        wanted = "not ready" if callable(ready) else f"did not print {shown(ready)}"
        not_ready(f"{wanted} after {timeout} (it runs)")
    if not check(program):
        not_ready(_ended_early(program))


def _await_listener(
    program: Program, port: int, timeout: str, listener: ListenerLookup, not_ready: Callable[[str], NoReturn]
) -> None:
    """Wait for a listener on the port. Ends early if the program failed."""
    deadline = time.monotonic() + seconds(timeout)
    while True:
        left_s = max(deadline - time.monotonic(), 0.0)
        seen = listener(port, min(left_s, 0.2))
        if seen["listening"]:
            return
        if program.ended and program.wait().exit_code:
            not_ready(_ended_early(program))
        if not left_s:
            others = ", ".join(map(str, seen["ports"])) or "nothing"
            not_ready(f"not listening on tcp/{port} after {timeout} (listening: {others})")


def _ended_early(program: Program) -> str:
    return f"ended before it was ready (exit status {program.wait().exit_code})"
