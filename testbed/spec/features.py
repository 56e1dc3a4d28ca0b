"""What netem can do to a link: one row per feature.

The row gives the word of profiles, markers and the command line, the help and the line in the documentation, the
range, whether a timeline may ramp it, the clause of tc's line, the read-back, and the values that tests draw. Special
cases are functions elsewhere: kinds of values in `testbed.spec.words`, combinations in `testbed.spec.impairment`, what
netem is given in `testbed.netem.qdisc`.
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
    Slot,
    ValueKind,
)

# netem keeps the rate in unsigned 64-bit bytes per second.
_FASTEST_BPS = math.nextafter(8 * 2.0**64, 0)
# A token bucket never passes a packet larger than itself: 1500 bytes and an Ethernet header (tc-tbf(8), burst).
_FULL_PACKET_BYTES = 1514
# An Ethernet and an IPv4 header: no packet is shorter. netem takes a negative length for almost 2⁶⁴ bytes.
_SHORTEST_PACKET_BYTES = 34
_LONGEST_PACKET_BYTES = 65_535


@dataclass(frozen=True)
class Bounds:
    """The range of a feature's values, both ends included."""

    least: float
    most: float
    text: str = ""
    """The words behind "must" in messages."""

    def __str__(self) -> str:
        return self.text or f"lie between {self.least:g} and {self.most:g}"

    def hold(self, value: float) -> bool:
        """Whether a value lies within."""
        return self.least <= value <= self.most


_IN_A_SLOT = Bounds(1, 2**31 - 2, "lie between 1 and 2³¹-2")  # to netem, 2³¹-1 means no limit
_WITHOUT_SLOT = " has no effect: it limits what leaves in one"


@dataclass(frozen=True)
class Feature:
    """One row."""

    name: str
    """The user's word."""
    kind: ValueKind
    """How its values are read, written and checked."""
    help: str
    _: KW_ONLY
    field: str = ""
    """The field of an `Impairment` that the row belongs to."""
    bounds: Bounds | None = None
    """The range of the values; None: the kind's range."""
    needs: tuple[str, ...] = ()
    """It means nothing without one of these words."""
    without: str = " has no effect"
    """The end of the message "jitter without delay"."""
    fades: bool = True
    """Whether a step of a timeline that removes what it needs removes it, too."""
    random: bool = False
    """Whether netem draws random numbers for it."""
    sticky: bool = False
    """Whether netem keeps it when a change does not mention it (sch_netem.c, netem_change)."""
    kernels_own: bool = False
    """Whether the kernel chooses a value if none is given; 0 is then a value like any other."""
    since: str = ""
    """The first version of Linux and tc that know it, if older ones are in use."""
    tc: str = ""
    """The clause of tc-netem(8)'s line, with ``{}`` for the value; empty: none. Where netem is given another value,
    `testbed.netem.qdisc` computes it."""
    key: tuple[str, ...] = ()
    """Where ``tc -j qdisc show`` reports it, key by key; empty: nowhere, or by a function of `netem.readback`."""

    @property
    def range(self) -> Bounds:
        """The range of the values."""
        kind = self.kind
        return self.bounds or Bounds(kind.least, kind.most, f"lie between {kind.least:g} and {kind.most:g}{kind.unit}")

    def read(self, written: object) -> Any:
        """The value of what the user wrote. Raises InvalidValueError."""
        return self.kind.read(written, self.name)

    def write(self, value: Any) -> str | int | bool:
        """The value as a profile has it."""
        return self.kind.write(value)

    def problems(self, value: Any) -> Iterator[str]:
        """What is wrong with a value, whatever stands beside it."""
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
    """The rows, as the fields of an `Impairment`."""

    # fmt: off
    delay_s: float | None = field(default=None, metadata=row(
        "delay", TIME, "one-way delay, for example 40ms", tc="delay {}", key=("delay", "delay")))
    """One-way delay added to each packet; seconds, 0 to 3600."""
    jitter_s: float | None = field(default=None, metadata=row(
        "jitter", TIME, "spread of the delay, for example 5ms",
        bounds=Bounds(0, WIDEST_S, f"lie between 0 and {WIDEST_S:.7g} seconds, netem's widest spread"),
        needs=("delay",), without=": netem varies a delay; give the mean delay too", fades=False,
        random=True, tc="{}", key=("delay", "jitter")))
    """Spread of the delay: half width of the uniform distribution, scale of the others; seconds, 0 to 2.147."""
    delay_correlation: float | None = field(default=None, metadata=row(
        "correlation", SHARE, "correlation of a packet's delay with the delay of the packet before it, for example 25%",
        needs=("jitter",), sticky=True, tc="{}", key=("delay", "correlation")))
    """How much a packet's delay resembles the one before it; 0 to less than 1. netem takes its draws modulo twice the
    jitter, so that all but the largest correlations are lost: see `Impairment.realised`."""
    distribution: str = field(default="uniform", metadata=row(
        "distribution", SHAPE,
        "shape of the jitter: " + ", ".join(DISTRIBUTIONS) + ", or your own table, NAME.dist",
        needs=("jitter",), sticky=True, tc="distribution {}"))
    """Shape of the jitter: uniform; normal, pareto or paretonormal (tables of iproute2); or ``NAME.dist``, a table in
    their format (tc-netem(8)) in ``netem/`` beside the Compose file. The kernel does not report it."""
    reorder_by_jitter: bool = field(default=False, metadata=row(
        "reorder_by_jitter", TRUTH, "whether jitter may reorder packets (default: false)", needs=("jitter",)))
    """Whether a packet with a smaller delay may overtake; false keeps the order, as queues do."""
    loss_ratio: float | None = field(default=None, metadata=row(
        "loss", SHARE, "share of packets lost at random, for example 2%",
        random=True, tc="loss {}", key=("loss-random", "loss")))
    """Share of packets lost; 0 to 1. Losses are independent, unless ``loss_burst_packets`` is given."""
    loss_burst_packets: float | None = field(default=None, metadata=row(
        "burst", MEAN, "mean number of packets lost in a row (a Gilbert model with that mean loss), for example 3",
        bounds=Bounds(1, 1e6, "lie between 1 and 1e+06 packets"),
        needs=("loss",), without=": give the mean loss too"))
    """Mean number of packets lost in a row, at least 1: a Gilbert model with ``loss_ratio`` as its mean."""
    loss_gemodel: tuple[float, float, float, float] | None = field(default=None, metadata=row(
        "gemodel", GILBERT_ELLIOTT, 'Gilbert-Elliott loss, "p r 1-h 1-k", for example "1% 25%"',
        random=True, tc="loss gemodel {}", key=("loss-gemodel",)))
    """Gilbert-Elliott loss: p (good to bad), r (bad to good), 1-h (loss while bad), 1-k (loss while good)."""
    loss_state: tuple[float, float, float, float, float] | None = field(default=None, metadata=row(
        "loss_state", FOUR_STATES, 'loss by four states, "p13 p31 p32 p23 p14"',
        random=True, tc="loss state {}", key=("loss-state",)))
    """Loss by netem's Markov chain of four states: p13, p31, p32, p23, p14 (tc-netem(8))."""
    ecn: bool = field(default=False, metadata=row(
        "ecn", TRUTH, "mark packets that can carry an ECN mark instead of losing them",
        needs=("loss", "gemodel", "loss_state"), without=" has no effect: it marks packets that would be lost",
        sticky=True, tc="ecn", key=("ecn",)))
    """Mark packets that can carry an ECN mark (RFC 3168) instead of losing them."""
    duplicate_ratio: float | None = field(default=None, metadata=row(
        "duplicate", SHARE, "share of packets sent twice, for example 1%",
        random=True, tc="duplicate {}", key=("duplicate", "duplicate")))
    """Share of packets sent twice; 0 to 1."""
    reorder_ratio: float | None = field(default=None, metadata=row(
        "reorder", SHARE, "share of packets that skip the delay and overtake, for example 10%",
        needs=("delay",), without=": a packet overtakes by skipping the delay; give one", fades=False,
        random=True, sticky=True, tc="reorder {}", key=("reorder", "reorder")))
    """Share of packets that skip the delay and so overtake; 0 to 1. Needs a delay."""
    reorder_gap_packets: int | None = field(default=None, metadata=row(
        "gap", WHOLE, "only every Nth packet may overtake, for example 5",
        bounds=Bounds(1, 2**32 - 1, "be at least 1"), needs=("reorder",), tc="gap {}", key=("gap",)))
    """Only every Nth packet may overtake: 5 means the 5th, 10th, … with probability ``reorder_ratio``."""
    corrupt_ratio: float | None = field(default=None, metadata=row(
        "corrupt", SHARE, "share of packets with one bit flipped, for example 0.1%",
        random=True, sticky=True, tc="corrupt {}", key=("corrupt", "corrupt")))
    """Share of packets with one bit flipped; 0 to 1. Checksums then drop most of them at the receiver."""
    rate_bps: float | None = field(default=None, metadata=row(
        "rate", RATE, "rate of the link, for example 10mbit",
        bounds=Bounds(8, _FASTEST_BPS, "lie between 8 and 2⁶⁷ bit/s, netem's smallest and largest rate"),
        sticky=True, tc="rate {}", key=("rate", "rate")))
    """Rate at which packets leave, by their length on the wire; bits per second, above 0."""
    overhead_bytes: int | None = field(default=None, metadata=row(
        "overhead", WHOLE, "bytes that the rate counts per packet in addition, for example 24",
        bounds=Bounds(
            -_SHORTEST_PACKET_BYTES, _LONGEST_PACKET_BYTES,
            f"lie between -{_SHORTEST_PACKET_BYTES} (a packet of negative length never leaves) and "
            f"{_LONGEST_PACKET_BYTES}, the longest packet",
        ),
        needs=("rate",), without=" has no effect: it adds to what the rate counts",
        tc="{}", key=("rate", "packetoverhead")))
    """Bytes that the rate counts per packet in addition to its length, as a link layer adds; may be negative."""
    bucket_bytes: int | None = field(default=None, metadata=row(
        "bucket", SIZE, "size of a token bucket that keeps the rate (tc-tbf), for example 16kB",
        bounds=Bounds(
            _FULL_PACKET_BYTES, 2**31 - 1,
            f"lie between {_FULL_PACKET_BYTES}, a full-size packet (a smaller bucket never passes one), and 2³¹-1",
        ),
        needs=("rate",), without=" has no effect: it is filled at the rate", sticky=True))
    """Size of a token bucket: tc-tbf(8) then keeps the rate, and passes this much at once after a pause; bytes."""
    queue_bytes: int | None = field(default=None, metadata=row(
        "queue", SIZE, "bytes that may wait for the token bucket, for example 64kB",
        bounds=Bounds(
            _FULL_PACKET_BYTES, 2**32 - 1, f"lie between {_FULL_PACKET_BYTES}, a full-size packet, and 2³²-1"
        ),
        needs=("bucket",),
        without=" has no effect: packets wait in it for the bucket; netem's own queue is limit"))
    """Bytes that may wait for the token bucket; None: what the rate carries in 100 ms, at least 64 full packets."""
    slot: Slot | None = field(default=None, metadata=row(
        "slot", TURNS, 'time between slots, in which packets leave together: 20ms, "20ms 25ms" or "normal 20ms 5ms"',
        random=True, sticky=True, tc="slot {}"))
    """When packets may leave together; None: at any time."""
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
    """Packets to lose by their number: first and last of each range. Counted from 1 over the packets of the link (or
    of the part of its traffic that is impaired) since the impairment was installed."""
    drop_every: int | None = field(default=None, metadata=row(
        "drop_every", WHOLE, "lose every Nth packet, for example 50",
        bounds=Bounds(2, LAST_INDEX, "lie between 2 and 2³¹-1; to lose everything, say loss=100%")))
    """Lose every Nth packet, counted in the same way; at least 2."""
    limit_packets: int | None = field(default=None, metadata=row(
        "limit", WHOLE, "packets that the queue holds (default: sized from rate and delay)",
        bounds=Bounds(1, 2**32 - 1, "lie between 1 and 2³²-1; a queue of 0 passes nothing"),
        tc="limit {}", key=("limit",)))
    """Packets that the queue holds, delayed ones included; None sizes it from rate and delay."""
    seed: int | None = field(default=None, metadata=row(
        "seed", WHOLE, "seed of the random numbers, for repeatable loss and jitter",
        bounds=Bounds(0, 2**64 - 1, "lie between 0 and 2⁶⁴-1"), kernels_own=True, since="6.6",
        tc="seed {}", key=("seed",)))
    """Seed of the kernel's random numbers for this link; 0 to 2⁶⁴-1. None: the kernel draws one."""
    # fmt: on


FEATURES = tuple(replace(entry.metadata["feature"], field=entry.name) for entry in fields(Features))
"""Every row, in the order of the words."""
WORDS = {feature.name: feature for feature in FEATURES}
"""Every row, by the user's word."""
