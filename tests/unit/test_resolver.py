"""The resolver of images/: what it makes of queries, by messages written byte by byte (RFC 1035)."""

from __future__ import annotations

import asyncio
import socket
import socketserver
import struct
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from images.resolver import names

_HOSTS = "127.0.0.1 localhost\n10.53.0.4 api.lan API # ours\nfd00::4 api\n10.53.0.5 api\n"


def query(name: str, kind: int = 1, ident: int = 7) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", ident, 0x0100, 1, 0, 0, 0) + labels + b"\x00" + struct.pack("!2H", kind, 1)


def test_names_of_hosts_by_kind_in_any_case() -> None:
    def addresses(name: str, kind: int) -> list[bytes] | None:
        return names.known(_HOSTS, names.Query.parse(query(name, kind)))

    assert addresses("aPi", 1) == [bytes([10, 53, 0, 4]), bytes([10, 53, 0, 5])]
    assert addresses("api", 28) == [socket.inet_pton(socket.AF_INET6, "fd00::4")]
    assert addresses("api.lan", 28) == []  # the name is there, and has no such address
    assert addresses("ours", 1) is None


def test_an_answer_has_the_question_and_a_record_for_each_address() -> None:
    message = query("api")
    assert names.Query.parse(message).answer([bytes([10, 53, 0, 4])]) == (
        struct.pack("!6H", 7, 0x8180, 1, 1, 0, 0)
        + message[12:]
        + b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x00\x00\x04"
        + bytes([10, 53, 0, 4])
    )


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x00" * 12,
        query("api")[:-1],
        query("api")[:13],
        struct.pack("!6H", 7, 0x8180, 1, 0, 0, 0) + query("api")[12:],  # an answer
        query("api")[:12] + b"\xc0\x0c\x00\x01\x00\x01",  # a name that points to itself
    ],
)
def test_what_is_no_query_gets_no_answer(message: bytes) -> None:
    assert asyncio.run(names.answer(message, None)) is None


def test_the_next_name_server_is_another_than_itself() -> None:
    text = "search x\nnameserver 127.0.0.1\nnameserver\nnameserver 127.0.0.11\n"
    assert names.upstream(text, {"127.0.0.1"}) == "127.0.0.11"
    assert names.upstream("nameserver ::1\n", {"::1"}) is None


_THERE = bytes([192, 0, 2, 1])


class NextByUdp(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        message, here = self.request
        here.sendto(names.Query.parse(message).answer([_THERE]), self.client_address)


class NextByTcp(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        reply = names.Query.parse(self.request.recv(512)[2:]).answer([_THERE] * 2)
        self.request.sendall(struct.pack("!H", len(reply)) + reply)


@asynccontextmanager
async def served(server: names.Server) -> AsyncIterator[names.Server]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        here = ("127.0.0.1", int(free.getsockname()[1]))
    task = asyncio.ensure_future(names.serve(server, host=here[0], port=here[1]))
    while not await names.check(here):
        assert not task.done(), task.exception()
        await asyncio.sleep(0)  # asking does not wait where nobody listens
    yield here
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def test_what_hosts_has_not_is_asked_of_the_next_server_by_udp_and_tcp() -> None:
    async def ask(server: names.Server) -> list[bytes]:
        async with served(server) as here:
            return [
                await asking(here, query(name))
                for asking in (names.ask_by_udp, names.ask_by_tcp)
                for name in ("localhost", "there.test")
            ]

    with (
        socketserver.ThreadingTCPServer(("127.0.0.1", 0), NextByTcp) as tcp,
        socketserver.UDPServer(tcp.server_address, NextByUdp) as udp,
    ):
        for server in (tcp, udp):
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        replies = asyncio.run(ask(("127.0.0.1", int(tcp.server_address[1]))))
        for server in (tcp, udp):
            server.shutdown()
    loopback = bytes([127, 0, 0, 1])
    assert [reply[-4:] for reply in replies] == [loopback, _THERE, loopback, _THERE]
    assert [int.from_bytes(reply[6:8], "big") for reply in replies] == [1, 1, 1, 2]  # addresses


def test_a_next_server_that_is_gone_is_a_failure_and_no_silence() -> None:
    async def gone(_message: bytes) -> bytes:
        raise ConnectionRefusedError

    reply = asyncio.run(names.answer(query("nowhere.test"), gone))
    assert reply is not None
    assert reply[3] & 15 == names.SERVER_FAILURE
