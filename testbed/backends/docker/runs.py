"""Runs and their owners: which run an object on an engine belongs to, who owns the run, and its removal.

All that a run makes carries two labels: ``testbed.run``, the run's id, and ``testbed.owner``, the process that owns the
run, or `DETACHED`. Both together are its *record*. Anybody can write such labels, and an image that was committed from
a container of ours hands them on; so only an object with a whole record counts as a run's, and nothing else is removed.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from testbed.backends.docker.engine import OWNER_LABEL, RUN_LABEL, Engine, Labelled
from testbed.backends.docker.swarming import SWARM_LABEL
from testbed.compose.command import Composer
from testbed.errors import LabError
from testbed.lab.waiting import NotSeenError, await_condition

DETACHED = "detached"
"""The owner of a stack that stays when the process that brought it up has ended."""
STACK_LABEL = "testbed.stack"
"""The path of its Compose file; several are separated by colons."""
STARTER_LABEL = "testbed.starter"
"""On a stack that stays: the process that brought it up."""
UP_LABEL = "testbed.up"
"""On a volume of a stack that stays, from the moment when it was wholly up until it begins to be taken down."""

_RUN_ID = re.compile(r"[0-9a-f]{8}")
_OWNER = re.compile(
    r"(?P<machine>[0-9a-f]{1,12}|-):(?P<boot>[0-9a-f]{8}|-):(?P<namespace>\d+|-):(?P<pid>[1-9]\d*):(?P<start>\d+)"
)
_MOST_SHOWN = 60
_TIMES = 10
_TASKS_END_WITHIN_S = 60
"""How long a Swarm may take to end the tasks of services that were removed; they keep its networks."""
_FIRST = ("service", "container")
"""What is removed first: a Swarm starts tasks anew, and both use the rest."""
# How long nothing new of a dead owner must have appeared until the run is removed.
_SETTLES_WITHIN_S, _LOOK_AGAIN_S = 1.5, 0.25


@dataclass(kw_only=True)
class StackRun:
    """A run that has objects on the engine."""

    id: str
    owner: str
    objects: list[Labelled] = field(default_factory=list)

    @property
    def stack(self) -> str:
        """Of which Compose file it is."""
        return next((name for item in self.objects if (name := item.labels.get(STACK_LABEL))), "")

    @property
    def stays(self) -> bool:
        """Whether it stays without a process that owns it."""
        return self.owner == DETACHED and any(UP_LABEL in item.labels for item in self.objects)

    @property
    def is_stale(self) -> bool:
        """Whether its owner is surely dead; for an incomplete stack that was to stay, the process that started it."""
        if self.owner == DETACHED:
            return not self.stays and all(is_orphaned(item.labels.get(STARTER_LABEL, "")) for item in self.objects)
        return is_orphaned(self.owner)


def owner() -> str:
    """The running process, so that another can tell whether it lives: machine, boot, namespace, number, start."""
    return ":".join([*this_place(), str(os.getpid()), _start_time(os.getpid()) or "0"])


def this_place() -> tuple[str, str, str]:
    """The machine's id, its boot, and our process namespace; "-" for each that is unknown."""
    machine = _read("/etc/machine-id")[:12] or "-"
    boot = _read("/proc/sys/kernel/random/boot_id")[:8] or "-"
    try:
        namespace = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        namespace = "-"
    return machine, boot, namespace


def is_orphaned(label: str) -> bool:
    """Whether the owner named by a label is surely dead: of this machine, and gone.

    Owners on other machines, or in other process namespaces of this one, cannot be judged from here.
    """
    process = _OWNER.fullmatch(label)
    if process is None:
        return False
    here_machine, here_boot, here_namespace = this_place()
    if process["machine"] != here_machine or here_machine == "-":
        return False
    if "-" in (process["boot"], here_boot, process["namespace"], here_namespace):
        return False
    if process["boot"] != here_boot:
        return True
    return process["namespace"] == here_namespace and _start_time(int(process["pid"])) != process["start"]


def _start_time(pid: int) -> str | None:
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] != "Z" else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


# --- whose is what ---------------------------------------------------------------------------------


def flaw(item: Labelled) -> str | None:
    """Why an object with our label belongs to no run; None if its record is complete."""
    run_id, its_owner = item.labels.get(RUN_LABEL, ""), item.labels.get(OWNER_LABEL)
    if _RUN_ID.fullmatch(run_id) is None:
        return f"its label {RUN_LABEL}={_shown(run_id)} names no run"
    if item.of_image.get(RUN_LABEL) == run_id:
        return f"its label {RUN_LABEL}={run_id} is its image's"
    if its_owner is None:
        return f"it has no label {OWNER_LABEL}"
    if its_owner != DETACHED and _OWNER.fullmatch(its_owner) is None:
        return f"its label {OWNER_LABEL}={_shown(its_owner)} names no process"
    return None


def _shown(value: str) -> str:
    return repr(value if len(value) <= _MOST_SHOWN else f"{value[:_MOST_SHOWN]}…")


def sort(items: Iterable[Labelled]) -> tuple[list[StackRun], list[str]]:
    """The runs of objects with our label, and a line for each object that belongs to no run."""
    known: dict[tuple[str, str], StackRun] = {}
    foreign: list[str] = []
    for item in items:
        if (wrong := flaw(item)) is not None:
            foreign.append(f"{item.kind} {item.name}: {wrong}")
            continue
        record = item.labels[RUN_LABEL], item.labels[OWNER_LABEL]
        known.setdefault(record, StackRun(id=record[0], owner=record[1])).objects.append(item)
    return list(known.values()), foreign


def runs(engine: Engine) -> list[StackRun]:
    """Every run that has objects on the engine."""
    return sort(engine.labelled(RUN_LABEL))[0]


def foreigners(engine: Engine) -> list[str]:
    """Objects with our label that belong to no run, and why; they are never touched."""
    return sort(engine.labelled(RUN_LABEL))[1]


# --- removal ---------------------------------------------------------------------------------------


def clear_stale(engine: Engine, say: Callable[[str], None]) -> tuple[list[str], list[str]]:
    """Remove every run that `StackRun.is_stale`; returns the ids of those removed, and why others could not be.

    An object that the engine does not remove does not prevent another stack.
    """
    removed: list[str] = []
    problems: dict[str, str] = {}
    quiet_since = float("-inf")
    while True:
        stale = [run for run in runs(engine) if run.is_stale and run.id not in problems]
        for run in stale:
            if run.id not in removed:
                say(f"clearing up after run {run.id}, whose owner is gone")
            try:
                remove_run(engine, run.id, run.owner)
            except LabError as error:
                problems[run.id] = str(error)
                say(str(error))
            else:
                removed.append(run.id)
        # The engine may still carry out the requests of a client that was killed.
        if stale:
            quiet_since = time.monotonic()
        if time.monotonic() - quiet_since >= _SETTLES_WITHIN_S:
            return list(dict.fromkeys(removed)), list(problems.values())
        time.sleep(_LOOK_AGAIN_S)


def remove_run(engine: Engine, run_id: str, its_owner: str) -> None:
    """Remove everything that has this run's record, and nothing else. Raises LabError if something stays."""

    def look() -> tuple[list[Labelled], bool]:
        """The run's objects, and whether an object of another owner has its id."""
        known, foreign = sort(engine.labelled(RUN_LABEL, run_id))
        return [item for run in known if run.owner == its_owner for item in run.objects], bool(foreign[:1] or known[1:])

    objects, shared = look()
    for item in objects:
        if item.is_agent or item.kind == "service":
            engine.discard(item)
    reason = ""
    of_swarm = any(item.kind == "service" or SWARM_LABEL in item.labels for item in objects)
    # Compose stops services in order, but also objects of others with the project's name.
    if objects and not shared and not of_swarm:
        try:
            Composer((), project=f"testbed-{run_id}").down(timeout_s=120)
        except LabError as error:
            reason = str(error)
    if of_swarm and engine.manager is not None:
        with suppress(NotSeenError):  # a machine may be lost; what stays is told below
            tasks = partial(engine.manager.tasks, f"testbed-{run_id}")
            await_condition(tasks, lambda left: not left, deadline_s=_TASKS_END_WITHIN_S)
    for _ in range(_TIMES):  # meanwhile the engine may carry out requests of a killed client
        refused = ""
        for item in sorted(look()[0], key=lambda item: item.kind not in _FIRST):
            try:
                engine.discard(item)
            except LabError as error:
                refused = reason = str(error)
        if refused or not look()[0]:
            break
    if stayed := look()[0]:
        raise LabError(f"run {run_id}: could not remove {', '.join(item.name for item in stayed)}: {reason}")
