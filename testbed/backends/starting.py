"""While a stack starts: what is awaited, told now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from testbed.errors import InvalidValueError, TestbedError
from testbed.lab.readiness import indented
from testbed.text import shortened, shown
from testbed.units import parse_time

_FIRST_S, _MOST_S = 3.0, 30.0
_MOST_NAMED = 6
_MOST_SAID = 80


def allowed_s(up_deadline: str) -> float:
    """How long a stack may take to start, in seconds. Raises InvalidValueError."""
    found = parse_time(up_deadline, name="up_deadline")
    if found <= 0:
        raise InvalidValueError(f"up_deadline={shown(up_deadline)}: must be more than 0")
    return found


class Progress:
    """Says one line after 3 s, and then after twice as long each time, every 30 s in the end."""

    def __init__(
        self, say: Callable[[str], None], *, allowed_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """The time that is ``allowed_s`` begins now."""
        self._say, self._allowed_s, self._clock = say, allowed_s, clock
        self._began = clock()
        self._gap_s = _FIRST_S
        self._next = self._began + _FIRST_S

    @property
    def left_s(self) -> float:
        """Seconds until the deadline; below 0 after it."""
        return self._began + self._allowed_s - self._clock()

    def tell(self, look: Callable[[], Mapping[str, str]]) -> None:
        """If a line is due, look what is not well yet, service to state, and say it."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + self._gap_s
        self._gap_s = min(2 * self._gap_s, _MOST_S)
        try:
            awaited = look()
        except TestbedError as error:
            self._say(f"what is awaited is not known: {shortened(str(error), _MOST_SAID)}")
            return
        if awaited:
            self._say(in_words(awaited, since_s=now - self._began, allowed_s=self._allowed_s))

    @contextmanager
    def meanwhile(self, look: Callable[[], Mapping[str, str]]) -> Iterator[None]:
        """Tell during a block that waits by itself; ``look`` is called in another thread."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(max(self._next - self._clock(), 0.1)):
                self.tell(look)

        thread = threading.Thread(target=watch, name="testbed-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@contextmanager
def said_if_slow(say: Callable[[str], None], what: str) -> Iterator[None]:
    """Say what is going on if the block takes longer than a second."""
    timer = threading.Timer(1.0, say, [what])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def in_words(awaited: Mapping[str, str], *, since_s: float, allowed_s: float) -> str:
    """One line: how long of which deadline, and each service that is not well with its state."""
    named = [f"{name} ({shortened(state, _MOST_SAID)})" for name, state in awaited.items()]
    more = [f"{len(named) - _MOST_NAMED} more"] if len(named) > _MOST_NAMED else []
    waits = ", ".join([*named[:_MOST_NAMED], *more])
    return f"starting, {since_s:.0f} s of {allowed_s:g} s (the up-deadline); not well yet: {waits}"


@dataclass(frozen=True, kw_only=True)
class Unwell:
    """A service's container that is not well."""

    service: str
    state: str
    """In words."""
    failed: bool
    """Whether it, or the engine that was to start it, failed; others may only have waited."""
    began: bool
    """Whether its program was ever started."""
    last_lines: Sequence[str]


def unwell_in_words(found: Sequence[Unwell]) -> Iterator[str]:
    """What failed first, with its last lines; then what was waited for; what waited for those by name alone."""
    for each in sorted((each for each in found if each.began or each.failed), key=lambda each: not each.failed):
        last = f"; its last lines:\n{indented(each.last_lines)}" if each.began else ""
        yield f"service `{each.service}` {each.state}{last}"
    if idle := dict.fromkeys(f"`{each.service}`" for each in found if not each.began and not each.failed):
        yield f"not started yet: {', '.join(idle)}"


def last_check(output: str | None) -> str:
    """What a service's last health check printed; None if none has ended."""
    return "no check of it has ended yet" if output is None else f"its last check said: {shown(output.strip())}"
