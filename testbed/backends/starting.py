"""While a stack starts: wait until its hosts are well, and say now and then which are not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from testbed.errors import InvalidValueError, ServiceFailedError, TestbedError
from testbed.lab.readiness import indented, last_lines
from testbed.lab.waiting import NotSeenError, await_condition
from testbed.text import shortened, shown
from testbed.units import parse_time

_FIRST_S, _MOST_S = 3.0, 30.0
_MOST_NAMED = 6
_MOST_SAID = 80


def allowed_s(up_deadline: str) -> float:
    """How long a stack may take to start, in seconds. Raises InvalidValueError."""
    time_s = parse_time(up_deadline, name="up_deadline")
    if time_s <= 0:
        raise InvalidValueError(f"up_deadline={shown(up_deadline)}: must be more than 0")
    return time_s


class StartProgress:
    """Says one line after 3 s, and then after twice as long each time, every 30 s in the end."""

    def __init__(
        self, say: Callable[[str], None], *, allowed_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``allowed_s`` begins now."""
        self._say, self._allowed_s, self._clock = say, allowed_s, clock
        self._began = clock()
        self._gap_s = _FIRST_S
        self._next = self._began + _FIRST_S

    @property
    def left_s(self) -> float:
        """Seconds until the deadline; below 0 after it."""
        return self._began + self._allowed_s - self._clock()

    def tell(self, look: Callable[[], Mapping[str, str]]) -> None:
        """If a line is due, say it. ``look``: returns the state of each host that is not well."""
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
        """Say due lines during a block that waits; ``look`` is called in another thread."""
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
    """The line: time and deadline, and each host that is not well with its state."""
    named = [f"{name} ({shortened(state, _MOST_SAID)})" for name, state in awaited.items()]
    more = [f"{len(named) - _MOST_NAMED} more"] if len(named) > _MOST_NAMED else []
    waits = ", ".join([*named[:_MOST_NAMED], *more])
    return f"starting, {since_s:.0f} s of {allowed_s:g} s (the up-deadline); not well yet: {waits}"


@dataclass(frozen=True, kw_only=True)
class Wellness:
    """Whether the service of a host is well."""

    state: str
    """``well``, ``waiting`` or ``failed``."""
    words: str
    """Its state in words that follow its name."""
    began: bool = True
    """Whether its program was ever started."""


class Awaited(Protocol):
    """A host whose service is awaited."""

    name: str

    @property
    def service_name(self) -> str:
        """The service in the Compose file."""

    def check_health(self) -> None:
        """Take its health check one step on, if nobody else does."""

    def wellness(self) -> Wellness:
        """Whether its service is well now."""

    def logs(self) -> str:
        """What its service has printed."""


def await_well(
    hosts: Collection[Awaited],
    *,
    deadline_s: float,
    late: str,
    step: Callable[[], None] = lambda: None,
    every_s: float = 0.05,
) -> None:
    """Wait until every host is well; ``step`` is called before each look.

    Raises ServiceFailedError: at the deadline with ``late`` as its last line, or before that if one has failed.
    """

    def look() -> set[str]:
        for host in hosts:
            host.check_health()
        step()
        return {host.wellness().state for host in hosts}

    try:
        states = await_condition(
            look,
            lambda states: "failed" in states or "waiting" not in states,
            deadline_s=max(deadline_s, 0.1),
            every_s=every_s,
        )
    except NotSeenError:
        raise service_failed(hosts, late) from None
    if "failed" in states:
        raise service_failed(hosts)


def await_healthy(not_healthy: Callable[[], Collection[Awaited]], *, deadline_s: float) -> None:
    """Wait until no host is left whose health check does not pass. Raises ServiceFailedError at the deadline."""
    try:
        await_condition(not_healthy, lambda hosts: not hosts, deadline_s=deadline_s)
    except NotSeenError:
        raise service_failed(not_healthy(), f"not healthy after {deadline_s:g} s") from None


def not_well_yet(hosts: Collection[Awaited]) -> dict[str, str]:
    """The hosts that are not well, and what is known of each."""
    seen = {host.name: host.wellness() for host in hosts}
    return {name: wellness.words for name, wellness in seen.items() if wellness.state != "well"}


def service_failed(hosts: Collection[Awaited], context: str = "") -> ServiceFailedError:
    """The error that names each host that is not well, with its service's last lines; ``context`` is its last line."""
    seen = [(host, wellness) for host in hosts if (wellness := host.wellness()).state != "well"]
    lines = [*_unwell_in_words(seen), *([context] if context else [])]
    return ServiceFailedError("\n".join(lines))


def _unwell_in_words(seen: Sequence[tuple[Awaited, Wellness]]) -> Iterator[str]:
    """Services that failed, with their last lines; then those that are waited for; then the names of the idle."""
    for state in ("failed", "waiting"):
        for host, wellness in seen:
            if wellness.state == state and (wellness.began or state == "failed"):
                last = f"; its last lines:\n{indented(last_lines(host.logs()))}" if wellness.began else ""
                yield f"service `{host.service_name}` {wellness.words}{last}"
    idle = [host.service_name for host, wellness in seen if wellness.state == "waiting" and not wellness.began]
    if idle:
        yield f"not started yet: {', '.join(f'`{name}`' for name in dict.fromkeys(idle))}"


def last_check(output: str | None) -> str:
    """What a service's last health check printed; None if none has ended."""
    return "no check of it has ended yet" if output is None else f"its last check said: {shown(output.strip())}"
