"""The state of a host as its engine tells it, and what became of one between two looks. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from testbed.text import shown

RUNNING, PAUSED, EXITED, GONE = "running", "paused", "exited", "gone"


@dataclass(frozen=True, kw_only=True)
class HostState:
    """A host at one moment."""

    status: str
    """``running``, ``paused``, ``exited``, ``gone``, or another word of the engine's."""
    id: str = ""
    """Another when the host was made anew: the container's id; in a local lab, its first process if it has one."""
    started: str = ""
    """When its program was started: the engine's time stamp; in a local lab, the program's number."""
    restarts: int = 0
    """How often the engine started it again by itself."""
    exit_code: int | None = None
    """Of a program that has ended."""
    endpoints: Mapping[str, str] = field(default_factory=dict)
    """The engine's name for its end of each network; another one after each start."""

    def as_json(self) -> dict[str, Any]:
        """As the results file has it."""
        return {**vars(self), "endpoints": dict(self.endpoints)}


@dataclass(frozen=True, kw_only=True)
class HostChange:
    """What became of a host during a test."""

    host: str
    what: str
    by_test: bool
    """Whether the test did it, by `Lab.host`."""
    before: HostState
    after: HostState
    last_lines: tuple[str, ...] = ()
    """What its program printed last, if it ended by itself."""

    def __str__(self) -> str:
        whose = "" if self.by_test else ", and not by it"
        last = f"; it printed last: {shown(' | '.join(self.last_lines))}" if self.last_lines else ""
        return f"host `{self.host}` {self.what} during the test{whose}{last}"

    def as_json(self) -> dict[str, Any]:
        """As the results file has it."""
        return {**vars(self), "before": self.before.as_json(), "after": self.after.as_json()}


def change(before: HostState, after: HostState, *, may_end: bool = False) -> str:
    """What became of a host, as the end of a sentence; empty if nothing did.

    ``may_end``: its program is meant to end: with status 0 it has done its work.
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
    """Whether a host is as it was when the stack came up, made anew or not: it runs, on all of its networks."""
    if home.status != RUNNING:
        return True
    return now.status == RUNNING and set(home.endpoints) <= set(now.endpoints)


def meant_to_end(services: Mapping[str, Mapping[str, Any]]) -> frozenset[str]:
    """The services whose program may end with status 0: a migration, or another job.

    One that others await the end of; and one that nobody needs to run: it has neither a health check nor published
    ports, and no service depends on it as started or healthy.
    """
    awaited: set[str] = set()
    needed: set[str] = set()
    for body in services.values():
        for name, how in _conditions(body.get("depends_on")):
            (awaited if how == "service_completed_successfully" else needed).add(name)
    served = {name for name, body in services.items() if body.get("healthcheck") or body.get("ports")}
    return frozenset((set(services) - needed - served) | awaited)


def _conditions(depends_on: Any) -> Iterable[tuple[str, str]]:
    if isinstance(depends_on, Mapping):
        return [(name, str((how or {}).get("condition", "service_started"))) for name, how in depends_on.items()]
    return [(str(name), "service_started") for name in depends_on or ()]
