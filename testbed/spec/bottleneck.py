"""A bottleneck: one rate and one queue that several senders share at a port. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed import units
from testbed.errors import InvalidValueError
from testbed.spec.links import LinkRef, PortRef
from testbed.spec.words import SHAPE_WORD, unknown
from testbed.text import shown

MARKS: Mapping[str, bool | None] = {"fifo": False, "codel": None, "fq_codel": None, "cake": True, "red": None}
"""The queue disciplines, and whether they mark packets of flows that know ECN: never, always, or if asked (None)."""
_MARKS_UNASKED = ("fq_codel", "cake")
_SMALLEST_RATE_BPS = 8000.0
_SMALLEST_QUEUE_BYTES = 1514
_LARGEST_QUEUE_BYTES = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Bottleneck:
    """One rate and one queue for all the packets that are led there.

    Raises InvalidValueError naming every field that is out of range.
    """

    rate_bps: float
    """Ethernet headers included; bits per second."""
    queue_bytes: int | None = None
    """How much may wait; None: 100 ms at the rate for ``fifo`` and ``red``, the kernel's own limit for the others."""
    qdisc: str = "fifo"
    """What decides which packet leaves next and which is dropped: one of `MARKS`."""
    ecn: bool | None = None
    """Whether packets of flows that know ECN are marked and not dropped; None: as the kernel does by itself."""

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise InvalidValueError(problems)

    def _problems(self) -> Iterator[str]:
        if not self.rate_bps >= _SMALLEST_RATE_BPS:
            yield f"rate={units.format_rate(self.rate_bps)}: at least {units.format_rate(_SMALLEST_RATE_BPS)}"
        size = self.queue_bytes
        if size is not None and not _SMALLEST_QUEUE_BYTES <= size <= _LARGEST_QUEUE_BYTES:
            limits = f"{_SMALLEST_QUEUE_BYTES} B, one packet, to {units.format_size(_LARGEST_QUEUE_BYTES)}"
            yield f"queue={units.format_size(size)}: from {limits}"
        if self.qdisc not in MARKS:
            yield f"qdisc={shown(self.qdisc)}: {unknown(self.qdisc, MARKS)}"
        elif self.ecn is not None and MARKS[self.qdisc] not in (None, self.ecn):
            others = ", ".join(name for name, marks in MARKS.items() if marks in (None, self.ecn))
            does = "never marks packets" if self.ecn else "always marks packets of flows that know ECN"
            yield f"ecn={str(self.ecn).lower()}: {self.qdisc} {does}; use {others}"

    @property
    def marks(self) -> bool:
        """Whether it marks packets of flows that know ECN."""
        return self.qdisc in _MARKS_UNASKED if self.ecn is None else self.ecn

    @classmethod
    def parse(cls, words: Mapping[str, object]) -> Bottleneck:
        """From the user's words: ``{"rate": "8mbit", "queue": "200kB", "qdisc": "red", "ecn": True}``.

        Raises InvalidValueError with every problem.
        """
        problems = [f"{name}: {unknown(str(name), _WORDS)}" for name in words if name not in _WORDS]
        values: dict[str, Any] = {}
        for name, (field, read) in _WORDS.items():
            if words.get(name) is None:
                continue
            try:
                values[field] = read(words[name], name)
            except InvalidValueError as error:
                problems += error.problems
        if words.get("rate") is None:
            problems.append('rate: missing; a bottleneck has one, as in rate="8mbit"')
        if not problems:
            return cls(**values)
        raise InvalidValueError(problems)

    @classmethod
    def read(cls, written: object) -> Bottleneck:
        """From the value of the word ``shape``. Raises InvalidValueError with every problem."""
        if not isinstance(written, Mapping):
            raise InvalidValueError(
                f"{SHAPE_WORD}={shown(written)}: must be a mapping such as {{rate: 8mbit, queue: 200kB}}"
            )
        try:
            return cls.parse(written)
        except InvalidValueError as error:
            raise InvalidValueError(f"{SHAPE_WORD}: {problem}" for problem in error.problems) from None

    def words(self) -> dict[str, Any]:
        """In the user's words; `parse` reads them."""
        own: dict[str, Any] = {"rate": units.format_rate(self.rate_bps)}
        if self.queue_bytes is not None:
            own["queue"] = units.format_size(self.queue_bytes)
        own["qdisc"] = self.qdisc
        return own if self.ecn is None else {**own, "ecn": self.ecn}

    def describe(self) -> str:
        """In one line."""
        return " ".join(f"{name}={in_words(value)}" for name, value in self.words().items())


_NAMED_SENDERS = 3


def by_port(refs: Iterable[LinkRef]) -> dict[PortRef, tuple[LinkRef, ...]]:
    """These links by the port at which they end, and share a bottleneck."""
    ports: dict[PortRef, tuple[LinkRef, ...]] = {}
    for ref in refs:
        ports[ref.receivers_port] = (*ports.get(ref.receivers_port, ()), ref)
    return ports


def name_of(links: Sequence[LinkRef]) -> str:
    """The name of the bottleneck that links to one port share: ``a, b, c and 2 more -> server``."""
    senders = list(dict.fromkeys(ref.src for ref in links))
    more = len(senders) - _NAMED_SENDERS
    named = ", ".join(senders[:_NAMED_SENDERS]) + (f" and {more} more" if more > 0 else "")
    return f"{named}{str(links[0]).removeprefix(links[0].src)}"


def in_words(value: object) -> str:
    """The value of a word as profiles have it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _text(written: object, name: str) -> str:
    if not isinstance(written, str):
        raise InvalidValueError(f"{name}={shown(written)}: must be text, as in {name}='fq_codel'")
    return written


def _truth(written: object, name: str) -> bool:
    if not isinstance(written, bool):
        raise InvalidValueError(f"{name}={shown(written)}: must be true or false")
    return written


_WORDS: Mapping[str, tuple[str, Callable[[object, str], Any]]] = {
    "rate": ("rate_bps", lambda written, name: units.parse_rate(written, name=name)),
    "queue": ("queue_bytes", lambda written, name: units.parse_size(written, name=name)),
    "qdisc": ("qdisc", _text),
    "ecn": ("ecn", _truth),
}
