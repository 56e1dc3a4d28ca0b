"""A host of a Compose lab: a container of the stack."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import docker.errors
from docker.models.containers import Container

from testbed.backends import hostfiles, terminal
from testbed.backends.docker import cgroups, inspection
from testbed.backends.docker.engine import Engine
from testbed.backends.docker.programs import ComposeProgram, FollowedLog
from testbed.backends.hosts import AgentHost
from testbed.backends.starting import Wellness
from testbed.errors import EnvironmentUnfitError, LabError
from testbed.evidence.hoststate import EXITED, HostState
from testbed.lab.channel import Channel
from testbed.lab.lab import Lab
from testbed.lab.waiting import NotSeenError, await_condition
from testbed.lab.wholeness import NOBODY


class ComposeHost(AgentHost):
    """A container of the stack."""

    def __init__(
        self, lab: Lab, name: str, container: Container, *, engine: Engine, beside: Callable[[Container, str], Channel]
    ) -> None:
        """``beside``: starts an agent of a role in a container's namespaces."""
        super().__init__(lab, name)
        self.container = container
        self._engine = engine
        self._beside = beside
        self._listed: object = None
        """The engine's short form of it at the last look."""
        self._state_then = NOBODY
        self._cgroup: Path | None = None
        self._cgroup_sought: HostState | None = None
        """Its state when the engine was last asked for its first process."""

    @property
    def image(self) -> str:
        """The id of its container's image."""
        attributes = self.container.attrs  # in the engine's short form, `Image` is a name
        return str(attributes.get("ImageID") or attributes.get("Image") or "")

    # --- its state -------------------------------------------------------------------------------

    def state(self, listed: Mapping[str, Any] | None) -> HostState:
        """Its state by the engine's short form of its container; this container is the host from here on."""
        if listed is None:
            return NOBODY
        if listed["Id"] != self.container.id:
            self.container = self._engine.container(listed["Id"])
        settings = listed["NetworkSettings"]["Networks"] or {}
        ends = {name: str(end.get("EndpointID") or "") for name, end in settings.items()}
        brief = (listed["Id"], listed["State"], ends)
        if brief != self._listed or not any(ends.values()):  # each start gives it other endpoints, if it has any
            inspected = self._inspected()
            state = inspected.get("State", {})
            networks = {network.engine_name: name for name, network in self._lab.topology.networks.items()}
            self._listed = brief
            self._state_then = HostState(
                status=str(listed["State"]),
                id=listed["Id"][:12],
                started=str(state.get("StartedAt", "")),
                restarts=int(inspected.get("RestartCount", 0)),
                exit_code=state.get("ExitCode") if listed["State"] == EXITED else None,
                endpoints={networks.get(name, name): end[:12] for name, end in ends.items()},
            )
        return self._state_then

    def wellness(self) -> Wellness:
        """By the engine's inspection."""
        return inspection.wellness(self._inspected())

    def processor_time(self) -> tuple[object, float] | None:
        """Its cgroup and the processor time that its programs have used; None where that is not known."""
        used = None if self._cgroup is None else cgroups.used_s(self._cgroup)
        if used is None and self._cgroup_sought != self._state_then:
            self._cgroup_sought = self._state_then  # in vain perhaps, until the container is started again
            pid = self._inspected().get("State", {}).get("Pid") or 0
            self._cgroup = cgroups.folder(pid, str(self.container.id))
            used = None if self._cgroup is None else cgroups.used_s(self._cgroup)
        return used

    @property
    def restarts(self) -> int:
        """By the engine's inspection."""
        return int(self._inspected().get("RestartCount", 0))

    # --- programs --------------------------------------------------------------------------------

    def interact(self, argv: Sequence[str]) -> int:
        """See `Host`."""
        docker = shutil.which("docker")
        if docker is None:
            raise EnvironmentUnfitError("the docker command is not here, and it alone joins a container to a terminal")
        options = ["-it"] if sys.stdin.isatty() else ["-i"]
        return terminal.run([docker, "exec", *options, str(self.container.id), *argv])

    def begin(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, workdir: str | None = None, user: str = ""
    ) -> ComposeProgram:
        """Start a program in the container."""
        return ComposeProgram(
            self._engine,
            self.container,
            argv,
            host=self.name,
            send_signal=self.signal,
            env=env,
            workdir=workdir,
            user=user,
        )

    def listeners(self, port: int, deadline_s: float) -> dict[str, Any]:
        """See `AgentHost`."""
        seen: dict[str, Any] = self.ask("await_listener", port=port, deadline_s=deadline_s)
        return seen

    def logs(self) -> str:
        """What the container's main program has printed."""
        return self._engine.logs(self.container)

    def last_lines(self, most: int) -> tuple[str, ...]:
        """See `AgentHost`."""
        try:
            return tuple(self._engine.logs(self.container, last=most).splitlines())
        except docker.errors.APIError:  # it has gone since; the next look reports that
            return ()

    def follow(self) -> FollowedLog:
        """The same as it grows, each line with the engine's time stamp; a context manager."""
        return FollowedLog(self._engine, self.container)

    def signal(self, pid: int, name: str) -> None:
        """Signal the program with this number on the engine's machine, and all it started."""
        channel = self._beside(self.container, "signal")

        def reached() -> bool:
            leaders = self._engine.leaders(self.container)
            args = dict(leaders).get(pid)
            if args is None:
                return True  # it has ended
            alike = [leader for leader, its_args in leaders if its_args == args]
            answer = channel.call("signal", args=args, rank=alike.index(pid), of=len(alike), name=name)
            return answer["signalled"] is not None

        try:
            await_condition(reached, bool, deadline_s=5)
        except NotSeenError:
            problem = f"{name} did not reach process {pid}: processes begin and end too fast"
            raise LabError(f"`{self.name}`: {problem}") from None
        finally:
            channel.close()

    # --- files -----------------------------------------------------------------------------------

    def put(self, path: str, content: bytes | str, *, mode: int = 0o644) -> None:
        """Write a file in the container; see `Host.put`."""
        if self._runs():
            hostfiles.put(self._files(), self.name, path, content, mode)
            return
        data = content.encode() if isinstance(content, str) else content
        try:
            self._engine.put(self.container, path, data, mode)
        except docker.errors.APIError as error:
            raise LabError(f"`{self.name}`: cannot write {path}: {error.explanation or error}") from None

    def get(self, path: str) -> bytes:
        """Read a file of the container; see `Host.get`."""
        try:
            if not self._engine.shows(self.container, path) and self._runs():
                return hostfiles.get(self._files(), self.name, path)
            return self._engine.get(self.container, path)
        except (FileNotFoundError, IsADirectoryError) as error:
            raise type(error)(f"`{self.name}`: {path}") from None
        except docker.errors.APIError as error:
            raise LabError(f"`{self.name}`: cannot read {path}: {error.explanation or error}") from None

    def _files(self) -> Channel:
        """An agent that sees the container's files. The container's programs see its process until the test ends."""
        return self.agent("files")

    def _runs(self) -> bool:
        return bool(self._inspected().get("State", {}).get("Running"))

    def _inspected(self) -> dict[str, Any]:
        return self._engine.state(self.container)

    # --- its place in the network ----------------------------------------------------------------

    @property
    def networks(self) -> Sequence[str]:
        """See `AgentHost`."""
        return self._lab.topology.networks_of(self.name)

    def attachments(self) -> dict[str, dict[str, Any]]:
        """The engine's settings of each network that the container is on now, by the Compose file's name."""
        return self._attachments(self._inspected())

    def _attachments(self, inspected: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        settings = inspected.get("NetworkSettings", {}).get("Networks", {})
        names = {network.engine_name: name for name, network in self._lab.topology.networks.items()}
        return {names[name]: end for name, end in settings.items() if name in names}

    def plug(self, network: str) -> str:
        """Its connection to a network, in the engine's words: another one after each start; empty if it has none."""
        inspected = self._inspected()
        state = inspected.get("State", {})
        end = self._attachments(inspected).get(network)
        running = bool(state.get("Running")) and end is not None
        return f"{inspected['Id']} {state['StartedAt']} {(end or {}).get('EndpointID')}" if running else ""

    def addressed(self) -> Iterator[tuple[str, Sequence[str]]]:
        """See `AgentHost`."""
        for name, settings in self.attachments().items():
            yield name, [settings[key] for key in ("IPAddress", "GlobalIPv6Address") if settings.get(key)]

    def publications(self) -> dict[tuple[int, str], tuple[str, int]]:
        """See `AgentHost`."""
        seen = self._inspected()
        if not seen.get("State", {}).get("Running"):
            raise LabError(f"`{self.name}` publishes no port now: the container {inspection.wellness(seen).words}")
        places: dict[tuple[int, str], tuple[str, int]] = {}
        for place, bindings in (seen.get("NetworkSettings", {}).get("Ports") or {}).items():
            number, _, protocol = place.partition("/")
            for binding in sorted(bindings or (), key=lambda binding: ":" in binding["HostIp"]):  # IPv4 first
                address = self._engine.place.machine or binding["HostIp"]
                places.setdefault((int(number), protocol), (address, int(binding["HostPort"])))
        return places

    def interface(self, network: str) -> dict[str, Any]:
        """The container's interface on a network. Raises LabError if it has none now."""
        mac = self.attachments().get(network, {}).get("MacAddress")
        if not mac:
            raise LabError(f"`{self.name}` is not on network `{network}` now: the container {self.wellness().words}")
        seen: list[dict[str, Any]] = self.ask("interfaces")
        for interface in seen:
            if interface["mac"] == mac:
                return interface
        raise LabError(f"`{self.name}` has no interface with address {mac}; it has {seen}")

    def mac(self, network: str) -> str | None:
        """See `Host`."""
        return str(self.interface(network)["mac"])

    def source_addresses(self, network: str) -> tuple[str, ...]:
        """See `Host`."""
        return (*self.addresses(network), *self.interface(network)["link_local"])

    def interface_name(self, network: str) -> str:
        """See `AgentHost`."""
        return str(self.interface(network)["name"])

    def ask(self, operation: str, **arguments: Any) -> Any:
        """Ask the agent in the container's network namespace."""
        return self.inside().call(operation, **arguments)

    # --- agents in it ----------------------------------------------------------------------------

    def start_agent(self, role: str) -> Channel:
        """See `AgentHost`."""
        return self._beside(self.container, role)

    def its_start(self) -> str:
        """The container's id and its start time; empty if it does not run."""
        state = self._inspected().get("State", {})
        return f"{self.container.id} {state.get('StartedAt', '')}" if state.get("Running") else ""

    def end_test(self) -> None:
        """See `Host`."""
        self.forget_agent("files")
