"""The local lab: the same Compose file as network namespaces under one agent of ours; no engine, no root needed.

Nothing of it has a name outside the agent's namespaces, so nothing can be left: it ends with the process that
brought it up.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import selectors
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from testbed import kernel
from testbed.backends import hostfiles, onlyone
from testbed.backends.local import limits, localplan
from testbed.backends.local.child import ChildAgent, PipeStream
from testbed.backends.local.localplan import HostPlan, Plan, Published, ServicePlan
from testbed.backends.starting import Progress, allowed_s, last_check
from testbed.compose import composefile, composer, dockerfile
from testbed.compose.composefile import ComposeFile, NeedsComposeError
from testbed.compose.composer import Composer
from testbed.compose.options import COMPOSE_FILE_NAMES, UP_DEADLINE, files_of, find_compose_file
from testbed.errors import (
    AgentError,
    CommandTimeoutError,
    EnvironmentUnfitError,
    InvalidComposeError,
    InvalidValueError,
    LabError,
    ServiceFailedError,
)
from testbed.evidence.hoststate import EXITED, GONE, PAUSED, RUNNING, HostState, meant_to_end
from testbed.lab import readiness
from testbed.lab.backend import Attached as AttachedPort
from testbed.lab.backend import Spot
from testbed.lab.channel import Channel
from testbed.lab.host import Host, Program, Result, seconds
from testbed.lab.lab import Lab
from testbed.lab.observer import spots_of_port
from testbed.lab.perpacket import PerPacket
from testbed.lab.readiness import Ready
from testbed.lab.succession import CAPTURE, PORTS, beside
from testbed.lab.waiting import NotSeenError, await_condition
from testbed.lab.wholeness import LAST_LINES
from testbed.netem.profiles import Profiles, Tables, load_profiles, load_tables, read_trace
from testbed.observe.connections import Table
from testbed.spec.impairment import unknown
from testbed.spec.topologies import Drawing
from testbed.spec.topology import Topology

_STOP_WITHIN_S = 1.0  # as `docker compose down --timeout 1`, which ends a ComposeLab; `stop_grace_period:` goes before
_BIN = "/run/testbed/bin"
"""Where a host finds ``python3``; see `agent.hosts`."""
_PYTHONS = ("/usr/local/sbin", "/usr/local/bin", "/usr/bin", "/bin")
"""Where an image has it, or before."""
_LAST_LINES = 20
_GRACE_S = 10.0
"""As the engine's, where there is no ``stop_grace_period:``."""
_END_WITHIN_S = 20.0
_CHECK_AGAIN_S = 0.05
_MESSAGE_BYTES = 64
_TC_WITH_CLASSES = (6, 6)
"""The iproute2 from which on `tc -j class show` prints nothing but JSON, for sure."""
# What Docker leaves to a container's programs (moby, oci/caps/defaults.go).
_CAPABILITIES = frozenset({
    "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
    "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
})  # fmt: skip


class LocalLab(Lab):
    """A Compose file, brought up as network namespaces.

    ::

        with LocalLab("compose.yaml") as lab:
            lab.impair("client <-> server", "lossy")
            assert lab.host("client").run(["python3", "paper_client.py", "server"]).ok
    """

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
        super().__init__()
        if netem not in ("auto", "host", "carried"):
            raise EnvironmentUnfitError(f"netem={netem!r}: must be one of auto, host, carried")
        self.run_id = secrets.token_hex(4)
        self._asked_netem = netem
        self._say = say
        self._warn = warn or say
        self._up_deadline_s = allowed_s(up_deadline)
        self._drawing = compose_file if isinstance(compose_file, Drawing) else None
        self._files = () if isinstance(compose_file, Drawing) else files_of(compose_file)
        self._compose_profiles = tuple(compose_profiles)
        self._config: ComposeFile | None = None
        self._topology: Topology | None = None
        self._plan: Plan | None = None
        self._profiles: Profiles | None = None
        self._tables: Tables | None = None
        self._hosts: dict[str, LocalHost] = {}
        self._child: ChildAgent | None = None
        self._agent: Channel | None = None
        self._capture_agent: Channel | None = None
        self._undo = ExitStack()
        self._ifindexes: dict[str, dict[str, int]] = {}
        self._reader = _Reader()
        self.failed_logs: dict[str, str] = {}
        """The logs of services that failed while the lab came up, by host."""
        self.published: dict[tuple[str, int], int] = {}
        """Where a host's port is found on the machine: (host, port) to port."""

    # --- what is known before anything runs ------------------------------------------------------

    @property
    def plan(self) -> Plan:
        """What the Compose file asks for. Raises InvalidComposeError with all that cannot be honoured."""
        if self._plan is None:
            self._plan = localplan.make(self._compose_file(), self.topology)
        return self._plan

    def _compose_file(self) -> ComposeFile:
        if self._config is None:
            self._config = self._read()
        return self._config

    def _read(self) -> ComposeFile:
        if self._drawing is not None:
            return composefile.of_drawing(self._drawing, environment=os.environ)
        listed = list(self._files[1:] and self._files) if self._files else composefile.listed(os.environ)
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
            inactive = composefile.look_through(files, environment=os.environ, asked=self._compose_profiles)
            compose = Composer(self._files, project=f"testbed-{self.run_id}", profiles=self._compose_profiles)
            try:
                config = compose.config()
            except EnvironmentUnfitError as error:
                raise EnvironmentUnfitError(f"{needs}: Compose alone reads this. {error}") from None
            for warning in compose.warnings:
                self._warn(warning)
            return composefile.of_compose(named, config, files, environment=os.environ, inactive=inactive)

    @property
    def topology(self) -> Topology:  # type: ignore[override]  # read lazily, as ComposeLab's
        """Hosts and networks of the Compose file. Raises InvalidComposeError."""
        if self._topology is None:
            file = self._compose_file()
            topology = Topology.from_compose(file.config, inactive=file.inactive)
            if file.problems:
                localplan.make(file, topology)  # which tells of them, and of all else that is wrong
            for name in file.unset:
                self._warn(composer.unset(name))
            self._topology = topology
        return self._topology

    @property
    def only_one(self) -> tuple[str, ...]:  # type: ignore[override]  # likewise
        """Published ports, which this machine has once. Raises InvalidComposeError."""
        return tuple(onlyone.ports(self._compose_file().config))

    @property
    def profiles(self) -> Mapping[str, Any]:  # type: ignore[override]  # likewise
        """Every profile, the ones in ``netem/`` beside the Compose file first. Raises InvalidValueError."""
        if self._profiles is None:
            self._profiles = load_profiles(self._netem_folder)
        return self._profiles

    @property
    def tables(self) -> Mapping[str, Path]:  # type: ignore[override]  # likewise
        """Tables of delays in ``netem/`` beside the Compose file. Raises InvalidValueError."""
        if self._tables is None:
            self._tables = load_tables(self._netem_folder)
        return self._tables

    @property
    def _netem_folder(self) -> Path:
        return (self._files[0].resolve().parent if self._files else Path.cwd()) / "netem"

    def read_trace(self, name: str) -> str:
        """The text of a trace in ``netem/`` beside the Compose file, or of our own. Raises InvalidValueError."""
        return read_trace(name, self._netem_folder)

    @property
    def hosts(self) -> Mapping[str, LocalHost]:
        """Every host of the running lab, by name."""
        return self._hosts

    # --- up and down -----------------------------------------------------------------------------

    def up(self) -> None:
        """Build the networks and hosts, start every service in its order, and wait until all are well.

        Raises InvalidComposeError, EnvironmentUnfitError, ServiceFailedError; on failure nothing stays.
        """
        self._check_limits(*localplan.counts(self._compose_file(), self.topology))
        plan = self.plan
        progress = Progress(self._say, allowed_s=self._up_deadline_s)
        with ExitStack() as undo:
            undo.callback(self._forget)
            listeners = self._listen(undo, plan)
            self._child = agent = ChildAgent(tag=self.run_id[:6])
            self._agent = channel = Channel(agent, name="local agent")
            undo.callback(agent.close)
            undo.enter_context(self._reader)
            self._choose_engine(channel)
            self._build(channel, plan)
            self._publish(channel, plan, listeners)
            undo.callback(self._stop_services)
            undo.callback(self._close_hosts)
            self._start_services(plan, progress)
            self.whole.up()
            self._undo = undo.pop_all()

    @staticmethod
    def _check_limits(hosts: int, programs: int) -> None:
        if lacking := list(limits.shortages(limits.Machine.look(), hosts=hosts, programs=programs)):
            raise EnvironmentUnfitError(f"{hosts} hosts need {'; '.join(lacking)}")
        limits.room_for_programs(hosts)

    def down(self) -> None:
        """Stop the services and end the agent, and all there is with it."""
        self.ports.clear()
        self._undo.close()

    def _close_hosts(self) -> None:
        for host in self._hosts.values():
            host.close()
        if self._capture_agent is not None:
            self._capture_agent.close()
            self._capture_agent = None

    def _forget(self) -> None:
        self._hosts.clear()
        self._ifindexes.clear()
        self._child = self._agent = None

    def _choose_engine(self, channel: Channel) -> None:
        able = channel.call("capabilities")
        if self._asked_netem == "host" and able["host_netem"]:
            raise EnvironmentUnfitError(
                f"--netem host: this kernel ({able['kernel']}) has no usable netem: {able['host_netem'].rstrip('.')}. "
                f"Load it (modprobe sch_netem) or use --netem carried."
            )
        if self._asked_netem == "host" or (self._asked_netem == "auto" and not able["host_netem"]):
            self.netem_engine, self.seedable = "host", able["host_seed"]
            self.counts_classes = _version(able["tc"]) >= _TC_WITH_CLASSES
            return
        # The kernel itself is started when a link is impaired first.
        self.netem_engine, self.seedable, self.counts_classes = "carried", True, True
        self._not_carried = able["tun"]

    def _carry(self, channel: Channel) -> None:
        """Have the carried kernel run. Raises EnvironmentUnfitError."""
        if self._not_carried:
            raise EnvironmentUnfitError(
                f"netem must be carried here, and a carried kernel needs taps, which this machine does not give "
                f"{'root' if os.geteuid() == 0 else 'this user'}: {self._not_carried}. As root: modprobe tun; "
                f"chmod 0666 /dev/net/tun"
            )
        root = kernel.ensure_root(self._say)
        if root is not None:
            channel.call("carry_from", root=str(root))
        try:
            channel.call("boot", answer_within_s=60)
        except AgentError as error:
            raise EnvironmentUnfitError(f"the carried kernel did not start: {error}") from None

    def _build(self, channel: Channel, plan: Plan) -> None:
        networks = [
            {
                "name": network.name,
                "mtu": network.mtu,
                "addresses": network.gateways,
                "names": "\n".join(plan.names_on(network.name)),
            }
            for network in plan.networks
        ]
        hosts = [self._settings(host) for host in plan.hosts]
        try:
            self._ifindexes = channel.call("build", networks=networks, hosts=hosts, answer_within_s=60)
        except AgentError as error:
            raise EnvironmentUnfitError(f"the hosts could not be made: {error}") from None
        for host in plan.hosts:
            self._hosts[host.name] = LocalHost(self, host, plan.services[host.service])

    def _settings(self, host: HostPlan) -> dict[str, Any]:
        """What the agent must know of a host; see `testbed.agent.hosts.Hosts.build`."""
        plan = self.plan
        service = plan.services[host.service]
        return {
            "name": host.name,
            "interfaces": [
                {"network": each.network, "name": each.name, "mac": each.mac, "addresses": each.addresses}
                for each in host.interfaces
            ],
            "routes": host.routes,
            "names": host.hears_of,
            "sysctls": service.sysctls,
            "hostname": host.hostname,
            "hosts_head": plan.hosts_head(host),
            "folders": service.folders,
            "files": service.files,
            "binds": [*service.binds, *_hidden_python()],
            "volumes": [
                (f"{host.name}{name}" if name.startswith(":") else name, *how) for name, *how in service.volumes
            ],
            "python": os.path.realpath(getattr(sys, "_base_executable", sys.executable)) if service.python else None,
            "capabilities": sorted(_capabilities(service)),
            "limits": service.limits,
        }

    # --- published ports -------------------------------------------------------------------------

    def _listen(self, undo: ExitStack, plan: Plan) -> list[tuple[str, int, socket.socket]]:
        """A listening socket of the machine's for each published port. Raises EnvironmentUnfitError: all taken."""
        listeners: list[tuple[str, int, socket.socket]] = []
        taken: list[str] = []
        for host in plan.hosts:
            for port in plan.services[host.service].published:
                try:
                    listener = _listener(port)
                except OSError as error:
                    span = f"-{port.last}" if port.last else ""
                    taken.append(f"{port.host_ip}:{port.port}{span} for {host.name}: {error.strerror}")
                    continue
                undo.callback(listener.close)
                listeners.append((host.name, port.target, listener))
                self.published[host.name, port.target] = listener.getsockname()[1]
        if taken:
            raise EnvironmentUnfitError(f"ports cannot be published: {'; '.join(taken)}")
        return listeners

    def _publish(self, channel: Channel, plan: Plan, listeners: Sequence[tuple[str, int, socket.socket]]) -> None:
        if listeners and self._child is not None:
            first = {host.name: host.interfaces[0].plain[0] for host in plan.hosts if host.interfaces}
            ticket = self._child.passed([listener.fileno() for _, _, listener in listeners])
            channel.call("publish", ticket=ticket, targets=[(first[host], port) for host, port, _ in listeners])
            for _, _, listener in listeners:
                listener.close()

    # --- services --------------------------------------------------------------------------------

    def _start_services(self, plan: Plan, progress: Progress) -> None:
        """Start each service once what it depends on is as it should be; wait until all are well."""
        waiting = dict(plan.services)
        by_service: dict[str, list[LocalHost]] = {name: [] for name in plan.services}
        for host in self._hosts.values():
            by_service[host.plan.service].append(host)

        def not_well_yet() -> dict[str, str]:
            return {host.name: host.in_words() for host in self._hosts.values() if host.wellness != "well"}

        def step() -> bool:
            for host in self._hosts.values():
                host.check_health()
            for name, service in list(waiting.items()):
                conditions = service.depends_on.items()
                if all(host.meets(condition) for other, condition in conditions for host in by_service[other]):
                    del waiting[name]
                    for host in by_service[name]:
                        host.start_service()
            progress.tell(not_well_yet)
            states = [host.wellness for host in self._hosts.values()]
            return "failed" in states or (not waiting and "waiting" not in states)

        with contextlib.suppress(NotSeenError):
            await_condition(step, bool, deadline_s=max(progress.left_s, 0.1), every_s=0.005)
        unwell = [host for host in self._hosts.values() if host.wellness != "well"]
        if unwell:
            failed = [host for host in unwell if host.wellness == "failed"]
            said = [host.describe_unwell() for host in failed or unwell]
            self.failed_logs = {host.name: host.logs() for host in failed or unwell}
            late = [] if failed else [f"not well after {self._up_deadline_s:g} s (the up-deadline)"]
            raise ServiceFailedError("\n".join([*said, *late]))

    def _stop_services(self) -> None:
        """Ask every service to stop as its stop_signal says; what does not in time ends with the agent."""
        if self._agent is None:
            return
        by_signal: dict[str, list[LocalProgram]] = {}
        for host in self._hosts.values():
            if host.service is not None and not host.service.ended:
                by_signal.setdefault(host.service_plan.stop_signal, []).append(host.service)
        try:
            for name, programs in by_signal.items():
                self._agent.call("signal", programs=[each.number for each in programs], name=name)
        except AgentError as error:
            self._say(f"the agent was gone before it was told to stop: {error}")
            return
        began = time.monotonic()
        for host in self._hosts.values():
            if host.service is not None:
                said_s = host.service_plan.stop_grace_s
                until = began + (_STOP_WITHIN_S if said_s is None else said_s)
                host.service.await_end(max(until - time.monotonic(), 0.0))

    # --- what becomes of hosts: `wholeness.Backend` ----------------------------------------------

    def host_states(self) -> Mapping[str, HostState]:
        """Every host as the agent tells it now."""
        told = self.channel.call("host_states")
        return {name: host.state(**told[name], endpoints=self._ifindexes.get(name, {}))
                for name, host in self._hosts.items()}  # fmt: skip

    def may_end(self, host: str) -> bool:
        """Whether its program is meant to end: see `hoststate.meant_to_end`."""
        return self._hosts[host].plan.service in meant_to_end(self._compose_file().config.get("services", {}))

    def last_lines(self, host: str) -> tuple[str, ...]:
        """Of what its program printed."""
        return tuple(self._hosts[host].logs().splitlines()[-LAST_LINES:])

    def halt(self, host: str, grace: str | None) -> None:
        """Have a host's program end as its stop_signal says, and all else in the host with it."""
        place = self._hosts[host]
        if place.service is not None and not place.service.ended:
            self.channel.call("signal", programs=[place.service.number], name=place.service_plan.stop_signal)
            said_s = place.service_plan.stop_grace_s
            place.service.await_end(seconds(grace) if grace is not None else _GRACE_S if said_s is None else said_s)
        self._end_host(place)

    def _end_host(self, place: LocalHost) -> None:
        self.channel.call("halt_host", host=place.name)
        place.halted = True
        if place.service is not None and not place.service.await_end(_END_WITHIN_S):
            raise LabError(f"`{place.name}`: its program did not end after SIGKILL within {_END_WITHIN_S:g} s")

    def kill_host(self, host: str, signal: str) -> None:
        """Signal a host's own program; with SIGKILL all in the host ends with it."""
        place = self._hosts[host]
        if signal == "SIGKILL":
            self._end_host(place)
        elif place.service is None or place.service.ended:
            raise LabError(f"`{host}`: {signal}: its service runs no program that could be signalled")
        else:
            self.channel.call("signal", programs=[place.service.number], name=signal)

    def revive(self, host: str, timeout: str | None) -> None:
        """Start a host's program again, and return once it is well."""
        place = self._hosts[host]
        for name, condition in place.service_plan.depends_on.items():
            stopped = [each.name for each in self._hosts.values() if each.plan.service == name
                       and not self.whole.running(each.name)]  # fmt: skip
            if stopped and condition != "service_completed_successfully":
                raise LabError(f"`{host}` depends on `{stopped[0]}`, which does not run; start that first")
        self._revive(place, self._up_deadline_s if timeout is None else seconds(timeout))

    def _revive(self, place: LocalHost, allowed_s: float) -> None:
        if not place.halted:
            self._end_host(place)
        self.channel.call("revive_host", host=place.name)
        place.start_again()

        def look() -> str:
            place.check_health()
            return place.wellness

        late = ""
        try:
            await_condition(look, lambda seen: seen != "waiting", deadline_s=allowed_s, every_s=0.005)
        except NotSeenError:
            late = f"\nnot well after {allowed_s:g} s"
        if place.wellness != "well":
            raise ServiceFailedError(place.describe_unwell() + late)

    def freeze(self, host: str) -> None:
        """Have all in a host stand still."""
        self.channel.call("freeze_host", host=host)

    def thaw(self, host: str) -> None:
        """Have it go on."""
        self.channel.call("thaw_host", host=host)

    def bring_back(self, wrong: Mapping[str, HostState]) -> None:
        """Have these hosts run again, in the order in which the stack came up."""
        order = list(self.plan.services)
        for place in sorted((self._hosts[name] for name in wrong), key=lambda each: order.index(each.plan.service)):
            if wrong[place.name].status == PAUSED:
                self.thaw(place.name)
            else:
                self._end_host(place)
                self._revive(place, self._up_deadline_s)

    # --- agents that died: `succession` ----------------------------------------------------------

    def agents(self) -> Mapping[str, Channel]:
        """See `Lab.agents`."""
        known = {PORTS: self._agent, CAPTURE: self._capture_agent,
                 **{beside("inside", name): host.known_inside for name, host in self._hosts.items()}}  # fmt: skip
        return {role: agent for role, agent in known.items() if agent is not None}

    def replace_agent(self, _left: Sequence[Mapping[str, Any]]) -> None:
        """Take what is left of the lab down and bring it up again: all there was is gone with the agent."""
        self._say("the agent has died, and with it every host: bringing the lab up again")
        self.down()
        self.ports.per_packet = PerPacket()
        self.up()

    def forget_agent(self, role: str) -> None:
        """See `Lab.forget_agent`."""
        if role == CAPTURE and self._capture_agent is not None:
            self._capture_agent.close()
            self._capture_agent = None
        for name, host in self._hosts.items():
            if role == beside("inside", name):
                host.close()

    # --- ports -----------------------------------------------------------------------------------

    @property
    def channel(self) -> Channel:
        """The way to the agent. Raises LabError if the lab is not up."""
        if self._agent is None:
            raise LabError("the lab is not up")
        return self._agent

    def attach(self, host: str, network: str) -> AttachedPort:
        """See `Backend`."""
        if self.netem_engine == "carried":
            self._carry(self.channel)
        return self._attach(f"{host}@{network}", host, network, self.netem_engine)

    def attach_to_count(self, host: str, network: str) -> AttachedPort:
        """See `Backend`."""
        return self._attach(f"{host}@{network} watched", host, network, "host")

    def _attach(self, name: str, host: str, network: str, engine: str) -> AttachedPort:
        ifindex = self.port_of_sender(host, network)
        port = self.channel.call("attach", port=name, ifindex=ifindex, engine=engine)
        return AttachedPort(name=name, channel=self.channel, port=port, ifindex=ifindex)

    def port_of_sender(self, host: str, network: str) -> int:
        """See `Backend`."""
        return self._ifindexes[host][network]

    def attach_program(self, host: LocalHost, argv: Sequence[str], streams: Sequence[int], *, tty: bool) -> Attached:
        """Start a program on descriptors of ours; see `LocalHost.attached`."""
        if self._child is None:
            raise LabError("the lab is not up")
        read, write = os.pipe()
        try:
            try:
                ticket = self._child.passed([*streams, write])
            finally:
                os.close(write)
            self.channel.call("start", argv=list(argv), ticket=ticket, tty=tty, **host.circumstances())
        except BaseException:
            os.close(read)
            raise
        return Attached(read)

    def open_terminal(self, host: str) -> tuple[int, int]:
        """A terminal in a host; see `LocalHost.terminal`."""
        if self._child is None:
            raise LabError("the lab is not up")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                ticket = self._child.passed([theirs.fileno()])
            self.channel.call("terminal", host=host, ticket=ticket)
            _, (shown, given), _, _ = socket.recv_fds(ours, _MESSAGE_BYTES, 2)
        return shown, given

    def beside(self, host: str) -> Channel:
        """An agent in a host's network namespace."""
        return self._helper(f"agent inside {host}", "inside", host=host)

    @property
    def tcp_hosts(self) -> Sequence[str]:
        """All of them."""
        return list(self._hosts)

    def tcp_tables(self) -> dict[str, Table]:
        """See `Lab.tcp_tables`."""
        if self._child is None:
            return {}
        told = self.channel.call("tcp_connections", hosts=list(self._hosts))
        return {name: Table.read(name, each) for name, each in told.items()}

    def destroy_tcp(self, host: str, ids: Sequence[str]) -> str | None:
        """See `Lab.destroy_tcp`."""
        refused: str | None = self.channel.call("destroy_tcp", host=host, ids=list(ids))["refused"]
        return refused

    def capture_agent(self) -> Channel:
        """The agent that captures, started when it is needed first."""
        if self._capture_agent is None:
            self._capture_agent = self._helper("agent that captures", "capturing")
        return self._capture_agent

    def spots(self, host: str, network: str, src: str | None) -> list[Spot]:
        """Where the packets of a port pass; see `Lab.spots`."""
        members = [name for name, ends in self._ifindexes.items() if network in ends]
        return spots_of_port(
            self, self.channel, host=host, network=network, src=src, members=members,
            end=lambda name: self._ifindexes[name][network], attached=self.ports.at(host, network) is not None,
        )  # fmt: skip

    def _helper(self, name: str, operation: str, **arguments: Any) -> Channel:
        """An agent that the lab's agent starts beside itself."""
        if self._child is None:
            raise LabError("the lab is not up")
        requests, ask = os.pipe()
        hear, answers = os.pipe()
        ticket = self._child.passed([requests, answers])
        os.close(requests)
        os.close(answers)
        pid = self.channel.call(operation, ticket=ticket, **arguments)
        return Channel(PipeStream(ask, hear), name=name, kill=partial(self._end_helper, pid))

    def _end_helper(self, pid: int) -> None:
        if self._agent is not None and self._agent.answers:  # else they go together
            self._agent.call("end_helper", pid=pid)

    def mac(self, host: str, network: str) -> str | None:
        """The MAC address of a host's interface."""
        return next(each.mac for each in self._hosts[host].plan.interfaces if each.network == network)

    def source_addresses(self, host: str, network: str) -> tuple[str, ...]:
        """What packets of a host bear as their source; see `Lab`."""
        interface = next(each for each in self._hosts[host].plan.interfaces if each.network == network)
        return (*interface.plain, *interface.link_local)

    def marks(self, host: str, network: str) -> tuple[str, ...]:
        """What tells a host's packets; see `Lab`. What a router sends is told by its interface alone."""
        marks = super().marks(host, network)
        return marks[-1:] if self._hosts[host].plan.router else marks

    def launch(
        self, host: LocalHost, argv: Sequence[str], *, env: Mapping[str, str] | None, workdir: str | None, user: str
    ) -> LocalProgram:
        """Start a program in a host."""
        if self._child is None:
            raise LabError("the lab is not up")
        return LocalProgram(host, self._child, self.channel, self._reader, argv, env=env, workdir=workdir, user=user)


def _listener(published: Published) -> socket.socket:
    """A listening socket at a published port, of a range the first that is free. Raises OSError."""
    family = socket.AF_INET6 if ":" in published.host_ip else socket.AF_INET
    for port in range(published.port, published.last):
        with contextlib.suppress(OSError):  # the last one's is raised
            return socket.create_server((published.host_ip, port), family=family)
    return socket.create_server((published.host_ip, published.last or published.port), family=family)


def _version(text: str) -> tuple[int, ...]:
    """The numbers in what `tc -V` prints: "tc utility, iproute2-6.15.0, libbpf 1.5.0"."""
    match = re.search(r"iproute2-(\d+)\.(\d+)", text)
    return tuple(map(int, match.groups())) if match else (0, 0)


class Attached:
    """A program on descriptors of ours. Of itself it is one that can be read once the program has ended."""

    def __init__(self, status: int) -> None:
        self._status = status

    def fileno(self) -> int:
        """For select(2)."""
        return self._status

    def wait(self) -> int:
        """Wait for its end; its exit status."""
        with os.fdopen(self._status, "rb") as status:
            return _code(status.read(4))


def _code(answer: bytes) -> int:
    """What the agent tells of a program's end in four bytes; 137 if it ended with the lab."""
    return int(struct.unpack("=i", answer)[0]) if len(answer) == 4 else 137


def _capabilities(service: ServicePlan) -> Set[str]:
    """As the engine has it (moby, oci/caps/utils.go): ALL but what is dropped; a name that is added stays."""
    added, dropped = set(service.capabilities_added), set(service.capabilities_dropped)
    if "ALL" in added:
        return localplan.CAPABILITIES - dropped
    return added if "ALL" in dropped else (_CAPABILITIES - dropped) | added


def _with_python(path: str) -> str:
    """A search path with our ``python3`` where it would have found an image's."""
    folders = path.split(":")
    at = next((number for number, folder in enumerate(folders) if folder in _PYTHONS), None)
    return path if at is None or _BIN in folders else ":".join([*folders[:at], _BIN, *folders[at:]])


def _hidden_python() -> list[tuple[str, str, bool]]:
    """Python's own folder where it lies below one that a host has of its own."""
    prefix = os.path.realpath(sys.base_prefix)
    return [(prefix, prefix, True)] if prefix.startswith(("/tmp/", "/dev/")) else []  # noqa: S108  # compared only


class LocalHost(Host):
    """A network namespace, with a process and mount namespace of its own once a program runs in it."""

    _lab: LocalLab

    def __init__(self, lab: LocalLab, plan: HostPlan, service: ServicePlan) -> None:
        self.name = plan.name
        self.plan = plan
        self.service_plan = service
        self.service: LocalProgram | None = None
        """The program that the Compose file starts here."""
        self._lab = lab
        self._whole = lab.whole
        self._inside: Channel | None = None
        self._begun = False
        self.halted = False
        """Whether it was stopped: nothing runs in it."""
        self._healthy = service.health_check is None
        self._unhealthy = False
        self._check: LocalProgram | None = None
        self._check_began = 0.0
        self._check_at = 0.0
        self._check_said: str | None = None

    def __repr__(self) -> str:
        return f"<Host {self.name}>"

    # --- programs --------------------------------------------------------------------------------

    def launch(
        self, argv: Sequence[str], *, ready: Ready | None, timeout: str, env: Mapping[str, str] | None,
        workdir: str | None, user: str,
    ) -> LocalProgram:  # fmt: skip
        """Start a program in the host; see `Host.start`."""
        readiness.check_argv(argv)
        readiness.check_free(self.name, argv, ready, self._listener)
        program = self._lab.launch(self, argv, env=env, workdir=workdir, user=user)
        self._lab.ledger.programs.append(program)
        if ready is not None:
            try:
                readiness.await_ready(self.name, argv, program, ready, timeout, self._listener)
            except BaseException:
                program.stop("SIGKILL")
                raise
        return program

    def _listener(self, port: int, deadline_s: float) -> dict[str, Any]:
        def look() -> list[int]:
            ports: list[int] = self._lab.channel.call("listeners", host=self.name)
            return ports

        try:
            ports = await_condition(look, lambda seen: port in seen, deadline_s=deadline_s, every_s=0.005)
        except NotSeenError as error:
            ports = error.last if isinstance(error.last, list) else []
        return {"listening": port in ports, "ports": ports}

    def logs(self) -> str:
        """What the service's program has printed."""
        return "" if self.service is None else self.service.output

    def follow(self) -> LocalLog:
        """The same as it grows, each line with the time when it came; a context manager."""
        if self.service is None:
            raise LabError(f"`{self.name}` runs no service")
        return LocalLog(self.service)

    def circumstances(
        self, *, env: Mapping[str, str] | None = None, workdir: str | None = None, user: str = ""
    ) -> dict[str, Any]:
        """Host, environment, folder and user of a program, as the agent is told them."""
        service = self.service_plan
        ours = {"PATH": dockerfile.PATH, "HOSTNAME": self.plan.hostname, **service.environment, **(env or {})}
        ours["PATH"] = _with_python(ours["PATH"])
        return {
            "host": self.name, "env": ours, "workdir": workdir or service.workdir, "user": user or service.user,
        }  # fmt: skip

    def attached(self, argv: Sequence[str], streams: Sequence[int], *, tty: bool = False) -> Attached:
        """Start a program on descriptors of ours; ``tty``: they are a `terminal` of this host's, its own from now."""
        return self._lab.attach_program(self, argv, streams, tty=tty)

    def terminal(self) -> tuple[int, int]:
        """A terminal that programs in this host find under its name: the end that shows, and the one for a program."""
        return self._lab.open_terminal(self.name)

    # --- the service -----------------------------------------------------------------------------

    def state(self, *, init: int, lives: bool, frozen: bool, endpoints: Mapping[str, int]) -> HostState:
        """What the agent tells, and what is known here of its program."""
        ended = self.service is not None and self.service.ended
        status = EXITED if self.halted or ended else GONE if not lives else PAUSED if frozen else RUNNING
        return HostState(
            status=status, id=str(init or ""), started="" if self.service is None else str(self.service.number),
            exit_code=self.service.wait().exit_code if self.service is not None and ended else None,
            endpoints={} if self.halted else {name: str(index) for name, index in endpoints.items()},
        )  # fmt: skip

    def start_again(self) -> None:
        """Start it after a halt, its health unknown."""
        self.halted = False
        self._healthy, self._unhealthy = self.service_plan.health_check is None, False
        self._check, self._check_said, self._check_began, self._check_at = None, None, 0.0, 0.0
        self.start_service()

    def start_service(self) -> None:
        """Start what the Compose file says, if it says anything."""
        self._begun = True
        if self.service_plan.argv:
            self.service = self._lab.launch(self, self.service_plan.argv, env=None, workdir=None, user="")

    @property
    def wellness(self) -> str:
        """``well``, ``waiting`` or ``failed``."""
        if self.service is None:
            return "well" if self._begun else "waiting"
        if self.service.refused:
            return "failed"
        if self.service.ended:
            return "well" if self.service.wait().exit_code == 0 else "failed"
        return "failed" if self._unhealthy else "well" if self._healthy else "waiting"

    def meets(self, condition: str) -> bool:
        """Whether a service that depends on this one by such a condition may start."""
        if self.service is None:
            return self._begun
        match condition:
            case "service_completed_successfully":
                return self.service.ended and self.service.wait().exit_code == 0
            case "service_healthy":
                return self._healthy and not self.service.ended
            case _:
                return not self.service.refused

    def check_health(self) -> None:
        """Take the health check one step on. It is asked sooner than Compose would, and given up no sooner."""
        check = self.service_plan.health_check
        if check is None or self._healthy or self._unhealthy or self.service is None or self.service.ended:
            return
        now = time.monotonic()
        if self._check is None:
            if not self._check_began:
                self._check_began = now
            if now >= self._check_at:
                self._check = self._lab.launch(self, check.test, env=None, workdir=None, user="")
                self._check_at = now + check.timeout_s
        elif self._check.ended or now >= self._check_at:
            if not self._check.ended:
                self._check.stop("SIGKILL")
            self._healthy = self._check.wait().exit_code == 0
            self._check_said, self._check = self._check.output.strip(), None
            self._check_at = now + min(_CHECK_AGAIN_S, check.interval_s)
            allowed_s = check.start_period_s + check.retries * (check.interval_s + check.timeout_s)
            self._unhealthy = not self._healthy and now - self._check_began > allowed_s

    def describe_unwell(self) -> str:
        """What is wrong with its service, with its last lines."""
        said = f"service `{self.plan.service}` {self.in_words()}"
        if self.service is None or self.service.refused:
            return said
        lines = self.logs().splitlines()[-_LAST_LINES:]
        last = "\n".join(f"    {line}" for line in lines) or "    (it printed nothing)"
        return f"{said}; its last lines:\n{last}"

    def in_words(self) -> str:
        """The state of its service."""
        if self.service is None:
            return "was not started: what it depends on is not well"
        if self.service.refused:
            return f"cannot be started: {self.service.refused}"
        if self.service.ended:
            return f"exited with status {self.service.wait().exit_code}"
        return f"is running and {'unhealthy' if self._unhealthy else 'starting'}; {last_check(self._check_said)}"

    # --- files and the network -------------------------------------------------------------------

    def put(self, path: str, content: bytes | str, *, mode: int = 0o644) -> None:
        """Write a file in the host; see `Host.put`."""
        hostfiles.put(self._lab.channel, self.name, path, content, mode, host=self.name)

    def get(self, path: str) -> bytes:
        """Read a file of the host; see `Host.get`."""
        return hostfiles.get(self._lab.channel, self.name, path, host=self.name)

    def addresses(self, network: str | None = None) -> tuple[str, ...]:
        """Its addresses, IPv4 before IPv6."""
        known = [interface.network for interface in self.plan.interfaces]
        if network is not None and network not in known:
            raise InvalidValueError(f"`{self.name}`: network {network!r}: {unknown(network, known)}")
        return tuple(
            address
            for interface in self.plan.interfaces
            if network in (None, interface.network)
            for address in interface.plain
        )

    def counters(self) -> dict[str, dict[str, int]]:
        """The kernel's counters of the host's network namespace."""
        counted: dict[str, dict[str, int]] = self._lab.channel.call("counters", host=self.name)
        return counted

    def connections(self) -> list[dict[str, Any]]:
        """The TCP connections that its kernel still works on, also those whose program has ended."""
        known: list[dict[str, Any]] = self._lab.channel.call("connections", host=self.name)
        return known

    def inside(self) -> Channel:
        """The agent in its network namespace; another one if it has died."""
        if self._inside is not None and not self._inside.answers:
            self._lab.succession.look()
            self.close()
        if self._inside is None:
            self._inside = self._lab.beside(self.name)
        return self._inside

    @property
    def known_inside(self) -> Channel | None:
        """The agent in its network namespace if there is one."""
        return self._inside

    def close(self) -> None:
        """Let the agent inside go."""
        if self._inside is not None:
            self._inside.close()
            self._inside = None

    def send_per_packet(self, network: str) -> dict[str, bool]:
        """Switch segmentation offloads off on its interface; returns what they were."""
        before: dict[str, bool] = self._lab.channel.call(
            "per_packet", host=self.name, interface=self._interface(network)
        )
        return before

    def send_as_before(self, network: str, offloads: Mapping[str, bool]) -> None:
        """Set them to what they were."""
        self._lab.channel.call(
            "put_back", host=self.name, interface=self._interface(network), offloads_were=dict(offloads)
        )

    def _interface(self, network: str) -> str:
        return next(each.name for each in self.plan.interfaces if each.network == network)


class LocalProgram(Program):
    """A program in a host; one thread of the lab's reads what all of them print."""

    def __init__(
        self, host: LocalHost, agent: ChildAgent, channel: Channel, reader: _Reader, argv: Sequence[str],
        *, env: Mapping[str, str] | None, workdir: str | None, user: str,
    ) -> None:  # fmt: skip
        self.argv = tuple(argv)
        self._host = host
        self._agent = channel
        self._chunks: list[tuple[int, bytes]] = []
        self.lines = _Lines()
        self._ended = threading.Event()
        self._exit_code = -1
        self._duration_s = 0.0
        self._started = time.perf_counter()
        with ExitStack() as theirs:
            ends: list[int] = []
            ours: list[int] = []
            for _ in range(3):
                read, write = os.pipe()
                ours.append(read)
                ends.append(write)
                theirs.callback(os.close, write)
            null = os.open(os.devnull, os.O_RDONLY)
            theirs.callback(os.close, null)
            stdout, stderr, status = ends
            ticket = agent.passed([null, stdout, stderr, status])
        reader.watch(self, ours)
        try:
            answer = channel.call(
                "start", argv=list(argv), ticket=ticket, **host.circumstances(env=env, workdir=workdir, user=user)
            )
        except AgentError as error:
            raise LabError(f"`{host.name}`: cannot start {' '.join(argv)}: {error}") from None
        self.number: int = answer["program"]
        self.refused: str = answer["refused"]
        """Why it could not be started; its exit status is a shell's then. Empty if it was."""

    # --- what the reader tells -------------------------------------------------------------------

    def printed(self, stream: int, data: bytes) -> None:
        """It printed something."""
        self._chunks.append((stream, data))
        if stream == 1:
            self.lines.feed(data)

    def has_ended(self, exit_code: int) -> None:
        """It ended, or nobody knows how any more."""
        self._exit_code = exit_code
        self._duration_s = time.perf_counter() - self._started
        self.lines.end()
        self._ended.set()

    # --- Program ---------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._ended.is_set()

    def await_end(self, deadline_s: float) -> bool:
        """Wait for its end; whether it came."""
        return self._ended.wait(deadline_s)

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return b"".join(data for _, data in list(self._chunks)).decode(errors="replace")

    def wait(self, timeout: str = "30s") -> Result:
        """Wait for its end; see `Program.wait`."""
        if not self._ended.wait(seconds(timeout)):
            raise CommandTimeoutError(
                f"`{self._host.name}`: {' '.join(self.argv)}: no end after {timeout}; {readiness.last_output(self)}"
            )
        return Result(
            argv=self.argv, exit_code=self._exit_code, stdout=self._stream(1), stderr=self._stream(2),
            duration_s=self._duration_s,
        )  # fmt: skip

    def stop(self, signal: str = "SIGTERM", timeout: str = "10s") -> Result:
        """Signal it, wait, and kill it if need be; see `Program.stop`."""
        if not self.ended:
            self._agent.call("signal", programs=[self.number], name=signal)
            if not self._ended.wait(seconds(timeout)) and signal != "SIGKILL":
                self._agent.call("signal", programs=[self.number], name="SIGKILL")
        return self.wait("10s")

    def _stream(self, number: int) -> str:
        return b"".join(data for stream, data in list(self._chunks) if stream == number).decode(errors="replace")


class _Lines:
    """The lines that a program has printed, and when each came first."""

    def __init__(self) -> None:
        self._pending = b""
        self._seen: dict[str, int] = {}
        self._ended = False
        self._grown = threading.Condition()

    def feed(self, data: bytes) -> None:
        now_ns = time.time_ns()
        *lines, self._pending = (self._pending + data).split(b"\n")
        with self._grown:
            for line in lines:
                self._seen.setdefault(line.decode(errors="replace").rstrip("\r"), now_ns)
            self._grown.notify_all()

    def end(self) -> None:
        with self._grown:
            self._ended = True
            self._grown.notify_all()

    def when(self, line: str, deadline_s: float) -> int | None:
        with self._grown:
            self._grown.wait_for(lambda: line in self._seen or self._ended, timeout=deadline_s)
            return self._seen.get(line)


class LocalLog:
    """What a host's service prints, while it does."""

    def __init__(self, program: LocalProgram) -> None:
        self._program = program

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Nothing is held."""

    def when(self, line: str, deadline_s: float) -> int | None:
        """Wait for a line; when it was first printed, in nanoseconds since the epoch. None if it was not in time."""
        return self._program.lines.when(line, deadline_s)


class _Reader:
    """One thread that reads what every program of a lab prints, and hears how it ended."""

    def __init__(self) -> None:
        self._waiting: selectors.BaseSelector | None = None
        self._wake = -1
        self._thread: threading.Thread | None = None
        self._new: list[tuple[LocalProgram, list[int]]] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._waiting = selectors.DefaultSelector()
        read, self._wake = os.pipe()
        self._waiting.register(read, selectors.EVENT_READ, None)
        self._thread = threading.Thread(
            target=self._read, args=[self._waiting, read], name="testbed-reader", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        os.close(self._wake)
        if self._thread is not None:
            self._thread.join(5.0)

    def watch(self, program: LocalProgram, descriptors: list[int]) -> None:
        """Read its stdout, its stderr and its exit status from now on."""
        with self._lock:
            self._new.append((program, descriptors))
        os.write(self._wake, b"+")

    def _read(self, waiting: selectors.BaseSelector, wake: int) -> None:
        live: dict[LocalProgram, list[int]] = {}
        while True:
            ready = [key for key, _ in waiting.select()]
            for key in ready:
                if key.data is None:
                    if not os.read(wake, 4096):
                        self._end(waiting, live)
                        return
                    self._take_new(waiting, live)
            for key in sorted((key for key in ready if key.data is not None), key=lambda key: key.data[1] == 0):
                program, stream = key.data
                if stream:
                    self._hear(waiting, key.fd, program, stream)
                else:
                    self._ended(waiting, live, key.fd, program)

    def _take_new(self, waiting: selectors.BaseSelector, live: dict[LocalProgram, list[int]]) -> None:
        with self._lock:
            new, self._new = self._new, []
        for program, descriptors in new:
            live[program] = descriptors
            for descriptor, stream in zip(descriptors, (1, 2, 0), strict=True):
                os.set_blocking(descriptor, False)
                waiting.register(descriptor, selectors.EVENT_READ, (program, stream))

    def _hear(self, waiting: selectors.BaseSelector, descriptor: int, program: LocalProgram, stream: int) -> bool:
        """Take in what one stream has; whether it may have more."""
        try:
            data = os.read(descriptor, 1 << 18)
        except BlockingIOError:
            return False
        if data:
            program.printed(stream, data)
        else:
            waiting.unregister(descriptor)
        return bool(data)

    def _ended(
        self,
        waiting: selectors.BaseSelector,
        live: dict[LocalProgram, list[int]],
        descriptor: int,
        program: LocalProgram,
    ) -> None:
        """Its status came: take in what is still in its pipes. What its children hold open is not waited for."""
        answer = os.read(descriptor, 4)
        waiting.unregister(descriptor)
        stdout, stderr, status = live.pop(program)
        registered = waiting.get_map()
        for each, stream in ((stdout, 1), (stderr, 2)):
            while each in registered and self._hear(waiting, each, program, stream):
                pass
            if each in registered:
                waiting.unregister(each)
            os.close(each)
        os.close(status)
        program.has_ended(_code(answer))

    def _end(self, waiting: selectors.BaseSelector, live: dict[LocalProgram, list[int]]) -> None:
        self._take_new(waiting, live)
        for program, descriptors in live.items():
            for descriptor in descriptors:
                os.close(descriptor)
            program.has_ended(137)
        for key in list(waiting.get_map().values()):
            if key.data is None:
                os.close(key.fd)
        waiting.close()
