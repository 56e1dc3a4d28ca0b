"""The agent's containers: the least privileges of each role, found by trial, and their start.

Common to all: every other capability dropped, no way to gain one (no-new-privileges), Docker's seccomp filter, a
read-only root, no mount but two empty tmpfs, no port published, and limits of memory and tasks that end a run-away and
never a run. They run as the container's root: Docker gives capabilities that a program can use to that user alone.
SECURITY.md says what the capabilities mean on the machine's network; tests read all of it from running containers.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from docker.models.containers import Container

from testbed.backends.docker.engine import Engine, RefusedError
from testbed.backends.docker.streams import Demultiplexed
from testbed.errors import LabError
from testbed.lab.channel import Channel

_MIB = 1 << 20
# UML's memory is a file here, of 192 MB at the most, and mapped executable.
TMPFS = MappingProxyType({"/tmp": "size=16m", "/dev/shm": "rw,exec,size=256m"})  # noqa: S108  # in the agent's container
TUN = "/dev/net/tun"


@dataclass(frozen=True, kw_only=True)
class Role:
    """The privileges of one kind of agent."""

    capabilities: tuple[str, ...]
    network: str = "none"
    """``host``: the engine's machine's; ``container``: a host's of the stack; ``none``."""
    sees_processes: bool = False
    """Whether it is in the process namespace of a host of the stack."""
    devices: tuple[str, ...] = ()
    memory_bytes: int = 512 * _MIB
    most_tasks: int = 256
    """Processes and threads."""

    def options(self, beside: str = "", *, users: str = "") -> dict[str, Any]:
        """The options of the engine's client. ``beside``: the id of the container whose namespaces the agent shares.

        ``users``: that container's user namespace, as the engine tells it: one cannot be in the other namespaces from
        another (user_namespaces(7)). The machine's network belongs to the machine's own users, also where the engine
        gives other containers users of their own (``userns-remap``).
        """
        shared = f"container:{beside}"
        return {
            "cap_drop": ["ALL"],
            "cap_add": list(self.capabilities),
            "security_opt": ["no-new-privileges"],
            "read_only": True,
            "tmpfs": dict(TMPFS),
            "network_mode": shared if self.network == "container" else self.network,
            "userns_mode": "host" if self.network == "host" else users or None,
            "pid_mode": shared if self.sees_processes else None,
            "devices": list(self.devices),
            "mem_limit": self.memory_bytes,
            "pids_limit": self.most_tasks,
        }


# With each, its peak with two impaired hosts, a carried kernel, captures, and files of 8 MB.
ROLES: Mapping[str, Role] = MappingProxyType(
    {
        # Beside the network: 57 MB, of which the carried kernel's 33, and 10 tasks. SYS_NICE keeps the carried kernel
        # in time on a busy machine.
        "ports": Role(capabilities=("NET_ADMIN", "SYS_NICE"), network="host", devices=(TUN,)),
        # In a host's network in place of the first: see `within`. Nothing else of the machine is there.
        "within": Role(capabilities=("NET_ADMIN",), network="container", devices=(TUN,)),
        # 43 MB. The user sets the size of captures.
        "capture": Role(capabilities=("NET_RAW",), network="host", memory_bytes=4096 * _MIB),
        # In a host's network: offloads, counters, probes. 13 MB.
        "inside": Role(capabilities=("NET_ADMIN",), network="container"),
        # Among a host's files, by its first process: 68 MB, more with the file.
        "files": Role(
            capabilities=("SYS_CHROOT", "SYS_PTRACE", "DAC_OVERRIDE"), sees_processes=True, memory_bytes=4096 * _MIB
        ),
        "signal": Role(capabilities=("KILL",), sees_processes=True),
    }
)


def enters_network(engine: Engine) -> bool:
    """Whether a container can share the network of the engine's bridges, which a rootless Podman keeps to itself."""
    return not (engine.is_podman and engine.rootless)


def start_ports_agent(
    engine: Engine, image: str, *, tag: str, outlives_us: bool = False, **others: Any
) -> tuple[Container, Demultiplexed]:
    """Start the agent beside the network, with the least that it needs: host network, NET_ADMIN, /dev/net/tun.

    ``others``: other options of the engine's client, such as labels.
    """
    command = ["ports", "--tag", tag]
    options = {**ROLES["ports"].options(), "outlives_us": outlives_us, **others}
    try:
        return engine.attached(image, command, **options)
    except RefusedError as error:
        if TUN not in str(error):
            raise
        # The host engine needs no tap; `capabilities` says what is missing if the carried one is wanted.
        return engine.attached(image, command, **{**options, "devices": []})


@dataclass(kw_only=True)
class Agents:
    """Starts the agent's containers for one run."""

    engine: Engine
    image: str
    identity: Callable[[str], Mapping[str, Any]]
    """Labels and name of a container of that role."""
    network: str = ROLES["ports"].network
    """Of the agent that holds the ports."""

    def ports(self, *, tag: str, outlives_us: bool) -> tuple[Container, Channel]:
        """The one that holds the ports; see `start_ports_agent`."""
        container, stream = start_ports_agent(
            self.engine,
            self.image,
            tag=tag,
            outlives_us=outlives_us,
            network_mode=self.network,
            **self.identity("ports"),
        )
        return container, Channel(stream, name="agent", kill=partial(self.engine.remove, container))

    def capture(self) -> Channel:
        """The one that captures: beside the network too, with NET_RAW where that of the ports has NET_ADMIN.

        A container of its own, so that what reads packets cannot change the network. Raises LabError.
        """
        try:
            return self._attached("capture", ROLES["capture"].options())
        except RefusedError as error:
            raise LabError(f"the agent that captures cannot be started: {error}") from None

    def beside(self, container: Container, role: str) -> Channel:
        """One in a container's network or process namespace."""
        users = container.attrs.get("HostConfig", {}).get("UsernsMode", "")
        return self._attached(role, self.privileges(role).options(beside=container.id or "", users=users))

    def privileges(self, role: str) -> Role:
        """Of an agent in a container's namespaces."""
        return ROLES[role]

    def _attached(self, role: str, options: Mapping[str, Any]) -> Channel:
        command = [role, "--tag", secrets.token_hex(3)]
        container, stream = self.engine.attached(self.image, command, **options, **self.identity(role))
        kill = partial(self.engine.remove, container)
        return self.channel(role, stream, name=f"agent {role} of {container.name}", kill=kill)

    def channel(self, _role: str, stream: Demultiplexed, *, name: str, kill: Callable[[], object]) -> Channel:
        """The way to an agent that was started."""
        return Channel(stream, name=name, kill=kill)
