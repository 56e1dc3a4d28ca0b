"""The services of a local lab: started in their order, awaited until they are well, and stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TypeVar

from testbed.backends.local.blueprint import LabPlan
from testbed.backends.local.hosts import LocalHost
from testbed.backends.local.localagent import LocalAgent
from testbed.backends.local.programs import LocalProgram
from testbed.backends.starting import StartProgress, await_well, not_well_yet
from testbed.errors import AgentError, LabError
from testbed.lab.channel import Channel

_T = TypeVar("_T")
_STOP_WITHIN_S = 1.0  # as `docker compose down --timeout 1`, which ends a ComposeLab; `stop_grace_period:` goes before
_AT_ONCE = 32
"""Hosts whose files or programs are made at once: enough for all processors, and few descriptors in flight."""
LOOK_EVERY_S = 0.005


def start(agent: LocalAgent, plan: LabPlan, hosts: Collection[LocalHost], progress: StartProgress, late: str) -> None:
    """Start each service once what it depends on is as it should be, and wait until all are well.

    Raises ServiceFailedError; ``late`` is its last line at the deadline. Raises LabError if a host gets no files.
    """
    _furnish(agent.channel, [host.name for host in hosts if host.service_plan.argv])
    waiting = dict(plan.services)
    by_service: dict[str, list[LocalHost]] = {name: [] for name in plan.services}
    for host in hosts:
        by_service[host.plan.service].append(host)

    def step() -> None:
        for name, service in list(waiting.items()):
            conditions = service.depends_on.items()
            if all(host.meets(condition) for other, condition in conditions for host in by_service[other]):
                del waiting[name]
                for some in _batches(by_service[name]):
                    if programs := [program for host in some if (program := host.service_program()) is not None]:
                        agent.launch(programs)
        progress.tell(lambda: not_well_yet(hosts))

    await_well(hosts, deadline_s=progress.left_s, late=late, step=step, every_s=LOOK_EVERY_S)


def _furnish(channel: Channel, names: Sequence[str]) -> None:
    """Give hosts their files, many at once: that is faster than one host after the other, at its first program."""
    try:
        for some in _batches(names):
            channel.call("furnish", hosts=some)
    except AgentError as error:
        raise LabError(str(error)) from None


def _batches(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    return (items[at : at + _AT_ONCE] for at in range(0, len(items), _AT_ONCE))


def stop(channel: Channel, hosts: Collection[LocalHost], say: Callable[[str], None]) -> None:
    """Send every service its stop signal; those that do not end in time end with the agent."""
    by_signal: dict[str, list[LocalProgram]] = {}
    for host in hosts:
        host.restarter.cease()
        if host.service is not None and not host.service.ended:
            by_signal.setdefault(host.service_plan.stop_signal, []).append(host.service)
    try:
        for name, programs in by_signal.items():
            channel.call("signal", programs=[program.number for program in programs], name=name)
    except AgentError as error:
        say(f"the agent was gone before it was told to stop: {error}")
        return
    began = time.monotonic()
    for host in hosts:
        if host.service is not None:
            grace_s = host.service_plan.stop_grace_s
            until = began + (_STOP_WITHIN_S if grace_s is None else grace_s)
            host.service.await_end(max(until - time.monotonic(), 0.0))
