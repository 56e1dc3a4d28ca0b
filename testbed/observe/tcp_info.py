"""TCP_INFO over time: the kernel's messages about a socket, decoded. Pure.

The layouts are those of linux/inet_diag.h and linux/tcp.h, which only ever grow at their end.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

_RECORD = struct.Struct("<QBH")  # testbed.agent.sockets
_MESSAGE = struct.Struct("=4B2s2s16s16sI8s5I")
_INFO = 2
_HEAD = struct.Struct("=8B24I4Q6I4Q2I2Q4I")
_TAIL = struct.Struct("=2I2HI")
_AF_INET = 2

# include/net/tcp_states.h
STATES = (
    "", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE", "CLOSE_WAIT",
    "LAST_ACK", "LISTEN", "CLOSING", "NEW_SYN_RECV",
)  # fmt: skip
_NO_SSTHRESH = 0x7FFFFFFF


@dataclass(frozen=True, kw_only=True, slots=True)
class TcpState:
    """The state of a socket at one time, by the kernel (tcp(7), linux/tcp.h)."""

    time_ns: int
    """CLOCK_MONOTONIC."""
    last: bool
    """Whether this is the state at the socket's destruction."""
    state: str
    """ESTABLISHED, FIN_WAIT1, …; for a listener, LISTEN."""
    receive_queue_bytes: int
    """Received in order and not yet read by the program; of a listener: connections that wait for accept."""
    send_queue_bytes: int
    """Written by the program and not yet acknowledged, sent or not; of a listener: how many connections may wait."""
    retransmits: int
    """Consecutive time-outs of the oldest segment; 0 after an acknowledgment."""
    probes: int
    """Consecutive zero-window or keep-alive probes without an answer."""
    backoff: int
    """How often the time-out was doubled (RFC 6298 5.5)."""
    rto_s: float
    """Retransmission time-out."""
    srtt_s: float
    """Smoothed round trip (RFC 6298); 0 before the first measurement."""
    rttvar_s: float
    """Its variation."""
    min_rtt_s: float | None
    """The smallest round trip of the last minutes; None before the first measurement."""
    mss_bytes: int
    """Of segments that it sends."""
    cwnd_segments: int
    """Congestion window."""
    ssthresh_segments: int | None
    """Slow start threshold; None until a loss sets it."""
    unacked_segments: int
    """Sent and not acknowledged."""
    sacked_segments: int
    """Of these, reported to have arrived (RFC 2018)."""
    lost_segments: int
    """Of these, held to be lost."""
    retransmitted_in_flight_segments: int
    """Sent again, and not acknowledged yet."""
    total_retransmissions: int
    """Segments sent again, over the connection's life."""
    send_window_bytes: int
    """The other side's announced window."""
    receive_space_bytes: int
    """Bytes that the program reads per round trip, as the kernel's receive buffer tuning estimates."""
    receive_window_bytes: int | None
    """The window that this side announced last; None on kernels before 6.2."""
    delivery_rate_bps: float
    """The latest measure of how fast data arrives at the other side; bit/s."""
    unsent_bytes: int
    """Written by the program and not sent for the first time."""
    bytes_sent: int
    """Payload sent, retransmissions included."""
    bytes_retransmitted: int
    """Payload of retransmissions."""
    bytes_acked: int
    """Acknowledged by the other side; a SYN counts as one."""
    bytes_received: int
    """Received in order."""
    segments_sent: int
    segments_received: int
    out_of_order_segments: int
    """Received while an earlier one was missing."""
    duplicates_reported: int
    """Segments that the other side reported as duplicates (DSACK, RFC 2883)."""
    busy_s: float
    """How long it had data in flight or to send."""
    window_limited_s: float
    """Of this, how long the other side's window limited it."""
    buffer_limited_s: float
    """Of this, how long its own send buffer limited it."""
    timeouts: int | None
    """Retransmission time-outs, over the connection's life; None on kernels before 6.7."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An address and a port."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(kw_only=True)
class TcpSocket:
    """One socket and its states, oldest first; each differs from the one before."""

    local: Endpoint
    remote: Endpoint
    cookie: int
    """The kernel's unique number of the socket."""
    states: list[TcpState] = field(default_factory=list)

    @property
    def is_listener(self) -> bool:
        """Whether it only ever listened."""
        return all(state.state == "LISTEN" for state in self.states)

    @property
    def final(self) -> TcpState:
        """The last state that was seen."""
        return self.states[-1]

    def at(self, time_ns: int) -> TcpState | None:
        """The state at a time of CLOCK_MONOTONIC; None before the first one."""
        earlier = [state for state in self.states if state.time_ns <= time_ns]
        return earlier[-1] if earlier else None

    def values(self, of: Callable[[TcpState], float | None]) -> list[tuple[int, float]]:
        """Time and value of one quantity, ``socket.values(lambda state: state.cwnd_segments)``; without absent ones."""
        return [(state.time_ns, value) for state in self.states if (value := of(state)) is not None]

    def __str__(self) -> str:
        return f"{self.local} — {self.remote}"


def sockets(records: bytes) -> list[TcpSocket]:
    """Every socket in the agent's records, in the order in which they were first seen.

    Raises ValueError if the records end in the middle of one.
    """
    by_identity: dict[bytes, TcpSocket] = {}
    for time_ns, last, message in _messages(records):
        fields = _MESSAGE.unpack_from(message)
        family, state, _, _, sport, dport, src, dst, _, cookie, _, receive_queue, send_queue, _, _ = fields
        info = _info(message)
        known = by_identity.get(identity := message[:1] + message[4:52])
        if known is None:
            known = by_identity[identity] = TcpSocket(
                local=_endpoint(family, src, sport),
                remote=_endpoint(family, dst, dport),
                cookie=struct.unpack("=Q", cookie)[0],
            )
        if info is not None:
            known.states.append(
                _state(info, time_ns=time_ns, last=last, state=state, queues=(receive_queue, send_queue))
            )
    return [socket for socket in by_identity.values() if socket.states]


def _messages(records: bytes) -> Iterator[tuple[int, bool, bytes]]:
    at = 0
    while at < len(records):
        if at + _RECORD.size > len(records):
            raise ValueError(f"the records end within a head, at byte {at} of {len(records)}")
        time_ns, last, length = _RECORD.unpack_from(records, at)
        at += _RECORD.size + length
        if at > len(records) or length < _MESSAGE.size:
            raise ValueError(f"the records end within a message of {length} bytes, at byte {at} of {len(records)}")
        yield time_ns, bool(last), records[at - length : at]


def _info(message: bytes) -> bytes | None:
    at = _MESSAGE.size
    while at + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, at)
        if length < 4:
            raise ValueError(f"an attribute of {length} bytes in a message about a socket")
        if kind == _INFO:
            return message[at + 4 : at + length]
        at += (length + 3) & ~3
    return None


def _endpoint(family: int, address: bytes, port: bytes) -> Endpoint:
    packed = address[:4] if family == _AF_INET else address
    parsed = ipaddress.ip_address(packed)
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return Endpoint(address=str(parsed), port=int.from_bytes(port, "big"))


def _state(info: bytes, *, time_ns: int, last: bool, state: int, queues: Sequence[int]) -> TcpState:
    (
        _, _, retransmits, probes, backoff, _, _, _,
        rto, _, mss, _, unacked, sacked, lost, retrans, _, _, _, _, _,
        _, _, rtt, rttvar, ssthresh, cwnd, _, _, _, receive_space, total_retrans,
        _, _, acked, received,
        segments_out, segments_in, unsent, min_rtt, _, _,
        delivery_rate, busy, window_limited, buffer_limited,
        _, _, sent, bytes_retrans,
        dsacks, _, out_of_order, send_window,
    ) = _HEAD.unpack_from(info.ljust(_HEAD.size, b"\0"))  # fmt: skip
    tail = info[_HEAD.size :]
    receive_window = struct.unpack_from("=I", tail)[0] if len(tail) >= 4 else None
    timeouts = _TAIL.unpack_from(tail)[2] if len(tail) >= _TAIL.size else None
    return TcpState(
        time_ns=time_ns, last=last, state=STATES[state] if state < len(STATES) else str(state),
        receive_queue_bytes=queues[0], send_queue_bytes=queues[1],
        retransmits=retransmits, probes=probes, backoff=backoff,
        rto_s=rto / 1e6, srtt_s=rtt / 1e6, rttvar_s=rttvar / 1e6,
        min_rtt_s=None if min_rtt in (0, 0xFFFFFFFF) else min_rtt / 1e6,
        mss_bytes=mss, cwnd_segments=cwnd, ssthresh_segments=None if ssthresh >= _NO_SSTHRESH else ssthresh,
        unacked_segments=unacked, sacked_segments=sacked, lost_segments=lost,
        retransmitted_in_flight_segments=retrans, total_retransmissions=total_retrans,
        send_window_bytes=send_window, receive_space_bytes=receive_space, receive_window_bytes=receive_window,
        delivery_rate_bps=8.0 * delivery_rate, unsent_bytes=unsent,
        bytes_sent=sent, bytes_retransmitted=bytes_retrans, bytes_acked=acked, bytes_received=received,
        segments_sent=segments_out, segments_received=segments_in,
        out_of_order_segments=out_of_order, duplicates_reported=dsacks,
        busy_s=busy / 1e6, window_limited_s=window_limited / 1e6, buffer_limited_s=buffer_limited / 1e6,
        timeouts=timeouts,
    )  # fmt: skip
