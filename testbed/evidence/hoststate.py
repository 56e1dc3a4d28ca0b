"""The state of a host as its engine reports it, and changes between two states. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from testbed.text import shown

RUNNING, PAUSED, EXITED, GONE, RESTARTING = "running", "paused", "exited", "gone", "restarting"


@dataclass(frozen=True, kw_only=True)
class HostState:
    """A host at one moment."""

    status: str
    """``running``, ``paused``, ``exited``, ``gone``, or another word of the engine's."""
    id: str = ""
    """The container's id; in a local lab, the host's first process, if it has one. It changes with a new container."""
    started: str = ""
    """When the program was started: the engine's time stamp; in a local lab, the program's number."""
    restarts: int = 0
    """How often the engine restarted it by itself."""
    exit_code: int | None = None
    """The exit status of a program that has ended."""
    endpoints: Mapping[str, str] = field(default_factory=dict)
    """By network, the engine's name for the host's endpoint; it changes with each start."""

    def as_json(self) -> dict[str, Any]:
        """As the results file has it."""
        return {**vars(self), "endpoints": dict(self.endpoints)}


@dataclass(frozen=True, kw_only=True)
class HostChange:
    """A change of a host during a test."""

    host: str
    what: str
    """The end of the sentence "host `server` …"."""
    by_test: bool
    """Whether the test made it, through `Lab.host`."""
    before: HostState
    after: HostState
    last_lines: tuple[str, ...] = ()
    """The last output of its program, if that ended by itself."""

    def __str__(self) -> str:
        by_whom = "" if self.by_test else ", and not by it"
        last = f"; it printed last: {shown(' | '.join(self.last_lines))}" if self.last_lines else ""
        return f"host `{self.host}` {self.what} during the test{by_whom}{last}"

    def as_json(self) -> dict[str, Any]:
        """As the results file has it."""
        return {**vars(self), "before": self.before.as_json(), "after": self.after.as_json()}


def change(before: HostState, after: HostState, *, may_end: bool = False) -> str:
    """The change of a host, as the end of a sentence; empty if there is none.

    ``may_end``: its program is expected to end with status 0.
    """
    if after.status == GONE and before.status != GONE:
        return "is gone"
    if after.status == EXITED and before.status != EXITED:
        return "" if may_end and not after.exit_code else f"ended (exit status {after.exit_code})"
    if after.status == PAUSED and before.status != PAUSED:
        return "was paused"
    if after.id != before.id and before.id:
        return "was made anew"
    if after.started != before.started or after.restarts != before.restarts:
        return "was started again"
    if after.status != before.status:
        return f"is {after.status}; it was {before.status}"
    if left := [name for name in before.endpoints if name not in after.endpoints]:
        return f"was disconnected from {', '.join(left)}"
    changed = [name for name, end in after.endpoints.items() if before.endpoints.get(name) != end]
    return f"was connected anew to {', '.join(changed)}" if changed and after.status == RUNNING else ""


def is_whole(home: HostState, now: HostState) -> bool:
    """Whether a host runs on all of its networks, as when the stack came up; its container may be a new one."""
    if home.status != RUNNING:
        return True
    return now.status == RUNNING and set(home.endpoints) <= set(now.endpoints)


def meant_to_end(services: Mapping[str, Mapping[str, Any]]) -> frozenset[str]:
    """The services whose program may end with status 0, such as a migration.

    These are services whose end others await, and services that nothing needs: without health check and published
    ports, and not started or healthy as a condition of another service.
    """
    awaited: set[str] = set()
    needed: set[str] = set()
    for body in services.values():
        for name, condition in _conditions(body.get("depends_on")):
            (awaited if condition == "service_completed_successfully" else needed).add(name)
    served = {name for name, body in services.items() if body.get("healthcheck") or body.get("ports")}
    return frozenset((set(services) - needed - served) | awaited)


def _conditions(depends_on: Any) -> Iterable[tuple[str, str]]:
    if isinstance(depends_on, Mapping):
        return [(name, str((body or {}).get("condition", "service_started"))) for name, body in depends_on.items()]
    return [(str(name), "service_started") for name in depends_on or ()]
