"""Series over time out of one TCP connection at one place: what was outstanding, what was allowed, when. Pure.

Positions count payload bytes, as `Direction.position` does; times are CLOCK_MONOTONIC in nanoseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from testbed.observe.wire import Direction, Flow, Segment

Series = list[tuple[int, int]]
"""Time in ns, and a value that holds from there on."""


def sendings(direction: Direction, position: int) -> list[int]:
    """When the byte at a position was sent, and sent again, in order; copies by the network are left out."""
    copies = {id(each) for each in direction.copies}
    return [
        each.time_ns
        for each in direction.segments
        if id(each) not in copies and 0 <= position - direction.position(each.seq) < each.payload_bytes
    ]


def outstanding(flow: Flow, *, acks_later_ns: int = 0) -> Series:
    """Payload bytes that the client sent and had no acknowledgment of, each time that it changed.

    ``acks_later_ns``: how much later than at this place acknowledgments reach the client.
    """
    ours = flow.client
    events = [
        (each.time_ns, ours.position(each.seq) + each.payload_bytes, 0) for each in ours.segments if each.payload_bytes
    ]
    events += [
        (each.time_ns + acks_later_ns, 0, ours.position(each.ack))
        for each in flow.server.segments
        if each.acks and not each.syn and not each.rst
    ]
    found: Series = []
    sent = acked = 0
    for time_ns, sent_to, acked_to in sorted(events):
        sent, acked = max(sent, sent_to), max(acked, acked_to)
        value = max(sent - acked, 0)
        if not found or found[-1][1] != value:
            found.append((time_ns, value))
    return found


def windows(direction: Direction) -> Series:
    """The window that a side announced in bytes, scaled (RFC 7323 2.2), each time that it changed.

    Raises ValueError if its SYN was not seen, which alone says the scale.
    """
    syn = next((each for each in direction.segments if each.syn), None)
    if syn is None:
        raise ValueError(f"{direction.src}: the scale of its window is in its SYN, which was not captured")
    found: Series = []
    for each in direction.segments:
        if each.acks and not each.rst:
            value = each.window << (0 if each.syn else syn.window_scale or 0)
            if not found or found[-1][1] != value:
                found.append((each.time_ns, value))
    return found


def running_count(segments: Sequence[Segment]) -> Series:
    """How many there have been, at each of them."""
    return [(each.time_ns, number) for number, each in enumerate(segments, 1)]


def at(series: Series, time_ns: int) -> int | None:
    """The value that holds at a time; None before the first."""
    value = None
    for moment, each in series:
        if moment > time_ns:
            break
        value = each
    return value


def stairs(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points of values that hold until the next one, with the corners between them: what a line through them needs."""
    found = list(points[:1])
    for (_, before), (x, y) in pairwise(points):
        found += [(x, before), (x, y)]
    return found
