"""An account of messages: what became of them in each direction, why, and the verdict. Pure values.

Each message is delivered, late, truncated, corrupt or lost, exactly one of these; duplicates and reordering are
counted separately. Every message that was not delivered whole has a cause.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from testbed.evidence.verdict import Verdict
from testbed.judge.metrics import Distribution, LossRuns, goodput_bps


class Cause(StrEnum):
    """Why a message was not delivered whole."""

    NETWORK = "dropped by the network"
    CHECKSUM = "discarded by the receiver's kernel for its checksum (InCsumErrors): corrupted on the way"
    RECEIVE_BUFFER = "refused by the receiver's kernel: full socket buffer (RcvbufErrors)"
    NO_PORT = "refused by the receiver's kernel: nobody had the port open (NoPorts)"
    LISTEN_QUEUE = "refused by the receiver's kernel: full listener queue (ListenOverflows, ListenDrops)"
    NEVER_HANDED = "never handed to the kernel by the sender"
    PARTLY_HANDED = "only partly taken by the sender's kernel, and not sent again"
    CUT_BY_RECV = "cut off by the receiver's recv"
    DESTROYED_BY_CLOSE = "destroyed by the receiver's close before it was read (RST)"
    NOT_ACCEPTED = "its connection was never accepted"
    CONNECTION_LOST = "its connection broke"
    GAVE_UP = "the sender gave up while it was under way"
    CORRUPTED = "corrupted on the way"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What a run must keep to pass. The defaults are TCP's promise: every message once and whole."""

    messages: int | None = None
    """Messages that each flow was to send; those not even tried count as never handed. None: as many as it tried."""
    most_lost_ratio: float = 0.0
    """Lost, truncated and corrupt, of those sent."""
    most_duplicate_ratio: float = 0.0
    most_reordered_ratio: float = 1.0
    late_after_s: float | None = None
    """The one-way delay beyond which a message counts as late. None: never."""
    most_late_ratio: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Balance:
    """An equation that must hold, or the result is INVALID."""

    name: str
    left: int
    right: int
    at_least: bool = False
    """Whether left may exceed right."""

    @property
    def holds(self) -> bool:
        """Whether it does."""
        return self.left >= self.right if self.at_least else self.left == self.right

    def __str__(self) -> str:
        return f"{self.name}: {self.left:,} {'≥' if self.at_least else '='} {self.right:,}"


@dataclass(frozen=True, kw_only=True)
class DirectionAccount:
    """The messages from one host to another, all flows together."""

    src: str
    dst: str
    transport: str
    sent: int
    """Messages that the sender tried to send, each counted once."""
    delivered: int
    """Whole and in time."""
    late: int
    truncated: int
    corrupt: int
    lost: int
    duplicates: int
    """Further whole copies of messages that had arrived."""
    resent: int
    """How often the sender sent a message again."""
    unreadable: int
    """Arrivals that cannot be matched with a message."""
    causes: Mapping[Cause, int]
    """Of those truncated, corrupt or lost; for datagrams, of lost control datagrams too."""
    control_lost: int
    """Lost datagrams that carried no message (a flow's end, hello)."""
    runs: LossRuns
    """Of the lost messages of all flows, one flow after the other."""
    delay: Distribution
    """One-way delay of whole messages (RFC 7679)."""
    ipdv: Distribution
    """Magnitude of the delay variation between messages sent and received consecutively (RFC 3393)."""
    reordered: int
    extents: Mapping[int, int]
    """Number of arrivals by reordering extent (RFC 4737, 4.2)."""
    degrees: Mapping[int, int]
    """Number of arrivals by the n of their n-reordering (RFC 4737, 5)."""
    head_of_line: Distribution
    """How long messages of a stream waited for their predecessor: its arrival, less the time at which the message
    alone would have arrived (its sending and the least delay of its flow)."""
    stalls: int
    """Pauses between arrivals within a flow longer than the oracle's ``stall_s``."""
    stalled_s: float
    longest_pause_s: float
    received_bytes: int
    """Of whole messages, each once."""
    duration_s: float
    """From the first sending to the last arrival."""

    @property
    def arrived(self) -> int:
        """Delivered and late together."""
        return self.delivered + self.late

    @property
    def missing(self) -> int:
        """Lost, truncated and corrupt together."""
        return self.lost + self.truncated + self.corrupt

    @property
    def loss_ratio(self) -> float | None:
        """Lost of sent (RFC 7680, 4.1); None if nothing was sent."""
        return self.lost / self.sent if self.sent else None

    @property
    def duplicate_ratio(self) -> float | None:
        """Further copies of messages that arrived (RFC 5560); None if nothing arrived."""
        return self.duplicates / self.arrived if self.arrived else None

    @property
    def reordered_ratio(self) -> float | None:
        """Reordered of arrived (RFC 4737, 4.1); None if nothing arrived."""
        return self.reordered / self.arrived if self.arrived else None

    @property
    def goodput_bps(self) -> float | None:
        """Bits per second of whole messages."""
        return goodput_bps(self.received_bytes, self.duration_s)

    def __str__(self) -> str:
        names = ("late", "truncated", "corrupt", "lost", "duplicates", "resent", "reordered")
        counts = [f"{self.delivered:,} of {self.sent:,} delivered"]
        counts += [f"{getattr(self, name):,} {name}" for name in names if getattr(self, name)]
        return f"{self.src} -> {self.dst} ({self.transport}): {', '.join(counts)}"

    def as_json(self) -> dict[str, Any]:
        """For a results file."""
        counts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            **{name: value for name, value in counts.items() if isinstance(value, int | float | str)},
            "loss_ratio": self.loss_ratio,
            "duplicate_ratio": self.duplicate_ratio,
            "reordered_ratio": self.reordered_ratio,
            "goodput_bps": self.goodput_bps,
            "causes": {cause.name: count for cause, count in self.causes.items()},
            "loss_runs": list(self.runs.lengths),
            "reordering_extents": dict(sorted(self.extents.items())),
            "delay": _distribution_json(self.delay, self.missing),
            "ipdv": _distribution_json(self.ipdv, 0),
            "head_of_line": _distribution_json(self.head_of_line, 0),
        }


@dataclass(frozen=True, kw_only=True)
class Account:
    """The oracle's answer."""

    verdict: Verdict
    reasons: tuple[str, ...]
    """Why it is not PASS; empty if it is."""
    directions: tuple[DirectionAccount, ...]
    balances: tuple[Balance, ...]
    network: tuple[str, ...]
    """Sentences about the network: its drops and retransmissions, also those that cost no message."""
    connect: Mapping[str, Distribution]
    """Time to connect, by the host that connected (TCP)."""
    first_byte: Mapping[str, Distribution]
    """From the begin of connecting to the first message that came back, by the host that connected."""
    errors: Mapping[str, Counter[str]]
    """Failed operations and how often each failed, by host."""

    def direction(self, src: str, dst: str) -> DirectionAccount:
        """The messages from one host to another. Raises KeyError if there were none."""
        for direction in self.directions:
            if (direction.src, direction.dst) == (src, dst):
                return direction
        raise KeyError(f"no messages from {src} to {dst}; there are {[f'{d.src} -> {d.dst}' for d in self.directions]}")

    @property
    def passed(self) -> bool:
        """Whether it is PASS."""
        return self.verdict is Verdict.HOLDS

    @property
    def causes(self) -> Counter[Cause]:
        """Of all messages that were not delivered whole, in all directions."""
        total: Counter[Cause] = Counter()
        for direction in self.directions:
            total.update(direction.causes)
        return total

    def __str__(self) -> str:
        lines = [self.verdict.of("account"), *(f"  {reason}" for reason in self.reasons)]
        for direction in self.directions:
            lines.append(str(direction))
            lines += [f"  {count:,} {cause}" for cause, count in direction.causes.items()]
        return "\n".join([*lines, *self.network])

    def as_json(self) -> dict[str, Any]:
        """For a results file."""
        return {
            "verdict": self.verdict.of("account"),
            "reasons": list(self.reasons),
            "directions": [direction.as_json() for direction in self.directions],
            "balances": [{"text": str(balance), "holds": balance.holds} for balance in self.balances],
            "network": list(self.network),
            "connect": {host: _distribution_json(times, 0) for host, times in self.connect.items()},
            "first_byte": {host: _distribution_json(times, 0) for host, times in self.first_byte.items()},
            "errors": {host: dict(counts) for host, counts in self.errors.items()},
        }


def _distribution_json(times: Distribution, lost: int) -> dict[str, Any]:
    body: dict[str, Any] = {"count": times.count, "min_s": times.min_s, "mean_s": times.mean_s, "max_s": times.max_s}
    for q in (0.5, 0.95, 0.99):
        quantile = times.quantile(q, lost=lost)
        # JSON has no infinity: a quantile among the lost, and an unbounded side of the interval, are null.
        body[f"p{100 * q:g}"] = quantile and {
            name: value if math.isfinite(value) else None
            for name, value in (("value_s", quantile.value), ("low_s", quantile.low), ("high_s", quantile.high))
        }
    return body
