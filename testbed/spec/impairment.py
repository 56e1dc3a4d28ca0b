"""What can be done to a link, as frozen values.

Vocabulary as in docs/glossary.md: an *impairment* says what happens to packets in one direction; a *profile* is a
named pair of them. Numbers are SI (seconds, bits per second, shares from 0 to 1); ``None`` means absent and
zero means zero. Construction collects every problem and raises once.

A new netem feature is one field here, one word in ``WORDS``, one clause in ``testbed.netem.qdisc`` and one line
in ``testbed.netem.readback``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from testbed import units
from testbed.errors import InvalidValueError
from testbed.text import shown

DISTRIBUTIONS = ("uniform", "normal", "pareto", "paretonormal")

_NUMBER = (int, float)
_TABLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,60}\.dist")
"""The name of a table file of one's own."""

_KINDS: dict[str, tuple[type, ...]] = {
    "delay_s": _NUMBER,
    "jitter_s": _NUMBER,
    "delay_correlation": _NUMBER,
    "loss_ratio": _NUMBER,
    "loss_burst_packets": _NUMBER,
    "duplicate_ratio": _NUMBER,
    "reorder_ratio": _NUMBER,
    "reorder_gap_packets": (int,),
    "corrupt_ratio": _NUMBER,
    "rate_bps": _NUMBER,
    "overhead_bytes": (int,),
    "bucket_bytes": (int,),
    "queue_bytes": (int,),
    "slot_packets": (int,),
    "slot_bytes": (int,),
    "drop_every": (int,),
    "limit_packets": (int,),
    "seed": (int,),
}
_RATIOS = ("delay_correlation", "loss_ratio", "duplicate_ratio", "reorder_ratio", "corrupt_ratio")

# What others call it: tc and its like, browsers' throttling, Toxiproxy, Pumba, Comcast, Kubernetes' chaos tools.
_OTHERS_WORDS: Mapping[str, str] = {
    **dict.fromkeys(("latency", "lag", "rtt", "ping"), "delay, one way: delay=40ms"),
    **dict.fromkeys(("bandwidth", "throughput", "speed", "bitrate", "bw", "target-bw"), "rate: rate=10mbit"),
    **dict.fromkeys(
        ("packet_loss", "packet-loss", "packetloss", "loss_ratio", "plr", "drop", "drop_rate"), "loss: loss=2%"
    ),
    **dict.fromkeys(("variance", "deviation", "jitter_ms"), "jitter, beside a delay: jitter=5ms"),
    **dict.fromkeys(("duplication", "dup"), "duplicate: duplicate=1%"),
    **dict.fromkeys(("corruption", "bit_error_rate", "ber"), "corrupt: corrupt=0.1%"),
    **dict.fromkeys(("reordering", "out_of_order"), "reorder, beside a delay: reorder=10%"),
    **dict.fromkeys(("buffer", "queue_size", "buffer_size", "queue_length"), "limit, in packets: limit=100"),
    "ceil": "rate: rate=10mbit",
}
_LONGEST_NAME = 60
_MOST_NAMES = 40

# netem keeps delay and jitter in signed 64-bit nanoseconds; an hour is beyond any link, and a typing error.
LONGEST_DELAY_S = 3600.0
_SHORTEST_S = 1e-9
# netem (sch_netem.c, netem_change) silently makes a longer jitter 2³¹-1 ns, which is what tabledist() can reckon with.
_WIDEST_S = 2.147483647
# netem keeps the rate in unsigned 64-bit bytes a second.
_FASTEST_BPS = 8 * 2.0**64
# netem keeps probabilities in 2⁻³²; a longer burst would have no end.
_LONGEST_BURST = 1e6
_SMALLEST_SHARE = 2.0**-32
_SEEDS = 2**64
# A token bucket that cannot hold a packet never passes it: 1500 bytes and an Ethernet header (tc-tbf(8), burst).
_FULL_PACKET_BYTES = 1514
_LONGEST_QUEUE_BYTES = 2**32 - 1
# What a filter can count to (testbed.netem.indexed), and how many tests it may make for each packet.
_LAST_INDEX = 2**31 - 1
_MOST_RANGES = 500
_MOST_NUMBERS = 100_000
"""As they are written: neighbours are joined."""
# An Ethernet and an IPv4 header: no packet is shorter. netem reckons a shorter length than none as almost 2⁶⁴ bytes.
_SHORTEST_PACKET_BYTES = 34
_LONGEST_PACKET_BYTES = 65_535
# Of iproute2's tables of delays; one's own may have others.
_TABLE_LENGTH = 4096
# netem keeps a share as so many parts of all.
_ALL = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class Slot:
    """When packets may leave: they are held and leave together, as on a medium that is shared by turns (tc-netem(8)).

    Either between ``min_s`` and ``max_s`` after the turn before, or ``mean_s`` ± ``jitter_s`` by a ``distribution``.
    """

    min_s: float | None = None
    max_s: float | None = None
    distribution: str | None = None
    mean_s: float | None = None
    jitter_s: float | None = None

    def problems(self) -> Iterator[str]:
        """What is wrong with it."""
        times = (self.min_s, self.max_s) if self.distribution is None else (self.mean_s, self.jitter_s)
        others = (self.mean_s, self.jitter_s) if self.distribution is None else (self.min_s, self.max_s)
        shapes = DISTRIBUTIONS[1:]
        if None in times or others != (None, None):
            yield "needs min_s and max_s, or distribution, mean_s and jitter_s"
        elif not all(0 <= value <= LONGEST_DELAY_S for value in times if value is not None):
            yield f"its times must lie between 0 and {LONGEST_DELAY_S:g} seconds"
        elif self.distribution is None and times[0] > times[1]:  # type: ignore[operator]  # neither is None here
            yield "its shortest time is longer than its longest"
        elif self.distribution is not None and self.distribution not in shapes and not is_table(self.distribution):
            yield f"distribution {shown(self.distribution)}: {unknown(self.distribution, shapes)}"
        elif not any(times):
            yield "a time between turns must be above 0"
        elif self.distribution is not None and not 0 < (self.jitter_s or 0.0) <= _WIDEST_S:
            yield f"a distribution needs a spread above 0 and at most {_WIDEST_S:.7g} seconds; or write two times alone"

    def words(self) -> str:
        """As the user writes it."""
        times = (self.min_s, self.max_s) if self.distribution is None else (self.mean_s, self.jitter_s)
        written = [units.format_time(value or 0.0) for value in times]
        return " ".join(written if self.distribution is None else [self.distribution, *written])


def is_table(distribution: str) -> bool:
    """Whether the name of a distribution is that of a table file of one's own, such as ``measured.dist``."""
    return _TABLE.fullmatch(distribution) is not None


@dataclass(frozen=True, kw_only=True)
class Impairment:
    """What happens to packets in one direction of a link.

    Raises InvalidValueError naming every field that is out of range.
    """

    delay_s: float | None = None
    """One-way delay added to each packet; seconds, 0 to 3600."""
    jitter_s: float | None = None
    """Spread of the delay: half width of the uniform distribution, scale of the others; seconds, 0 to 2.147."""
    delay_correlation: float | None = None
    """How much a packet's delay is drawn toward the one before it; 0 to less than 1. netem takes what it drew modulo
    twice the jitter, so that all but the largest correlations are lost: see `realised`."""
    distribution: str = "uniform"
    """Shape of the jitter: uniform; normal, pareto or paretonormal (tables of iproute2); or ``NAME.dist``, a table in
    their format (tc-netem(8)) in ``netem/`` beside the Compose file."""
    reorder_by_jitter: bool = False
    """Whether a packet with a smaller delay may overtake; false keeps order, as queues do."""
    loss_ratio: float | None = None
    """Share of packets lost; 0 to 1. Each independently, unless ``loss_burst_packets`` says otherwise."""
    loss_burst_packets: float | None = None
    """Mean number of packets lost in a row, at least 1: a Gilbert model with ``loss_ratio`` as its mean."""
    loss_gemodel: tuple[float, float, float, float] | None = None
    """Gilbert-Elliott loss: p (good to bad), r (bad to good), 1-h (loss while bad), 1-k (loss while good)."""
    loss_state: tuple[float, float, float, float, float] | None = None
    """Loss by netem's Markov chain of four states: p13, p31, p32, p23, p14 (tc-netem(8))."""
    ecn: bool = False
    """Mark packets that can carry an ECN mark (RFC 3168) in place of losing them."""
    duplicate_ratio: float | None = None
    """Share of packets sent twice; 0 to 1."""
    reorder_ratio: float | None = None
    """Share of packets that skip the delay and so overtake; 0 to 1. Needs a delay."""
    reorder_gap_packets: int | None = None
    """Only every such packet may overtake: 5 means the 5th, 10th, … with probability ``reorder_ratio``."""
    corrupt_ratio: float | None = None
    """Share of packets with one bit flipped; 0 to 1. Checksums then drop most of them at the receiver."""
    rate_bps: float | None = None
    """Rate at which packets leave, by their length on the wire; bits per second, above 0."""
    overhead_bytes: int | None = None
    """Bytes that the rate counts for each packet on top of its length, as a link layer adds; may be negative."""
    bucket_bytes: int | None = None
    """Size of a token bucket: the rate is then kept by tc-tbf(8), which lets so much pass at once after a pause."""
    queue_bytes: int | None = None
    """Bytes that wait for the token bucket; None: what the rate carries in 100 ms, at least 64 full packets."""
    slot: Slot | None = None
    """When packets may leave, together; None: each by itself."""
    slot_packets: int | None = None
    """The most packets that leave in one slot."""
    slot_bytes: int | None = None
    """The most bytes that leave in one slot."""
    drop_packets: tuple[tuple[int, int], ...] = ()
    """Packets to lose by their number, first and last of each range; counted from 1 over the packets of the link (or
    of that part of its traffic that is impaired), from when the impairment was put there."""
    drop_every: int | None = None
    """Lose every so manieth packet, counted likewise; at least 2."""
    limit_packets: int | None = None
    """Packets that the queue holds, those on their way included; None sizes it from rate and delay."""
    seed: int | None = None
    """Seed of the kernel's random numbers for this link; 0 to 2⁶⁴-1. None: the kernel draws one."""

    def __post_init__(self) -> None:
        problems = self._wrong_kinds() or [*self._out_of_range(), *self._at_odds()]
        if problems:
            raise InvalidValueError(problems)

    def _wrong_kinds(self) -> list[str]:
        """Text where a number belongs, and the like."""
        wrong = [
            (name, value) for name, value in vars(self).items()
            if value is not None and name in _KINDS and (isinstance(value, bool) or not isinstance(value, _KINDS[name]))
        ]  # fmt: skip
        words = {word.field: word.name for word in WORDS.values()} if wrong else {}
        return [
            f"{name}={shown(value)}: must be a number; as text, write "
            f"Impairment.parse({{{shown(words[name])}: {shown(value)}}})"
            for name, value in wrong
        ]

    def _out_of_range(self) -> Iterator[str]:
        """Each value by itself."""
        for name in ("delay_s", "jitter_s"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= LONGEST_DELAY_S:
                yield f"{name}={shown(value)}: must lie between 0 and {LONGEST_DELAY_S:g} seconds"
            elif value is not None and 0 < value < _SHORTEST_S:
                yield f"{name}={shown(value)}: shorter than a nanosecond, the shortest time that netem knows"
            elif name == "jitter_s" and value is not None and value > _WIDEST_S:
                yield f"{name}={shown(value)}: at most {_WIDEST_S:.7g} seconds, netem's widest spread"
        for name in _RATIOS:
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                yield f"{name}={shown(value)}: must lie between 0 and 1"
            elif value is not None and 0 < value < _SMALLEST_SHARE:
                yield f"{name}={shown(value)}: smaller than 2⁻³², the smallest share that netem knows"
        for name, count in (("loss_gemodel", 4), ("loss_state", 5)):
            value = getattr(self, name)
            if value is not None and (len(value) != count or not all(0 <= share <= 1 for share in value)):
                yield f"{name}={shown(value)}: must be {count} shares between 0 and 1"
        if self.loss_burst_packets is not None and not 1 <= self.loss_burst_packets <= _LONGEST_BURST:
            yield (
                f"loss_burst_packets={shown(self.loss_burst_packets)}: "
                f"must lie between 1 and {_LONGEST_BURST:g} packets"
            )
        if self.reorder_gap_packets is not None and not 1 <= self.reorder_gap_packets < 2**32:
            yield f"reorder_gap_packets={shown(self.reorder_gap_packets)}: must be at least 1"
        if self.rate_bps is not None and not 8 <= self.rate_bps < _FASTEST_BPS:
            yield (
                f"rate_bps={shown(self.rate_bps)}: must lie between 8 and 2⁶⁷ bit/s, netem's smallest and largest rate"
            )
        if self.overhead_bytes is not None and not (
            -_SHORTEST_PACKET_BYTES <= self.overhead_bytes <= _LONGEST_PACKET_BYTES
        ):
            yield (
                f"overhead_bytes={shown(self.overhead_bytes)}: must lie between -{_SHORTEST_PACKET_BYTES} (a packet of "
                f"less than no bytes never leaves) and {_LONGEST_PACKET_BYTES}, the longest packet"
            )
        if self.limit_packets is not None and not 1 <= self.limit_packets < 2**32:
            yield (
                f"limit_packets={shown(self.limit_packets)}: must lie between 1 and 2³²-1; a queue of 0 passes nothing"
            )
        if self.seed is not None and not 0 <= self.seed < _SEEDS:
            yield f"seed={shown(self.seed)}: must lie between 0 and 2⁶⁴-1"
        yield from self._sizes_out_of_range()
        if self.distribution not in DISTRIBUTIONS and not is_table(self.distribution):
            yield f"distribution={shown(self.distribution)}: {unknown(self.distribution, DISTRIBUTIONS)}"

    def _sizes_out_of_range(self) -> Iterator[str]:
        if self.bucket_bytes is not None and not _FULL_PACKET_BYTES <= self.bucket_bytes < 2**31:
            yield (
                f"bucket_bytes={shown(self.bucket_bytes)}: must lie between {_FULL_PACKET_BYTES}, a full-size packet "
                f"(a smaller bucket never passes one), and 2³¹-1"
            )
        if self.queue_bytes is not None and not _FULL_PACKET_BYTES <= self.queue_bytes <= _LONGEST_QUEUE_BYTES:
            least = f"{_FULL_PACKET_BYTES}, a full-size packet"
            yield f"queue_bytes={shown(self.queue_bytes)}: must lie between {least}, and 2³²-1"
        for name in ("slot_packets", "slot_bytes"):
            value = getattr(self, name)
            if value is not None and not 1 <= value < 2**31 - 1:  # which is netem's word for no limit
                yield f"{name}={shown(value)}: must lie between 1 and 2³¹-2"
        if self.slot is not None:
            yield from (f"slot={shown(self.slot.words())}: {problem}" for problem in self.slot.problems())
        last = 0
        for first, end in self.drop_packets:
            if not last < first <= end <= _LAST_INDEX:
                yield (
                    f"drop_packets={shown(self.drop_packets)}: must be rising numbers from 1 to 2³¹-1, as in [3, 17-20]"
                )
                break
            last = end
        if len(self.drop_packets) > _MOST_RANGES:
            yield f"drop_packets: {len(self.drop_packets)} numbers and ranges; at most {_MOST_RANGES} are possible"
        if self.drop_every is not None and not 2 <= self.drop_every <= _LAST_INDEX:
            yield (
                f"drop_every={shown(self.drop_every)}: must lie between 2 and 2³¹-1; to lose everything, say loss=100%"
            )

    def _at_odds(self) -> Iterator[str]:
        """Values that make no sense together."""
        if self.jitter_s and not self.delay_s:
            yield "jitter without delay: netem varies a delay; give the mean delay too"
        if not self.jitter_s:
            if self.distribution != "uniform":
                yield f"distribution={shown(self.distribution)} without jitter has no effect"
            if self.reorder_by_jitter:
                yield "reorder_by_jitter without jitter has no effect"
            if self.delay_correlation:
                yield "correlation without jitter has no effect"
        elif _is_all(self.delay_correlation):
            yield "correlation=100%: every delay would be that of the packet before, without jitter; give less"
        yield from self._losses_at_odds()
        if self.reorder_ratio and not self.delay_s:
            yield "reorder without delay: a packet overtakes by skipping the delay; give one"
        elif _is_all(self.reorder_ratio) and (self.reorder_gap_packets or 1) == 1:
            yield (
                "reorder=100%: every packet would skip the delay and none overtake; give less, or gap=5 to let each "
                "5th skip it"
            )
        if self.reorder_gap_packets is not None and not self.reorder_ratio:
            yield "gap without reorder has no effect"
        if self.overhead_bytes and self.rate_bps is None:
            yield "overhead without rate has no effect: it is what the rate counts on top"
        if self.bucket_bytes is not None and self.rate_bps is None:
            yield "bucket without rate has no effect: it is filled at the rate"
        if self.bucket_bytes is not None and self.overhead_bytes:
            yield "overhead with bucket: a token bucket counts packets as they are; leave one of them out"
        if self.queue_bytes is not None and self.bucket_bytes is None:
            yield "queue without bucket has no effect: it is where packets wait for the bucket; netem's own is limit"
        if self.slot is None and (self.slot_packets is not None or self.slot_bytes is not None):
            yield "slot_packets and slot_bytes without slot have no effect: they limit what leaves in one"
        if self.by_number and self.duplicate_ratio:
            yield (
                "duplicate with drop_packets or drop_every: the second copies would be counted among the packets, and "
                "others lost than those of these numbers; leave one of them out"
            )

    def _losses_at_odds(self) -> Iterator[str]:
        models = [name for name in ("loss_ratio", "loss_gemodel", "loss_state") if getattr(self, name)]
        if len(models) > 1:
            yield f"{' and '.join(models)}: packets are lost by one model; give one of them"
        if self.ecn and not models:
            yield "ecn without loss has no effect: it marks what would be lost"
        burst, loss = self.loss_burst_packets, self.loss_ratio
        if burst is not None and loss is None:
            yield "burst without loss: give the mean loss too"
        elif burst is not None and loss == 0:
            yield f"burst={burst:g} with loss=0% has no effect: nothing is lost; leave the burst out, or give a loss"
        elif burst is not None and loss is not None and loss < 1 and loss / (1 - loss) > burst:
            least = loss / (1 - loss)
            yield (
                f"burst={burst:g} with loss={units.format_ratio(loss)}: so much loss comes at least "
                f"{least:.2f} packets in a row on average; give a longer burst or less loss"
            )
        elif burst is not None and loss == 1:
            yield "burst with loss=100%: everything is lost, in one burst without end; leave the burst out"
        if _is_all(loss) and self.duplicate_ratio:
            share = units.format_ratio(self.duplicate_ratio)
            yield (
                f"duplicate={share} with loss=100%: netem keeps a packet that it chose for both, so that {share} pass; "
                "leave the duplicate out"
            )
        if self.loss_gemodel is not None:
            yield from _chain_of_two_at_odds(self.loss_gemodel)
        if self.loss_state is not None:
            yield from _chain_of_four_at_odds(self.loss_state)

    @property
    def mean_loss(self) -> float | None:
        """The share of packets that the loss model chooses in the long run; None of four states."""
        if self.loss_state is not None:
            return None
        if self.gilbert is not None:
            p, r, bad, good = self.gilbert
            return (p * bad + r * good) / (p + r)
        return self.loss_ratio or 0.0

    @property
    def ahead_ratio(self) -> float:
        """The share of packets that skip the delay: behind each, ``gap`` - 1 wait without being asked."""
        share = self.reorder_ratio or 0.0
        return share / (1 + share * ((self.reorder_gap_packets or 1) - 1))

    @property
    def realised(self) -> list[str]:
        """Where netem does something else than the words say, taken together: a line each."""
        lines = []
        if self.delay_correlation and self.jitter_s:
            lines.append(self._correlation_realised(self.delay_correlation, self.jitter_s))
        loss, twice = self.mean_loss, self.duplicate_ratio or 0.0
        if twice and loss != 0:
            said = f"duplicate={units.format_ratio(twice)} with losses: netem keeps a packet that it chose for both, "
            if loss is None:
                said += "so that fewer are lost than the states say"
            else:
                lost = _percent(loss * (1 - twice))
                # Of a copy, the loss is drawn again.
                came_twice = f", about {_percent(twice * (1 - loss) ** 2)} arrive twice" if not self.bursty else ""
                said += f"so that {lost} are lost, not {_percent(loss)}{came_twice}"
            lines.append(said)
        if self.rate_bps is not None and self.reorder_ratio:
            faster = f"{self.rate_bps / (1 - self.ahead_ratio) / 1e6:.4g} Mbit/s"
            lines.append(
                f"reorder={units.format_ratio(self.reorder_ratio)} with rate={units.format_rate(self.rate_bps)}: "
                f"packets that skip the delay skip the rate, too, so that up to {faster} pass in all"
            )
        return lines

    def _correlation_realised(self, correlation: float, jitter_s: float) -> str:
        """What is left of a correlation (sch_netem.c, get_crandom and tabledist).

        netem correlates draws below 2³², the first without its seed, and takes each modulo the range of the delays in
        nanoseconds, or the length of a table.
        """
        said = f"correlation={units.format_ratio(correlation)}: "
        outcomes = 2 * jitter_s * 1e9 if self.distribution == "uniform" else _TABLE_LENGTH
        if (1 - correlation) * 2**32 < outcomes:
            return said + "no seed repeats these delays, for netem draws the first without it"
        least = f"{max(1 - outcomes / 2**32, 0) * 100:.7g}%"
        return (
            said + f"netem takes what it drew modulo its {outcomes:.4g} outcomes, so that delays do not resemble those "
            f"before them unless it is more than {least}; nor does a seed repeat them"
        )

    @property
    def bursty(self) -> bool:
        """Whether a loss depends on those before it."""
        return self.gilbert is not None or self.loss_state is not None

    @property
    def is_clean(self) -> bool:
        """Whether nothing at all is asked for."""
        return not any(value for word, value in self._said() if word.field != "seed")

    @property
    def own_tables(self) -> list[str]:
        """The tables of one's own that it needs."""
        shapes = [self.distribution, self.slot.distribution if self.slot is not None else None]
        return [shape for shape in shapes if shape is not None and is_table(shape)]

    @property
    def by_number(self) -> bool:
        """Whether packets are lost by their number."""
        return bool(self.drop_packets) or self.drop_every is not None

    @property
    def is_random(self) -> bool:
        """Whether netem draws random numbers for it."""
        shares = (self.loss_ratio, self.duplicate_ratio, self.reorder_ratio, self.corrupt_ratio)
        return bool(self.jitter_s or self.slot or self.loss_gemodel or self.loss_state or any(shares))

    @property
    def gilbert(self) -> tuple[float, float, float, float] | None:
        """The Gilbert-Elliott model in force, whichever way it was asked for: p, r, 1-h, 1-k.

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
                problems.append(f"{name}: {unknown(str(name), WORDS)}")
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


def _chain_of_two_at_odds(shares: tuple[float, ...]) -> Iterator[str]:
    """Gilbert-Elliott, with states that are never entered or never left."""
    said = f'gemodel="{_write_ratios(shares)}"'
    if len(shares) != 4:
        return  # told already
    p, r, bad, good = shares
    if not p:
        yield f"{said}: p=0%, so the bad state is never entered; for losses at random, say loss"
    if not r:
        yield f"{said}: r=0%, so the bad state is never left; give an r above 0%"
    if not bad and not good:
        yield f"{said}: 1-h and 1-k are 0%, so nothing is ever lost; leave it out"
    if _is_all(bad) and _is_all(good):
        yield f"{said}: 1-h and 1-k are 100%, so everything is lost; say loss=100%"


def _chain_of_four_at_odds(shares: tuple[float, ...]) -> Iterator[str]:
    """Four states: 1 passes, 2 passes within a burst, 3 loses within a burst, 4 loses one alone (sch_netem.c)."""
    said = f'loss_state="{_write_ratios(shares)}"'
    if len(shares) != 5:
        return  # told already
    p13, p31, p32, p23, p14 = shares
    if not p13 and not p14:
        yield f"{said}: p13 and p14 are 0%, so nothing is ever lost; leave it out"
    if p13 and not p31 and not p32:
        yield f"{said}: p31 and p32 are 0%, so the state that loses everything is never left; give one of them"
    if p13 and p32 and not p23:
        yield f"{said}: p23=0%, so nothing is ever lost after the first burst; give a p23 above 0%"
    for names, pair in (("p13 and p14", (p13, p14)), ("p31 and p32", (p31, p32))):
        # netem adds them up in 32 bits: what is more begins at 0 again.
        if all(0 <= each <= 1 for each in pair) and sum(round(each * _ALL) for each in pair) > _ALL:
            yield f"{said}: {names} are shares of one draw; together they must stay below 100%"


def _is_all(share: float | None) -> bool:
    """Whether netem keeps a share as 100 %."""
    return share is not None and 1 - _SMALLEST_SHARE <= share <= 1


def _percent(share: float) -> str:
    return f"{share * 100:.3g}%"


def _in_words(problem: str, names: Mapping[str, str]) -> str:
    """A problem of a field, told of the user's word: ``limit_packets=0: …`` becomes ``limit=0: …``."""
    field_name, equals, rest = problem.partition("=")
    return f"{names.get(field_name, field_name)}{equals}{rest}"


def unknown(said: str, known: Iterable[str], *, meant: Mapping[str, str] = _OTHERS_WORDS) -> str:
    """How an unknown name is reported: with what it means elsewhere or the nearest known one, and all of them."""
    names = list(known)
    if (told := meant.get(said.lower())) and re.split("[:, ]", told)[0] in names:
        return f"unknown; here it is {told}. Known: {listing(names)}"
    near = difflib.get_close_matches(said, names, n=1) if len(said) <= _LONGEST_NAME else []
    hint = f"; did you mean {shown(near[0])}?" if near else ""
    return f"unknown{hint} Known: {listing(names)}" if hint else f"unknown; known: {listing(names)}"


def listing(names: Sequence[str]) -> str:
    """Names with commas between them; of very many, the first."""
    rest = [f"… and {len(names) - _MOST_NAMES} more"] if len(names) > _MOST_NAMES else []
    return ", ".join([*names[:_MOST_NAMES], *rest])


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
            raise InvalidValueError(f"{name}={shown(said)}: not a whole number")
        try:
            return int(said)
        except ValueError:
            raise InvalidValueError(f"{name}={shown(said)}: not a whole number") from None

    return read


def _boolean(name: str) -> Callable[[object], bool]:
    def read(said: object) -> bool:
        if isinstance(said, bool):
            return said
        if isinstance(said, str) and said.lower() in ("true", "false"):
            return said.lower() == "true"
        raise InvalidValueError(f"{name}={shown(said)}: must be true or false")

    return read


def _ratio(name: str) -> Callable[[object], float]:
    return lambda said: units.parse_ratio(said, name=name)


def _loss(said: object) -> float:
    if isinstance(said, str) and re.fullmatch(r"\s*[\d.]+%\s+[\d.]+%\s*", said):
        mean = said.split()[0]
        raise InvalidValueError(
            f"loss={shown(said)}: netem's correlated loss does not lose what it says (10% 25% loses about 1.8%). For "
            f'losses in bursts, say loss="{mean}" and burst=3, the mean number of packets lost in a row'
        )
    return units.parse_ratio(said, name="loss")


def _ratios(name: str, least: int, defaults: tuple[str, ...], example: str) -> Callable[[object], tuple[float, ...]]:
    """Several percentages behind each other, the last ones with defaults."""

    def read(said: object) -> tuple[float, ...]:
        parts = said.split() if isinstance(said, str) else list(said) if isinstance(said, list | tuple) else [said]
        missing = least + len(defaults) - len(parts)
        if not 0 <= missing <= len(defaults):
            raise InvalidValueError(f"{name}={shown(said)}: needs {example}")
        return tuple(units.parse_ratio(part, name=name) for part in (*parts, *defaults[len(defaults) - missing :]))

    return read


def _write_ratios(values: Iterable[float]) -> str:
    return " ".join(units.format_ratio(value) for value in values)


def _count(name: str) -> Callable[[object], float]:
    def read(said: object) -> float:
        try:
            if not isinstance(said, bool) and isinstance(said, int | float | str):
                return float(said)
        except ValueError:
            pass  # said below
        raise InvalidValueError(f"{name}={shown(said)}: not a number of packets")

    return read


def _distribution(said: object) -> str:
    if said not in DISTRIBUTIONS and not (isinstance(said, str) and is_table(said)):
        table = ", or NAME.dist for netem/NAME.dist beside the Compose file"
        raise InvalidValueError(f"distribution={shown(said)}: {unknown(str(said), DISTRIBUTIONS)}{table}")
    return str(said)


def _slot(said: object) -> Slot:
    words = said.split() if isinstance(said, str) else []
    if len(words) == 3 and not words[0][:1].isdigit():
        mean_s, jitter_s = (units.parse_time(word, name="slot") for word in words[1:])
        return Slot(distribution=words[0], mean_s=mean_s, jitter_s=jitter_s)
    if len(words) not in (1, 2):
        raise InvalidValueError(f'slot={shown(said)}: write slot="20ms", slot="20ms 25ms" or slot="normal 20ms 5ms"')
    return Slot(min_s=units.parse_time(words[0], name="slot"), max_s=units.parse_time(words[-1], name="slot"))


def _listed(text: str) -> list[str]:
    """What stands between commas; in brackets, each may stand in quotes, as in a marker."""
    inside = re.fullmatch(r"\s*\[(.*)\]\s*", text)
    if inside is None:
        return text.split(",")
    return [re.sub(r"""\s*(["'])(.*)\1\s*""", r"\2", part) for part in inside[1].split(",")]


def _numbers(said: object) -> tuple[tuple[int, int], ...]:
    """Packet numbers and ranges, sorted and joined: ``[3, "17-20"]``, the same as text, or ``"3, 17-20"``."""
    parts = _listed(said) if isinstance(said, str) else said if isinstance(said, list | tuple) else [said]
    ranges: list[tuple[int, int]] = []
    if len(parts) > _MOST_NUMBERS:
        raise InvalidValueError(
            f"drop_packets={shown(said)}: {len(parts)} numbers and ranges; at most {_MOST_RANGES} are possible"
        )
    for part in parts:
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", str(part)) if not isinstance(part, bool) else None
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last:
            raise InvalidValueError(
                f"drop_packets={shown(said)}: {shown(part)} is no number of a packet, counted from 1, nor a range such "
                f"as 17-20"
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


WORDS: dict[str, Word] = {
    word.name: word
    for word in (
        Word("delay", "delay_s", lambda said: units.parse_time(said, name="delay"), units.format_time,
             "one-way delay, for example 40ms"),
        Word("jitter", "jitter_s", lambda said: units.parse_time(said, name="jitter"), units.format_time,
             "spread of the delay, for example 5ms"),
        Word("correlation", "delay_correlation", _ratio("correlation"), units.format_ratio,
             "correlation of a packet's delay with the delay of the packet before it, for example 25%"),
        Word("distribution", "distribution", _distribution, str,
             "shape of the jitter: " + ", ".join(DISTRIBUTIONS) + ", or a table of your own, NAME.dist"),
        Word("reorder_by_jitter", "reorder_by_jitter", _boolean("reorder_by_jitter"), bool,
             "whether jitter may reorder packets (default: false)"),
        Word("loss", "loss_ratio", _loss, units.format_ratio,
             "share of packets lost at random, for example 2%"),
        Word("burst", "loss_burst_packets", _count("burst"), lambda value: f"{value:.10g}",
             "mean number of packets lost in a row (a Gilbert model with that mean loss), for example 3"),
        Word("gemodel", "loss_gemodel", _ratios("gemodel", 2, ("100%", "0%"), 'two to four shares, "p r 1-h 1-k"'),
             _write_ratios, 'Gilbert-Elliott loss, "p r 1-h 1-k", for example "1% 25%"'),
        Word("loss_state", "loss_state", _ratios("loss_state", 5, (), 'five shares, "p13 p31 p32 p23 p14"'),
             _write_ratios, 'loss by four states, "p13 p31 p32 p23 p14"'),
        Word("ecn", "ecn", _boolean("ecn"), bool,
             "mark packets that can carry an ECN mark instead of losing them"),
        Word("duplicate", "duplicate_ratio", _ratio("duplicate"), units.format_ratio,
             "share of packets sent twice, for example 1%"),
        Word("reorder", "reorder_ratio", _ratio("reorder"), units.format_ratio,
             "share of packets that skip the delay and overtake, for example 10%"),
        Word("gap", "reorder_gap_packets", _integer("gap"), int,
             "only every Nth packet may overtake, for example 5"),
        Word("corrupt", "corrupt_ratio", _ratio("corrupt"), units.format_ratio,
             "share of packets with one bit flipped, for example 0.1%"),
        Word("rate", "rate_bps", lambda said: units.parse_rate(said, name="rate"), units.format_rate,
             "rate of the link, for example 10mbit"),
        Word("overhead", "overhead_bytes", _integer("overhead"), int,
             "bytes that the rate counts per packet in addition, for example 24"),
        Word("bucket", "bucket_bytes", lambda said: units.parse_size(said, name="bucket"), units.format_size,
             "size of a token bucket that keeps the rate (tc-tbf), for example 16kB"),
        Word("queue", "queue_bytes", lambda said: units.parse_size(said, name="queue"), units.format_size,
             "bytes that may wait for the token bucket, for example 64kB"),
        Word("slot", "slot", _slot, lambda slot: slot.words(),
             'time between slots, in which packets leave together: 20ms, "20ms 25ms" or "normal 20ms 5ms"'),
        Word("slot_packets", "slot_packets", _integer("slot_packets"), int,
             "maximum number of packets that leave in one slot"),
        Word("slot_bytes", "slot_bytes", lambda said: units.parse_size(said, name="slot_bytes"), units.format_size,
             "maximum number of bytes that leave in one slot, for example 3kB"),
        Word("drop_packets", "drop_packets", _numbers, write_numbers,
             'packets to lose by their number on the link, from 1, for example [3, "17-20"]'),
        Word("drop_every", "drop_every", _integer("drop_every"), int,
             "lose every Nth packet, for example 50"),
        Word("limit", "limit_packets", _integer("limit"), int,
             "packets that the queue holds (default: sized from rate and delay)"),
        Word("seed", "seed", _integer("seed"), int,
             "seed of the random numbers, for repeatable loss and jitter"),
    )
}  # fmt: skip

CLEAN = Impairment()
