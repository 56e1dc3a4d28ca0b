"""A name server at the other end of a link: names of /etc/hosts, and for all others the answers of its own resolver.

It keeps no answer, so that every lookup crosses the link once. RFC 1035; UDP and TCP.

    python3 names.py         # serve
    python3 names.py check   # exit status 0 if it serves
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

PORT = 53
NO_ERROR, SERVER_FAILURE, NO_SUCH_NAME = 0, 2, 3
_A, _AAAA, _INTERNET = 1, 28, 1
_HEADER = struct.Struct("!6H")
_RECORD = struct.Struct("!3HIH")
_OUR_NAME = 0xC00C  # a pointer to the name of the question
_IS_ANSWER, _RECURSION_ASKED, _RECURSION_DONE = 0x8000, 0x0100, 0x0080
_ANSWERS_WITHIN_S = 4.0

Server = tuple[str, int]


class MalformedError(Exception):
    """What arrived is no query with one question."""


@dataclass(frozen=True)
class Query:
    """A question as it arrived."""

    ident: int
    flags: int
    name: str
    kind: int
    question: bytes
    """As it arrived, for the answer."""

    @classmethod
    def parse(cls, message: bytes) -> Query:
        """Raises MalformedError."""
        try:
            ident, flags, questions, *_ = _HEADER.unpack_from(message)
            labels, at = [], _HEADER.size
            while length := message[at]:
                if length > 63:  # a pointer, of which a question has none
                    raise MalformedError
                labels.append(message[at + 1 : at + 1 + length].decode("latin-1"))
                at += 1 + length
            kind, of_class = struct.unpack_from("!2H", message, at + 1)
        except (struct.error, IndexError):
            raise MalformedError from None
        if questions != 1 or flags & _IS_ANSWER or of_class != _INTERNET:
            raise MalformedError
        return cls(ident, flags, ".".join(labels).lower(), kind, message[_HEADER.size : at + 5])

    def answer(self, addresses: list[bytes], code: int = NO_ERROR) -> bytes:
        """The answer with these addresses of the kind asked for; it may be kept for no time."""
        flags = _IS_ANSWER | _RECURSION_DONE | self.flags & _RECURSION_ASKED | code
        records = [_RECORD.pack(_OUR_NAME, self.kind, _INTERNET, 0, len(data)) + data for data in addresses]
        return _HEADER.pack(self.ident, flags, 1, len(records), 0, 0) + self.question + b"".join(records)


def known(hosts: str, query: Query) -> list[bytes] | None:
    """The addresses of a name by the text of /etc/hosts, of the kind asked for; None if it has not the name."""
    entries = [line.partition("#")[0].split() for line in hosts.splitlines()]
    addresses = [entry[0] for entry in entries if query.name in map(str.lower, entry[1:])]
    if not addresses:
        return None
    version = {_A: 4, _AAAA: 6}.get(query.kind)
    return [ip.packed for ip in map(ip_address, addresses) if ip.version == version]


def upstream(resolv_conf: str, own: set[str]) -> str | None:
    """The first name server of a resolv.conf that is another than this one."""
    lines = [line.split() for line in resolv_conf.splitlines()]
    servers = [words[1] for words in lines if words[:1] == ["nameserver"] and len(words) > 1]
    return next((server for server in servers if server not in own), None)


async def answer(message: bytes, ask: Callable[[bytes], Awaitable[bytes]] | None) -> bytes | None:
    """The answer to a message; None to what is no query. ``ask``: asks the next name server; raises OSError."""
    try:
        query = Query.parse(message)
    except MalformedError:
        return None
    addresses = known(Path("/etc/hosts").read_text(encoding="utf-8"), query)
    if addresses is not None:
        return query.answer(addresses)
    if ask is None:
        return query.answer([], NO_SUCH_NAME)
    try:
        async with asyncio.timeout(_ANSWERS_WITHIN_S):
            return await ask(message)
    except (OSError, EOFError):  # TimeoutError is an OSError
        return query.answer([], SERVER_FAILURE)


async def ask_by_udp(server: Server, message: bytes) -> bytes:
    """Ask a name server once."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET6 if ":" in server[0] else socket.AF_INET, socket.SOCK_DGRAM) as here:
        here.setblocking(False)
        await loop.sock_connect(here, server)
        await loop.sock_sendall(here, message)
        while True:
            reply = await loop.sock_recv(here, 65_535)
            if reply[:2] == message[:2]:
                return reply


async def ask_by_tcp(server: Server, message: bytes) -> bytes:
    """Likewise, for an answer that does not fit into a datagram."""
    reader, writer = await asyncio.open_connection(*server)
    with contextlib.closing(writer):
        writer.write(struct.pack("!H", len(message)) + message)
        return await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))


class Datagrams(asyncio.DatagramProtocol):
    """Queries by UDP."""

    def __init__(self, server: Server | None) -> None:
        self._ask = None if server is None else lambda message: ask_by_udp(server, message)
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]  # as asyncio has it
        """Keep what answers are sent by."""
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answer it, while others are answered."""
        task = asyncio.get_running_loop().create_task(self._answer(data, addr))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, data: bytes, addr: tuple[str, int]) -> None:
        if (reply := await answer(data, self._ask)) is not None:
            self._transport.sendto(reply, addr)


async def serve(server: Server | None, *, host: str = "::", port: int = PORT) -> None:
    """Answer until cancelled. ``server``: who is asked what /etc/hosts has not."""
    ask = None if server is None else lambda message: ask_by_tcp(server, message)

    async def answer_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError, EOFError):
            while True:
                message = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
                if (reply := await answer(message, ask)) is None:
                    return
                writer.write(struct.pack("!H", len(reply)) + reply)
                await writer.drain()

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as here, socket.socket(family, socket.SOCK_STREAM) as listening:
        for end in (here, listening):
            if family == socket.AF_INET6:
                end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # IPv4, too
            end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            end.bind((host, port))
        here.setblocking(False)
        await asyncio.get_running_loop().create_datagram_endpoint(lambda: Datagrams(server), sock=here)
        async with await asyncio.start_server(answer_stream, sock=listening) as serving:
            await serving.serve_forever()


async def check(server: Server) -> bool:
    """Whether a name server answers."""
    message = _HEADER.pack(1, _RECURSION_ASKED, 1, 0, 0, 0) + b"\x09localhost\x00" + struct.pack("!2H", _A, _INTERNET)
    with contextlib.suppress(OSError):
        async with asyncio.timeout(_ANSWERS_WITHIN_S):
            return bool(await ask_by_udp(server, message))
    return False


def main() -> int:
    """Serve, or check that it serves."""
    if sys.argv[1:] == ["check"]:
        return 0 if asyncio.run(check(("127.0.0.1", PORT))) else 1
    next_one = upstream(Path("/etc/resolv.conf").read_text(encoding="utf-8"), own={"127.0.0.1", "::1"})
    host = "::" if Path("/proc/net/if_inet6").exists() else "0.0.0.0"  # noqa: S104  # a service for its network
    asyncio.run(serve(None if next_one is None else (next_one, PORT), host=host))
    return 0


if __name__ == "__main__":
    sys.exit(main())
