"""What the kernel reports of sockets: messages by hand, and real sockets through the agent's sampler."""

from __future__ import annotations

import ipaddress
import socket
import struct
import threading
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.agent import sockdiag
from testbed.agent import sockets as agent
from testbed.agent.protocol import Refused
from testbed.lab.waiting import await_condition
from testbed.observe.tcp_info import Endpoint, TcpSocket, sockets

_V6_MAPPED = ipaddress.ip_address("::ffff:10.0.0.1").packed


def info(**fields: int) -> bytes:
    """A struct tcp_info of 232 bytes, as of Linux 5.5, with these fields, by offset ``u32_N`` or ``u64_N``."""
    raw = bytearray(232)
    for name, value in fields.items():
        kind, _, offset = name.partition("_")
        struct.pack_into({"u8": "=B", "u32": "=I", "u64": "=Q"}[kind], raw, int(offset), value)
    return bytes(raw)


def message(
    tcp_info: bytes | None,
    *,
    state: int = 1,
    family: int = socket.AF_INET,
    cookie: int = 1,
    expires: int = 0,
    queues: tuple[int, int] = (0, 0),
    src: bytes = b"\x0a\0\0\1",
    dst: bytes = b"\x0a\0\0\2",
) -> bytes:
    """A struct inet_diag_msg, an attribute that we do not want, and TCP_INFO behind it."""
    head = struct.pack("=4B2s2s16s16sIQ", family, state, 0, 0, b"\x9c\x40", b"\0\x50", src, dst, 0, cookie)
    head += struct.pack("=5I", expires, *queues, 0, 99)
    head += struct.pack("=HHB3x", 5, 8, 0)
    return head if tcp_info is None else head + struct.pack("=HH", 4 + len(tcp_info), 2) + tcp_info


def record(time_ns: int, body: bytes, *, last: bool = False) -> bytes:
    return agent.RECORD.pack(time_ns, last, len(body)) + body


def only(records: bytes) -> TcpSocket:
    (sock,) = sockets(records)
    return sock


def test_each_quantity_is_read_where_the_kernel_puts_it() -> None:
    tcp_info = info(
        u8_2=3, u8_4=2, u32_8=204000, u32_16=1448, u32_24=10, u32_28=4, u32_32=2, u32_36=1, u32_68=20500, u32_72=1500,
        u32_76=7, u32_80=12, u32_96=65536, u32_100=5, u64_120=1001, u64_128=77, u32_136=40, u32_140=41, u32_144=5000,
        u32_148=19000, u64_160=125_000, u64_168=3_000_000, u64_176=2_000_000, u64_184=1_000_000, u64_200=2000,
        u64_208=300, u32_216=6, u32_224=8, u32_228=0,
    )  # fmt: skip
    connection = only(record(5, message(tcp_info, state=4, queues=(11, 22)))).final
    assert (connection.time_ns, connection.last, connection.state) == (5, False, "FIN_WAIT1")
    assert (connection.receive_queue_bytes, connection.send_queue_bytes) == (11, 22)
    assert (connection.retransmits, connection.backoff, connection.total_retransmissions) == (3, 2, 5)
    assert (connection.rto_s, connection.srtt_s, connection.rttvar_s, connection.min_rtt_s) == (
        0.204,
        0.0205,
        0.0015,
        0.019,
    )
    assert (connection.mss_bytes, connection.cwnd_segments, connection.ssthresh_segments) == (1448, 12, 7)
    assert (connection.unacked_segments, connection.sacked_segments, connection.lost_segments) == (10, 4, 2)
    assert connection.retransmitted_in_flight_segments == 1
    assert (
        connection.bytes_acked,
        connection.bytes_received,
        connection.bytes_sent,
        connection.bytes_retransmitted,
    ) == (1001, 77, 2000, 300)
    assert (connection.segments_sent, connection.segments_received, connection.unsent_bytes) == (40, 41, 5000)
    assert connection.delivery_rate_bps == 1_000_000
    assert (connection.busy_s, connection.window_limited_s, connection.buffer_limited_s) == (3, 2, 1)
    assert (connection.duplicates_reported, connection.out_of_order_segments, connection.send_window_bytes) == (6, 8, 0)
    assert (connection.receive_space_bytes, connection.receive_window_bytes, connection.timeouts) == (65536, None, None)


def test_what_only_newer_kernels_say_is_read_if_it_is_there() -> None:
    newer = info() + struct.pack("=IIHHI", 4096, 0, 3, 1, 500)
    connection = only(record(0, message(newer))).final
    assert (connection.receive_window_bytes, connection.timeouts) == (4096, 3)


def test_what_was_never_measured_is_none_and_not_a_number() -> None:
    connection = only(record(0, message(info(u32_76=0x7FFFFFFF, u32_148=0xFFFFFFFF)))).final
    assert (connection.ssthresh_segments, connection.min_rtt_s) == (None, None)


def test_states_of_a_socket_are_a_series_and_of_two_two() -> None:
    records = record(1, message(info(u32_80=10), cookie=1)) + record(2, message(info(), cookie=2))
    records += record(3, message(info(u32_80=11), cookie=1), last=True)
    first, second = sockets(records)
    assert first.values(lambda state: state.cwnd_segments) == [(1, 10), (3, 11)]
    assert (first.final.last, len(second.states)) == (True, 1)
    assert (str(first.local), str(first.remote)) == ("10.0.0.1:40000", "10.0.0.2:80")
    at = first.at(2)
    assert at is not None
    assert at.cwnd_segments == 10
    assert first.at(0) is None


def test_an_address_of_ipv4_in_ipv6_is_told_as_what_it_is() -> None:
    connection = only(record(0, message(info(), family=socket.AF_INET6, src=_V6_MAPPED, dst=_V6_MAPPED)))
    assert connection.local == Endpoint(address="10.0.0.1", port=40000)
    assert str(Endpoint(address="fe80::1", port=80)) == "[fe80::1]:80"


def test_a_socket_of_which_there_is_no_tcp_info_is_left_out() -> None:
    assert sockets(record(0, message(None))) == []


def test_records_that_end_early_are_refused() -> None:
    whole = record(0, message(info()))
    for cut in (3, 40, len(whole) - 1):
        with pytest.raises(ValueError, match="the records end within"):
            sockets(whole[:cut])


@given(st.binary(min_size=72, max_size=400))
def test_any_message_is_read_or_refused(body: bytes) -> None:
    try:
        sockets(record(0, body))
    except ValueError as error:
        assert str(error)  # noqa: PT017  # that it is no other exception is the test


# --- the sampler, on this machine's kernel ---------------------------------------------------------


def watched(watch: agent.Watch, port: int) -> TcpSocket:
    return next(sock for sock in sockets(watch.records()) if port == sock.remote.port)


def watching(**options: float) -> agent.Watch:
    try:
        return agent.Watch(**{"every_s": 0.005, "most_cpu": 0.5, **options})
    except Refused as refused:
        pytest.skip(f"this kernel does not tell here: {refused}")


def test_a_connection_is_seen_while_it_lives_and_its_last_state_is_told_by_the_kernel() -> None:
    watch = watching()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as ours, listener.accept()[0] as theirs:
            deadline = time.monotonic() + 5
            while not any(port == int.from_bytes(known[3:5], "big") for known in watch.known):
                assert time.monotonic() < deadline, "not seen in 5 s"
                ours.sendall(b"x" * 1000)
                assert theirs.recv(65536)
                time.sleep(0.002)
            ours.sendall(b"y" * 500)
            assert theirs.recv(65536)
            sent = ours
        assert sent.fileno() == -1
    deadline = time.monotonic() + 5
    while not watched(watch, port).final.last and time.monotonic() < deadline:
        time.sleep(0.01)
    watch.stop()
    connection = watched(watch, port)
    assert connection.final.last
    assert connection.final.bytes_sent >= 1500
    assert connection.final.bytes_sent == connection.final.bytes_acked - 2, "and one number each for SYN and FIN"
    assert all(
        earlier.time_ns <= later.time_ns
        for earlier, later in zip(connection.states, connection.states[1:], strict=False)
    )


def test_the_last_state_is_awaited_that_the_kernel_reports_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reports them from a work queue, which waits for its turn on a busy machine."""
    connect = sockdiag.connect
    late, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ended = threading.Event()

    def report(destroyed: socket.socket) -> None:
        with destroyed, late, suppress(OSError):  # until the watch has ended
            while True:
                data = destroyed.recv(65536)
                ended.wait()
                late.send(data)

    def connect_late(*, timeout_s: float, groups: int = 0) -> socket.socket:
        if not groups:
            return connect(timeout_s=timeout_s)
        threading.Thread(target=report, args=[connect(groups=groups, timeout_s=60)], daemon=True).start()
        ours.settimeout(timeout_s)
        return ours

    monkeypatch.setattr(sockdiag, "connect", connect_late)
    monkeypatch.setattr(agent, "LAST_WORDS_S", 10.0)
    watch = watching()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), listener.accept()[0]:
            await_condition(
                lambda: [int.from_bytes(known[3:5], "big") for known in list(watch.known)],
                lambda ports: port in ports,
                deadline_s=5,
            )
    threading.Timer(0.1, ended.set).start()
    watch.stop()
    assert watched(watch, port).final.last


def test_a_socket_that_nothing_happens_to_is_kept_once() -> None:
    watch = watching()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            before = watch.samples
            deadline = time.monotonic() + 5
            while watch.samples < before + 40 and time.monotonic() < deadline:
                time.sleep(0.01)
            watch.stop()
    assert watch.samples >= 40
    assert len(watched(watch, port).states) <= 3, "the last acknowledgment may come between two looks"


def test_watching_takes_no_more_of_a_core_than_was_allowed() -> None:
    watch = watching(every_s=0.0001, most_cpu=0.01)
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        time.sleep(0.05)
    watch.stop()
    assert watch.samples > 5
    assert watch.cpu_s / watch.ran_s <= 0.02, "the 1 % that was allowed, and the look that is being paid for"


def test_one_watch_at_a_time() -> None:
    operations = agent.Sockets().operations()
    with pytest.raises(Refused, match="not being watched"):
        operations["end_watch_tcp"]()
    operations["watch_tcp"](every_s=0.01, most_cpu=0.02)
    with pytest.raises(Refused, match="watched already"):
        operations["watch_tcp"](every_s=0.01, most_cpu=0.02)
    account = operations["end_watch_tcp"]()
    assert account["samples"] >= 2
    assert operations["fetch_tcp"](offset=0)["next"] is None
