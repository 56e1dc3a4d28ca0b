"""The services of a local lab: started in their order, awaited until they are well, and stopped."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection

from testbed.backends.local.blueprint import Plan
from testbed.backends.local.hosts import LocalHost
from testbed.backends.local.programs import LocalProgram
from testbed.backends.starting import Progress
from testbed.errors import AgentError, ServiceFailedError
from testbed.lab.channel import Channel
from testbed.lab.waiting import NotSeenError, await_condition

_STOP_WITHIN_S = 1.0  # as `docker compose down --timeout 1`, which ends a ComposeLab; `stop_grace_period:` goes before
_LOOK_EVERY_S = 0.005


def start(plan: Plan, hosts: Collection[LocalHost], progress: Progress) -> list[LocalHost]:
    """Start each service once what it depends on is as it should be, and wait; the hosts that are not well."""
    waiting = dict(plan.services)
    by_service: dict[str, list[LocalHost]] = {name: [] for name in plan.services}
    for host in hosts:
        by_service[host.plan.service].append(host)

    def not_well_yet() -> dict[str, str]:
        return {host.name: host.in_words() for host in hosts if host.wellness != "well"}

    def step() -> bool:
        for host in hosts:
            host.check_health()
        for name, service in list(waiting.items()):
            conditions = service.depends_on.items()
            if all(host.meets(condition) for other, condition in conditions for host in by_service[other]):
                del waiting[name]
                for host in by_service[name]:
                    host.start_service()
        progress.tell(not_well_yet)
        states = [host.wellness for host in hosts]
        return "failed" in states or (not waiting and "waiting" not in states)

    with contextlib.suppress(NotSeenError):
        await_condition(step, bool, deadline_s=max(progress.left_s, 0.1), every_s=_LOOK_EVERY_S)
    unwell = [host for host in hosts if host.wellness != "well"]
    return [host for host in unwell if host.wellness == "failed"] or unwell


def start_again(host: LocalHost, allowed_s: float) -> None:
    """Start the service of a host that was stopped, and wait until it is well. Raises ServiceFailedError."""
    host.start_again()

    def look() -> str:
        host.check_health()
        return host.wellness

    late = ""
    try:
        await_condition(look, lambda seen: seen != "waiting", deadline_s=allowed_s, every_s=_LOOK_EVERY_S)
    except NotSeenError:
        late = f"\nnot well after {allowed_s:g} s"
    if host.wellness != "well":
        raise ServiceFailedError(host.describe_unwell() + late)


def stop(channel: Channel, hosts: Collection[LocalHost], say: Callable[[str], None]) -> None:
    """Ask every service to stop as its stop_signal says; what does not in time ends with the agent."""
    by_signal: dict[str, list[LocalProgram]] = {}
    for host in hosts:
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
