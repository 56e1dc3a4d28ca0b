"""Published ports: connections to a socket of the machine's own are passed on to a host of the lab."""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections.abc import Sequence
from dataclasses import dataclass

_AT_ONCE_BYTES = 65536
_CONNECT_WITHIN_S = 5.0


@dataclass
class _Pipe:
    """One direction of one connection."""

    source: socket.socket
    target: socket.socket
    other: _Pipe | None = None
    ended: bool = False


def serve(published: Sequence[tuple[socket.socket, tuple[str, int]]]) -> None:
    """Pass connections on for ever; ``published``: each listening socket, and the address to connect to."""
    with selectors.DefaultSelector() as waiting:
        for listener, target in published:
            waiting.register(listener, selectors.EVENT_READ, target)
        while True:
            for key, _ in waiting.select():
                if isinstance(key.data, _Pipe):
                    _pass_on(waiting, key.data)
                elif isinstance(key.fileobj, socket.socket):
                    _accept(waiting, key.fileobj, key.data)


def _accept(waiting: selectors.BaseSelector, listener: socket.socket, target: tuple[str, int]) -> None:
    try:
        outer, _ = listener.accept()
    except OSError:
        return  # whoever called has hung up already
    try:
        inner = socket.create_connection(target, timeout=_CONNECT_WITHIN_S)
    except OSError:
        outer.close()  # nobody listens in the host, which the caller sees as Docker's proxy shows it
        return
    for each in (outer, inner):
        each.settimeout(_CONNECT_WITHIN_S)
    there, back = _Pipe(outer, inner), _Pipe(inner, outer)
    there.other, back.other = back, there
    waiting.register(outer, selectors.EVENT_READ, there)
    waiting.register(inner, selectors.EVENT_READ, back)


def _pass_on(waiting: selectors.BaseSelector, pipe: _Pipe) -> None:
    try:
        data = pipe.source.recv(_AT_ONCE_BYTES)
        if data:
            pipe.target.sendall(data)
            return
        pipe.target.shutdown(socket.SHUT_WR)
        broken = False
    except OSError:
        broken = True
    pipe.ended = True
    waiting.unregister(pipe.source)
    other = pipe.other
    if other is not None and (broken or other.ended):
        if not other.ended:
            other.ended = True
            with contextlib.suppress(KeyError):
                waiting.unregister(other.source)
        pipe.source.close()
        pipe.target.close()
