"""Stop on SIGTERM and SIGINT when it suits the program: a flag, and a descriptor to poll beside sockets."""

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
        # Written to at once: a handler runs only when a wait has ended, and a signal just before it ends none.
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self.asked_at: float | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked_at = self.asked_at or time.monotonic()

    def fileno(self) -> int:
        """What becomes readable."""
        return self._reader

    @property
    def asked(self) -> bool:
        """Whether the program was asked to stop."""
        return self.asked_at is not None

    def left_s(self, drain_s: float) -> float | None:
        """How much is left of the time to finish; None before the program was asked to stop."""
        return None if self.asked_at is None else max(0.0, self.asked_at + drain_s - time.monotonic())

    def await_ready(self, sock: socket.socket, events: int, drain_s: float) -> bool:
        """Wait for a socket; the wait ends ``drain_s`` after the program was asked to stop. Whether it is ready."""
        poll = select.poll()
        poll.register(sock, events)
        if not self.asked:
            poll.register(self._reader, select.POLLIN)
            ready = poll.poll()
            if all(descriptor != self._reader for descriptor, _ in ready) and not self.asked:
                return True
            self.asked_at = self.asked_at or time.monotonic()  # a forked child hears of it through the pipe alone
            poll.unregister(self._reader)
        return bool(poll.poll(1000 * (self.left_s(drain_s) or 0.0)))
