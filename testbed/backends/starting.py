"""While a stack starts: wait until its hosts are well, and say now and then which are not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
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


class Cadence:
    """When to say something: after 3 s, and then after twice as long each time, every 30 s in the end."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """It begins now."""
        self._clock = clock
        self.began_s = clock()
        self._gap_s = _FIRST_S
        self._next_s = self.began_s + _FIRST_S

    @property
    def passed_s(self) -> float:
        """Seconds since it began."""
        return self._clock() - self.began_s

    def due(self) -> bool:
        """Whether it is time, which it is once."""
        now_s = self._clock()
        if now_s < self._next_s:
            return False
        self._next_s = now_s + self._gap_s
        self._gap_s = min(2 * self._gap_s, _MOST_S)
        return True

    @contextmanager
    def meanwhile(self, tell: Callable[[], None]) -> Iterator[None]:
        """Call ``tell`` when it is time during a block that waits; in another thread."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(max(self._next_s - self._clock(), 0.1)):
                if self.due():
                    tell()

        thread = threading.Thread(target=watch, name="testbed-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


class StartProgress:
    """Says now and then which services are not well yet, and what they printed last."""

    def __init__(
        self, say: Callable[[str], None], *, allowed_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``allowed_s`` begins now."""
        self._say, self._allowed_s = say, allowed_s
        self._cadence = Cadence(clock)

    @property
    def left_s(self) -> float:
        """Seconds until the deadline; below 0 after it."""
        return self._allowed_s - self._cadence.passed_s

    def tell(self, look: Callable[[], Mapping[str, str]]) -> None:
        """If a line is due, say it. ``look``: returns the state of each host that is not well."""
        if self._cadence.due():
            self._tell(look)

    def _tell(self, look: Callable[[], Mapping[str, str]]) -> None:
        since_s = self._cadence.passed_s
        try:
            awaited = look()
        except TestbedError as error:
            self._say(f"what is awaited is not known: {shortened(str(error), _MOST_SAID)}")
            return
        if awaited:
            self._say(in_words(awaited, since_s=since_s, allowed_s=self._allowed_s))

    def meanwhile(self, look: Callable[[], Mapping[str, str]]) -> AbstractContextManager[None]:
        """Say due lines during a block that waits; ``look`` is called in another thread."""
        return self._cadence.meanwhile(lambda: self._tell(look))


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


def said_while(
    say: Callable[[str], None], what: Callable[[], str], *, clock: Callable[[], float] = time.monotonic
) -> AbstractContextManager[None]:
    """Say now and then, during a block that waits, what is going on; ``what`` is called in another thread."""
    cadence = Cadence(clock)
    return cadence.meanwhile(lambda: say(f"{cadence.passed_s:.0f} s: {what()}"))


def last_line(text: str) -> str:
    """The last line in which there is something, short; empty if there is none."""
    return shortened(next((line.strip() for line in reversed(text.splitlines()) if line.strip()), ""), _MOST_SAID)


def in_words(awaited: Mapping[str, str], *, since_s: float, allowed_s: float) -> str:
    """The line: time and deadline, and each host that is not well with its state."""
    named = [f"{name} ({shortened(state, 2 * _MOST_SAID)})" for name, state in awaited.items()]
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
    """The hosts that are not well, and what is known of each; of the first ones also what they printed last."""
    seen = {host.name: (host, wellness) for host in hosts if (wellness := host.wellness()).state != "well"}
    words = {name: shortened(wellness.words, _MOST_SAID) for name, (_, wellness) in seen.items()}
    for name in list(seen)[:_MOST_NAMED]:
        host, wellness = seen[name]
        if wellness.began and (line := last_line(host.logs())):
            words[name] += f"; last line: {shown(line)}"
    return words


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
