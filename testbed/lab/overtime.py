"""An observation as series over time: windows and round trips of connections, delays and drops at ports. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator

from testbed.errors import LabError
from testbed.evidence.series import Series
from testbed.observe.observation import HostObservation, Observation
from testbed.observe.passages import Passage

_MOST_CONNECTIONS = 4
"""Of a host, those that changed most often."""
_MOST_PACKETS = 20_000
"""Of a port; following one takes some 20 µs."""


def series(seen: Observation) -> Iterator[Series]:
    """What is drawn of an observation; nothing of a port that was not captured as a whole."""
    for host in seen.hosts.values():
        yield from _connections(seen, host)
    for port, capture in seen.captures.items():
        if len(capture.packets) > _MOST_PACKETS:
            continue
        try:
            crossed = seen.passages(str(port))
        except LabError:
            continue  # not impaired at the begin, or packets are missing: no delays, and no wrong ones
        yield from _crossed(seen, str(port), crossed, ended_ns=capture.ended_ns)


def _connections(seen: Observation, host: HostObservation) -> Iterator[Series]:
    busiest = sorted(host.connections, key=lambda socket: -len(socket.states))[:_MOST_CONNECTIONS]
    for socket in busiest:
        whose = f"{host.name} :{socket.local.port} -> {socket.remote}"
        states = [(seen.seconds(state.time_ns), state) for state in socket.states]
        if len(states) > 1:
            windows = [(time_s, float(state.cwnd_segments)) for time_s, state in states]
            yield Series.of(f"{whose}: congestion window", "segments", windows)
            round_trips = [(time_s, state.srtt_s) for time_s, state in states if state.srtt_s]
            if round_trips:
                yield Series.of(f"{whose}: smoothed round trip", "s", round_trips)


def _crossed(seen: Observation, port: str, crossed: list[Passage], *, ended_ns: int | None) -> Iterator[Series]:
    """What came later than the longest delay before the end, and was not seen again, may still be under way."""
    came = [(seen.seconds(passage.before.time_ns), passage) for passage in crossed]
    delays = [(time_s, passage.delay_s) for time_s, passage in came if passage.delay_s is not None]
    if delays:
        yield Series.of(f"{port}: one-way delay", "s", delays)
        until_s = math.inf if ended_ns is None else seen.seconds(ended_ns) - max(delay_s for _, delay_s in delays)
        lost = [time_s for time_s, passage in came if passage.lost and time_s <= until_s]
        drops = [(0.0, 0.0), *((time_s, float(count)) for count, time_s in enumerate(lost, start=1))]
        yield Series.of(f"{port}: packets lost", "packets", drops)
