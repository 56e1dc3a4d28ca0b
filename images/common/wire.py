"""Messages on the wire: framing, checksums, and deframing of byte streams.

A message is a header of 28 bytes, in network byte order, and a payload::

    magic "TB" | version u8 | kind u8 | flow i32 | sequence u32 | sent_ns i64 | payload length u32 | CRC-32 u32

The CRC covers the rest of the header and the payload. ``sent_ns`` is the sender's CLOCK_MONOTONIC, which all
containers of one engine share. The reply to a request of flow f belongs to flow -1-f and has the request's sequence.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

VERSION = 1
MESSAGE, REQUEST, REPLY, END, ENDED, HELLO = range(6)
"""A message; a request, which asks for a reply; a reply; the end of a flow and its answer; a player's hello."""

WHOLE, TRUNCATED, CORRUPT = "whole", "truncated", "corrupt"

_MAGIC = b"TB"
_HEAD = struct.Struct("!2sBBiIqI")
_CRC = struct.Struct("!I")
HEADER_BYTES = _HEAD.size + _CRC.size
MOST_BYTES = 1 << 26
"""The largest message; a longer length in a stream counts as corruption."""

_FILLER = bytes(range(256))


class StreamCorruptError(ValueError):
    """A byte stream does not continue with a message; the start of the next one is unknown."""


class Message(NamedTuple):
    """A message as it arrived, whole or not."""

    kind: int
    flow: int
    sequence: int
    sent_ns: int
    size_bytes: int
    """The bytes that arrived, header included."""
    state: str
    """WHOLE, TRUNCATED or CORRUPT; the other fields of a corrupt message may be wrong."""


def frame(kind: int, flow: int, sequence: int, sent_ns: int, size_bytes: int = HEADER_BYTES) -> bytes:
    """A message of this size, header included. Raises ValueError below the header's 28 bytes and above 64 MiB."""
    if not HEADER_BYTES <= size_bytes <= MOST_BYTES:
        raise ValueError(
            f"a message of {size_bytes} bytes: from {HEADER_BYTES} (its header) to {MOST_BYTES} are possible"
        )
    length = size_bytes - HEADER_BYTES
    payload = (_FILLER * (length // 256 + 1))[:length]
    head = _HEAD.pack(_MAGIC, VERSION, kind, flow, sequence, sent_ns, length)
    return b"".join((head, _CRC.pack(zlib.crc32(payload, zlib.crc32(head))), payload))


def reply_to(message: Message, now_ns: int, size_bytes: int = HEADER_BYTES) -> bytes:
    """The reply to a request."""
    return frame(REPLY, -1 - message.flow, message.sequence, now_ns, size_bytes)


def read_datagram(data: bytes, *, cut: bool = False) -> Message | None:
    """The message in a datagram, or None if it is not one; ``cut``: whether the kernel cut off its end."""
    if len(data) < HEADER_BYTES or data[:2] != _MAGIC or data[2] != VERSION:
        return None
    _, _, kind, flow, sequence, sent_ns, length = _HEAD.unpack_from(data)
    if cut or len(data) < HEADER_BYTES + length:
        state = TRUNCATED
    else:
        state = WHOLE if _intact(data, 0, HEADER_BYTES + length) and len(data) == HEADER_BYTES + length else CORRUPT
    return Message(kind, flow, sequence, sent_ns, len(data), state)


def _intact(data: bytes | bytearray, begin: int, end: int) -> bool:
    (crc,) = _CRC.unpack_from(data, begin + _HEAD.size)
    view = memoryview(data)
    computed = zlib.crc32(view[begin + HEADER_BYTES : end], zlib.crc32(view[begin : begin + _HEAD.size]))
    view.release()  # a bytearray with a view cannot be shortened
    return bool(computed == crc)


class Deframer:
    """Extracts messages from a byte stream, whatever its reads are."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Add data; every message that is complete now. Raises StreamCorruptError at bytes that are not a message."""
        buffer = self._buffer
        buffer += data
        at = 0
        try:
            while len(buffer) - at >= HEADER_BYTES:
                magic, version, kind, flow, sequence, sent_ns, length = _HEAD.unpack_from(buffer, at)
                if magic != _MAGIC or version != VERSION or length > MOST_BYTES:
                    raise StreamCorruptError(f"no message begins with {bytes(buffer[at : at + 4])!r}")
                end = at + HEADER_BYTES + length
                if len(buffer) < end:
                    break
                state = WHOLE if _intact(buffer, at, end) else CORRUPT
                size, at = end - at, end
                yield Message(kind, flow, sequence, sent_ns, size, state)
        finally:
            del buffer[:at]

    def partial(self) -> Message | None:
        """The incomplete message at the end; None if there is none, or its header is incomplete."""
        if len(self._buffer) < HEADER_BYTES:
            return None
        magic, version, kind, flow, sequence, sent_ns, _ = _HEAD.unpack_from(self._buffer)
        if magic != _MAGIC or version != VERSION:
            return None
        return Message(kind, flow, sequence, sent_ns, len(self._buffer), TRUNCATED)

    @property
    def held_bytes(self) -> int:
        """Bytes of an incomplete message."""
        return len(self._buffer)
