"""The Compose lab: a stack of containers, and the agent beside its network; both are removed at the end."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import docker.errors
from docker.models.containers import Container

from testbed import reading
from testbed.backends import onlyone
from testbed.backends.docker import images, turn
from testbed.backends.docker.agents import Agents
from testbed.backends.docker.engine import RUN_LABEL, Engine, pause, refusals_raised
from testbed.backends.docker.healthchecks import HealthChecks
from testbed.backends.docker.hosts import ComposeHost
from testbed.backends.docker.programs import ComposeProgram
from testbed.backends.docker.runs import clear_stale
from testbed.backends.docker.sources import Sources
from testbed.backends.docker.stack import Stack, host_name
from testbed.backends.stacklab import StackLab
from testbed.backends.starting import (
    StartProgress,
    await_healthy,
    await_well,
    not_well_yet,
    said_if_slow,
    said_while,
    service_failed,
)
from testbed.compose import composefile
from testbed.compose.command import Composer
from testbed.compose.options import UP_DEADLINE, files_of
from testbed.errors import AgentError, EnvironmentUnfitError, InvalidComposeError, LabError
from testbed.evidence.hoststate import EXITED, GONE, PAUSED, RUNNING, HostState
from testbed.lab.backend import Attached
from testbed.lab.channel import Channel
from testbed.lab.host import seconds
from testbed.lab.perpacket import PerPacket
from testbed.lab.succession import beside
from testbed.lab.suspensions import Suspended
from testbed.observe.connections import ConnectionTable
from testbed.spec import drawings
from testbed.spec.links import LinkRef
from testbed.spec.topology import Topology

_END_WITHIN_S = 20
"""How long the engine may take to report the end of a container that it killed; seconds."""
_AGENT_ENDS_WITHIN_S = 10


class ComposeLab(StackLab[ComposeHost]):
    """A Compose file, brought up as a stack of its own.

    ::

        with ComposeLab("compose.yaml") as lab:
            lab.impair("client <-> server", "lossy")
            assert lab.host("client").run(["python3", "paper_client.py", "server"]).ok
    """

    kind = "compose"

    def __init__(
        self,
        compose_file: str | Path | Sequence[str | Path] | None = None,
        *,
        netem: str = "auto",
        compose_profiles: Sequence[str] = (),
        up_deadline: str = UP_DEADLINE,
        outlives_us: bool = False,
        say: Callable[[str], None] = lambda _text: None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        """Nothing is read or started yet.

        ``compose_file``: one, or several that add to the first, as with ``docker compose -f a -f b``. ``netem``:
        ``host`` (this kernel's), ``carried`` (a kernel that we bring) or ``auto`` (the host's where it has one).
        ``say`` gets one line for each step that may take longer than a second, ``warn`` the warnings of Compose
        (default: ``say``). ``outlives_us``: the stack and its impairments stay when this process ends, until `down`;
        `take_up` finds them again.
        """
        super().__init__(kind=self.kind, netem=netem, up_deadline=up_deadline, say=say, warn=warn)
        self.composer = Composer(files_of(compose_file), project=f"testbed-{self.run_id}", profiles=compose_profiles)
        self.stack = Stack(
            self.composer, run_id=self.run_id, outlives_us=outlives_us, up_deadline_s=self._up_deadline_s, say=say
        )
        self._config: dict[str, Any] | None = None
        self._topology: Topology | None = None
        self._warned: set[str] = set()
        self._turn = contextlib.ExitStack()
        """While this process uses a stack that stays."""
        self._original: dict[int, Any] = {}
        """The original state of every port that an agent attached, forgotten ones included, to restore it."""

    # --- what is known before anything runs ------------------------------------------------------

    @property
    def topology(self) -> Topology:  # type: ignore[override]  # read lazily: collection must not need an engine
        """Hosts and networks of the Compose file. Raises InvalidComposeError."""
        if self._topology is None:
            files = list(self.composer.files) or composefile.files_by_default(os.environ)
            declared = composefile.look_through(
                filter(reading.exists, files), environment=os.environ, profiles=self.composer.profiles
            )
            self._config = config = self.composer.config()
            config["services"] = composefile.in_order(config.get("services") or {}, declared.order)
            for warning in filter(lambda text: text not in self._warned, self.composer.warnings):
                self._warned.add(warning)
                self._warn(warning)
            if unable := list(drawings.only_local(self._config)):
                raise InvalidComposeError(f"{key}: only a local lab can do this; use --lab local" for key in unable)
            self._topology = Topology.from_compose(self._config, inactive=declared.profiles)
        return self._topology

    @property
    def only_one(self) -> tuple[str, ...]:  # type: ignore[override]  # likewise
        """Published ports, names and subnets that an engine has once. Raises InvalidComposeError."""
        self.topology  # noqa: B018  # reads the file
        config = self._config or {}
        return (*onlyone.ports(config), *onlyone.names_and_subnets(config))

    @property
    def services(self) -> Mapping[str, Any]:
        """See `StackLab`."""
        return dict((self._config or {}).get("services", {}))

    @property
    def netem_folder(self) -> Path:
        """See `StackLab`."""
        return self.composer.directory / "netem"

    @property
    def engine(self) -> Engine:
        """The Docker engine, connected on first use. Raises EnvironmentUnfitError."""
        return self.stack.engine

    # --- up and down -----------------------------------------------------------------------------

    def run_images(self, images: Mapping[str, str]) -> None:
        """See `Backend`."""
        self.composer.images = dict(images)

    @refusals_raised()
    def up(self) -> None:
        """Bring the stack and its agent up, at the same time, and wait until every service is well.

        Raises InvalidComposeError, EnvironmentUnfitError, ServiceFailedError; on failure nothing stays.
        """
        _ = self.topology  # which reads and checks the file
        engine, stack = self.engine, self.stack
        self.versions = {"engine": engine.version}
        with said_if_slow(self._say, "looking for what killed runs left"):
            clear_stale(engine, self._say)
        with Sources(self.images_from).turn(self._say) as sources:
            self.netem_image = images.ensure_netem(engine, self._say, sources)
            config = stack.labelled(stack.with_images(self._config or {}, sources))
        with contextlib.ExitStack() as undo, ThreadPoolExecutor(1, "testbed-agent") as pool:
            undo.callback(self.forget)
            undo.callback(self._remove_stack)
            agent = pool.submit(self._start_agent)
            undo.callback(self._stop_agent, agent)
            if self._asked_netem == "host":
                agent.result()  # quick without a kernel to boot, and it may fail before the stack is started
            if engine.is_podman:
                undo.enter_context(HealthChecks(engine, testbed_run=self.run_id))
            with said_if_slow(self._say, "starting the stack"):
                self._start_services(config)
            with said_while(self._say, lambda: "waiting for the agent, which boots a kernel if netem is carried"):
                self._agent = agent.result()
            hosts = self._hosts.values()
            if any(host.wellness().state == "failed" for host in hosts):  # it ended while the agent was awaited
                raise service_failed(hosts)
            stack.config_up = config
            self.whole.up()
            self._undo = undo.pop_all()

    def _start_services(self, config: dict[str, Any]) -> None:
        """Have Compose start every service, and wait until all are well. Raises ServiceFailedError."""
        progress = StartProgress(self._say, allowed_s=self._up_deadline_s)
        late = f"not well after {self._up_deadline_s:g} s (the up-deadline)"
        with progress.meanwhile(self._not_well_yet):
            failure = self.stack.up(config)
            self._hosts |= self._hosts_of(self.stack.containers())
            hosts = self._hosts.values()
            if failure is not None:
                what = late if progress.left_s <= 0 else "`docker compose up` failed"
                raise service_failed(hosts, f"{what}: {failure}")
            await_well(hosts, deadline_s=progress.left_s, late=late)

    def _not_well_yet(self) -> Mapping[str, str]:
        """While Compose starts the services: those that are not well. Raises LabError."""
        try:
            return not_well_yet(self._hosts_of(self.stack.containers()).values())
        except (docker.errors.APIError, OSError) as error:
            raise LabError(str(error)) from None

    @refusals_raised()
    def take_up(self) -> bool:
        """Find the stack that another process brought up from the same Compose file and left; False if none is up.

        From then on this lab owns it: `leave` it, or take it `down`. Another process that wants it waits until then.
        Raises UserError if another one has it for a minute.
        """
        stack = self.stack
        self._turn.enter_context(turn.take(stack.name, say=self._say))
        for agent in self.engine.containers(testbed_stack=stack.name, testbed_role="ports"):
            if not any(run.stays and run.id == agent.labels.get(RUN_LABEL) for run in stack.left()):
                continue  # a process uses it, or it was never wholly up
            self.run_id = agent.labels[RUN_LABEL]
            stack.take(self.run_id)
            self._topology = None  # an earlier reading had the engine's names of another run
            self.netem_image = str(agent.attrs["Config"]["Image"])
            self.agent_container = agent
            kill = partial(self.engine.remove, agent)
            self._agent = channel = Channel(self.engine.attach(agent), name="agent", kill=kill)
            self._undo.callback(self._turn.close)
            self._undo.callback(self.forget)
            self._undo.callback(self._remove_stack)
            self._undo.callback(self._end_agent, channel)
            self._undo.callback(stack.stay_no_more)
            kept = channel.call("recall") or {"engine": "", "seedable": False, "ports": [], "per_packet": []}
            self.netem_engine, self.seedable = kept["engine"], kept["seedable"]
            self.ports.per_packet = PerPacket(kept["per_packet"])
            self._hosts |= self._hosts_of(self.engine.containers(com_docker_compose_project=self.composer.project))
            self.whole.up()
            self.suspensions.links = {
                LinkRef.from_state(entry["link"]): Suspended.from_state(entry["kept"])
                for entry in kept.get("suspended", ())
            }
            self.ports.take_up(kept["ports"], channel)
            return True
        self._turn.close()
        return False

    def leave(self) -> None:
        """Leave a lab that outlives us as it is, impairments included."""
        if self._agent is None:
            return
        suspended = [{"link": ref.state(), "kept": kept.state()} for ref, kept in self.suspensions.links.items()]
        self._agent.call(
            "keep",
            state={
                "engine": self.netem_engine,
                "seedable": self.seedable,
                "ports": self.ports.state(),
                "suspended": suspended,
                "per_packet": self.ports.per_packet.state(),
            },
        )
        self._agent.close()
        self.stack.stay()
        self.close_agents()
        self._undo.pop_all()
        self._agent = None
        self._turn.close()

    @refusals_raised()
    def down(self) -> None:
        """Heal, stop the agent, remove the stack. What can be removed is removed even if something fails."""
        with said_if_slow(self._say, "taking the stack down"):
            super().down()

    def _hosts_of(self, containers: Sequence[Container]) -> dict[str, ComposeHost]:
        """The hosts that these containers are, by name, in the order of the Compose file."""
        self.machine_is_ours = self.engine.place.machine is None
        named = {host_name(self.topology, container.labels): container for container in containers}
        return {
            name: ComposeHost(self, name, named[name], engine=self.engine, beside=self._starting.beside)
            for name in self.topology.hosts
            if name in named
        }

    # --- hosts that stop and start: `wholeness.HostControl` --------------------------------------

    def host_states(self) -> Mapping[str, HostState]:
        """The state of every host now. A container that was made anew is the host from here on."""
        rows: dict[str, dict[str, Any]] = {}
        for row in self.engine.listing(com_docker_compose_project=self.composer.project):
            name = host_name(self.topology, row["Labels"])
            # While Compose makes a container anew, the old one exists, too.
            if name in self._hosts and (name not in rows or row["Created"] >= rows[name]["Created"]):
                rows[name] = row
        return {name: host.state(rows.get(name)) for name, host in self._hosts.items()}

    def halt(self, host: str, grace: str | None) -> None:
        """Stop a container."""
        container = self._hosts[host].container
        with self.engine.requesting("stop", container):
            container.stop(**({} if grace is None else {"timeout": math.ceil(seconds(grace))}))
        self._hosts[host].close()

    def kill_host(self, host: str, signal: str) -> None:
        """Signal a container's first process."""
        container = self._hosts[host].container
        with self.engine.requesting(f"send {signal} to", container):
            container.kill(signal)
            if signal == "SIGKILL":
                container.wait(timeout=_END_WITHIN_S)
                self._hosts[host].close()

    def start_host(self, host: ComposeHost) -> None:
        """See `StackLab`."""
        with self.engine.requesting("start", host.container):
            host.container.start()
        self.sweep()

    def freeze(self, host: str) -> None:
        """Pause a container, once its programs have begun: an engine that should start one in it meanwhile hangs."""
        for program in self.ledger.programs:
            if isinstance(program, ComposeProgram) and program.host == host:
                program.await_begun()
        with self.engine.requesting("pause", self._hosts[host].container):
            pause(self._hosts[host].container)

    def thaw(self, host: str) -> None:
        """Have a paused container go on."""
        with self.engine.requesting("resume", self._hosts[host].container):
            self._hosts[host].container.unpause()

    def restore(self, host: ComposeHost, state: HostState) -> None:
        """See `StackLab`. A container that is gone, or off one of its networks, is made anew. Raises LabError."""
        whole = set(host.networks) <= set(state.endpoints)
        if state.status in (RUNNING, PAUSED, EXITED) and whole:
            super().restore(host, state)
            return
        self.stack.make_anew(host.name, host.service_name, host.container, gone=state.status == GONE)
        self.sweep()
        self.host_states()  # which takes the new container as the host

    def await_healthy(self) -> None:
        """Wait until no running service's health check fails. Raises ServiceFailedError."""
        self.sweep()
        await_healthy(self._not_healthy, deadline_s=self._up_deadline_s)

    def _not_healthy(self) -> list[ComposeHost]:
        ids = self.engine.not_healthy(com_docker_compose_project=self.composer.project)
        return [host for host in self._hosts.values() if host.container.id in ids]

    def _remove_stack(self) -> None:
        try:
            self.close_agents()
        finally:
            self.stack.remove()

    # --- the agent -------------------------------------------------------------------------------

    @property
    def _starting(self) -> Agents:
        return Agents(engine=self.engine, image=self.netem_image, identity=self.stack.identity)

    def _start_agent(self) -> Channel:
        """Start the agent's container and, where netem must be carried, its kernel."""
        container, channel = self._starting.ports(tag=self.run_id[:6], outlives_us=self.stack.outlives_us)
        self.agent_container = container
        try:
            self.choose_engine(channel)
        except BaseException:
            channel.close()
            self.engine.await_removed(container, _AGENT_ENDS_WITHIN_S)
            raise
        return channel

    def choose_engine(self, channel: Channel) -> None:
        """See `StackLab`. A carried kernel runs then."""
        super().choose_engine(channel)
        if self.netem_engine != "carried":
            return
        if tun := self._able["tun"]:
            why = self._able["host_netem"] or "--netem carried"
            raise EnvironmentUnfitError(
                f"netem must be carried here ({why}), and a carried kernel needs taps, which the engine's machine "
                f"does not give: {tun}. Load the module: modprobe tun"
            )
        self.boot(channel)

    def _stop_agent(self, agent: Future[Channel]) -> None:
        """Have the agent restore everything, and wait until its container is gone."""
        if agent.exception() is None:  # else it has ended by itself
            self._end_agent(agent.result())

    def _end_agent(self, channel: Channel) -> None:
        channel = self._agent or channel  # it may have been replaced
        try:
            channel.call("stop")
        except AgentError as error:
            self._say(f"the agent did not stop when asked: {error}")
        finally:
            channel.close()
        if not self.engine.await_removed(self.agent_container, _AGENT_ENDS_WITHIN_S):
            self.engine.remove(self.agent_container)

    def start_capture_agent(self) -> Channel:
        """See `StackLab`."""
        return self._starting.capture()

    # --- agents that died: `succession` ----------------------------------------------------------

    def replace_agent(self, left: Sequence[Mapping[str, Any]]) -> None:
        """Start another container of the agent's, and have it repair the dead one's ports."""
        self._say("the agent has died: starting another")
        if self._agent is not None:
            self._agent.close()
        self.engine.remove(self.agent_container)
        self.engine.await_removed(self.agent_container, _AGENT_ENDS_WITHIN_S)
        self._asked_netem = self.netem_engine
        self._agent = self._start_agent()
        veths = self._original | {veth["ifindex"]: veth for veth in left}
        self._agent.call("put_right", veths=list(veths.values()))

    def forget_agent(self, role: str) -> None:
        """See `AgentOwner`. In a host's network another is started at once, to read the connections."""
        super().forget_agent(role)
        for name, host in self._hosts.items():
            if role == beside("inside", name) and self.whole.running(name):
                host.inside()

    # --- ports and connections -------------------------------------------------------------------

    def attach(self, host: str, network: str, *, to_count: bool = False) -> Attached:
        """See `Backend`."""
        attached = super().attach(host, network, to_count=to_count)
        self._original.setdefault(attached.ifindex, attached.port["found"])
        return attached

    def port_of_sender(self, host: str, network: str) -> int:
        """See `Backend`."""
        return int(self._hosts[host].interface(network)["peer_ifindex"])

    def members(self, network: str) -> Sequence[str]:
        """See `StackLab`."""
        return [name for name, host in self._hosts.items() if network in host.attachments()]

    @property
    def tcp_hosts(self) -> Sequence[str]:
        """The hosts with an agent inside: those at the ends of links that are or were impaired."""
        return [name for name, host in self._hosts.items() if host.known_inside is not None]

    def tcp_tables(self) -> dict[str, ConnectionTable]:
        """See `Sockets`."""
        tables = {}
        for name in self.tcp_hosts:
            if (inside := self._hosts[name].known_inside) is not None:
                with contextlib.suppress(AgentError):  # its container has ended, and with it its connections
                    tables[name] = ConnectionTable.read(name, inside.call("tcp_connections"))
        return tables

    def processor_times(self) -> Mapping[str, tuple[object, float]]:
        """See `KernelReadings`."""
        return {name: time for name, host in self._hosts.items() if (time := host.processor_time()) is not None}
