"""How the user's values are read, written and checked, kind by kind.

Many words share a *kind*: every share is read alike. The words and their kinds are in `testbed.spec.features`.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

from testbed import units
from testbed.errors import InvalidValueError
from testbed.text import shown

DISTRIBUTIONS = ("uniform", "normal", "pareto", "paretonormal")
SHAPE_WORD = "shape"
"""The word for a bottleneck (`testbed.spec.bottleneck`) beside those of an impairment."""
_TABLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,60}\.dist")
"""The name of a user's table file."""

# From tc and its like, browsers' throttling, Toxiproxy, Pumba, Comcast, Kubernetes' chaos tools.
_OTHERS_WORDS: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("latency", "lag", "rtt", "ping"), ("delay", ", one way: delay=40ms")),
    **dict.fromkeys(("bandwidth", "throughput", "speed", "bitrate", "bw", "target-bw"), ("rate", ": rate=10mbit")),
    **dict.fromkeys(
        ("packet_loss", "packet-loss", "packetloss", "loss_ratio", "plr", "drop", "drop_rate"), ("loss", ": loss=2%")
    ),
    **dict.fromkeys(("variance", "deviation", "jitter_ms"), ("jitter", ", beside a delay: jitter=5ms")),
    **dict.fromkeys(("duplication", "dup"), ("duplicate", ": duplicate=1%")),
    **dict.fromkeys(("corruption", "bit_error_rate", "ber"), ("corrupt", ": corrupt=0.1%")),
    **dict.fromkeys(("reordering", "out_of_order"), ("reorder", ", beside a delay: reorder=10%")),
    **dict.fromkeys(("buffer", "queue_size", "buffer_size", "queue_length"), ("limit", ", in packets: limit=100")),
    "ceil": ("rate", ": rate=10mbit"),
}
"""By another tool's word: the word here, and what to write."""
_LONGEST_NAME = 60
_MOST_NAMES = 40

# netem keeps delay and jitter in signed 64-bit nanoseconds; an hour is beyond any link, and a typing error.
LONGEST_DELAY_S = 3600.0
_SHORTEST_S = 1e-9
# netem (sch_netem.c, netem_change) silently makes a longer jitter 2³¹-1 ns, which is what tabledist() can reckon with.
WIDEST_S = 2.147483647
# netem keeps probabilities in 2⁻³².
SMALLEST_SHARE = 2.0**-32
LAST_INDEX = 2**31 - 1
"""The highest packet number that a filter can count to (testbed.netem.indexed)."""
_MOST_RANGES = 500
"""The most ranges that a filter can test per packet."""
_MOST_NUMBERS = 100_000
"""Numbers and ranges as written, before neighbours are joined."""


def unknown(written: str, known: Iterable[str]) -> str:
    """The report of an unknown name: the word here for another tool's word, or the nearest one; and all of them."""
    names = list(known)
    word, how = _OTHERS_WORDS.get(written.lower(), ("", ""))
    if word in names:
        return f"unknown; here it is {word}{how}. Known: {listing(names)}"
    near = difflib.get_close_matches(written, names, n=1) if len(written) <= _LONGEST_NAME else []
    hint = f"; did you mean {shown(near[0])}?" if near else ""
    return f"unknown{hint} Known: {listing(names)}" if hint else f"unknown; known: {listing(names)}"


def listing(names: Sequence[str]) -> str:
    """Names separated by commas; only the first of very many."""
    rest = [f"… and {len(names) - _MOST_NAMES} more"] if len(names) > _MOST_NAMES else []
    return ", ".join([*names[:_MOST_NAMES], *rest])


@dataclass(frozen=True, kw_only=True)
class Slot:
    """When packets may leave: they are held and leave together, as on a medium shared by turns (tc-netem(8)).

    Either ``min_s`` to ``max_s`` after the last turn, or ``mean_s`` ± ``jitter_s`` by a ``distribution``.
    """

    min_s: float | None = None
    max_s: float | None = None
    distribution: str | None = None
    mean_s: float | None = None
    jitter_s: float | None = None

    @property
    def times_s(self) -> tuple[float | None, float | None]:
        """The shortest and the longest time, or mean and spread; seconds."""
        return (self.min_s, self.max_s) if self.distribution is None else (self.mean_s, self.jitter_s)

    def problems(self) -> Iterator[str]:
        """What is wrong with the times."""
        times = self.times_s
        others = (self.mean_s, self.jitter_s) if self.distribution is None else (self.min_s, self.max_s)
        shapes = DISTRIBUTIONS[1:]
        if None in times or others != (None, None):
            yield "needs min_s and max_s, or distribution, mean_s and jitter_s"
        elif not all(0 <= value <= LONGEST_DELAY_S for value in times if value is not None):
            yield f"the times must lie between 0 and {LONGEST_DELAY_S:g} seconds"
        elif self.distribution is None and times[0] > times[1]:  # type: ignore[operator]  # neither is None here
            yield "the shortest time is longer than the longest"
        elif self.distribution is not None and self.distribution not in shapes and not is_table(self.distribution):
            yield f"distribution {shown(self.distribution)}: {unknown(self.distribution, shapes)}"
        elif not any(times):
            yield "a time between turns must be above 0"
        elif self.distribution is not None and not 0 < (self.jitter_s or 0.0) <= WIDEST_S:
            yield f"a distribution needs a spread above 0 and at most {WIDEST_S:.7g} seconds; or write two times alone"

    def words(self) -> str:
        """As the user writes it."""
        times = [units.format_time(value or 0.0) for value in self.times_s]
        return " ".join(times if self.distribution is None else [self.distribution, *times])


def is_table(distribution: str) -> bool:
    """Whether a distribution is a user's table file, such as ``measured.dist``."""
    return _TABLE.fullmatch(distribution) is not None


# --- reading and writing ----------------------------------------------------------------------------


def _time(written: object, name: str) -> float:
    return units.parse_time(written, name=name)


def _rate(written: object, name: str) -> float:
    return units.parse_rate(written, name=name)


def _size(written: object, name: str) -> int:
    return units.parse_size(written, name=name)


def _share(written: object, name: str) -> float:
    if isinstance(written, str) and re.fullmatch(r"\s*[\d.]+%\s+[\d.]+%\s*", written) and name == "loss":
        mean = written.split()[0]
        raise InvalidValueError(
            f"loss={shown(written)}: netem's correlated loss loses less than written (10% 25% loses about 1.8%). For "
            f'losses in bursts, write loss="{mean}" and burst=3, the mean number of packets lost in a row'
        )
    return units.parse_ratio(written, name=name)


def _whole(written: object, name: str) -> int:
    if isinstance(written, bool) or not isinstance(written, int | str):
        raise InvalidValueError(f"{name}={shown(written)}: not a whole number")
    try:
        return int(written)
    except ValueError:
        raise InvalidValueError(f"{name}={shown(written)}: not a whole number") from None


def _mean(written: object, name: str) -> float:
    try:
        if not isinstance(written, bool) and isinstance(written, int | float | str):
            return float(written)
    except ValueError:
        pass  # refused below
    raise InvalidValueError(f"{name}={shown(written)}: not a number of packets")


def _truth(written: object, name: str) -> bool:
    if isinstance(written, bool):
        return written
    if isinstance(written, str) and written.lower() in ("true", "false"):
        return written.lower() == "true"
    raise InvalidValueError(f"{name}={shown(written)}: must be true or false")


def _shape(written: object, name: str) -> str:
    if written not in DISTRIBUTIONS and not (isinstance(written, str) and is_table(written)):
        table = ", or NAME.dist for netem/NAME.dist beside the Compose file"
        raise InvalidValueError(f"{name}={shown(written)}: {unknown(str(written), DISTRIBUTIONS)}{table}")
    return str(written)


def _turns(written: object, name: str) -> Slot:
    words = written.split() if isinstance(written, str) else []
    if len(words) == 3 and not words[0][:1].isdigit():
        mean_s, jitter_s = (units.parse_time(word, name=name) for word in words[1:])
        return Slot(distribution=words[0], mean_s=mean_s, jitter_s=jitter_s)
    if len(words) not in (1, 2):
        raise InvalidValueError(
            f'{name}={shown(written)}: write slot="20ms", slot="20ms 25ms" or slot="normal 20ms 5ms"'
        )
    return Slot(min_s=units.parse_time(words[0], name=name), max_s=units.parse_time(words[-1], name=name))


def write_shares(shares: Iterable[float]) -> str:
    """Percentages separated by blanks: ``1% 25% 100% 0%``."""
    return " ".join(units.format_ratio(share) for share in shares)


def _listed(text: str) -> list[str]:
    """The parts between commas; in brackets, a part may be quoted, as in a marker."""
    inside = re.fullmatch(r"\s*\[(.*)\]\s*", text)
    if inside is None:
        return text.split(",")
    return [re.sub(r"""\s*(["'])(.*)\1\s*""", r"\2", part) for part in inside[1].split(",")]


def _numbers(written: object, name: str) -> tuple[tuple[int, int], ...]:
    """Packet numbers and ranges, sorted and joined: ``[3, "17-20"]``, the same as text, or ``"3, 17-20"``."""
    parts = (
        _listed(written) if isinstance(written, str) else written if isinstance(written, list | tuple) else [written]
    )
    ranges: list[tuple[int, int]] = []
    if len(parts) > _MOST_NUMBERS:
        raise InvalidValueError(
            f"{name}={shown(written)}: {len(parts)} numbers and ranges; at most {_MOST_RANGES} are possible"
        )
    for part in parts:
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", str(part)) if not isinstance(part, bool) else None
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last:
            raise InvalidValueError(
                f"{name}={shown(written)}: {shown(part)} is neither a packet number, counted from 1, nor a range "
                f"such as 17-20"
            )
        ranges.append((first, last))
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return tuple(joined)


def write_numbers(ranges: Iterable[tuple[int, int]]) -> str:
    """Packet numbers as the user writes them: ``3, 17-20``."""
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def ranges(numbers: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Ascending numbers as ranges, first to last."""
    joined: list[tuple[int, int]] = []
    for number in numbers:
        if joined and joined[-1][1] == number - 1:
            joined[-1] = (joined[-1][0], number)
        else:
            joined.append((number, number))
    return tuple(joined)


# --- kinds ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ValueKind:
    """One kind of value: how it is read, written and checked."""

    read: Callable[[object, str], Any]
    """The value of a text; second argument: the word's name. Raises InvalidValueError."""
    write: Callable[[Any], str | int | bool]
    _: KW_ONLY
    types: tuple[type, ...] = ()
    """The Python types of a number; empty: it is no number."""
    least: float = -math.inf
    most: float = math.inf
    """The range of the values, unless the word has its own."""
    unit: str = ""
    """The unit behind the range in messages."""
    odd: Callable[[Any], Iterator[str]] = lambda _: iter(())
    """What else is wrong with a value."""
    ramps: bool = False
    """Whether a ramp may change it."""
    parts: tuple[str, ...] = ()
    """The names of its shares."""


_NUMBER = (int, float)


def _odd_time(value: float) -> Iterator[str]:
    if 0 < value < _SHORTEST_S:
        yield "shorter than a nanosecond, the shortest time that netem knows"


def _odd_share(value: float) -> Iterator[str]:
    if 0 < value < SMALLEST_SHARE:
        yield "smaller than 2⁻³², the smallest share that netem knows"


def _odd_shape(value: str) -> Iterator[str]:
    if value not in DISTRIBUTIONS and not is_table(value):
        yield unknown(value, DISTRIBUTIONS)


def _odd_numbers(ranges: Sequence[tuple[int, int]]) -> Iterator[str]:
    last = 0
    for first, end in ranges:
        if not last < first <= end <= LAST_INDEX:
            yield "must be rising numbers from 1 to 2³¹-1, as in [3, 17-20]"
            break
        last = end
    if len(ranges) > _MOST_RANGES:
        yield f"{len(ranges)} numbers and ranges; at most {_MOST_RANGES} are possible"


def shares(*parts: str, defaults: tuple[str, ...] = (), needs: str) -> ValueKind:
    """A row of shares with these names, the last ones with defaults; ``needs``: what to write."""

    def read(written: object, name: str) -> tuple[float, ...]:
        texts = (
            written.split()
            if isinstance(written, str)
            else list(written)
            if isinstance(written, list | tuple)
            else [written]
        )
        missing = len(parts) - len(texts)
        if not 0 <= missing <= len(defaults):
            raise InvalidValueError(f"{name}={shown(written)}: needs {needs}")
        return tuple(units.parse_ratio(text, name=name) for text in (*texts, *defaults[len(defaults) - missing :]))

    def odd(value: Sequence[float]) -> Iterator[str]:
        if len(value) != len(parts) or not all(0 <= share <= 1 for share in value):
            yield f"must be {len(parts)} shares between 0 and 1"

    return ValueKind(read, write_shares, odd=odd, parts=parts)


TIME = ValueKind(
    _time, units.format_time, types=_NUMBER, least=0, most=LONGEST_DELAY_S, unit=" seconds", odd=_odd_time, ramps=True
)
SHARE = ValueKind(_share, units.format_ratio, types=_NUMBER, least=0, most=1, odd=_odd_share, ramps=True)
RATE = ValueKind(_rate, units.format_rate, types=_NUMBER, ramps=True)
SIZE = ValueKind(_size, units.format_size, types=(int,))
WHOLE = ValueKind(_whole, int, types=(int,))
MEAN = ValueKind(_mean, lambda value: f"{value:.10g}", types=_NUMBER)
TRUTH = ValueKind(_truth, bool)
SHAPE = ValueKind(_shape, str, odd=_odd_shape)
TURNS = ValueKind(_turns, Slot.words, odd=Slot.problems)
NUMBERS = ValueKind(_numbers, write_numbers, odd=_odd_numbers)
GILBERT_ELLIOTT = shares("p", "r", "1-h", "1-k", defaults=("100%", "0%"), needs='two to four shares, "p r 1-h 1-k"')
FOUR_STATES = shares("p13", "p31", "p32", "p23", "p14", needs='five shares, "p13 p31 p32 p23 p14"')
