"""Time series of one TCP connection at one capture point: outstanding data, windows. Pure.

Positions count payload bytes, as `Direction.position` does; times are CLOCK_MONOTONIC in nanoseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from testbed.observe.wire import Direction, Flow, Segment

TimedValues = list[tuple[int, int]]
"""Time in ns, and a value that holds from there on."""


def sendings(direction: Direction, position: int) -> list[int]:
    """When the byte at a position was sent, and sent again, in order; copies by the network are left out."""
    copies = {id(segment) for segment in direction.copies}
    return [
        segment.time_ns
        for segment in direction.segments
        if id(segment) not in copies and 0 <= position - direction.position(segment.seq) < segment.payload_bytes
    ]


def outstanding(flow: Flow, *, acks_later_ns: int = 0) -> TimedValues:
    """Payload bytes that the client sent and had no acknowledgment of, each time that it changed.

    ``acks_later_ns``: how much later than at this place acknowledgments reach the client.
    """
    ours = flow.client
    events = [
        (segment.time_ns, ours.position(segment.seq) + segment.payload_bytes, 0)
        for segment in ours.segments
        if segment.payload_bytes
    ]
    events += [
        (segment.time_ns + acks_later_ns, 0, ours.position(segment.ack))
        for segment in flow.server.segments
        if segment.acks and not segment.syn and not segment.rst
    ]
    series: TimedValues = []
    sent = acked = 0
    for time_ns, sent_to, acked_to in sorted(events):
        sent, acked = max(sent, sent_to), max(acked, acked_to)
        value = max(sent - acked, 0)
        if not series or series[-1][1] != value:
            series.append((time_ns, value))
    return series


def windows(direction: Direction) -> TimedValues:
    """The window that a side announced in bytes, scaled (RFC 7323 2.2), each time that it changed.

    Raises ValueError if its SYN was not seen, which alone says the scale.
    """
    syn = next((segment for segment in direction.segments if segment.syn), None)
    if syn is None:
        raise ValueError(f"{direction.src}: the scale of its window is in its SYN, which was not captured")
    series: TimedValues = []
    for segment in direction.segments:
        if segment.acks and not segment.rst:
            value = segment.window << (0 if segment.syn else syn.window_scale or 0)
            if not series or series[-1][1] != value:
                series.append((segment.time_ns, value))
    return series


def running_count(segments: Sequence[Segment]) -> TimedValues:
    """The running count of segments, at the time of each."""
    return [(segment.time_ns, number) for number, segment in enumerate(segments, 1)]


def at(series: TimedValues, time_ns: int) -> int | None:
    """The value that holds at a time; None before the first."""
    value = None
    for moment, later in series:
        if moment > time_ns:
            break
        value = later
    return value


def stairs(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points of a stepped line through values that hold until the next one."""
    corners = list(points[:1])
    for (_, before), (x, y) in pairwise(points):
        corners += [(x, before), (x, y)]
    return corners
