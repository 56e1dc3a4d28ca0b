"""A window into a running session: a Unix socket that sends a line of JSON now and then to each who looks through it.

The socket has a name in the kernel alone (abstract, unix(7)): no file stays when the session is killed, and a session
into which nobody looks pays for a thread that waits. Only the same user, or root, is let in.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

VERSION = 1
"""Of what is sent; a field that is added leaves it as it is."""
_PREFIX = "testbed-watch-"
_UNIX_SOCKETS = Path("/proc/net/unix")
_LISTENS = "00010000"  # net/unix/af_unix.c, unix_seq_show; linux/net.h, __SO_ACCEPTCON
_CREDENTIALS = struct.Struct("3i")  # struct ucred: process, user, group
_ANSWERS_WITHIN_S = 10.0
_MOST_PROBLEMS = 3
"""One after the other: what changes while it is read is read again."""


class Window:
    """Shows what ``look`` returns, every so often, to everyone who asks; a ``problem`` if it fails."""

    def __init__(self, look: Callable[[], dict[str, Any]], *, every_s: float = 0.5) -> None:
        """``look`` is called in a thread of the window's, and only while somebody watches.

        Raises OSError if this process has a window.
        """
        self._look, self._every_s = look, every_s
        self.name = f"{_PREFIX}{os.getpid()}"
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(f"\0{self.name}")
        self._listening.listen()
        self._closed = threading.Event()
        self._serving = threading.Thread(target=self._serve, name="window", daemon=True)
        self._serving.start()

    def close(self) -> None:
        """Let nobody look any more."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._serving.join(_ANSWERS_WITHIN_S)
        self._listening.close()

    def _serve(self) -> None:
        while not self._closed.is_set():
            try:
                viewer, _ = self._listening.accept()
            except OSError:  # it was closed
                return
            if _user(viewer) in (0, os.getuid()):
                threading.Thread(target=self._show, args=(viewer,), name="window", daemon=True).start()
            else:
                viewer.close()

    def _show(self, viewer: socket.socket) -> None:
        with viewer, contextlib.suppress(OSError):
            viewer.settimeout(_ANSWERS_WITHIN_S)
            while not self._closed.is_set():
                try:
                    seen = self._look()
                except Exception as error:  # noqa: BLE001  # no session fails by who watches; they are told
                    seen = {"problem": repr(error)}
                viewer.sendall(json.dumps({"version": VERSION, **seen}).encode() + b"\n")
                self._closed.wait(self._every_s)


def windows() -> dict[int, str]:
    """The names of the windows on this machine, by process."""
    sockets = (line.split() for line in _UNIX_SOCKETS.read_text(encoding="utf-8").splitlines())
    paths = (words[-1] for words in sockets if words[3] == _LISTENS)
    names = sorted({path[1:] for path in paths if path.startswith(f"@{_PREFIX}")})
    return {int(name.removeprefix(_PREFIX)): name for name in names if name.removeprefix(_PREFIX).isdecimal()}


def seen_through(name: str) -> Iterator[dict[str, Any]]:
    """What a window shows, until the session ends. Raises OSError without such a window, or if looks go on failing."""
    problems = 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as here:
        here.connect(f"\0{name}")
        with here.makefile("rb") as lines:
            for line in lines:
                seen = json.loads(line)
                problems = problems + 1 if "problem" in seen else 0
                if problems > _MOST_PROBLEMS:
                    raise OSError(f"it cannot be read: {seen['problem']}")
                if not problems:
                    yield seen


def _user(viewer: socket.socket) -> int:
    _, user, _ = _CREDENTIALS.unpack(viewer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(user)
