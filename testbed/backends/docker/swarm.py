"""The lab on a Docker Swarm: hosts are tasks on several machines, and links are impaired within the receivers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from docker.models.containers import Container

from testbed.backends.docker import images
from testbed.backends.docker.agents import Agents
from testbed.backends.docker.engine import OURS, OWNER_LABEL, Engine, refusals_raised
from testbed.backends.docker.hosts import ComposeHost
from testbed.backends.docker.runs import clear_stale, remove_run
from testbed.backends.docker.sources import Sources
from testbed.backends.docker.swarming import SWARM_LABEL, Manager
from testbed.backends.docker.within import AgentsWithin, WithinLab
from testbed.backends.starting import StartProgress, await_well
from testbed.compose.stackfile import restarts, stack_of
from testbed.errors import (
    EnvironmentUnfitError,
    InvalidComposeError,
    InvalidValueError,
    LabError,
    ServiceFailedError,
)
from testbed.evidence.hoststate import PAUSED, RUNNING, HostState
from testbed.lab.waiting import NotSeenError, await_condition
from testbed.lab.wholeness import NOBODY
from testbed.spec.links import LinkRef
from testbed.spec.topology import Topology
from testbed.spec.words import unknown
from testbed.text import several, shown

_TASK = "com.docker.swarm.task.name"
_NEVER = ("rejected", "orphaned")
"""States of tasks that no container follows."""
_DEPLOYS_WITHIN_S = 60


class SwarmHost(ComposeHost):
    """A task of a service."""

    def move(self, engine: Engine, agents: Agents) -> None:
        """Take another machine's engine as the one that its container is on."""
        self._engine, self._beside = engine, agents.beside

    @property
    def machine(self) -> str:
        """The id of the Swarm's node that it is on."""
        return self._engine.membership.node


class LabMachine:
    """A machine of the Swarm, and what a test may do to it."""

    def __init__(self, lab: SwarmLab, node: str, name: str) -> None:
        """``node``: the Swarm's id of it."""
        self._lab, self.node, self.name = lab, node, name

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names of the hosts that are on it now."""
        return tuple(name for name in self._lab.hosts if self._lab.machine_of(name) == self.node)

    def isolate(self, *, traffic: str = "") -> tuple[LinkRef, ...]:
        """Cut every link between its hosts and those on other machines; `Lab.mend` ends it. Arguments: see `partition`.

        Hosts on one machine keep their links. Raises LabError if it has no hosts, or all of them.
        """
        others = [name for name in self._lab.hosts if name not in self.hosts]
        if not self.hosts or not others:
            raise LabError(
                f"machine {self.name} has {'all' if self.hosts else 'no'} hosts: nothing parts it from others"
            )
        return self._lab.partition(self.hosts, others, traffic=traffic)

    def drain(self) -> None:
        """Have the Swarm move its hosts to other machines, and wait until they are well there.

        Their links stay impaired. The machine takes tasks again after the test, or by `rejoin`. Raises
        InvalidComposeError for hosts that the Swarm would end instead.
        """
        self._lab.drain(self)

    def rejoin(self) -> None:
        """Have it take tasks again; those that have left it do not return."""
        self._lab.rejoin(self)


class SwarmLab(WithinLab):
    """A Compose file, deployed as a stack of a Docker Swarm."""

    kind = "swarm"
    _hosts: dict[str, SwarmHost]  # type: ignore[assignment]  # more can be done with them

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        """See `WithinLab`."""
        super().__init__(*arguments, **keywords)
        self._engines: Mapping[str, Engine] = {}
        """By node, the managing one first."""
        self._drained: dict[str, LabMachine] = {}

    # --- what is known before anything runs ------------------------------------------------------

    @property
    def topology(self) -> Topology:  # type: ignore[override]  # see `ComposeLab`
        """See `ComposeLab`. Networks of whatever kind become overlay networks, which have ports of their own within."""
        if self._topology is None:
            read = super().topology
            networks = {name: replace(network, driver="bridge") for name, network in read.networks.items()}
            self._topology = replace(read, networks=networks)
        return self._topology

    def _connect(self) -> Mapping[str, Engine]:
        """The engines of the Swarm's nodes. Raises EnvironmentUnfitError with every problem."""
        first = self.engine
        if first.manager is None:
            state = "manages no Swarm" if first.membership.node else "is in no Swarm"
            raise EnvironmentUnfitError(
                f"--lab swarm: {first.describe()} {state}: `docker swarm init` makes one, and of several engines in "
                f"--testbed-engines the first must be a manager"
            )
        engines = {first.membership.node: first}
        problems = []
        for environment in self.images_from:
            try:
                engine = Engine(environment)
            except EnvironmentUnfitError as error:
                problems.append(f"--testbed-engines: {error}")
                continue
            engines.setdefault(engine.membership.node, engine)
        nodes = {node.id: node for node in first.manager.nodes()}
        problems += [
            f"--testbed-engines: {engine.place} is in another Swarm than {first.place}, or in none"
            for node, engine in engines.items()
            if node not in nodes
        ]
        if silent := [node for node in nodes.values() if node.ready and node.takes_tasks and node.id not in engines]:
            named = several([f"{node.name} ({node.id})" for node in silent])
            problems.append(
                f"--lab swarm: no engine of {named} is named, and tasks may be placed there: name all engines, "
                f"--testbed-engines A,B,C, or `docker node update --availability drain NODE`"
            )
        if problems:
            raise EnvironmentUnfitError("\n".join(problems))
        return engines

    @property
    def _manager(self) -> Manager:
        manager = self.engine.manager
        if manager is None:
            raise EnvironmentUnfitError(f"{self.engine.describe()} manages its Swarm no more")
        return manager

    # --- up and down -----------------------------------------------------------------------------

    @refusals_raised()
    def up(self) -> None:
        """See `ComposeLab`."""
        _ = self.topology
        self._engines = self._connect()
        for engine in self._engines.values():  # the manager first, or it would have tasks made anew elsewhere
            clear_stale(engine, self._say)
        super().up()

    def _start_services(self, config: dict[str, Any]) -> None:
        """Have the Swarm start every service, and wait until all are well. Raises ServiceFailedError."""
        stack, differences = stack_of(config, labels=self.stack.labels())
        for line in differences:
            self._warn(f"--lab swarm: {line}")
        self._send_images([str(body["image"]) for body in config["services"].values()])
        progress = StartProgress(self._say, allowed_s=self._up_deadline_s)
        late = f"not well after {self._up_deadline_s:g} s (the up-deadline)"
        with progress.meanwhile(self._not_well_yet):
            self._deploy(stack)
            with contextlib.suppress(NotSeenError):
                await_condition(self._placed, bool, deadline_s=progress.left_s)
            self._hosts |= self._hosts_of()
            if missing := [name for name in self.topology.hosts if name not in self._hosts]:
                raise ServiceFailedError(f"{late}: {several(missing)} has no container: {self._tasks_in_words()}")
            await_well(self._hosts.values(), deadline_s=progress.left_s, late=late)

    def _send_images(self, names: Sequence[str]) -> None:
        """Give every node the images, which a Swarm takes from a registry alone."""
        with Sources([dict(os.environ)]).turn(self._say) as sources:
            for engine in self._engines.values():
                if engine is not self.engine:
                    sources.bring(engine, dict.fromkeys(names), self._say)
                    images.ensure_netem(engine, self._say, sources)

    def _deploy(self, stack: Mapping[str, Any]) -> None:
        docker_client = shutil.which("docker")
        if docker_client is None:
            raise EnvironmentUnfitError("--lab swarm: the docker command is not here, and it alone deploys a stack")
        argv = [docker_client, "stack", "deploy", "--resolve-image", "never", "--compose-file", "-"]
        done = subprocess.run(
            [*argv, self.composer.project],
            input=json.dumps(stack),
            capture_output=True,
            text=True,
            check=False,
            timeout=_DEPLOYS_WITHIN_S,
        )
        if done.returncode:
            raise InvalidComposeError(f"`docker stack deploy` does not take the Compose file: {done.stderr.strip()}")
        for line in done.stderr.splitlines():
            if "--detach" not in line:  # newer clients announce another default
                self._warn(f"docker stack deploy: {line}")

    def _placed(self) -> bool:
        """Whether every host has a container. Raises ServiceFailedError if a task cannot have one."""
        if any(task.state in _NEVER for task in self._manager.tasks(self.composer.project)):
            raise ServiceFailedError(f"the Swarm does not start the stack: {self._tasks_in_words()}")
        return {name for name, _, _ in self._rows()} >= set(self.topology.hosts)

    def _tasks_in_words(self) -> str:
        words = {task.words for task in self._manager.tasks(self.composer.project)}
        return "its tasks are " + "; ".join(sorted(words)) if words else "there are no tasks"

    def _remove_stack(self) -> None:
        """Remove the run from every engine, at once: the Swarm alone would give each task its time to stop."""
        try:
            self.close_agents()
        finally:
            owner = self.stack.labels()[OWNER_LABEL]
            with ThreadPoolExecutor(max(len(self._engines), 1), "testbed-removal") as pool:
                list(pool.map(lambda engine: remove_run(engine, self.run_id, owner), self._engines.values()))

    # --- hosts -----------------------------------------------------------------------------------

    def _rows(self) -> Iterator[tuple[str, Engine, Mapping[str, Any]]]:
        """Each container of the stack: the host that it is, its engine, and the engine's short form of it."""
        project = f"{self.composer.project}_"
        for engine in self._engines.values():
            for row in engine.listing(testbed_run=self.run_id, com_docker_stack_namespace=self.composer.project):
                service = row["Labels"].get(SWARM_LABEL, "")
                slot = row["Labels"].get(_TASK, "").removeprefix(f"{service}.").partition(".")[0]
                known = self.topology.services.get(service.removeprefix(project))
                if known is not None and slot.isdigit():
                    yield known.name if known.replicas == 1 else f"{known.name}[{slot}]", engine, row

    def _newest(self) -> Mapping[str, tuple[Engine, Mapping[str, Any]]]:
        """By host, the container that runs, or else the latest: a Swarm keeps those of tasks that ended.

        It also makes some that it removes again before they start.
        """

        def rank(row: Mapping[str, Any]) -> tuple[bool, int]:
            return row["State"] == RUNNING, int(row["Created"])

        newest: dict[str, tuple[Engine, Mapping[str, Any]]] = {}
        for name, engine, row in self._rows():
            if name not in newest or rank(row) >= rank(newest[name][1]):
                newest[name] = engine, row
        return newest

    def _hosts_of(self, _containers: Sequence[Container] = ()) -> dict[str, Any]:
        """The hosts that have a container, in the order of the Compose file: those of Compose's are none."""
        self.machine_is_ours = all(engine.place.machine is None for engine in self._engines.values())
        newest = self._newest()
        return {
            name: SwarmHost(
                self,
                name,
                newest[name][0].container(newest[name][1]["Id"]),
                engine=newest[name][0],
                beside=self._agents_on(newest[name][0]).beside,
            )
            for name in self.topology.hosts
            if name in newest
        }

    def _agents_on(self, engine: Engine) -> Agents:
        return AgentsWithin(
            engine=engine, image=self.netem_image, identity=self.stack.identity, network="none", lab=self
        )

    def host_states(self) -> Mapping[str, HostState]:
        """See `ComposeLab`. A task's successor is the host from here on, on whatever machine."""
        newest = self._newest()
        states = dict.fromkeys(self._hosts, NOBODY)
        for name, (engine, row) in newest.items():
            self._hosts[name].move(engine, self._agents_on(engine))
            with contextlib.suppress(LabError):  # it was removed since it was listed
                states[name] = self._hosts[name].state(row)
        return states

    def start_host(self, host: ComposeHost) -> None:
        """See `StackLab`. A Swarm cannot start a task again; it starts a new one of each replica."""
        if (replicas := self.topology.services[host.service_name].replicas) > 1:
            raise LabError(
                f"`{host.name}`: a Swarm starts a replica anew only together with all {replicas}: have it start those "
                f"that end by itself (`restart: always`)"
            )
        self._start_anew([host.service_name])

    def bring_back(self, wrong: Mapping[str, HostState]) -> None:
        """See `HostControl`."""
        for name, state in wrong.items():
            if state.status == PAUSED:
                self.thaw(name)
        self._start_anew({self._hosts[name].service_name for name, state in wrong.items() if state.status != PAUSED})
        self._await_well([self._hosts[name] for name in wrong], self._up_deadline_s)

    def _start_anew(self, services: Collection[str]) -> None:
        """Have services replace their tasks, and wait until each host is another container that runs."""
        before = self.host_states()
        awaited = [name for service in services for name in self.topology.services[service].hosts]
        for service in services:
            self._manager.start_anew(f"{self.composer.project}_{service}")

        def left() -> list[str]:
            states = self.host_states()
            return [name for name in awaited if states[name].id == before[name].id or states[name].status != RUNNING]

        self._await_hosts(left, "run anew")
        self.sweep()

    def _await_hosts(self, left: Callable[[], list[str]], what: str) -> None:
        """Wait until no host is left. Raises ServiceFailedError."""
        try:
            await_condition(left, lambda names: not names, deadline_s=self._up_deadline_s)
        except NotSeenError:
            raise ServiceFailedError(
                f"{several(left())} did not {what} within {self._up_deadline_s:g} s: {self._tasks_in_words()}"
            ) from None

    def await_healthy(self) -> None:
        """See `ComposeLab`. Machines that a test drained take tasks again."""
        for machine in list(self._drained.values()):
            self.rejoin(machine)
        super().await_healthy()

    def _not_healthy(self) -> list[ComposeHost]:
        project = self.composer.project
        ids = {
            id_ for engine in self._engines.values() for id_ in engine.not_healthy(com_docker_stack_namespace=project)
        }
        return [host for host in self._hosts.values() if host.container.id in ids]

    # --- machines --------------------------------------------------------------------------------

    def machine_of(self, host: str) -> str:
        """See `Backend`."""
        return self._hosts[host].machine

    def machine(self, name: str) -> LabMachine:
        """A machine by its host name, or by the Swarm's id of its node. Raises InvalidValueError."""
        nodes = [node for node in self._manager.nodes() if name in (node.name, node.id)]
        if len(nodes) == 1:
            return LabMachine(self, nodes[0].id, nodes[0].name)
        if nodes:
            raise InvalidValueError(
                f"machine {shown(name)}: {len(nodes)} have this name: say which, {several([node.id for node in nodes])}"
            )
        raise InvalidValueError(
            f"machine {shown(name)}: {unknown(name, [node.name for node in self._manager.nodes()])}"
        )

    def drain(self, machine: LabMachine) -> None:
        """See `LabMachine.drain`."""
        names = machine.hosts
        if not any(node.takes_tasks for node in self._manager.nodes() if node.id == machine.node):
            raise LabError(f"machine {machine.name} takes no tasks as it is: somebody has drained or paused it")
        if staying := [name for name in names if not restarts(self.services[self._hosts[name].service_name])]:
            raise InvalidComposeError(
                f"{several(staying)} on machine {machine.name}: a Swarm ends a task there, and starts it elsewhere "
                f"only if it may be started again: write `restart: always`"
            )

        def left() -> list[str]:
            states = self.host_states()
            return [name for name in names if self.machine_of(name) == machine.node or states[name].status != RUNNING]

        def move() -> None:
            self._drained[machine.node] = machine
            labels = self.stack.labels()
            self._manager.drain(machine.node, {key: labels[key] for key in OURS})
            self._await_hosts(left, "move")
            self.sweep()
            self._await_well([self._hosts[name] for name in names], self._up_deadline_s)

        self.whole.move(names, move)

    def rejoin(self, machine: LabMachine) -> None:
        """See `LabMachine.rejoin`."""
        self._manager.rejoin(machine.node, OURS)
        self._drained.pop(machine.node, None)
