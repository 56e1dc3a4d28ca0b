"""What became of every message, and why: conservation, from the journals of both sides and the kernel's counters.

Each message is delivered, late, truncated, corrupt or lost, exactly one of them; duplicates and reordering are
counted beside. Each that is not delivered whole has a cause. The sums must balance, or the result is INVALID. Pure;
streaming: what is remembered grows with messages that are missing, not with those that arrived.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from testbed import units
from testbed.evidence.journal import Journal, Row
from testbed.evidence.observed import Evidence
from testbed.evidence.verdict import Verdict, worst
from testbed.judge.metrics import Arrival, Distribution, LossRuns, Reordering, goodput_bps, loss_runs

_MOST_PROBLEMS = 10
_TIMES_AT_ONCE = 256
_UNFRAGMENTED_BYTES = 1472  # of UDP payload in an MTU of 1500


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
    """What a run must keep to pass. The defaults are TCP's promise: all, once, whole."""

    messages: int | None = None
    """How many messages each flow was to send; what it did not even try counts as never handed. None: what it tried."""
    most_lost_ratio: float = 0.0
    """Lost, truncated and corrupt, of those sent."""
    most_duplicate_ratio: float = 0.0
    most_reordered_ratio: float = 1.0
    late_after_s: float | None = None
    """The one-way delay after which a message is of no more use. None: it is never too late."""
    most_late_ratio: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Balance:
    """An equation that must hold, or the result is INVALID."""

    name: str
    left: int
    right: int
    at_least: bool = False
    """Whether left may be more than right."""

    @property
    def holds(self) -> bool:
        """Whether it does."""
        return self.left >= self.right if self.at_least else self.left == self.right

    def __str__(self) -> str:
        return f"{self.name}: {self.left:,} {'≥' if self.at_least else '='} {self.right:,}"


@dataclass(frozen=True, kw_only=True)
class Direction:
    """What became of the messages from one host to another: all flows of that way together."""

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
    """Arrivals of which one cannot tell what they were."""
    causes: Mapping[Cause, int]
    """Of those truncated, corrupt or lost; of datagrams, those that carried no message among them."""
    control_lost: int
    """Datagrams without a message (a flow's end, hello) that did not arrive."""
    runs: LossRuns
    """Of the lost messages of all flows, one after the other."""
    delay: Distribution
    """One-way delay of whole messages (RFC 7679)."""
    ipdv: Distribution
    """Magnitude of the delay variation between messages sent and received one after the other (RFC 3393)."""
    reordered: int
    extents: Mapping[int, int]
    """Reordering extents and how often each occurred (RFC 4737, 4.2)."""
    degrees: Mapping[int, int]
    """n of n-reordering, and how often (RFC 4737, 5)."""
    head_of_line: Distribution
    """How long messages of a stream waited for the one before: from when each alone would have arrived, which is the
    least delay of its flow after it was sent, to the arrival of its predecessor."""
    stalls: int
    """Pauses between arrivals within a flow longer than the oracle's ``stall_s``."""
    stalled_s: float
    longest_pause_s: float
    received_bytes: int
    """Of whole messages, each once."""
    duration_s: float
    """From the first sending to the last arrival."""

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
        arrived = self.delivered + self.late
        return self.duplicates / arrived if arrived else None

    @property
    def reordered_ratio(self) -> float | None:
        """Reordered of arrived (RFC 4737, 4.1); None if nothing arrived."""
        arrived = self.delivered + self.late
        return self.reordered / arrived if arrived else None

    @property
    def goodput_bps(self) -> float | None:
        """Bits a second of whole messages."""
        return goodput_bps(self.received_bytes, self.duration_s)

    def __str__(self) -> str:
        words = [f"{self.delivered:,} of {self.sent:,} delivered"]
        names = ("late", "truncated", "corrupt", "lost", "duplicates", "resent", "reordered")
        words += [f"{getattr(self, name):,} {name}" for name in names if getattr(self, name)]
        return f"{self.src} -> {self.dst} ({self.transport}): {', '.join(words)}"


@dataclass(frozen=True, kw_only=True)
class Account:
    """The oracle's answer."""

    verdict: Verdict
    reasons: tuple[str, ...]
    """Why it is not PASS; empty if it is."""
    directions: tuple[Direction, ...]
    balances: tuple[Balance, ...]
    network: tuple[str, ...]
    """What the network did that cost no message, or was observed of it, in words."""
    connect: Mapping[str, Distribution]
    """Time to connect, by the host that did (TCP)."""
    first_byte: Mapping[str, Distribution]
    """From the beginning of connecting to the first message that came back, by the host that connected."""
    errors: Mapping[str, Counter[str]]
    """Operations that failed, by host, and how often."""

    def direction(self, src: str, dst: str) -> Direction:
        """The messages from one host to another. Raises KeyError if there were none."""
        for each in self.directions:
            if (each.src, each.dst) == (src, dst):
                return each
        raise KeyError(f"no messages from {src} to {dst}; there are {[f'{d.src} -> {d.dst}' for d in self.directions]}")

    @property
    def passed(self) -> bool:
        """Whether it is PASS."""
        return self.verdict is Verdict.HOLDS

    @property
    def causes(self) -> Counter[Cause]:
        """Of everything that was not delivered whole, in all directions."""
        whole: Counter[Cause] = Counter()
        for each in self.directions:
            whole.update(each.causes)
        return whole

    def __str__(self) -> str:
        lines = [self.verdict.of("account"), *(f"  {reason}" for reason in self.reasons)]
        for each in self.directions:
            lines.append(str(each))
            lines += [f"  {count:,} {cause}" for cause, count in each.causes.items()]
        return "\n".join([*lines, *self.network])

    def as_json(self) -> dict[str, Any]:
        """For a results file."""
        return {
            "verdict": self.verdict.of("account"),
            "reasons": list(self.reasons),
            "directions": [_direction_json(each) for each in self.directions],
            "balances": [{"text": str(each), "holds": each.holds} for each in self.balances],
            "network": list(self.network),
            "connect": {host: _times_json(times, 0) for host, times in self.connect.items()},
            "first_byte": {host: _times_json(times, 0) for host, times in self.first_byte.items()},
            "errors": {host: dict(counted) for host, counted in self.errors.items()},
        }


_PLAIN = (
    "src", "dst", "transport", "sent", "delivered", "late", "truncated", "corrupt", "lost", "duplicates", "resent",
    "unreadable", "control_lost", "reordered", "loss_ratio", "duplicate_ratio", "reordered_ratio", "stalls",
    "stalled_s", "longest_pause_s", "received_bytes", "duration_s", "goodput_bps",
)  # fmt: skip


def _direction_json(direction: Direction) -> dict[str, Any]:
    return {
        **{name: getattr(direction, name) for name in _PLAIN},
        "causes": {cause.name: count for cause, count in direction.causes.items()},
        "loss_runs": list(direction.runs.lengths),
        "reordering_extents": dict(sorted(direction.extents.items())),
        "delay": _times_json(direction.delay, direction.missing),
        "ipdv": _times_json(direction.ipdv, 0),
        "head_of_line": _times_json(direction.head_of_line, 0),
    }


def _times_json(times: Distribution, lost: int) -> dict[str, Any]:
    found: dict[str, Any] = {"count": times.count, "min_s": times.min_s, "mean_s": times.mean_s, "max_s": times.max_s}
    for q in (0.5, 0.95, 0.99):
        each = times.quantile(q, lost=lost)
        # JSON has no infinity: a quantile among the lost, and a bound that is none, are null.
        found[f"p{100 * q:g}"] = each and {
            name: value if abs(value) != float("inf") else None
            for name, value in (("value_s", each.value), ("low_s", each.low), ("high_s", each.high))
        }
    return found


# --- what is remembered while rows come in ---------------------------------------------------------


class _Flow:
    """One flow: what is missing of it, and its counts."""

    __slots__ = (
        "damaged", "delay", "delays", "early", "first_ns", "head_of_line", "ipdv", "last_delay", "last_ns",
        "last_sequence", "late", "latest_ns", "least_delay", "longest_pause", "missing", "number", "order", "receiver",
        "resent", "sender", "sent", "skipped", "stalled", "stalls", "top", "variations", "waits", "whole",
        "whole_bytes",
    )  # fmt: skip

    def __init__(self, number: int) -> None:
        self.number = number
        self.sender: str | None = None
        self.receiver: str | None = None
        self.missing: dict[int, Row] = {}
        """Sent and not arrived whole: the row of the sending, of the last one if it was sent again."""
        self.damaged: dict[int, Row] = {}
        """What came of missing ones: truncated or corrupt."""
        self.early: dict[int, Row] = {}
        """Arrived, but the row of the sending is not read yet."""
        self.skipped: set[int] = set()
        """Below ``top`` and never sent."""
        self.top = 0
        """One more than the largest sequence number sent."""
        self.sent = self.resent = self.whole = self.late = 0
        self.whole_bytes = 0
        self.delay, self.ipdv, self.head_of_line = Distribution(), Distribution(), Distribution()
        self.delays: list[int] = []
        self.variations: list[int] = []
        self.waits: list[int] = []
        self.order = Reordering()
        self.least_delay = 1 << 62
        self.last_delay = self.last_ns = self.latest_ns = 0
        self.last_sequence = -2
        self.first_ns: int | None = None
        self.stalls = self.stalled = self.longest_pause = 0

    def settle(self) -> None:
        """Count the times that came in since the last call."""
        for into, values in ((self.delay, self.delays), (self.ipdv, self.variations), (self.head_of_line, self.waits)):
            into.extend(values)
            values.clear()

    @property
    def state(self) -> int:
        """How many things are remembered, but for counts in a bounded number of buckets."""
        return len(self.missing) + len(self.damaged) + len(self.early) + len(self.skipped) + self.order.state


@dataclass
class _Conn:
    """One connection, as one side saw it."""

    number: int
    opened_ns: int = 0
    connected: bool = False
    local: str = ""
    peer: str = ""
    why: str | None = None
    """Of its close; None if it was not closed."""
    unread: int = 0
    unsent: int = 0
    errors: list[str] = field(default_factory=list)
    first_back: bool = False


@dataclass
class _Side:
    """What one journal says apart from messages."""

    transport: str
    conns: dict[int, _Conn] = field(default_factory=dict)
    connect: Distribution = field(default_factory=Distribution)
    first_byte: Distribution = field(default_factory=Distribution)
    errors: Counter[str] = field(default_factory=Counter)
    control: dict[tuple[int, str], int] = field(default_factory=dict)
    unreadable: int = 0
    taken_messages: int = 0
    largest: int = 0
    cut_short: str | None = None

    def conn(self, number: int) -> _Conn:
        if number not in self.conns:
            self.conns[number] = _Conn(number)
        return self.conns[number]


class Oracle:
    """Takes rows of journals as they come, from all sides, in about the order of their times; then judges."""

    def __init__(self, *, expect: Expectation | None = None, stall_s: float = 0.1) -> None:
        self.expect = expect or Expectation()
        self._stall_ns = round(stall_s * 1e9)
        self._late_ns = 1 << 62 if self.expect.late_after_s is None else round(self.expect.late_after_s * 1e9)
        self._flows: dict[int, _Flow] = {}
        self._sides: dict[str, _Side] = {}
        self._problems: list[str] = []

    @property
    def state(self) -> int:
        """How many messages and gaps are remembered: what memory grows with."""
        return sum(flow.state for flow in self._flows.values())

    def host(self, name: str, transport: str) -> None:
        """Announce a host whose rows are to come."""
        self._sides.setdefault(name, _Side(transport))

    def take(self, host: str, rows: Iterable[Row]) -> None:  # noqa: C901, PLR0912  # a call a row would double its time
        """Take rows of a host's journal."""
        side, flows = self._sides[host], self._flows
        taken, largest = 0, side.largest
        for row in rows:
            kind = row[0]
            if kind == "received":
                _, now, _, number, sequence, size, sent_ns, state = row
                flow = flows.get(number)
                if flow is None:
                    if number is None:
                        side.unreadable += 1
                        continue
                    flow = flows[number] = _Flow(number)
                if flow.receiver != host:
                    self._claim(flow, "receiver", host)
                if number < 0:
                    self._first_back(side, row)
                if state != "whole":
                    self._damage(flow, row, side)
                elif self._arrive(flow, now, sequence, size, sent_ns):
                    sent = flow.missing.pop(sequence, None)
                    if sent is None or sent[1] != sent_ns or sent[5] != size:
                        self._odd(flow, row, sent)
            elif kind == "sent":
                _, at_ns, _, number, sequence, size, _, took = row
                flow = flows.get(number)
                if flow is None:
                    flow = flows[number] = _Flow(number)
                if flow.sender != host:
                    self._claim(flow, "sender", host)
                if took:
                    taken += 1
                if size > largest:
                    largest = size
                if sequence == flow.top and not flow.early:
                    flow.top = sequence + 1
                    flow.sent += 1
                    flow.missing[sequence] = row
                    if flow.first_ns is None:
                        flow.first_ns = at_ns
                else:
                    self._odd_sent(flow, row)
            else:
                self._event(side, row)
        side.taken_messages += taken
        side.largest = largest

    # --- messages ------------------------------------------------------------------------------------

    def _arrive(self, flow: _Flow, now: int, sequence: int, size: int, sent_ns: int) -> bool:
        """A message arrived whole; False if it had arrived before."""
        order = flow.order
        in_order = sequence == order.next_expected
        if in_order:
            order.next()
        else:
            arrival = order.arrive(sequence)
            if arrival is Arrival.DUPLICATE:
                return False
            in_order = arrival is Arrival.IN_ORDER
        delay = now - sent_ns
        flow.whole += 1
        flow.whole_bytes += size
        if delay < 0:
            if len(self._problems) < _MOST_PROBLEMS:
                self._problems.append(
                    f"flow {flow.number}: message {sequence} arrived before it was sent: other clocks?"
                )
            delay = 0
        if flow.damaged:
            flow.damaged.pop(sequence, None)
        if delay > self._late_ns:
            flow.late += 1
        flow.delays.append(delay)
        if sequence == flow.last_sequence + 1:
            flow.variations.append(delay - flow.last_delay if delay > flow.last_delay else flow.last_delay - delay)
        if delay < flow.least_delay:
            flow.least_delay = delay
        if in_order:
            last_ns = flow.last_ns
            if last_ns:
                wait = last_ns - sent_ns - flow.least_delay
                flow.waits.append(wait if wait > 0 else 0)
                pause = now - last_ns
                if pause > flow.longest_pause:
                    flow.longest_pause = pause
                if pause > self._stall_ns:
                    flow.stalls += 1
                    flow.stalled += pause
            flow.last_ns = now
        flow.last_sequence, flow.last_delay = sequence, delay
        if now > flow.latest_ns:
            flow.latest_ns = now
        if len(flow.delays) >= _TIMES_AT_ONCE:
            flow.settle()
        return True

    @staticmethod
    def _odd(flow: _Flow, row: Row, sent: Row | None) -> None:
        """A message that does not match the sending that is known of its number, or of whose sending nothing is yet."""
        if sent is not None:
            if sent[5] == row[5] and flow.resent:
                return  # it was sent again, and this is the copy of an earlier sending
            flow.missing[row[4]] = sent
        flow.early[row[4]] = row

    def _odd_sent(self, flow: _Flow, row: Row) -> None:
        """A sending that is not simply the next, or while arrivals wait for theirs."""
        sequence = row[4]
        if sequence < flow.top and sequence not in flow.skipped:
            flow.resent += 1
            known = flow.missing.get(sequence)
            if known is not None:  # what the kernel took of the best attempt counts
                flow.missing[sequence] = row if row[7] >= known[7] else known
        else:
            if flow.first_ns is None:
                flow.first_ns = row[1]
            if sequence >= flow.top:
                flow.skipped.update(range(flow.top, sequence))
                flow.top = sequence + 1
            else:
                flow.skipped.discard(sequence)
            flow.sent += 1
            flow.missing[sequence] = row
        arrival = flow.early.get(sequence)
        if arrival is not None and arrival[6] == row[1] and arrival[5] == row[5]:
            del flow.early[sequence]
            flow.missing.pop(sequence, None)

    @staticmethod
    def _damage(flow: _Flow, row: Row, side: _Side) -> None:
        """A message arrived truncated or corrupt."""
        if flow.order.has(row[4]):
            side.unreadable += 1  # it had arrived whole
        else:
            flow.damaged[row[4]] = row

    # --- all else ------------------------------------------------------------------------------------

    def _claim(self, flow: _Flow, role: str, host: str) -> None:
        known = getattr(flow, role)
        if known is None:
            setattr(flow, role, host)
        else:
            word = "sent" if role == "sender" else "received"
            problem = f"flow {flow.number} is {word} by {known} and by {host}: give them different flows (--first-flow)"
            if problem not in self._problems:
                self._problems.append(problem)

    @staticmethod
    def _first_back(side: _Side, row: Row) -> None:
        conn = side.conns.get(row[2])
        if conn is not None and not conn.first_back:
            conn.first_back = True
            if conn.connected:
                side.first_byte.add(max(0, row[1] - conn.opened_ns))

    @staticmethod
    def _event(side: _Side, row: Row) -> None:
        kind = row[0]
        if kind == "connect":
            conn = side.conn(row[2])
            conn.connected, conn.opened_ns, conn.local, conn.peer = True, row[3], row[4], row[5]
            if side.transport == "tcp":
                side.connect.add(max(0, row[1] - row[3]))
        elif kind == "accept":
            conn = side.conn(row[2])
            conn.local, conn.peer = row[3], row[4]
        elif kind == "close":
            conn = side.conn(row[2])
            conn.why, conn.unread, conn.unsent = row[3], row[4] or 0, row[5] or 0
        elif kind == "error":
            side.errors[f"{row[3]}: {row[5]}"] += 1
            if row[2] is not None:
                side.conn(row[2]).errors.append(row[5])
        elif kind == "control":
            side.control[row[3], row[4]] = side.control.get((row[3], row[4]), 0) + 1

    def ended(self, host: str, cut_short: str | None) -> None:
        """A host's journal has no more rows; ``cut_short`` says why it is not complete, if it is not."""
        self._sides[host].cut_short = cut_short

    # --- judging -------------------------------------------------------------------------------------

    def judge(self, evidence: Evidence | None = None) -> Account:
        """The account of all that was taken."""
        return _Judging(self, evidence or Evidence()).account()


def judge(
    journals: Iterable[Journal],
    evidence: Evidence | None = None,
    *,
    expect: Expectation | None = None,
    stall_s: float = 0.1,
) -> Account:
    """Judge the journals of one run, one a host (or several of one host), beside what the kernel counted.

    Raises InvalidValueError for journals that cannot be read.
    """
    oracle = Oracle(expect=expect, stall_s=stall_s)
    read(oracle, journals)
    return oracle.judge(evidence)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Do without the collector: rows hold no cycles, and looking for some takes a quarter of the time."""
    ran = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if ran:
            gc.enable()


@_uncollected()
def read(oracle: Oracle, journals: Iterable[Journal]) -> None:
    """Give an oracle all rows, block by block, so that what was sent comes near to where it arrived."""
    waiting: list[tuple[Journal, Iterator[list[Row]], list[Row]]] = []
    for journal in journals:
        oracle.host(journal.name, journal.header.transport)
        blocks = journal.blocks()
        waiting.append((journal, blocks, next(blocks, [])))
    while waiting:
        at = min(range(len(waiting)), key=lambda each: waiting[each][2][0][1] if waiting[each][2] else 0)
        journal, blocks, rows = waiting[at]
        oracle.take(journal.name, rows)
        following = next(blocks, None)
        if following is None:
            oracle.ended(journal.name, journal.cut_short)
            del waiting[at]
        else:
            waiting[at] = (journal, blocks, following)


# --- the account -----------------------------------------------------------------------------------


class _Judging:
    """From what an oracle remembers, and the kernel's evidence, to an account."""

    def __init__(self, oracle: Oracle, evidence: Evidence) -> None:
        self._flows, self._sides = oracle._flows, oracle._sides
        for flow in self._flows.values():
            flow.settle()
        self._expect, self._evidence = oracle.expect, evidence
        self._invalid: list[str] = list(oracle._problems)
        self._open: list[str] = []
        """Why the evidence does not decide."""
        self._failed: list[str] = []
        self._balances: list[Balance] = []
        self._network: dict[tuple[str, ...], str] = {}
        """What the network did, by the host or the link of which it is told."""

    def account(self) -> Account:
        """Put it together."""
        for name, side in self._sides.items():
            if side.cut_short is not None:
                self._invalid.append(f"journal of {name} is not complete: {side.cut_short}")
        if not self._flows:
            self._invalid.append("no message was sent: there is nothing to judge")
        directions = tuple(self._direction(src, dst, flows) for (src, dst), flows in self._ways().items())
        for direction in directions:
            self._judge_direction(direction)
        self._invalid += [f"does not balance: {each}" for each in self._balances if not each.holds]
        verdict = worst(
            Verdict.INVALID if self._invalid else Verdict.HOLDS,
            Verdict.UNKNOWN if self._open else Verdict.HOLDS,
            Verdict.FAILS if self._failed else Verdict.HOLDS,
        )
        return Account(
            verdict=verdict,
            reasons=(*self._invalid, *self._open, *self._failed),
            directions=directions,
            balances=tuple(self._balances),
            network=tuple(self._network.values()),
            connect={name: side.connect for name, side in self._sides.items() if side.connect.buckets},
            first_byte={name: side.first_byte for name, side in self._sides.items() if side.first_byte.buckets},
            errors={name: side.errors for name, side in self._sides.items() if side.errors},
        )

    def _ways(self) -> dict[tuple[str, str], list[_Flow]]:
        """The flows by source and destination."""
        ways: dict[tuple[str, str], list[_Flow]] = {}
        hosts = list(self._sides)
        for flow in sorted(self._flows.values(), key=lambda each: (each.number < 0, abs(each.number))):
            if flow.sender is None:
                self._invalid.append(f"flow {flow.number} arrived at {flow.receiver}; no journal says who sent it")
                continue
            receiver = flow.receiver or self._receiver_of(flow, hosts)
            if receiver is None:
                self._invalid.append(f"flow {flow.number} of {flow.sender}: no journal of a receiver")
                continue
            ways.setdefault((flow.sender, receiver), []).append(flow)
        return ways

    def _receiver_of(self, flow: _Flow, hosts: list[str]) -> str | None:
        """Who was to receive a flow of which nothing arrived: the other side, if there is one alone."""
        back = self._flows.get(-1 - flow.number)
        if back is not None and back.sender is not None:
            return back.sender
        if back is None and flow.number < 0:
            forth = self._flows.get(-1 - flow.number)
            return forth.sender if forth else None
        others = [each for each in hosts if each != flow.sender]
        return others[0] if len(others) == 1 else None

    def _direction(self, src: str, dst: str, flows: list[_Flow]) -> Direction:
        transport = self._sides[src].transport
        damaged = Counter(
            row[7] for flow in flows for sequence, row in flow.damaged.items() if sequence in flow.missing
        )
        lost = {flow.number: tuple(sorted(flow.missing.keys() - flow.damaged.keys())) for flow in flows if flow.missing}
        lost = {number: sequences for number, sequences in lost.items() if sequences}
        for flow in flows:
            self._tell_foreign(flow)
        never_tried = 0
        if self._expect.messages is not None:
            never_tried = sum(max(0, self._expect.messages - flow.sent) for flow in flows if flow.number >= 0)
        causes, control_lost = (
            self._datagram_causes(src, dst, flows) if transport == "udp" else (self._stream_causes(src, dst, flows), 0)
        )
        if never_tried:
            causes[Cause.NEVER_HANDED] += never_tried
        offset, numbers = 0, []
        for flow in flows:
            numbers += [offset + sequence for sequence in lost.get(flow.number, ())]
            offset += flow.top + 1  # flows are not neighbours
        sent = sum(flow.sent for flow in flows) + never_tried
        firsts = [flow.first_ns for flow in flows if flow.first_ns is not None]
        lasts = [flow.latest_ns for flow in flows if flow.whole]
        late = sum(flow.late for flow in flows)
        direction = Direction(
            src=src, dst=dst, transport=transport, sent=sent,
            delivered=sum(flow.whole for flow in flows) - late,
            late=late,
            truncated=damaged["truncated"], corrupt=damaged["corrupt"],
            lost=sum(map(len, lost.values())) + never_tried,
            duplicates=sum(flow.order.duplicates for flow in flows),
            resent=sum(flow.resent for flow in flows),
            unreadable=self._sides[dst].unreadable,
            causes=causes, control_lost=control_lost, runs=loss_runs(numbers, sent),
            delay=_merged(flow.delay for flow in flows),
            ipdv=_merged(flow.ipdv for flow in flows),
            head_of_line=_merged(flow.head_of_line for flow in flows if transport == "tcp"),
            reordered=sum(flow.order.reordered for flow in flows),
            extents=_summed(flow.order.extents for flow in flows),
            degrees=_summed(flow.order.degrees for flow in flows),
            stalls=sum(flow.stalls for flow in flows),
            stalled_s=sum(flow.stalled for flow in flows) / 1e9,
            longest_pause_s=max((flow.longest_pause for flow in flows), default=0) / 1e9,
            received_bytes=sum(flow.whole_bytes for flow in flows),
            duration_s=max(0, max(lasts, default=0) - min(firsts, default=0)) / 1e9 if firsts and lasts else 0.0,
        )  # fmt: skip
        way = f"{src} -> {dst}"
        self._balances += [
            Balance(
                name=f"{way}: sent = delivered + late + truncated + corrupt + lost",
                left=direction.sent, right=direction.delivered + direction.late + direction.missing,
            ),
            Balance(
                name=f"{way}: truncated + corrupt + lost{' + control' if control_lost else ''} = causes",
                left=direction.missing + control_lost, right=sum(causes.values()),
            ),
        ]  # fmt: skip
        return direction

    def _tell_foreign(self, flow: _Flow) -> None:
        """Say of messages that arrived and were never sent like that."""
        for sequence, row in list(flow.early.items())[:3]:
            sent = flow.missing.get(sequence)
            known = f"sent {sent[5]} bytes stamped {sent[1]}" if sent is not None else "did not send it"
            self._invalid.append(
                f"flow {flow.number}, message {sequence}: {flow.receiver} received {row[5]} bytes stamped {row[6]}, "
                f"{flow.sender} {known}: journals of different runs?"
            )
        if len(flow.early) > 3:
            self._invalid.append(f"flow {flow.number}: and {len(flow.early) - 3:,} more messages like that")

    def _judge_direction(self, direction: Direction) -> None:
        expect, way = self._expect, f"{direction.src} -> {direction.dst}"
        told = ", ".join(f"{count:,} {cause}" for cause, count in direction.causes.items())
        arrived = direction.delivered + direction.late
        checks: tuple[tuple[str, float, float, float, str], ...] = (
            ("not delivered whole", direction.missing, direction.sent, expect.most_lost_ratio, told),
            ("late", direction.late, direction.sent, expect.most_late_ratio, ""),
            ("duplicates", direction.duplicates, arrived, expect.most_duplicate_ratio, ""),
            ("reordered", direction.reordered, arrived, expect.most_reordered_ratio, ""),
        )
        for name, count, of, most, causes in checks:
            if count > most * of:
                most_words = f", at most {units.format_ratio(most)} expected" if most else ""
                reason = f"{way}: {count:,} of {of:,} {name}{most_words}"
                self._failed.append(f"{reason}: {causes}" if causes else reason)
        if direction.transport == "tcp" and direction.reordered > direction.resent:
            self._failed.append(f"{way}: {direction.reordered:,} out of order in a stream, which keeps it")
        self._tell_network(direction)

    def _tell_network(self, direction: Direction) -> None:
        back = "replies and acknowledgements" if direction.transport == "tcp" else "replies"
        for src, dst in ((direction.src, direction.dst), (direction.dst, direction.src)):
            counts = self._evidence.links.get((src, dst))
            if counts is None or (src, dst) in self._network:
                continue
            carries = "messages" if src == direction.src else back
            self._network[src, dst] = (
                f"link {src} -> {dst}: {counts.dropped_packets:,} of "
                f"{counts.dropped_packets + counts.sent_packets:,} packets dropped; it carries {carries}"
            )
        again = self._evidence.counted(direction.src, "Tcp", "RetransSegs")
        if direction.transport == "tcp" and again is not None and (direction.src,) not in self._network:
            self._network[direction.src,] = f"{direction.src}: {again:,} segments sent again (RetransSegs)"

    # --- causes: datagrams ---------------------------------------------------------------------------

    def _datagram_causes(self, src: str, dst: str, flows: list[_Flow]) -> tuple[Counter[Cause], int]:
        """Why datagrams are missing. Counters know numbers, not datagrams: each cause gets its count."""
        causes: Counter[Cause] = Counter()
        missing = 0
        for flow in flows:
            for sequence, row in flow.missing.items():
                damage = flow.damaged.get(sequence)
                if damage is not None:
                    causes[Cause.CUT_BY_RECV if damage[7] == "truncated" else Cause.CORRUPTED] += 1
                elif row[7] == 0:
                    causes[Cause.NEVER_HANDED] += 1
                else:
                    missing += 1
        control_lost = self._control_lost(src, dst)
        self._divide(src, dst, missing + control_lost, causes)
        return causes, control_lost

    def _control_lost(self, src: str, dst: str) -> int:
        """Datagrams without a message that were sent and did not arrive."""
        sent, received = self._sides[src].control, self._sides[dst].control
        return sum(
            max(0, count - received.get((flow, "received"), 0))
            for (flow, direction), count in sent.items()
            if direction == "sent"
        )

    def _divide(self, src: str, dst: str, missing: int, causes: Counter[Cause]) -> None:
        """Divide datagrams that the sender's kernel took and nobody received among those who counted drops."""
        side, link = self._sides[src], self._evidence.links.get((src, dst))
        way = f"{src} -> {dst}"
        kernel = {
            cause: self._evidence.counted(dst, "Udp", name)
            for cause, name in (
                (Cause.RECEIVE_BUFFER, "RcvbufErrors"),
                (Cause.CHECKSUM, "InCsumErrors"),
                (Cause.NO_PORT, "NoPorts"),
            )
        }
        observed = all(value is not None for value in kernel.values())
        refused = {cause: value for cause, value in kernel.items() if value}
        fragments = side.largest > _UNFRAGMENTED_BYTES
        if link is not None:
            offered = side.taken_messages + sum(
                count for (_, direction), count in side.control.items() if direction == "sent"
            )
            self._balances.append(
                Balance(
                    name=f"{way}: packets that the link saw ≥ datagrams sent",
                    left=link.sent_packets + link.dropped_packets + link.queued_packets, right=offered, at_least=True,
                )
            )  # fmt: skip
        dropped = link.dropped_packets if link is not None else None
        by_kernel = sum(refused.values())
        exact = link is not None and not link.duplicates and not fragments
        # What else the sender's host sent, such as the last acknowledgements of an earlier run, may be among the drops.
        others = sum(self._evidence.counted(src, *which) or 0 for which in (("Tcp", "OutSegs"), ("Icmp", "OutMsgs")))
        if dropped is not None and observed and exact and not dropped - others <= missing - by_kernel <= dropped:
            queued = link.queued_packets if link is not None else 0
            if queued and missing - by_kernel - dropped <= queued:
                self._open.append(f"{way}: {queued:,} packets were still under way when the receiver stopped")
            else:
                self._balances.append(
                    Balance(
                        name=f"{way}: datagrams missing = dropped by the link + refused by the receiver's kernel",
                        left=missing, right=dropped + by_kernel,
                    )
                )  # fmt: skip
        left = missing
        for cause, count in refused.items():
            causes[cause] += min(count, left)
            left -= min(count, left)
        if left and dropped:
            causes[Cause.NETWORK] += min(left, dropped)
            left -= min(left, dropped)
        if left:
            causes[Cause.UNKNOWN] += left

    # --- causes: streams -----------------------------------------------------------------------------

    def _stream_causes(self, src: str, dst: str, flows: list[_Flow]) -> Counter[Cause]:
        """Why messages on connections are missing: each has its own cause."""
        causes: Counter[Cause] = Counter()
        ends = {(conn.peer, conn.local): conn for conn in self._sides[dst].conns.values() if conn.local}
        for flow in flows:
            for sequence, row in flow.missing.items():
                damage = flow.damaged.get(sequence)
                here = self._sides[src].conns.get(row[2])
                there = ends.get((here.local, here.peer)) if here is not None else None
                cause = self._stream_cause(row, damage, here, there, dst)
                causes[cause] += 1
        if unknown := causes[Cause.UNKNOWN]:
            self._open.append(f"{src} -> {dst}: nothing says what became of {unknown:,} messages")
        else:
            del causes[Cause.UNKNOWN]
        return causes

    def _stream_cause(self, row: Row, damage: Row | None, here: _Conn | None, there: _Conn | None, dst: str) -> Cause:
        _, _, _, _, _, size, _, taken = row
        if damage is not None and damage[7] == "corrupt":
            return Cause.CORRUPTED
        if taken < size:
            return Cause.PARTLY_HANDED if taken else Cause.NEVER_HANDED
        if there is None:
            refused = sum(
                self._evidence.counted(dst, "TcpExt", name) or 0 for name in ("ListenOverflows", "ListenDrops")
            )
            return Cause.LISTEN_QUEUE if refused else Cause.NOT_ACCEPTED
        if there.why in ("done", "stop"):  # closed by the receiver's own will, with more to come
            if damage is not None and there.why == "done":
                return Cause.CUT_BY_RECV
            return Cause.DESTROYED_BY_CLOSE
        if there.why in ("reset", "error") or there.errors:
            return Cause.CONNECTION_LOST
        if here is not None and here.why in ("stop", "error"):
            return Cause.GAVE_UP
        return Cause.UNKNOWN


def _merged(each: Iterable[Distribution]) -> Distribution:
    whole = Distribution()
    for distribution in each:
        whole.merge(distribution)
    return whole


def _summed(each: Iterable[Mapping[int, int]]) -> dict[int, int]:
    whole: Counter[int] = Counter()
    for counts in each:
        whole.update(counts)
    return dict(whole)
