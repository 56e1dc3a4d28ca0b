"""Framing: messages survive any cut of the stream; broken ones are recognised."""

from __future__ import annotations

import pytest
import wire
from hypothesis import given
from hypothesis import strategies as st

FLOWS = st.integers(-(2**31), 2**31 - 1)
SIZES = st.integers(wire.HEADER_BYTES, 600)


@given(st.lists(st.tuples(FLOWS, st.integers(0, 2**32 - 1), SIZES), max_size=6), st.data())
def test_messages_come_out_of_a_stream_however_it_was_cut(
    messages: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    stream = b"".join(wire.frame(wire.MESSAGE, flow, sequence, 7, size) for flow, sequence, size in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    deframer = wire.Deframer()
    deframed = [
        message
        for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)
        for message in deframer.feed(stream[begin:end])
    ]
    assert deframed == [
        wire.Message(wire.MESSAGE, flow, sequence, 7, size, wire.WHOLE) for flow, sequence, size in messages
    ]
    assert (deframer.held_bytes, deframer.partial()) == (0, None)


@given(st.integers(0, 199), st.integers(0, 7))
def test_one_flipped_bit_is_found_wherever_it_is(at: int, bit: int) -> None:
    data = bytearray(wire.frame(wire.MESSAGE, 1, 2, 3, 200))
    data[at] ^= 1 << bit
    message = wire.read_datagram(bytes(data))
    assert message is None or message.state != wire.WHOLE


def test_a_stream_that_breaks_off_names_the_message_that_it_broke_off_in() -> None:
    deframer = wire.Deframer()
    assert list(deframer.feed(wire.frame(wire.MESSAGE, 3, 9, 5, 1025)[:1024])) == []
    assert deframer.partial() == wire.Message(wire.MESSAGE, 3, 9, 5, 1024, wire.TRUNCATED)


def test_a_stream_of_something_else_is_refused_and_what_came_before_is_kept() -> None:
    messages = wire.Deframer().feed(wire.frame(wire.MESSAGE, 0, 9, 0) + b"GET / HTTP/1.1\r\n" + bytes(40))
    assert next(messages).sequence == 9
    with pytest.raises(wire.StreamCorruptError, match=r"no message begins with b'GET '"):
        next(messages)


def test_a_datagram_that_the_kernel_cut_is_truncated_and_still_known_by_its_number() -> None:
    whole = wire.frame(wire.MESSAGE, 3, 9, 5, 500)
    message = wire.read_datagram(whole[:100], cut=True)
    assert message == wire.Message(wire.MESSAGE, 3, 9, 5, 100, wire.TRUNCATED)


@pytest.mark.parametrize("size", [0, wire.HEADER_BYTES - 1, wire.MOST_BYTES + 1])
def test_a_size_that_no_message_can_have_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=str(size)):
        wire.frame(wire.MESSAGE, 0, 0, 0, size)
