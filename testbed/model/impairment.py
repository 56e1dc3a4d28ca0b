"""What can be done to a link, as frozen values.

Vocabulary as in the README: an *impairment* says what happens to packets in one direction; a *profile* is a
named pair of them. Numbers are SI (seconds, bits per second, shares from 0 to 1); ``None`` means absent and
zero means zero. Construction collects every problem and raises once.

A new netem feature is one field here, one word in ``WORDS``, one clause in ``testbed.links.qdisc`` and one line
in ``testbed.links.proof``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields

from testbed import units
from testbed.errors import InvalidValueError

DISTRIBUTIONS = ("uniform", "normal", "pareto", "paretonormal")

_KINDS: dict[str, tuple[type, ...]] = {
    "delay_s": (int, float),
    "jitter_s": (int, float),
    "loss_ratio": (int, float),
    "rate_bps": (int, float),
    "limit_packets": (int,),
    "seed": (int,),
}

# netem keeps delay and jitter in signed 64-bit nanoseconds; an hour is beyond any link, and a typing error.
_LONGEST_S = 3600.0
_SHORTEST_S = 1e-9
# netem keeps the rate in unsigned 64-bit bytes a second.
_FASTEST_BPS = 8 * 2.0**64
_SEEDS = 2**64


@dataclass(frozen=True, kw_only=True)
class Impairment:
    """What happens to packets in one direction of a link.

    Raises InvalidValueError naming every field that is out of range.
    """

    delay_s: float | None = None
    """One-way delay added to each packet; seconds, 0 to 3600."""
    jitter_s: float | None = None
    """Spread of the delay: half width of the uniform distribution, scale of the others; seconds."""
    distribution: str = "uniform"
    """Shape of the jitter: uniform, normal, pareto or paretonormal (tables of iproute2)."""
    reorder_by_jitter: bool = False
    """Whether a packet with a smaller delay may overtake; false keeps order, as queues do."""
    loss_ratio: float | None = None
    """Share of packets lost, each independently; 0 to 1."""
    rate_bps: float | None = None
    """Rate at which packets leave, by their length on the wire; bits per second, above 0."""
    limit_packets: int | None = None
    """Packets that the queue holds, those on their way included; None sizes it from rate and delay."""
    seed: int | None = None
    """Seed of the kernel's random numbers for this link; 0 to 2⁶⁴-1. None: the kernel draws one."""

    def __post_init__(self) -> None:
        problems: list[str] = []

        def check(ok: bool, problem: str) -> None:
            if not ok:
                problems.append(problem)

        for name, kinds in _KINDS.items():
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
                word = next(word.name for word in WORDS.values() if word.field == name)
                problems.append(
                    f"{name}={value!r}: must be a number; as text, write Impairment.parse({{{word!r}: {value!r}}})"
                )
        if problems:
            raise InvalidValueError(problems)
        for name in ("delay_s", "jitter_s"):
            value = getattr(self, name)
            if value is not None:
                check(
                    0 <= value <= _LONGEST_S,
                    f"{name}={value!r}: must lie between 0 and {_LONGEST_S:g} seconds",
                )
                check(
                    not 0 < value < _SHORTEST_S,
                    f"{name}={value!r}: shorter than a nanosecond, the shortest time that netem knows",
                )
        if self.loss_ratio is not None:
            check(0 <= self.loss_ratio <= 1, f"loss_ratio={self.loss_ratio!r}: must lie between 0 and 1")
        if self.rate_bps is not None:
            check(
                8 <= self.rate_bps < _FASTEST_BPS,
                f"rate_bps={self.rate_bps!r}: must lie between 8 and 2⁶⁷ bit/s, netem's smallest and largest rate",
            )
        if self.limit_packets is not None:
            check(
                1 <= self.limit_packets < 2**32,
                f"limit_packets={self.limit_packets!r}: must lie between 1 and 2³²-1; a queue of 0 passes nothing",
            )
        if self.seed is not None:
            check(0 <= self.seed < _SEEDS, f"seed={self.seed!r}: must lie between 0 and 2⁶⁴-1")
        check(
            self.distribution in DISTRIBUTIONS,
            f"distribution={self.distribution!r}: {_unknown(self.distribution, DISTRIBUTIONS)}",
        )
        if self.jitter_s:
            check(bool(self.delay_s), "jitter without delay: netem varies a delay; give the mean delay too")
        else:
            check(
                self.distribution == "uniform",
                f"distribution={self.distribution!r} without jitter has no effect",
            )
            check(not self.reorder_by_jitter, "reorder_by_jitter without jitter has no effect")
        if problems:
            raise InvalidValueError(problems)

    @property
    def is_clean(self) -> bool:
        """Whether nothing at all is asked for."""
        return not (self.delay_s or self.loss_ratio or self.rate_bps or self.limit_packets)

    def describe(self) -> str:
        """In the user's words: ``delay=40ms jitter=5ms loss=2%``; ``clean`` if nothing is asked for."""
        said = [f"{word.name}={word.write(value)}" for word, value in self._said()]
        return " ".join(said) or "clean"

    def words(self) -> dict[str, str | int | bool]:
        """The impairment as a profile file would say it."""
        return {word.name: word.write(value) for word, value in self._said()}

    def _said(self) -> Iterable[tuple[Word, object]]:
        defaults = {each.name: each.default for each in fields(self)}
        for word in WORDS.values():
            value = getattr(self, word.field)
            if value is not None and value != defaults[word.field]:
                yield word, value

    @classmethod
    def parse(cls, words: Mapping[str, object]) -> Impairment:
        """Build from the user's words, as in a marker, a profile or on the command line.

        ``Impairment.parse({"delay": "40ms", "loss": "2%"})``. Raises InvalidValueError with every problem.
        """
        problems: list[str] = []
        values: dict[str, object] = {}
        for name, said in words.items():
            word = WORDS.get(str(name))
            if word is None:
                problems.append(f"{name}: {_unknown(str(name), WORDS)}")
                continue
            try:
                values[word.field] = word.read(said)
            except InvalidValueError as error:
                problems.extend(error.problems)
        if problems:
            raise InvalidValueError(problems)
        try:
            return cls(**values)  # type: ignore[arg-type]  # each Word reads the type of its own field
        except InvalidValueError as error:
            names = {word.field: word.name for word in WORDS.values()}
            raise InvalidValueError(_in_words(problem, names) for problem in error.problems) from None


def _in_words(problem: str, names: Mapping[str, str]) -> str:
    """A problem of a field, told of the user's word: ``limit_packets=0: …`` becomes ``limit=0: …``."""
    field_name, equals, rest = problem.partition("=")
    return f"{names.get(field_name, field_name)}{equals}{rest}"


def _unknown(said: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(said, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown{hint} Known: {', '.join(known)}" if hint else f"unknown; known: {', '.join(known)}"


def unknown(said: str, known: Iterable[str]) -> str:
    """How an unknown name is reported: with the nearest known one, and all of them."""
    return _unknown(said, known)


@dataclass(frozen=True)
class Word:
    """One word of the user's language: its field, and how it is read and written."""

    name: str
    field: str
    read: Callable[[object], object]
    write: Callable[..., str | int | bool]
    help: str


def _integer(name: str) -> Callable[[object], int]:
    def read(said: object) -> int:
        if isinstance(said, bool) or not isinstance(said, int | str):
            raise InvalidValueError(f"{name}={said!r}: not a whole number")
        try:
            return int(said)
        except ValueError:
            raise InvalidValueError(f"{name}={said!r}: not a whole number") from None

    return read


def _boolean(name: str) -> Callable[[object], bool]:
    def read(said: object) -> bool:
        if isinstance(said, bool):
            return said
        if isinstance(said, str) and said.lower() in ("true", "false"):
            return said.lower() == "true"
        raise InvalidValueError(f"{name}={said!r}: must be true or false")

    return read


def _distribution(said: object) -> str:
    if said not in DISTRIBUTIONS:
        raise InvalidValueError(f"distribution={said!r}: {_unknown(str(said), DISTRIBUTIONS)}")
    return str(said)


WORDS: dict[str, Word] = {
    word.name: word
    for word in (
        Word("delay", "delay_s", lambda said: units.parse_time(said, name="delay"), units.format_time,
             "one-way delay, for example 40ms"),
        Word("jitter", "jitter_s", lambda said: units.parse_time(said, name="jitter"), units.format_time,
             "spread of the delay, for example 5ms"),
        Word("distribution", "distribution", _distribution, str,
             "shape of the jitter: " + ", ".join(DISTRIBUTIONS)),
        Word("reorder_by_jitter", "reorder_by_jitter", _boolean("reorder_by_jitter"), bool,
             "whether jitter may reorder packets (default: false)"),
        Word("loss", "loss_ratio", lambda said: units.parse_ratio(said, name="loss"), units.format_ratio,
             "share of packets lost at random, for example 2%"),
        Word("rate", "rate_bps", lambda said: units.parse_rate(said, name="rate"), units.format_rate,
             "rate of the link, for example 10mbit"),
        Word("limit", "limit_packets", _integer("limit"), int,
             "packets that the queue holds (default: sized from rate and delay)"),
        Word("seed", "seed", _integer("seed"), int,
             "seed of the random numbers, for repeatable loss and jitter"),
    )
}  # fmt: skip

CLEAN = Impairment()


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A named pair of impairments: toward the second host of a link, and back."""

    name: str
    description: str = ""
    forward: Impairment = field(default_factory=Impairment)
    reverse: Impairment = field(default_factory=Impairment)
