"""What became of every message, and why: conservation, from the journals of both sides and the kernel's counters.

The oracle takes rows of journals and finds the account (`testbed.judge.account`). The sums must balance, or the result
is INVALID. Pure, and streaming: memory grows with missing messages, not with those that arrived.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

from testbed.evidence.journal import (
    AcceptRow,
    CloseRow,
    ConnectRow,
    ControlRow,
    ErrorRow,
    Journal,
    JournalRow,
    ReceivedRow,
    SentRow,
)
from testbed.evidence.observed import KernelEvidence
from testbed.judge.account import Account, Expectation
from testbed.judge.assessment import Assessment
from testbed.judge.flow import HostRecord, MessageFlow
from testbed.judge.metrics import Arrival

_MOST_PROBLEMS = 10
_TIMES_AT_ONCE = 256


class Oracle:
    """Takes rows of all journals, roughly in the order of their times; then judges."""

    def __init__(self, *, expect: Expectation | None = None, stall_s: float = 0.1) -> None:
        self.expect = expect or Expectation()
        self._stall_ns = round(stall_s * 1e9)
        self._late_ns = 1 << 62 if self.expect.late_after_s is None else round(self.expect.late_after_s * 1e9)
        self._flows: dict[int, MessageFlow] = {}
        self._hosts: dict[str, HostRecord] = {}
        self._problems: list[str] = []

    @property
    def state(self) -> int:
        """Number of remembered messages and gaps: what memory grows with."""
        return sum(flow.state for flow in self._flows.values())

    def host(self, name: str, transport: str) -> None:
        """Announce a host whose rows are to come."""
        self._hosts.setdefault(name, HostRecord(transport))

    def take(self, host: str, rows: Iterable[JournalRow]) -> None:  # noqa: C901, PLR0912  # a call a row would double its time
        """Take rows of a host's journal."""
        record, flows = self._hosts[host], self._flows
        taken_messages, largest = 0, record.largest
        for row in rows:
            kind = row[0]
            if kind == "received":
                _, time_ns, _, number, sequence, size, sent_ns, state = row
                flow = flows.get(number)
                if flow is None:
                    if number is None:
                        record.unreadable += 1
                        continue
                    flow = flows[number] = MessageFlow(number)
                if flow.receiver != host:
                    self._claim(flow, "receiver", host)
                if number < 0:
                    self._first_back(record, row)
                if state != "whole":
                    self._damage(flow, row, record)
                elif self._arrive(flow, time_ns, sequence, size, sent_ns):
                    sending = flow.missing.pop(sequence, None)
                    if sending is None:
                        flow.early[sequence] = row
                    else:
                        _, stamp_ns, _, _, _, size_sent, _, _ = sending
                        if stamp_ns != sent_ns or size_sent != size:
                            self._mismatch(flow, row, sending)
            elif kind == "sent":
                _, time_ns, _, number, sequence, size, _, taken = row
                flow = flows.get(number)
                if flow is None:
                    flow = flows[number] = MessageFlow(number)
                if flow.sender != host:
                    self._claim(flow, "sender", host)
                if taken:
                    taken_messages += 1
                if size > largest:
                    largest = size
                if sequence == flow.top and not flow.early:
                    flow.top = sequence + 1
                    flow.sent += 1
                    flow.missing[sequence] = row
                    if flow.first_ns is None:
                        flow.first_ns = time_ns
                else:
                    self._unusual_sending(flow, row)
            else:
                self._event(record, row)
        record.taken_messages += taken_messages
        record.largest = largest

    # --- messages ------------------------------------------------------------------------------------

    def _arrive(self, flow: MessageFlow, time_ns: int, sequence: int, size: int, sent_ns: int) -> bool:
        """Note that a message arrived whole; False if it had arrived before."""
        order = flow.order
        in_order = sequence == order.next_expected
        if in_order:
            order.next()
        else:
            arrival = order.arrive(sequence)
            if arrival is Arrival.DUPLICATE:
                return False
            in_order = arrival is Arrival.IN_ORDER
        delay_ns = time_ns - sent_ns
        flow.whole += 1
        flow.whole_bytes += size
        if delay_ns < 0:
            if len(self._problems) < _MOST_PROBLEMS:
                self._problems.append(
                    f"flow {flow.number}: message {sequence} arrived before it was sent: other clocks?"
                )
            delay_ns = 0
        if flow.damaged:
            flow.damaged.pop(sequence, None)
        if delay_ns > self._late_ns:
            flow.late += 1
        flow.delays_ns.append(delay_ns)
        if sequence == flow.last_sequence + 1:
            last_ns = flow.last_delay_ns
            flow.variations_ns.append(delay_ns - last_ns if delay_ns > last_ns else last_ns - delay_ns)
        if delay_ns < flow.least_delay_ns:
            flow.least_delay_ns = delay_ns
        if in_order:
            last_ns = flow.last_ns
            if last_ns:
                wait_ns = last_ns - sent_ns - flow.least_delay_ns
                flow.waits_ns.append(wait_ns if wait_ns > 0 else 0)
                pause_ns = time_ns - last_ns
                if pause_ns > flow.longest_pause_ns:
                    flow.longest_pause_ns = pause_ns
                if pause_ns > self._stall_ns:
                    flow.stalls += 1
                    flow.stalled_ns += pause_ns
            flow.last_ns = time_ns
        flow.last_sequence, flow.last_delay_ns = sequence, delay_ns
        if time_ns > flow.latest_ns:
            flow.latest_ns = time_ns
        if len(flow.delays_ns) >= _TIMES_AT_ONCE:
            flow.settle()
        return True

    @staticmethod
    def _mismatch(flow: MessageFlow, arrival: JournalRow, sending: JournalRow) -> None:
        """An arrival does not match the known sending of its number."""
        received, sent = ReceivedRow._make(arrival), SentRow._make(sending)
        if sent.size_bytes == received.size_bytes and flow.resent:
            return  # the message was resent, and this is the copy of an earlier sending
        flow.missing[sent.sequence] = sending
        flow.early[sent.sequence] = arrival

    def _unusual_sending(self, flow: MessageFlow, row: JournalRow) -> None:
        """A sending that is not simply the next one, or any while arrivals wait for their sendings."""
        sent = SentRow._make(row)
        sequence = sent.sequence
        if sequence < flow.top and sequence not in flow.skipped:
            flow.resent += 1
            known = flow.missing.get(sequence)
            # What the kernel took of the best attempt counts.
            if known is not None and sent.taken_bytes >= SentRow._make(known).taken_bytes:
                flow.missing[sequence] = row
        else:
            if flow.first_ns is None:
                flow.first_ns = sent.time_ns
            if sequence >= flow.top:
                flow.skipped.update(range(flow.top, sequence))
                flow.top = sequence + 1
            else:
                flow.skipped.discard(sequence)
            flow.sent += 1
            flow.missing[sequence] = row
        arrival = flow.early.get(sequence)
        if arrival is not None:
            received = ReceivedRow._make(arrival)
            if (received.sent_ns, received.size_bytes) == (sent.time_ns, sent.size_bytes):
                del flow.early[sequence]
                flow.missing.pop(sequence, None)

    @staticmethod
    def _damage(flow: MessageFlow, row: JournalRow, record: HostRecord) -> None:
        """Note that a message arrived truncated or corrupt."""
        sequence = ReceivedRow._make(row).sequence
        if sequence is None or flow.order.has(sequence):
            record.unreadable += 1  # it had arrived whole
        else:
            flow.damaged[sequence] = row

    # --- everything else -----------------------------------------------------------------------------

    def _claim(self, flow: MessageFlow, role: Literal["sender", "receiver"], host: str) -> None:
        known = getattr(flow, role)
        if known is None:
            setattr(flow, role, host)
        else:
            verb = "sent" if role == "sender" else "received"
            problem = f"flow {flow.number} is {verb} by {known} and by {host}: give them different flows (--first-flow)"
            if problem not in self._problems:
                self._problems.append(problem)

    @staticmethod
    def _first_back(record: HostRecord, row: JournalRow) -> None:
        received = ReceivedRow._make(row)
        connection = record.connections.get(received.conn)
        if connection is not None and not connection.first_back:
            connection.first_back = True
            if connection.connected:
                record.first_byte.add(max(0, received.time_ns - connection.opened_ns))

    @staticmethod
    def _event(record: HostRecord, row: JournalRow) -> None:
        match row[0]:
            case "connect":
                connect = ConnectRow._make(row)
                connection = record.connection(connect.conn)
                connection.connected, connection.opened_ns = True, connect.began_ns
                connection.local, connection.peer = connect.local, connect.peer
                if record.transport == "tcp":
                    record.connect.add(max(0, connect.time_ns - connect.began_ns))
            case "accept":
                accept = AcceptRow._make(row)
                connection = record.connection(accept.conn)
                connection.local, connection.peer = accept.local, accept.peer
            case "close":
                close = CloseRow._make(row)
                record.connection(close.conn).why = close.why
            case "error":
                error = ErrorRow._make(row)
                record.errors[f"{error.operation}: {error.text}"] += 1
                if error.conn is not None:
                    record.connection(error.conn).errors.append(error.text)
            case "control":
                control = ControlRow._make(row)
                counts = record.control_sent if control.direction == "sent" else record.control_received
                counts[control.flow] += 1

    def ended(self, host: str, cut_short: str | None) -> None:
        """A host's journal has no more rows; ``cut_short``: why it is not complete, or None."""
        self._hosts[host].cut_short = cut_short

    # --- judging -------------------------------------------------------------------------------------

    def judge(self, evidence: KernelEvidence | None = None) -> Account:
        """The account of all rows that were taken."""
        return Assessment(self._flows, self._hosts, self._problems, self.expect, evidence or KernelEvidence()).account()


def judge(
    journals: Iterable[Journal],
    evidence: KernelEvidence | None = None,
    *,
    expect: Expectation | None = None,
    stall_s: float = 0.1,
) -> Account:
    """Judge the journals of one run, one or several per host, with what the kernel counted.

    Raises InvalidValueError for journals that cannot be read.
    """
    oracle = Oracle(expect=expect, stall_s=stall_s)
    read(oracle, journals)
    return oracle.judge(evidence)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Switch the garbage collector off: rows hold no cycles, and looking for some takes a quarter of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_uncollected()
def read(oracle: Oracle, journals: Iterable[Journal]) -> None:
    """Give an oracle all rows, block by block, so that sendings come close to their arrivals."""
    waiting: list[tuple[Journal, Iterator[list[JournalRow]], list[JournalRow]]] = []
    for journal in journals:
        oracle.host(journal.name, journal.header.transport)
        blocks = journal.blocks()
        waiting.append((journal, blocks, next(blocks, [])))
    while waiting:
        at = min(range(len(waiting)), key=lambda index: _begin_ns(waiting[index][-1]))
        journal, blocks, rows = waiting[at]
        oracle.take(journal.name, rows)
        following = next(blocks, None)
        if following is None:
            oracle.ended(journal.name, journal.cut_short)
            del waiting[at]
        else:
            waiting[at] = (journal, blocks, following)


def _begin_ns(rows: list[JournalRow]) -> int:
    """When the first row was written; 0 if there is none."""
    return next((time_ns for _, time_ns, *_ in rows), 0)
