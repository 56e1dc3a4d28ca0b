"""What can be done to a link, as frozen values.

Vocabulary as in docs/glossary.md: an *impairment* is what happens to packets in one direction; a *profile* is a
named pair of them. Numbers are SI (seconds, bits per second, shares from 0 to 1); ``None`` means absent and
zero means zero. Construction collects every problem and raises once.

The fields are the rows of `testbed.spec.features`; this module has what they mean together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from testbed import units
from testbed.errors import InvalidValueError
from testbed.spec.features import FEATURES, WORDS, Feature, Features
from testbed.spec.words import SMALLEST_SHARE, Slot, is_table, unknown, write_shares
from testbed.text import shown

LOSS_MODELS = ("loss", "gemodel", "loss_state")
"""The words for a loss model; an impairment has one of them."""
_TABLE_LENGTH = 4096
"""Entries of iproute2's delay tables; a user's table may have another length."""
_ALL = 2**32 - 1
"""netem's value for a share of 100 %."""


class Fault(NamedTuple):
    """What is wrong with values together."""

    words: frozenset[str]
    """Whose values they are."""
    text: str

    @classmethod
    def of(cls, text: str, *words: str) -> Fault:
        """From its words, in any order."""
        return cls(frozenset(words), text)


class AtOddsError(InvalidValueError):
    """Values that are out of range, or that contradict each other."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__(fault.text for fault in faults)
        self.faults = faults


@dataclass(frozen=True, kw_only=True)
class Impairment(Features):
    """What happens to packets in one direction of a link.

    Raises InvalidValueError naming every field that is out of range.
    """

    def __post_init__(self) -> None:
        if faults := _faults(self, lambda feature: feature.field):
            raise AtOddsError(faults)

    @property
    def mean_loss(self) -> float | None:
        """The share of packets that the loss model chooses in the long run; None for the model of four states."""
        if self.loss_state is not None:
            return None
        if self.gilbert is not None:
            p, r, bad, good = self.gilbert
            return (p * bad + r * good) / (p + r)
        return self.loss_ratio or 0.0

    @property
    def ahead_ratio(self) -> float:
        """The share of packets that skip the delay: after each of them, ``gap`` - 1 packets never do."""
        share = self.reorder_ratio or 0.0
        return share / (1 + share * ((self.reorder_gap_packets or 1) - 1))

    @property
    def realised(self) -> list[str]:
        """Where netem deviates from the words in combination: one line per case."""
        lines = []
        if self.delay_correlation and self.jitter_s:
            lines.append(self._correlation_realised(self.delay_correlation, self.jitter_s))
        loss, twice = self.mean_loss, self.duplicate_ratio or 0.0
        if twice and loss != 0:
            effect = "fewer are lost than the states say"
            if loss is not None:
                # For a copy, netem draws the loss once more.
                doubled = f", about {_percent(twice * (1 - loss) ** 2)} arrive twice" if not self.bursty else ""
                effect = f"{_percent(loss * (1 - twice))} are lost, not {_percent(loss)}{doubled}"
            lines.append(
                f"duplicate={units.format_ratio(twice)} with losses: netem keeps a packet that it chose for both, so "
                f"that {effect}"
            )
        if self.rate_bps is not None and self.reorder_ratio:
            faster = f"{self.rate_bps / (1 - self.ahead_ratio) / 1e6:.4g} Mbit/s"
            lines.append(
                f"reorder={units.format_ratio(self.reorder_ratio)} with rate={units.format_rate(self.rate_bps)}: "
                f"packets that skip the delay skip the rate, too, so that up to {faster} pass in all"
            )
        return lines

    def _correlation_realised(self, correlation: float, jitter_s: float) -> str:
        """What is left of a correlation (sch_netem.c, get_crandom and tabledist).

        netem correlates draws below 2³², the first of them unseeded, and takes each modulo the range of the delays in
        nanoseconds, or the length of a table.
        """
        word = f"correlation={units.format_ratio(correlation)}: "
        outcomes = 2 * jitter_s * 1e9 if self.distribution == "uniform" else _TABLE_LENGTH
        if (1 - correlation) * 2**32 < outcomes:
            return word + "no seed repeats these delays, as netem draws the first without it"
        least = f"{max(1 - outcomes / 2**32, 0) * 100:.7g}%"
        return (
            f"{word}netem takes each draw modulo {outcomes:.4g}, so that a delay resembles the one before it only "
            f"above {least}; no seed repeats the delays"
        )

    @property
    def bursty(self) -> bool:
        """Whether a loss depends on those before it."""
        return self.gilbert is not None or self.loss_state is not None

    @property
    def is_clean(self) -> bool:
        """Whether it does nothing."""
        return not any(value for feature, value in _chosen(self) if feature.field != "seed")

    @property
    def own_tables(self) -> list[str]:
        """The user's delay tables that it needs."""
        shapes = [self.distribution, self.slot.distribution if self.slot is not None else None]
        return [shape for shape in shapes if shape is not None and is_table(shape)]

    @property
    def by_number(self) -> bool:
        """Whether packets are lost by their number."""
        return bool(self.drop_packets) or self.drop_every is not None

    @property
    def is_random(self) -> bool:
        """Whether netem draws random numbers for it."""
        return any(value for feature, value in _values(self) if feature.random)

    @property
    def gilbert(self) -> tuple[float, float, float, float] | None:
        """The Gilbert-Elliott model, from ``gemodel`` or ``burst``: p, r, 1-h, 1-k.

        From mean loss L and mean burst B: r = 1/B and p = L / (B (1 - L)); all is lost in the bad state, nothing in
        the good one (Gilbert, "Capacity of a Burst-Noise Channel", 1960).
        """
        if self.loss_gemodel is not None:
            return self.loss_gemodel
        if self.loss_burst_packets is None or not self.loss_ratio:
            return None
        return (
            self.loss_ratio / (self.loss_burst_packets * (1 - self.loss_ratio)),
            1 / self.loss_burst_packets,
            1.0,
            0.0,
        )

    def describe(self, *names: str) -> str:
        """In the user's words, or those of ``names``: ``delay=40ms jitter=5ms loss=2%``; ``clean`` without any."""
        words = self.words().items()
        return " ".join(f"{name}={value}" for name, value in words if not names or name in names) or "clean"

    def words(self) -> dict[str, str | int | bool]:
        """The impairment as a profile has it."""
        return {feature.name: feature.write(value) for feature, value in _chosen(self)}

    @classmethod
    def parse(cls, words: Mapping[str, object]) -> Impairment:
        """An impairment from the user's words, as in a marker, a profile or on the command line.

        ``Impairment.parse({"delay": "40ms", "loss": "2%"})``. Raises InvalidValueError with every problem.
        """
        problems: list[str] = []
        values: dict[str, Any] = {}
        for name, written in words.items():
            feature = WORDS.get(str(name))
            if feature is None:
                problems.append(f"{name}: {unknown(str(name), WORDS)}")
                continue
            try:
                values[feature.field] = feature.read(written)
            except InvalidValueError as error:
                problems.extend(error.problems)
        if problems:
            raise InvalidValueError(problems)
        try:
            return cls(**values)
        except AtOddsError:
            raise AtOddsError(_faults(Features(**values), lambda feature: feature.name)) from None


def _values(features: Features) -> Iterator[tuple[Feature, Any]]:
    """The values that are given, zeros and defaults included."""
    for feature in FEATURES:
        if (value := getattr(features, feature.field)) is not None:
            yield feature, value


def _chosen(features: Features) -> Iterator[tuple[Feature, Any]]:
    """The values that differ from the defaults."""
    return ((feature, value) for feature, value in _values(features) if value != _DEFAULTS[feature.field])


_DEFAULTS = {field.name: field.default for field in fields(Features)}


def _faults(features: Features, name: Callable[[Feature], str]) -> list[Fault]:
    """Every fault of the values; ``name`` is how the reader knows a feature."""
    return _wrong_kinds(features, name) or [*_out_of_range(features, name), *_at_odds(features)]


def _wrong_kinds(features: Features, name: Callable[[Feature], str]) -> list[Fault]:
    """Text where a number belongs, and the like."""
    return [
        Fault.of(
            f"{name(feature)}={shown(value)}: must be a number; as text, write "
            f"Impairment.parse({{{shown(feature.name)}: {shown(value)}}})",
            feature.name,
        )
        for feature, value in _values(features)
        if feature.kind.types and (isinstance(value, bool) or not isinstance(value, feature.kind.types))
    ]


def _out_of_range(features: Features, name: Callable[[Feature], str]) -> Iterator[Fault]:
    for feature, value in _values(features):
        quoted = value.words() if isinstance(value, Slot) else value
        for problem in feature.problems(value):
            yield Fault.of(f"{name(feature)}={shown(quoted)}: {problem}", feature.name)


def _at_odds(features: Features) -> Iterator[Fault]:
    """Values that contradict each other."""
    chosen = {feature.name for feature, value in _chosen(features) if value}
    for feature in FEATURES:
        if feature.name in chosen and feature.needs and not chosen & set(feature.needs):
            yield Fault.of(f"{feature.name} without {feature.needs[0]}{feature.without}", feature.name, *feature.needs)
    if _is_all(features.delay_correlation):
        yield Fault.of(
            "correlation=100%: every delay would equal the one before, without jitter; give less", "correlation"
        )
    yield from _losses_at_odds(features)
    if features.delay_s and _is_all(features.reorder_ratio) and (features.reorder_gap_packets or 1) == 1:
        yield Fault.of(
            "reorder=100%: every packet would skip the delay and none would overtake; give less, or gap=5 to let "
            "every 5th skip it",
            "reorder",
            "gap",
            "delay",
        )
    if features.bucket_bytes is not None and features.overhead_bytes:
        yield Fault.of(
            "overhead with bucket: a token bucket counts packets without overhead; leave one of them out",
            "overhead",
            "bucket",
        )
    if (features.drop_packets or features.drop_every is not None) and features.duplicate_ratio:
        yield Fault.of(
            "duplicate with drop_packets or drop_every: the second copies would be counted, too, and other packets "
            "be lost; leave one of them out",
            "duplicate",
            "drop_packets",
            "drop_every",
        )


def _losses_at_odds(features: Features) -> Iterator[Fault]:
    chosen = [name for name in LOSS_MODELS if getattr(features, WORDS[name].field)]
    if len(chosen) > 1:
        yield Fault.of(f"{' and '.join(chosen)}: packets are lost by one model; give one of them", *chosen)
    burst, loss = features.loss_burst_packets, features.loss_ratio
    if burst is not None and loss is not None and loss < 1 and loss / (1 - loss) > burst:
        least = loss / (1 - loss)
        yield Fault.of(
            f"burst={burst:g} with loss={units.format_ratio(loss)}: this loss has a mean burst of at least "
            f"{least:.2f} packets; give a longer burst or less loss",
            "burst",
            "loss",
        )
    elif burst is not None and loss == 1:
        yield Fault.of(
            "burst with loss=100%: everything is lost, in one endless burst; leave the burst out", "burst", "loss"
        )
    if _is_all(loss) and features.duplicate_ratio:
        share = units.format_ratio(features.duplicate_ratio)
        yield Fault.of(
            f"duplicate={share} with loss=100%: netem keeps a packet that it chose for both, so that {share} pass; "
            "leave the duplicate out",
            "duplicate",
            "loss",
        )
    if features.loss_gemodel is not None:
        for text in _chain_of_two_at_odds(features.loss_gemodel):
            yield Fault.of(text, "gemodel")
    if features.loss_state is not None:
        for text in _chain_of_four_at_odds(features.loss_state):
            yield Fault.of(text, "loss_state")


def _chain_of_two_at_odds(shares: tuple[float, ...]) -> Iterator[str]:
    """Gilbert-Elliott with states that are never entered or never left."""
    word = f'gemodel="{write_shares(shares)}"'
    if len(shares) != 4:
        return  # reported by `_out_of_range`
    p, r, bad, good = shares
    if not p:
        yield f"{word}: p=0%, so the bad state is never entered; for losses at random, say loss"
    if not r:
        yield f"{word}: r=0%, so the bad state is never left; give an r above 0%"
    if not bad and not good:
        yield f"{word}: 1-h and 1-k are 0%, so nothing is ever lost; leave it out"
    if _is_all(bad) and _is_all(good):
        yield f"{word}: 1-h and 1-k are 100%, so everything is lost; say loss=100%"


def _chain_of_four_at_odds(shares: tuple[float, ...]) -> Iterator[str]:
    """Four states: 1 passes, 2 passes within a burst, 3 loses within a burst, 4 loses one alone (sch_netem.c)."""
    word = f'loss_state="{write_shares(shares)}"'
    if len(shares) != 5:
        return  # reported by `_out_of_range`
    p13, p31, p32, p23, p14 = shares
    if not p13 and not p14:
        yield f"{word}: p13 and p14 are 0%, so nothing is ever lost; leave it out"
    if p13 and not p31 and not p32:
        yield f"{word}: p31 and p32 are 0%, so the state that loses everything is never left; give one of them"
    if p13 and p32 and not p23:
        yield f"{word}: p23=0%, so nothing is ever lost after the first burst; give a p23 above 0%"
    for names, pair in (("p13 and p14", (p13, p14)), ("p31 and p32", (p31, p32))):
        # netem adds them in 32 bits, and the sum wraps around.
        if all(0 <= share <= 1 for share in pair) and sum(round(share * _ALL) for share in pair) > _ALL:
            yield f"{word}: {names} are shares of one draw; together they must stay below 100%"


def _is_all(share: float | None) -> bool:
    """Whether netem keeps a share as 100 %."""
    return share is not None and 1 - SMALLEST_SHARE <= share <= 1


def _percent(share: float) -> str:
    return f"{share * 100:.3g}%"


CLEAN = Impairment()
