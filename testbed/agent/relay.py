"""Published ports: relays connections and datagrams from the machine's own sockets to hosts of the lab."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_AT_ONCE_BYTES = 65536
_MOST_CLIENTS = 512
"""Of UDP ports; the one that was heard of the longest ago is forgotten."""


@dataclass
class _Datagrams:
    """A published UDP port."""

    outer: socket.socket
    target: tuple[str, int]
    clients: dict[Any, socket.socket] = field(default_factory=dict)
    """By a client's address: the socket that speaks for it to the host."""


@dataclass
class _Answers:
    """What a host answers to a client of a UDP port."""

    port: _Datagrams
    client: Any


def serve(published: Sequence[tuple[socket.socket, tuple[str, int]]]) -> None:
    """Relay for ever; ``published``: listening sockets, or sockets for datagrams, and where each leads."""
    with selectors.DefaultSelector() as waiting:
        for listener, target in published:
            datagrams = listener.type == socket.SOCK_DGRAM
            waiting.register(listener, selectors.EVENT_READ, _Datagrams(listener, target) if datagrams else target)
        while True:
            for key, _ in waiting.select():
                if isinstance(key.data, _Datagrams):
                    _send_on(waiting, key.data)
                elif isinstance(key.data, _Answers) and isinstance(key.fileobj, socket.socket):
                    _answer(key.fileobj, key.data)
                elif isinstance(key.fileobj, socket.socket):
                    _accept(key.fileobj, key.data)


def _send_on(waiting: selectors.BaseSelector, port: _Datagrams) -> None:
    """Pass a datagram of a client to the host, from a socket of the client's own."""
    with contextlib.suppress(OSError):  # such a datagram is lost, as it may be
        data, client = port.outer.recvfrom(_AT_ONCE_BYTES)
        inner = port.clients.pop(client, None)
        if inner is None:
            if len(port.clients) >= _MOST_CLIENTS:
                oldest = port.clients.pop(next(iter(port.clients)))
                waiting.unregister(oldest)
                oldest.close()
            inner = socket.socket(socket.AF_INET6 if ":" in port.target[0] else socket.AF_INET, socket.SOCK_DGRAM)
            inner.connect(tuple(port.target))
            waiting.register(inner, selectors.EVENT_READ, _Answers(port, client))
        port.clients[client] = inner
        inner.send(data)


def _answer(inner: socket.socket, answers: _Answers) -> None:
    with contextlib.suppress(OSError):  # ICMP: nobody listens there; or the client is gone
        answers.port.outer.sendto(inner.recv(_AT_ONCE_BYTES), answers.client)


def _accept(listener: socket.socket, target: tuple[str, int]) -> None:
    try:
        outer, _ = listener.accept()
    except OSError:
        return  # the client has closed the connection already
    threading.Thread(target=_join, args=(outer, target), daemon=True).start()


def _join(outer: socket.socket, target: tuple[str, int]) -> None:
    """Relay one connection, whose link to the host may be slow or cut, while others go on."""
    try:
        inner = socket.create_connection(target)
    except OSError:
        outer.close()  # no program listens in the host; Docker's proxy closes the connection as well
        return
    with outer, inner:
        for end in (outer, inner):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as Docker's proxy does
        back = threading.Thread(target=_pass_on, args=(inner, outer), daemon=True)
        back.start()
        _pass_on(outer, inner)
        back.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    """One direction of a connection, to its end."""
    try:
        while data := source.recv(_AT_ONCE_BYTES):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:  # one side broke: both end
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
