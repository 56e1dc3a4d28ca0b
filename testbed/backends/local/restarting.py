"""Starts a service of a local lab again when it ends, as its `restart:` asks, after the engine's growing delay."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from testbed.backends.local.blueprint import Restart
from testbed.errors import LabError

# moby, restartmanager.go
_FIRST_S, _MOST_S, _RAN_WELL_S = 0.1, 60.0, 10.0


def delay_s(previous_s: float, ran_s: float) -> float:
    """The time before the next start; ``previous_s``: before the last one, 0 if there was none."""
    return _FIRST_S if ran_s >= _RAN_WELL_S or not previous_s else min(2 * previous_s, _MOST_S)


class Restarter:
    """The restarts of one host's service."""

    def __init__(self, policy: Restart, start: Callable[[], None]) -> None:
        """``start``: starts the service again; called in a thread of its own."""
        self._policy, self._start = policy, start
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._delay_s = 0.0
        self._began = time.monotonic()
        self._ceased = False
        self.restarts = 0
        """How often it was started again."""

    @property
    def pending(self) -> bool:
        """Whether a start is due."""
        return self._timer is not None

    def began(self) -> None:
        """The service was started by the lab or a test: counting begins."""
        with self._lock:
            self.restarts, self._delay_s, self._ceased = 0, 0.0, False
            self._began = time.monotonic()

    def ended(self, exit_code: int) -> None:
        """The service has ended."""
        with self._lock:
            if self._ceased or not self._policy.follows(exit_code, self.restarts):
                return
            self._delay_s = delay_s(self._delay_s, time.monotonic() - self._began)
            self._timer = threading.Timer(self._delay_s, self._again)
            self._timer.daemon = True
            self._timer.start()

    def cease(self) -> None:
        """Start it no more, until `began`: it was stopped on purpose."""
        with self._lock:
            self._ceased = True
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _again(self) -> None:
        with self._lock:
            if self._ceased:
                return
            self.restarts += 1
            self._began = time.monotonic()
            try:
                self._start()
            except LabError:  # the agent is gone, or the host was stopped meanwhile: the next look says so
                self._ceased = True
            self._timer = None
