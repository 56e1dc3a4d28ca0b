"""Health checks, run by us: Podman leaves them to systemd, which not every machine has."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from testbed.backends.docker.engine import Engine, RefusedError, refusals_raised
from testbed.errors import LabError

_LOOK_S = 0.25
_INTERVAL_S = 30.0  # Dockerfile reference, HEALTHCHECK
_ENDED_WITHIN_S = 10


@dataclass
class _Plan:
    """Of one container."""

    interval_s: float
    due_s: float
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while a check runs."""
    ended: str = ""
    """When the last known one ended, as the engine tells it."""


class HealthChecks(AbstractContextManager["HealthChecks"]):
    """Runs the checks of containers at their intervals, as long as this context lasts.

    A container whose checks the engine runs after all is left to it.
    """

    def __init__(self, engine: Engine, **labels: str) -> None:
        """``labels``: of the containers."""
        self._engine = engine
        self._labels = labels
        self._over = threading.Event()
        self._checks: dict[str, _Plan | None] = {}
        """By container; None if it has no check."""
        self._thread = threading.Thread(target=self._watch, name="testbed-health", daemon=True)

    def __enter__(self) -> HealthChecks:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        """End."""
        self._over.set()
        self._thread.join(_ENDED_WITHIN_S)

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_S):
            with suppress(RefusedError, LabError), refusals_raised():  # whoever needs an engine that is going says so
                for row in self._engine.listing(**self._labels):
                    self._look(str(row["Id"]), running=row["State"] == "running")

    def _look(self, container: str, *, running: bool) -> None:
        now_s = time.monotonic()
        if container not in self._checks:
            self._checks[container] = check = _plan_of(self._engine.container(container).attrs, now_s)
        else:
            check = self._checks[container]
        if check is None or check.lock.locked():
            return
        if not running:
            check.due_s = now_s + check.interval_s
        elif check.due_s <= now_s and check.lock.acquire(blocking=False):
            check.due_s = now_s + check.interval_s
            threading.Thread(target=self._run, args=(container, check), name="testbed-check", daemon=True).start()

    def _run(self, container: str, check: _Plan) -> None:
        try:
            with suppress(RefusedError, LabError), refusals_raised():
                if _last(self._engine.container(container).attrs) == check.ended:
                    self._engine.check_health(container)
                check.ended = _last(self._engine.container(container).attrs)
        finally:
            check.lock.release()


def _plan_of(inspection: Mapping[str, Any], now_s: float) -> _Plan | None:
    """A container's check, due after its first interval."""
    health = (inspection.get("Config") or {}).get("Healthcheck") or {}
    if not health.get("Test") or health["Test"][0] == "NONE":
        return None
    interval_s = health.get("Interval", 0) / 1e9 or _INTERVAL_S
    return _Plan(interval_s=interval_s, due_s=now_s + interval_s)


def _last(inspection: Mapping[str, Any]) -> str:
    """When the last check ended; empty if none has."""
    log = ((inspection.get("State") or {}).get("Health") or {}).get("Log") or ()
    return str(log[-1]["End"]) if log else ""
