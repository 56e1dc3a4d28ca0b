"""Graceful stop on SIGTERM and SIGINT: a flag, and a descriptor to poll together with sockets."""

import os
import select
import signal
import socket
import time
from types import FrameType


class Stop:
    """Whether the program was asked to stop. The descriptor stays readable from then on, also in forked children."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        # Python writes to it at once. A handler would run only when a wait ends, and a signal just before ends none.
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self.requested_at: float | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.requested_at = self.requested_at or time.monotonic()

    def fileno(self) -> int:
        """The descriptor that becomes readable."""
        return self._reader

    @property
    def requested(self) -> bool:
        """Whether the program was asked to stop."""
        return self.requested_at is not None

    def left_s(self, drain_s: float) -> float | None:
        """The rest of the time to finish, in seconds; None before the program was asked to stop."""
        return None if self.requested_at is None else max(0.0, self.requested_at + drain_s - time.monotonic())

    def await_ready(self, sock: socket.socket, events: int, drain_s: float) -> bool:
        """Wait until a socket is ready, at most until ``drain_s`` after the stop; returns whether it is ready."""
        poll = select.poll()
        poll.register(sock, events)
        if not self.requested:
            poll.register(self._reader, select.POLLIN)
            ready = poll.poll()
            if all(descriptor != self._reader for descriptor, _ in ready) and not self.requested:
                return True
            self.requested_at = (
                self.requested_at or time.monotonic()
            )  # a forked child learns of it only through the pipe
            poll.unregister(self._reader)
        return bool(poll.poll(1000 * (self.left_s(drain_s) or 0.0)))
