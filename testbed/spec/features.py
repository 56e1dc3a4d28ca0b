"""What netem can do to a link: one row a feature.

All else about a feature follows from its row: the word of profiles, markers and the command line, its help and its
line in the documentation, its range, whether a timeline may ramp it, the clause of tc's line, its read-back, and the
values that the tests try. What has a shape of its own has a function of its own beside: a kind in
`testbed.spec.words`, what goes together in `testbed.spec.impairment`, what netem is given in `testbed.netem.qdisc`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from typing import Any, ParamSpec

from testbed.spec.words import (
    DISTRIBUTIONS,
    FOUR_STATES,
    GILBERT_ELLIOTT,
    LAST_INDEX,
    MEAN,
    NUMBERS,
    RATE,
    SHAPE,
    SHARE,
    SIZE,
    TIME,
    TRUTH,
    TURNS,
    WHOLE,
    WIDEST_S,
    Kind,
    Slot,
)

# netem keeps the rate in unsigned 64-bit bytes a second.
_FASTEST_BPS = math.nextafter(8 * 2.0**64, 0)
# A token bucket that cannot hold a packet never passes it: 1500 bytes and an Ethernet header (tc-tbf(8), burst).
_FULL_PACKET_BYTES = 1514
# An Ethernet and an IPv4 header: no packet is shorter. netem reckons a shorter length than none as almost 2⁶⁴ bytes.
_SHORTEST_PACKET_BYTES = 34
_LONGEST_PACKET_BYTES = 65_535


@dataclass(frozen=True)
class Bounds:
    """The range of a feature's values, both ends included."""

    least: float
    most: float
    text: str = ""
    """How it is told: what stands behind "must"."""

    def __str__(self) -> str:
        return self.text or f"lie between {self.least:g} and {self.most:g}"

    def hold(self, value: float) -> bool:
        """Whether a value lies within."""
        return self.least <= value <= self.most


_IN_A_SLOT = Bounds(1, 2**31 - 2, "lie between 1 and 2³¹-2")  # the next is netem's word for no limit
_WITHOUT_SLOT = " has no effect: it limits what leaves in one"


@dataclass(frozen=True)
class Feature:
    """One row."""

    name: str
    """The user's word."""
    kind: Kind
    """How its values are read, written and checked."""
    help: str
    _: KW_ONLY
    field: str = ""
    """The field of an `Impairment`; that under which the row stands."""
    bounds: Bounds | None = None
    """The range of its values; None: that of its kind."""
    needs: tuple[str, ...] = ()
    """The words without which it means nothing; any one of them will do."""
    without: str = " has no effect"
    """How that is told: what stands behind "jitter without delay"."""
    fades: bool = True
    """Whether a step of a timeline that takes off what it needs takes it off, too."""
    random: bool = False
    """Whether netem draws random numbers for it."""
    sticky: bool = False
    """Whether netem keeps it where a change does not mention it (sch_netem.c, netem_change)."""
    kernels_own: bool = False
    """Whether the kernel chooses a value where none is asked for; 0 is then a value like any other."""
    since: str = ""
    """The version of Linux and tc that know it first, if some in use do not."""
    tc: str = ""
    """Its clause of tc-netem(8)'s line, with ``{}`` for the value; empty: it has none. What netem is given where that
    is not what was asked, `testbed.netem.qdisc` knows."""
    key: str = ""
    """Where ``tc -j qdisc show`` reports it: ``GROUP/KEY``; empty: nowhere, or `testbed.netem.readback` has a function
    of its own for it."""

    @property
    def range(self) -> Bounds:
        """The range of its values."""
        kind = self.kind
        return self.bounds or Bounds(kind.least, kind.most, f"lie between {kind.least:g} and {kind.most:g}{kind.unit}")

    def read(self, said: object) -> Any:
        """The value that the user wrote. Raises InvalidValueError."""
        return self.kind.read(said, self.name)

    def write(self, value: Any) -> str | int | bool:
        """As a profile says it."""
        return self.kind.write(value)

    def problems(self, value: Any) -> Iterator[str]:
        """What is wrong with a value by itself."""
        if self.kind.types and not self.range.hold(value):
            yield f"must {self.range}"
        else:
            yield from self.kind.odd(value)


_Row = ParamSpec("_Row")


def _metadata(make: Callable[_Row, Feature]) -> Callable[_Row, dict[str, Feature]]:
    return lambda *args, **words: {"feature": make(*args, **words)}


row = _metadata(Feature)
"""A `Feature` as the metadata of its field."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """The rows, each the field of an `Impairment` that it is about."""

    # fmt: off
    delay_s: float | None = field(default=None, metadata=row(
        "delay", TIME, "one-way delay, for example 40ms", tc="delay {}", key="delay/delay"))
    """One-way delay added to each packet; seconds, 0 to 3600."""
    jitter_s: float | None = field(default=None, metadata=row(
        "jitter", TIME, "spread of the delay, for example 5ms",
        bounds=Bounds(0, WIDEST_S, f"lie between 0 and {WIDEST_S:.7g} seconds, netem's widest spread"),
        needs=("delay",), without=": netem varies a delay; give the mean delay too", fades=False,
        random=True, tc="{}", key="delay/jitter"))
    """Spread of the delay: half width of the uniform distribution, scale of the others; seconds, 0 to 2.147."""
    delay_correlation: float | None = field(default=None, metadata=row(
        "correlation", SHARE, "correlation of a packet's delay with the delay of the packet before it, for example 25%",
        needs=("jitter",), sticky=True, tc="{}", key="delay/correlation"))
    """How much a packet's delay is drawn toward the one before it; 0 to less than 1. netem takes what it drew modulo
    twice the jitter, so that all but the largest correlations are lost: see `Impairment.realised`."""
    distribution: str = field(default="uniform", metadata=row(
        "distribution", SHAPE,
        "shape of the jitter: " + ", ".join(DISTRIBUTIONS) + ", or a table of your own, NAME.dist",
        needs=("jitter",), sticky=True, tc="distribution {}"))
    """Shape of the jitter: uniform; normal, pareto or paretonormal (tables of iproute2); or ``NAME.dist``, a table in
    their format (tc-netem(8)) in ``netem/`` beside the Compose file. The kernel does not report it."""
    reorder_by_jitter: bool = field(default=False, metadata=row(
        "reorder_by_jitter", TRUTH, "whether jitter may reorder packets (default: false)", needs=("jitter",)))
    """Whether a packet with a smaller delay may overtake; false keeps order, as queues do."""
    loss_ratio: float | None = field(default=None, metadata=row(
        "loss", SHARE, "share of packets lost at random, for example 2%",
        random=True, tc="loss {}", key="loss-random/loss"))
    """Share of packets lost; 0 to 1. Each independently, unless ``loss_burst_packets`` says otherwise."""
    loss_burst_packets: float | None = field(default=None, metadata=row(
        "burst", MEAN, "mean number of packets lost in a row (a Gilbert model with that mean loss), for example 3",
        bounds=Bounds(1, 1e6, "lie between 1 and 1e+06 packets"),
        needs=("loss",), without=": give the mean loss too"))
    """Mean number of packets lost in a row, at least 1: a Gilbert model with ``loss_ratio`` as its mean."""
    loss_gemodel: tuple[float, float, float, float] | None = field(default=None, metadata=row(
        "gemodel", GILBERT_ELLIOTT, 'Gilbert-Elliott loss, "p r 1-h 1-k", for example "1% 25%"',
        random=True, tc="loss gemodel {}", key="loss-gemodel"))
    """Gilbert-Elliott loss: p (good to bad), r (bad to good), 1-h (loss while bad), 1-k (loss while good)."""
    loss_state: tuple[float, float, float, float, float] | None = field(default=None, metadata=row(
        "loss_state", FOUR_STATES, 'loss by four states, "p13 p31 p32 p23 p14"',
        random=True, tc="loss state {}", key="loss-state"))
    """Loss by netem's Markov chain of four states: p13, p31, p32, p23, p14 (tc-netem(8))."""
    ecn: bool = field(default=False, metadata=row(
        "ecn", TRUTH, "mark packets that can carry an ECN mark instead of losing them",
        needs=("loss", "gemodel", "loss_state"), without=" has no effect: it marks what would be lost",
        sticky=True, tc="ecn", key="ecn"))
    """Mark packets that can carry an ECN mark (RFC 3168) in place of losing them."""
    duplicate_ratio: float | None = field(default=None, metadata=row(
        "duplicate", SHARE, "share of packets sent twice, for example 1%",
        random=True, tc="duplicate {}", key="duplicate/duplicate"))
    """Share of packets sent twice; 0 to 1."""
    reorder_ratio: float | None = field(default=None, metadata=row(
        "reorder", SHARE, "share of packets that skip the delay and overtake, for example 10%",
        needs=("delay",), without=": a packet overtakes by skipping the delay; give one", fades=False,
        random=True, sticky=True, tc="reorder {}", key="reorder/reorder"))
    """Share of packets that skip the delay and so overtake; 0 to 1. Needs a delay."""
    reorder_gap_packets: int | None = field(default=None, metadata=row(
        "gap", WHOLE, "only every Nth packet may overtake, for example 5",
        bounds=Bounds(1, 2**32 - 1, "be at least 1"), needs=("reorder",), tc="gap {}", key="gap"))
    """Only every Nth packet may overtake: 5 means the 5th, 10th, … with probability ``reorder_ratio``."""
    corrupt_ratio: float | None = field(default=None, metadata=row(
        "corrupt", SHARE, "share of packets with one bit flipped, for example 0.1%",
        random=True, sticky=True, tc="corrupt {}", key="corrupt/corrupt"))
    """Share of packets with one bit flipped; 0 to 1. Checksums then drop most of them at the receiver."""
    rate_bps: float | None = field(default=None, metadata=row(
        "rate", RATE, "rate of the link, for example 10mbit",
        bounds=Bounds(8, _FASTEST_BPS, "lie between 8 and 2⁶⁷ bit/s, netem's smallest and largest rate"),
        sticky=True, tc="rate {}", key="rate/rate"))
    """Rate at which packets leave, by their length on the wire; bits per second, above 0."""
    overhead_bytes: int | None = field(default=None, metadata=row(
        "overhead", WHOLE, "bytes that the rate counts per packet in addition, for example 24",
        bounds=Bounds(
            -_SHORTEST_PACKET_BYTES, _LONGEST_PACKET_BYTES,
            f"lie between -{_SHORTEST_PACKET_BYTES} (a packet of less than no bytes never leaves) and "
            f"{_LONGEST_PACKET_BYTES}, the longest packet",
        ),
        needs=("rate",), without=" has no effect: it is what the rate counts on top",
        tc="{}", key="rate/packetoverhead"))
    """Bytes that the rate counts for each packet on top of its length, as a link layer adds; may be negative."""
    bucket_bytes: int | None = field(default=None, metadata=row(
        "bucket", SIZE, "size of a token bucket that keeps the rate (tc-tbf), for example 16kB",
        bounds=Bounds(
            _FULL_PACKET_BYTES, 2**31 - 1,
            f"lie between {_FULL_PACKET_BYTES}, a full-size packet (a smaller bucket never passes one), and 2³¹-1",
        ),
        needs=("rate",), without=" has no effect: it is filled at the rate", sticky=True))
    """Size of a token bucket: the rate is then kept by tc-tbf(8), which lets so much pass at once after a pause."""
    queue_bytes: int | None = field(default=None, metadata=row(
        "queue", SIZE, "bytes that may wait for the token bucket, for example 64kB",
        bounds=Bounds(
            _FULL_PACKET_BYTES, 2**32 - 1, f"lie between {_FULL_PACKET_BYTES}, a full-size packet, and 2³²-1"
        ),
        needs=("bucket",),
        without=" has no effect: it is where packets wait for the bucket; netem's own is limit"))
    """Bytes that wait for the token bucket; None: what the rate carries in 100 ms, at least 64 full packets."""
    slot: Slot | None = field(default=None, metadata=row(
        "slot", TURNS, 'time between slots, in which packets leave together: 20ms, "20ms 25ms" or "normal 20ms 5ms"',
        random=True, sticky=True, tc="slot {}"))
    """When packets may leave, together; None: each by itself."""
    slot_packets: int | None = field(default=None, metadata=row(
        "slot_packets", WHOLE, "maximum number of packets that leave in one slot",
        bounds=_IN_A_SLOT, needs=("slot",), without=_WITHOUT_SLOT, tc="packets {}"))
    """The most packets that leave in one slot."""
    slot_bytes: int | None = field(default=None, metadata=row(
        "slot_bytes", SIZE, "maximum number of bytes that leave in one slot, for example 3kB",
        bounds=_IN_A_SLOT, needs=("slot",), without=_WITHOUT_SLOT, tc="bytes {}"))
    """The most bytes that leave in one slot."""
    drop_packets: tuple[tuple[int, int], ...] = field(default=(), metadata=row(
        "drop_packets", NUMBERS, 'packets to lose by their number on the link, from 1, for example [3, "17-20"]'))
    """Packets to lose by their number, first and last of each range; counted from 1 over the packets of the link (or
    of that part of its traffic that is impaired), from when the impairment was put there."""
    drop_every: int | None = field(default=None, metadata=row(
        "drop_every", WHOLE, "lose every Nth packet, for example 50",
        bounds=Bounds(2, LAST_INDEX, "lie between 2 and 2³¹-1; to lose everything, say loss=100%")))
    """Lose every Nth packet, counted likewise; at least 2."""
    limit_packets: int | None = field(default=None, metadata=row(
        "limit", WHOLE, "packets that the queue holds (default: sized from rate and delay)",
        bounds=Bounds(1, 2**32 - 1, "lie between 1 and 2³²-1; a queue of 0 passes nothing"),
        tc="limit {}", key="limit"))
    """Packets that the queue holds, those on their way included; None sizes it from rate and delay."""
    seed: int | None = field(default=None, metadata=row(
        "seed", WHOLE, "seed of the random numbers, for repeatable loss and jitter",
        bounds=Bounds(0, 2**64 - 1, "lie between 0 and 2⁶⁴-1"), kernels_own=True, since="6.6",
        tc="seed {}", key="seed"))
    """Seed of the kernel's random numbers for this link; 0 to 2⁶⁴-1. None: the kernel draws one."""
    # fmt: on


FEATURES = tuple(replace(each.metadata["feature"], field=each.name) for each in fields(Features))
"""Every row, in the order in which the words are written."""
WORDS = {feature.name: feature for feature in FEATURES}
"""The same, by the user's word."""
