"""Series from a connection that is written segment by segment."""

from __future__ import annotations

import pytest

from testbed.observe.series import at, outstanding, running_count, sendings, windows
from testbed.observe.wire import Flow, flows
from tests.unit.frames import ACK, SYN, Wire

_SCALE_3 = bytes([1, 3, 3, 3])


def only(wire: Wire) -> Flow:
    (flow,) = flows(wire.packets)
    return flow


def ms(series: list[tuple[int, int]]) -> list[tuple[float, int]]:
    return [(time_ns / 1e6, value) for time_ns, value in series]


def test_what_is_outstanding_grows_with_data_and_shrinks_with_acknowledgments() -> None:
    wire = Wire()
    wire.handshake()
    wire.client(0, b"x" * 100)  # 3 ms
    wire.client(100, b"x" * 100)
    wire.server(0, ack=100)
    wire.server(0, ack=100)  # a duplicate changes nothing
    wire.server(0, ack=200)  # 7 ms
    assert ms(outstanding(only(wire))) == [(3, 100), (4, 200), (5, 100), (7, 0)]


def test_acknowledgments_that_have_a_way_to_go_count_when_they_are_there() -> None:
    wire = Wire()
    wire.handshake()
    wire.client(0, b"x" * 100)  # 3 ms
    wire.server(0, ack=100)  # 4 ms
    assert ms(outstanding(only(wire), acks_later_ns=10_000_000))[-1] == (14, 0)


def test_a_retransmission_makes_nothing_outstanding_twice() -> None:
    wire = Wire()
    wire.handshake()
    wire.client(0, b"x" * 100)
    wire.client(0, b"x" * 100)
    assert max(value for _, value in outstanding(only(wire))) == 100


def test_a_byte_is_sent_as_often_as_a_segment_carries_it() -> None:
    wire = Wire()
    wire.handshake()
    wire.client(0, b"x" * 100)  # 3 ms
    wire.client(100, b"x" * 100)  # 4 ms
    wire.client(100, b"x" * 50, at_ms=300)
    client = only(wire).client
    assert [sending / 1e6 for sending in sendings(client, 100)] == [4, 300]
    assert [sending / 1e6 for sending in sendings(client, 149)] == [4, 300]
    assert [sending / 1e6 for sending in sendings(client, 150)] == [4]
    assert sendings(client, 200) == []


def test_a_copy_that_the_network_made_is_no_sending() -> None:
    wire = Wire()
    wire.handshake()
    wire.client(0, b"x", identification=77)
    wire.client(0, b"x", identification=77)
    assert len(sendings(only(wire).client, 0)) == 1


def test_a_window_is_scaled_but_for_that_of_a_syn() -> None:
    wire = Wire()
    wire.client(-1, flags=SYN, options=_SCALE_3)
    wire.server(-1, flags=SYN | ACK, window=5000, options=_SCALE_3)
    wire.client(0)
    wire.server(0, window=100)
    wire.server(0, window=100)
    wire.server(0, window=0)
    assert [value for _, value in windows(only(wire).server)] == [5000, 800, 0]


def test_a_window_whose_scale_was_not_seen_is_not_guessed() -> None:
    wire = Wire()
    wire.client(0, b"x")
    wire.server(0, ack=1)
    with pytest.raises(ValueError, match="scale"):
        windows(only(wire).server)


def test_a_value_holds_until_the_next_one() -> None:
    series = [(10, 1), (20, 2)]
    assert [at(series, moment) for moment in (9, 10, 19, 20, 99)] == [None, 1, 1, 2, 2]


def test_a_running_count_ends_at_how_many_there_are() -> None:
    wire = Wire()
    wire.handshake()
    segments = only(wire).client.segments
    assert [value for _, value in running_count(segments)] == [1, 2]
