"""Published ports: relays connections from the machine's own sockets to hosts of the lab."""

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
    """Relay connections for ever; ``published``: listening sockets and the address that each connects to."""
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
        return  # the client has closed the connection already
    try:
        inner = socket.create_connection(target, timeout=_CONNECT_WITHIN_S)
    except OSError:
        outer.close()  # no program listens in the host; Docker's proxy closes the connection as well
        return
    for end in (outer, inner):
        end.settimeout(_CONNECT_WITHIN_S)
    forth, back = _Pipe(outer, inner), _Pipe(inner, outer)
    forth.other, back.other = back, forth
    waiting.register(outer, selectors.EVENT_READ, forth)
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
