"""What the oracle remembers of flows, connections and hosts while rows come in."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from testbed.evidence.journal import JournalRow
from testbed.judge.metrics import Distribution, Reordering


@dataclass(slots=True)
class MessageFlow:
    """One flow: its missing messages, and its counts."""

    number: int
    sender: str | None = None
    receiver: str | None = None
    missing: dict[int, JournalRow] = field(default_factory=dict)
    """Sent and not arrived whole, by sequence number: the row of the sending; the last one, if it was resent."""
    damaged: dict[int, JournalRow] = field(default_factory=dict)
    """Arrivals of missing messages that were truncated or corrupt."""
    early: dict[int, JournalRow] = field(default_factory=dict)
    """Arrivals whose sending is not read yet."""
    skipped: set[int] = field(default_factory=set)
    """Below ``top`` and never sent."""
    top: int = 0
    """One more than the largest sequence number sent."""
    sent: int = 0
    resent: int = 0
    whole: int = 0
    whole_bytes: int = 0
    late: int = 0
    order: Reordering = field(default_factory=Reordering)
    delay: Distribution = field(default_factory=Distribution)
    ipdv: Distribution = field(default_factory=Distribution)
    head_of_line: Distribution = field(default_factory=Distribution)
    delays_ns: list[int] = field(default_factory=list)
    variations_ns: list[int] = field(default_factory=list)
    waits_ns: list[int] = field(default_factory=list)
    least_delay_ns: int = 1 << 62
    last_delay_ns: int = 0
    last_sequence: int = -2
    last_ns: int = 0
    """The last arrival in order."""
    latest_ns: int = 0
    """The latest arrival."""
    first_ns: int | None = None
    """The first sending."""
    stalls: int = 0
    stalled_ns: int = 0
    longest_pause_ns: int = 0

    def settle(self) -> None:
        """Add the times that came in since the last call to the distributions."""
        for distribution, times in (
            (self.delay, self.delays_ns),
            (self.ipdv, self.variations_ns),
            (self.head_of_line, self.waits_ns),
        ):
            distribution.extend(times)
            times.clear()

    @property
    def state(self) -> int:
        """Number of remembered items, not counting the bounded buckets of distributions."""
        return len(self.missing) + len(self.damaged) + len(self.early) + len(self.skipped) + self.order.state


@dataclass
class ConnectionRecord:
    """One connection, as one side saw it."""

    opened_ns: int = 0
    connected: bool = False
    local: str = ""
    peer: str = ""
    why: str | None = None
    """Why it was closed; None if it was not."""
    errors: list[str] = field(default_factory=list)
    first_back: bool = False


@dataclass
class HostRecord:
    """A host's journal apart from its messages."""

    transport: str
    connections: dict[int, ConnectionRecord] = field(default_factory=dict)
    connect: Distribution = field(default_factory=Distribution)
    first_byte: Distribution = field(default_factory=Distribution)
    errors: Counter[str] = field(default_factory=Counter)
    control_sent: Counter[int] = field(default_factory=Counter)
    """Datagrams without a message, by flow."""
    control_received: Counter[int] = field(default_factory=Counter)
    unreadable: int = 0
    taken_messages: int = 0
    largest: int = 0
    cut_short: str | None = None

    def connection(self, number: int) -> ConnectionRecord:
        """The connection of a number, remembered from now on."""
        return self.connections.setdefault(number, ConnectionRecord())
