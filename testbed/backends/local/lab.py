"""The local lab: a Compose file as network namespaces under one agent of ours; it needs no engine and no root.

Nothing of it has a name outside the agent's namespaces, so it ends with the process that brought it up.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from testbed import kernel
from testbed.backends import onlyone
from testbed.backends.local import images, limits, localplan, publishing, services, settings, storage
from testbed.backends.local.blueprint import LabPlan
from testbed.backends.local.hosts import LocalHost
from testbed.backends.local.images import ListedImages, MachinesImages
from testbed.backends.local.localagent import LocalAgent
from testbed.backends.stacklab import StackLab
from testbed.backends.starting import StartProgress, said_while
from testbed.compose import command, composefile
from testbed.compose.command import Composer
from testbed.compose.composefile import ComposeFile
from testbed.compose.options import COMPOSE_FILE_NAMES, UP_DEADLINE, files_of, find_compose_file
from testbed.compose.problems import NeedsComposeError
from testbed.errors import AgentError, EnvironmentUnfitError, InvalidComposeError, LabError
from testbed.evidence.hoststate import HostState
from testbed.lab.backend import Attached
from testbed.lab.channel import Channel
from testbed.lab.host import seconds
from testbed.lab.perpacket import PerPacket
from testbed.observe.connections import ConnectionTable, Received
from testbed.observe.counters import Readings
from testbed.spec.drawings import Drawing
from testbed.spec.topology import Topology

_GRACE_S = 10.0
"""The engine's default of ``stop_grace_period:``; seconds."""
_END_WITHIN_S = 20.0
_NO_WAY_OUT = (
    "hosts of a local lab reach nothing outside: use --lab compose, or add a service in its place, a proxy or a fake"
)
_TC_WITH_CLASSES = (6, 6)
"""The first iproute2 whose `tc -j class show` surely prints only JSON."""


class LocalLab(StackLab[LocalHost]):
    """A Compose file, brought up as network namespaces.

    ::

        with LocalLab("compose.yaml") as lab:
            lab.impair("client <-> server", "lossy")
            assert lab.host("client").run(["python3", "paper_client.py", "server"]).ok
    """

    look_every_s = services.LOOK_EVERY_S

    def __init__(
        self,
        compose_file: str | Path | Sequence[str | Path] | Drawing | None = None,
        *,
        netem: str = "auto",
        compose_profiles: Sequence[str] = (),
        up_deadline: str = UP_DEADLINE,
        say: Callable[[str], None] = lambda _text: None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        """Nothing is read or started yet; the arguments are `ComposeLab`'s, or a drawing of `testbed.topologies`."""
        super().__init__(kind="local", netem=netem, up_deadline=up_deadline, say=say, warn=warn)
        self._drawing = compose_file if isinstance(compose_file, Drawing) else None
        self._files = () if isinstance(compose_file, Drawing) else files_of(compose_file)
        self._compose_profiles = tuple(compose_profiles)
        self._config: ComposeFile | None = None
        self._topology: Topology | None = None
        self._plan: LabPlan | None = None
        self.images = ListedImages.given() or MachinesImages(self._say)
        self.agent = LocalAgent()
        self._ifindexes: dict[str, dict[str, int]] = {}
        self._machines_agent: Channel | None = None

    # --- what is known before anything runs ------------------------------------------------------

    @property
    def plan(self) -> LabPlan:
        """The plan of the Compose file. Raises InvalidComposeError with everything that cannot be honoured."""
        if self._plan is None:
            file, topology = self._compose_file(), self.topology
            built = {name: body for name, body in file.config["services"].items() if storage.is_built(body)}
            if built:
                localplan.make(file, topology, self.images)  # what is refused is refused before anything is built
                composer = Composer(self._files, project=f"testbed-{self.run_id}", profiles=self._compose_profiles)
                self.images.build(built, composer)
            self._plan = localplan.make(file, topology, self.images)
        return self._plan

    def origins(self) -> Mapping[str, str]:
        """See `Backend`."""
        bodies = self._compose_file().config["services"]
        return {name: storage.origin(body, self.images) for name, body in bodies.items()}

    def _compose_file(self) -> ComposeFile:
        if self._config is None:
            self._config = self._read()
        return self._config

    def _read(self) -> ComposeFile:
        if self._drawing is not None:
            return composefile.of_drawing(self._drawing, environment=os.environ)
        listed = list(self._files[1:] and self._files) if self._files else composefile.files_in_environment(os.environ)
        named = next(iter(self._files or listed), None) or find_compose_file(Path.cwd())
        if named is None:
            raise InvalidComposeError(
                f"no Compose file in {Path.cwd()} ({', '.join(COMPOSE_FILE_NAMES)}); name one: --compose-file"
            )
        if os.path.isdir(named):
            raise InvalidComposeError(f"Compose file {str(named)!r} is a folder; name a file in it: --compose-file")
        beside = [named.with_name(f"{named.stem}.override{suffix}") for suffix in (".yaml", ".yml")]
        several = [path for path in beside if not self._files and os.path.isfile(path)]
        try:
            if several:
                raise NeedsComposeError(f"{several[0].name} beside {named.name}")
            if listed:
                raise NeedsComposeError(
                    "several Compose files" if self._files else "COMPOSE_FILE in the environment or in .env"
                )
            return composefile.read(named, environment=os.environ, profiles=self._compose_profiles)
        except NeedsComposeError as needs:
            files = listed or [named, *several]
            declared = composefile.look_through(files, environment=os.environ, profiles=self._compose_profiles)
            compose = Composer(self._files, project=f"testbed-{self.run_id}", profiles=self._compose_profiles)
            try:
                config = compose.config()
            except EnvironmentUnfitError as error:
                raise EnvironmentUnfitError(f"{needs}: Compose alone reads this. {error}") from None
            for warning in compose.warnings:
                self._warn(warning)
            return composefile.of_compose(named, config, files, environment=os.environ, inactive=declared.profiles)

    @property
    def topology(self) -> Topology:  # type: ignore[override]  # read lazily, as ComposeLab's
        """Hosts and networks of the Compose file. Raises InvalidComposeError."""
        if self._topology is None:
            file = self._compose_file()
            topology = Topology.from_compose(file.config, inactive=file.inactive, no_way_out=_NO_WAY_OUT)
            if file.problems:
                localplan.make(file, topology, self.images)  # which reports them with all other problems
            for name in file.unset:
                self._warn(command.unset(name))
            self._topology = topology
        return self._topology

    @property
    def only_one(self) -> tuple[str, ...]:  # type: ignore[override]  # likewise
        """Published ports, which this machine has once. Raises InvalidComposeError."""
        return tuple(onlyone.ports(self._compose_file().config))

    @property
    def services(self) -> Mapping[str, Any]:
        """See `StackLab`."""
        services: Mapping[str, Any] = self._compose_file().config.get("services", {})
        return services

    @property
    def netem_folder(self) -> Path:
        """See `StackLab`."""
        return (self._files[0].resolve().parent if self._files else Path.cwd()) / "netem"

    # --- up and down -----------------------------------------------------------------------------

    def list_images(self, undo: ExitStack) -> str:
        """Have the images of all services unpacked until ``undo`` ends; returns the list of them for `ListedImages`.

        Raises InvalidComposeError, EnvironmentUnfitError.
        """
        needed = {name: service.image for name, service in self.plan.services.items() if service.image is not None}
        images.hold(needed, self._say, undo)
        built = {name: image for name, image in needed.items() if storage.is_built(self.services[name])}
        return images.listing((image for name, image in needed.items() if name not in built), built)

    def up(self) -> None:
        """Build the networks and hosts, start every service in its order, and wait until all are well.

        Raises InvalidComposeError, EnvironmentUnfitError, ServiceFailedError; on failure nothing stays.
        """
        self._check_limits(*localplan.counts(self._compose_file(), self.topology))
        plan = self.plan
        for note in plan.notes:
            self._say(note)
        with ExitStack() as undo:
            undo.callback(self.forget)
            _make_folders(plan)
            needed = {name: service.image for name, service in plan.services.items() if service.image is not None}
            roots = {name: str(image.root) for name, image in images.hold(needed, self._say, undo).items()}
            progress = StartProgress(self._say, allowed_s=self._up_deadline_s)
            listeners = publishing.listen(undo, plan)
            self._agent = channel = self.agent.start(tag=self.run_id[:6])
            undo.callback(self.agent.end)
            self.choose_engine(channel)
            self._build(channel, plan, roots)
            for listener in listeners:
                address, number, *_ = listener.socket.getsockname()
                self._hosts[listener.host].published_at.setdefault(
                    (listener.port, listener.protocol), (address, number)
                )
            publishing.hand_over(self.agent, plan, listeners)
            hosts = self._hosts.values()
            undo.callback(services.stop, channel, hosts, self._say)
            undo.callback(self.close_agents)
            services.start(
                self.agent, plan, hosts, progress, f"not well after {self._up_deadline_s:g} s (the up-deadline)"
            )
            self.whole.up()
            self._undo = undo.pop_all()

    @staticmethod
    def _check_limits(hosts: int, programs: int) -> None:
        if lacking := list(limits.shortages(limits.Machine.look(), hosts=hosts, programs=programs)):
            raise EnvironmentUnfitError(f"{hosts} hosts need {'; '.join(lacking)}")
        limits.room_for_programs(hosts)

    def forget(self) -> None:
        """See `StackLab`."""
        super().forget()
        self._ifindexes.clear()

    def choose_engine(self, channel: Channel) -> None:
        """See `StackLab`. A carried kernel is started when a link is impaired first."""
        super().choose_engine(channel)
        self.counts_classes = self.netem_engine == "carried" or _version(self._able["tc"]) >= _TC_WITH_CLASSES

    def _carry(self, channel: Channel) -> None:
        """Have the carried kernel run. Raises EnvironmentUnfitError."""
        if tun := self._able["tun"]:
            raise EnvironmentUnfitError(
                f"netem must be carried here, and a carried kernel needs taps, which this machine does not give "
                f"{'root' if os.geteuid() == 0 else 'this user'}: {tun}. As root: modprobe tun; "
                f"chmod 0666 /dev/net/tun"
            )
        with said_while(self._say, kernel.fetched):
            root = kernel.ensure_root(self._say)
        channel.call("carry_from", root=str(root))
        with said_while(self._say, lambda: "waiting for the carried kernel to boot"):
            self.boot(channel)

    def _build(self, channel: Channel, plan: LabPlan, roots: Mapping[str, str]) -> None:
        hosts = [settings.host(plan, host, roots) for host in plan.hosts]
        try:
            self._ifindexes = channel.call("build", networks=settings.networks(plan), hosts=hosts, answer_within_s=60)
        except AgentError as error:
            raise EnvironmentUnfitError(f"the hosts could not be made: {error}") from None
        for host in plan.hosts:
            self._hosts[host.name] = LocalHost(self, self.agent, host, plan.services[host.service])

    # --- hosts that stop and start: `wholeness.HostControl` --------------------------------------

    def host_states(self) -> Mapping[str, HostState]:
        """The state of every host now, by the agent."""
        answer = self.channel.call("host_states")
        return {
            name: host.state(**answer[name], endpoints=self._ifindexes.get(name, {}))
            for name, host in self._hosts.items()
        }

    def halt(self, host: str, grace: str | None) -> None:
        """Send a host's program its stop signal, and end everything else in the host."""
        place = self._hosts[host]
        place.restarter.cease()
        if place.service is not None and not place.service.ended:
            self.channel.call("signal", programs=[place.service.number], name=place.service_plan.stop_signal)
            said_s = place.service_plan.stop_grace_s
            place.service.await_end(seconds(grace) if grace is not None else _GRACE_S if said_s is None else said_s)
        self._end_host(place)

    def _end_host(self, place: LocalHost) -> None:
        place.restarter.cease()
        self.channel.call("halt_host", host=place.name)
        place.halted = True
        if place.service is not None and not place.service.await_end(_END_WITHIN_S):
            raise LabError(f"`{place.name}`: its program did not end after SIGKILL within {_END_WITHIN_S:g} s")

    def kill_host(self, host: str, signal: str) -> None:
        """Signal a host's own program; SIGKILL ends everything in the host."""
        place = self._hosts[host]
        if signal == "SIGKILL":
            self._end_host(place)
        elif place.service is None or place.service.ended:
            raise LabError(f"`{host}`: {signal}: its service runs no program that could be signalled")
        else:
            if not place.service_plan.signal_named or signal == place.service_plan.stop_signal:
                place.restarter.cease()  # as the engine
            self.channel.call("signal", programs=[place.service.number], name=signal)

    def start_host(self, host: LocalHost) -> None:
        """See `StackLab`."""
        if not host.halted:
            self._end_host(host)
        self.channel.call("revive_host", host=host.name)
        host.start_again()

    def freeze(self, host: str) -> None:
        """Pause every process in a host."""
        self.channel.call("freeze_host", host=host)

    def thaw(self, host: str) -> None:
        """Have it go on."""
        self.channel.call("thaw_host", host=host)

    # --- agents ----------------------------------------------------------------------------------

    def replace_agent(self, _left: Sequence[Mapping[str, object]]) -> None:
        """Take the rest of the lab down and bring it up again: the hosts went with the agent."""
        self._say("the agent has died, and with it every host: bringing the lab up again")
        self.down()
        self.ports.per_packet = PerPacket()
        self.up()

    def start_capture_agent(self) -> Channel:
        """See `StackLab`."""
        return self.agent.helper("agent that captures", "capturing")

    # --- ports -----------------------------------------------------------------------------------

    def attach(self, host: str, network: str, *, to_count: bool = False) -> Attached:
        """See `Backend`."""
        if self.netem_engine == "carried" and not to_count:
            self._carry(self.channel)
        return super().attach(host, network, to_count=to_count)

    def port_of_sender(self, host: str, network: str) -> int:
        """See `Backend`."""
        return self._ifindexes[host][network]

    def machines_agent(self) -> Channel:
        """See `Backend`. Of the machine, hosts see the agent that relays what comes to published ports."""
        if self._machines_agent is None or not self._machines_agent.answers:
            self._machines_agent = self.agent.helper("agent of the machine", "inside")
        return self._machines_agent

    def close_agents(self) -> None:
        """See `StackLab`."""
        if self._machines_agent is not None:
            self._machines_agent.close()
            self._machines_agent = None
        super().close_agents()

    def members(self, network: str) -> Sequence[str]:
        """See `StackLab`."""
        return [name for name, ends in self._ifindexes.items() if network in ends]

    # --- connections -----------------------------------------------------------------------------

    @property
    def tcp_hosts(self) -> Sequence[str]:
        """All of them."""
        return list(self._hosts)

    def tcp_tables(self) -> dict[str, ConnectionTable]:
        """See `Sockets`."""
        if self._agent is None:
            return {}
        answer = self._agent.call("tcp_connections", hosts=list(self._hosts))
        return {name: ConnectionTable.read(name, table) for name, table in answer.items()}

    def tcp_counters(self, hosts: Sequence[str]) -> dict[str, Readings]:
        """See `Backend`."""
        readings: dict[str, Readings] = self.channel.call("counters_of", hosts=list(hosts))
        return readings

    def count_payload(self, hosts: Sequence[str]) -> None:
        """See `KernelReadings`."""
        self.channel.call("count_payload", hosts=list(hosts))

    def payload(self) -> Mapping[str, Sequence[Received]]:
        """See `KernelReadings`."""
        answer = self.channel.call("payload")
        return {host: Received.read(received) for host, received in answer.items() if received is not None}


def _make_folders(plan: LabPlan) -> None:
    """Make the folders of the machine that binds name and that are missing, as the engine does."""
    for folder in dict.fromkeys(folder for service in plan.services.values() for folder in service.new_folders):
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise EnvironmentUnfitError(f"the folder {folder} of a volume cannot be made: {error.strerror}") from None


def _version(text: str) -> tuple[int, ...]:
    """The numbers in what `tc -V` prints: "tc utility, iproute2-6.15.0, libbpf 1.5.0"."""
    match = re.search(r"iproute2-(\d+)\.(\d+)", text)
    return tuple(map(int, match.groups())) if match else (0, 0)
