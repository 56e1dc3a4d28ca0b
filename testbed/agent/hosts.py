"""Hosts that are network namespaces, joined by bridges in the agent's own; each has its own root file system.

At first a host is just the descriptor of its network namespace. When its first program starts, it gets process, mount,
UTS and IPC namespaces as well, held by its first process, which reaps orphans. Nothing has a name outside, so all of it
ends with the agent.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import connections, files, inside, kernelcalls, offloads, payload, rootfs, switch
from .children import fork, hold
from .netlink import Netlink, down, up
from .processes import processes
from .protocol import Operation, Refused
from .sysctls import Sysctls, set_sysctls

_FREEZE_ROUNDS, _FREEZE_AGAIN_S = 400, 0.005
_NAMESPACES = {
    kernelcalls.NEWPID: "pid",
    kernelcalls.NEWNS: "mnt",
    kernelcalls.NEWUTS: "uts",
    kernelcalls.NEWIPC: "ipc",
}
"""The kinds that a host gets with its first process, and their files below /proc/PID/ns."""


@dataclass(kw_only=True)
class NamespaceHost(switch.CabledHost):
    """One host."""

    name: str
    init: int = 0
    """The first process, which holds its other namespaces; 0 if there is none."""
    namespaces: dict[int, int] = field(default_factory=dict)
    """Descriptors of those namespaces, by kind."""
    halted: bool = False
    """Whether nothing may run in it, and its cables are down."""
    frozen: bool = False
    """Whether its processes are stopped."""


class Hosts:
    """Every host of this agent."""

    def __init__(self) -> None:
        self._hosts: dict[str, NamespaceHost] = {}
        self._names: dict[str, str] = {}
        self._counting: dict[str, payload.Payload] = {}
        self._own_pid = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._switch = switch.Switch()

    def operations(self) -> dict[str, Operation]:
        """The protocol's operations."""
        return {
            "build": self.build,
            "furnish": self.furnish,
            "put": self.put,
            "get": self.get,
            "counters": self.counters,
            "counters_of": self.counters_of,
            "connections": self.connections,
            "tcp_connections": self.tcp_connections,
            "count_payload": self.count_payload,
            "payload": self.payload,
            "destroy_tcp": self.destroy_tcp,
            "forget_tcp": self.forget_tcp,
            "listeners": self.listeners,
            "per_packet": self.per_packet,
            "put_back": self.put_back,
            "host_states": self.host_states,
            "halt_host": self.halt_host,
            "revive_host": self.revive_host,
            "freeze_host": self.freeze_host,
            "thaw_host": self.thaw_host,
        }

    def build(self, *, networks: list[dict[str, Any]], hosts: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
        """Make every network and host; returns the index of the switch's end of each cable, by host and network.

        A network: ``name``, ``mtu``, ``mac`` and ``addresses`` (of the gateway, with prefix), ``names`` (lines for
        /etc/hosts).
        A host: ``name``, ``interfaces`` (``network``, ``name``, ``mac``, ``addresses``), ``routes`` (destination,
        gateway), ``sysctls`` (``*`` in a name stands for each interface), ``net_of`` (the host in whose network
        namespace it is, or empty); and for its programs: ``hostname``, ``hosts_head``, ``names`` (the networks whose
        names it resolves), ``resolver``, ``folders`` (with options of tmpfs), ``binds``, ``volumes``, ``given`` (files:
        target, content, mode, uid, gid), ``shm_bytes``, ``ipc_of`` (likewise), ``shm_of`` (the host whose /dev/shm it
        has, its own name if others have it, or empty), ``read_only``, ``python``, ``capabilities``, ``limits``,
        ``image`` (the folder of its files; None: it has the machine's), ``workdir`` (made in an image). After Refused
        the agent cannot be used any more.
        """
        self._names = {network["name"]: network["names"] for network in networks}
        rootfs.prepare(
            (name for settings in hosts for name, *_ in settings["volumes"]),
            {settings["name"]: settings["shm_bytes"] for settings in hosts if settings["shm_of"] == settings["name"]},
        )
        with Sysctls() as sysctls:
            with self._switch.left():
                for settings in sorted(hosts, key=lambda settings: bool(settings["net_of"])):
                    try:
                        owner = self._hosts.get(settings["net_of"])
                        net = switch.new_namespace(sysctls) if owner is None else owner.net
                        host = NamespaceHost(name=settings["name"], net=net, settings=settings)
                    except OSError as error:
                        raise Refused(
                            f"network namespace {len(self._hosts) + 1} of {len(hosts)}: {error}; "
                            f"see user.max_net_namespaces, user.max_user_namespaces and `ulimit -n`"
                        ) from None
                    self._hosts[host.name] = host
            self._switch.connect(networks, list(self._hosts.values()), sysctls)
        return {settings["name"]: self._hosts[settings["name"]].ifindexes for settings in hosts}

    def named(self, name: str) -> NamespaceHost:
        """The host of this name. Raises Refused."""
        if name not in self._hosts:
            raise Refused(f"no host {name!r}; known: {', '.join(self._hosts) or 'none'}")
        return self._hosts[name]

    def _within(self, host: str) -> AbstractContextManager[None]:
        """In the host's network namespace, for what is opened there."""
        return self._switch.within(self.named(host).net)

    # --- their kernel's counters and sockets, and offloads ------------------------------------------

    def counters(self, *, host: str) -> dict[str, dict[str, int]]:
        """The kernel's own counters of a host: groups of /proc/net/snmp and /proc/net/netstat."""
        with self._within(host):
            return inside.counters()

    def counters_of(self, *, hosts: Sequence[str]) -> dict[str, dict[str, dict[str, int]]]:
        """See `counters`; by host, without halted hosts."""
        return {name: self.counters(host=name) for name in hosts if not self.named(name).halted}

    def connections(self, *, host: str) -> list[dict[str, Any]]:
        """See `inside.connections`."""
        with self._within(host):
            return inside.connections()

    def tcp_connections(self, *, hosts: Sequence[str]) -> dict[str, dict[str, Any]]:
        """See `connections.tcp_connections`; by host."""
        reports = {}
        for name in hosts:
            with self._within(name):
                reports[name] = connections.tcp_connections()
        return reports

    def count_payload(self, *, hosts: Sequence[str]) -> None:
        """Count what these hosts receive from now on; see `payload`."""
        self.payload()
        for name in hosts:
            if not self.named(name).halted:
                with self._within(name):
                    self._counting[name] = payload.Payload()

    def payload(self) -> dict[str, list[list[Any]] | None]:
        """See `payload.Payload.end`; by host."""
        counting, self._counting = self._counting, {}
        received = {}
        for name, counted in counting.items():
            with self._within(name):
                received[name] = counted.end()
        return received

    def destroy_tcp(self, *, host: str, ids: Sequence[str]) -> dict[str, Any]:
        """See `connections.destroy_tcp`."""
        with self._within(host):
            return connections.destroy_tcp(ids=ids)

    def listeners(self, *, host: str) -> list[int]:
        """The TCP ports that a host listens on."""
        with self._within(host):
            return sorted(inside.listening_ports())

    def per_packet(self, *, host: str, interface: str) -> dict[str, bool]:
        """Switch segmentation offloads off, so that a lost packet is one packet; returns their state, for `put_back`.

        Raises Refused if one stays on.
        """
        with self._within(host):
            return offloads.switch_off(interface)

    def put_back(self, *, host: str, interface: str, offloads_were: dict[str, bool]) -> dict[str, bool]:
        """Restore segmentation offloads; returns what is in force."""
        with self._within(host):
            return offloads.put_back(interface, offloads_were)

    # --- hosts that come and go --------------------------------------------------------------------

    def host_states(self) -> dict[str, dict[str, Any]]:
        """By host: its first process (0: none yet), whether that lives, and whether the host is paused."""
        states = {}
        for name, host in self._hosts.items():
            state = _state(host.init) if host.init else "R"
            lives, frozen = state not in ("", "Z", "X"), host.frozen or state == "T"
            states[name] = {"init": host.init, "lives": lives, "frozen": frozen}
        return states

    def halt_host(self, *, host: str) -> None:
        """Kill a host's processes and set its cables down; its files stay, as those of a stopped container."""
        target = self.named(host)
        if target.init:
            # The kernel ends the first process when all others in there are reaped; our handler reaps our children.
            with contextlib.suppress(ProcessLookupError):
                os.kill(target.init, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(target.init, 0)
            target.init = 0
            os.close(target.namespaces.pop(kernelcalls.NEWPID))
        target.halted, target.frozen = True, False
        with Netlink() as here:
            here.apply([down(index) for index in target.ifindexes.values()])

    def revive_host(self, *, host: str) -> None:
        """Let programs be started in a halted host again."""
        target = self.named(host)
        with Netlink() as here:
            here.apply([up(index) for index in target.ifindexes.values()])
        target.halted = False
        self.forget_tcp(host=host)

    def forget_tcp(self, *, host: str) -> dict[str, Any]:
        """See `connections.forget_tcp`; nothing is done in a network namespace of several hosts.

        A container that starts again has a network namespace without connections.
        """
        net = self.named(host).net
        if sum(other.net == net for other in self._hosts.values()) > 1:
            return {"refused": None}
        with self._within(host):
            return {"refused": connections.forget_tcp()}

    def freeze_host(self, *, host: str) -> None:
        """Stop all processes of a host. Raises Refused if new ones start faster than they are stopped."""
        target = self.named(host)
        target.frozen = True
        for _ in range(_FREEZE_ROUNDS):
            running = [pid for pid in self._processes_of(target) if _state(pid) not in ("T", "Z", "X", "")]
            if not running:
                return
            for pid in running:
                with contextlib.suppress(ProcessLookupError):  # it has ended
                    os.kill(pid, signal.SIGSTOP)
            time.sleep(_FREEZE_AGAIN_S)
        self.thaw_host(host=host)
        raise Refused(f"host {host!r} cannot be paused: processes {running} do not stop")

    def thaw_host(self, *, host: str) -> None:
        """Let a host's processes continue."""
        target = self.named(host)
        for pid in self._processes_of(target):
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.kill(pid, signal.SIGCONT)
        target.frozen = False

    @staticmethod
    def _processes_of(host: NamespaceHost) -> list[int]:
        """Every process in a host's process namespace."""
        if not host.init:
            return []
        namespace = os.fstat(host.namespaces[kernelcalls.NEWPID]).st_ino
        members = []
        for pid, *_ in processes():
            with contextlib.suppress(OSError):  # it has ended
                if os.stat(f"/proc/{pid}/ns/pid").st_ino == namespace:
                    members.append(pid)
        return members

    # --- their files -------------------------------------------------------------------------------

    def put(self, *, host: str, path: str, data: str, mode: int) -> None:
        """Write a file in a host; ``data`` in base64. Raises Refused."""

        def write() -> bytes:
            files.write(path, base64.b64decode(data), mode)
            return b""

        self._in_files_of(host, write)

    def get(self, *, host: str, path: str) -> str:
        """A file of a host, in base64. Raises Refused; for its kind see `files.get`."""
        return base64.b64encode(self._in_files_of(host, lambda: files.read(path))).decode()

    def _in_files_of(self, name: str, work: Callable[[], bytes]) -> bytes:
        """Do some work in a host's mount namespace; returns its result. Raises Refused."""
        host = self.ready(name)
        read, write = os.pipe()

        def in_child() -> None:
            try:
                kernelcalls.setns(host.namespaces[kernelcalls.NEWNS], kernelcalls.NEWNS)
                result = b"\0" + work()
            except OSError as error:
                result = bytes([error.errno or errno.EIO]) + (error.strerror or str(error)).encode()
            with os.fdopen(write, "wb") as pipe:
                pipe.write(result)

        pid = fork(in_child)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            code, *_ = data = pipe.read() or bytes([errno.EIO])
        os.waitpid(pid, 0)
        if code:
            raise files.refused(OSError(code, data[1:].decode(errors="replace")))
        return data[1:]

    def fork_into(self, host: NamespaceHost, work: Callable[[], None]) -> int:
        """Fork a child in the host's process namespace; returns its process number."""
        kernelcalls.setns(host.namespaces[kernelcalls.NEWPID], kernelcalls.NEWPID)
        try:
            return fork(work)
        finally:
            kernelcalls.setns(self._own_pid, kernelcalls.NEWPID)

    # --- their processes ---------------------------------------------------------------------------

    def ready(self, name: str) -> NamespaceHost:
        """The host of this name, with its first process and its file system. Raises Refused."""
        host = self.named(name)
        self._ensure_init(host)
        return host

    def furnish(self, *, hosts: Sequence[str]) -> None:
        """Get many hosts ready at once, by all processors; others wait for their first program. Raises Refused.

        Hosts that share something are left out: the order of their first programs decides what each finds.
        """
        uses = Counter(name for host in self._hosts.values() for name, *_ in host.settings["volumes"])
        targets = [self.named(name) for name in hosts]
        alone = [
            host
            for host in targets
            if not (
                host.init or host.settings["ipc_of"] or any(uses[name] > 1 for name, *_ in host.settings["volumes"])
            )
        ]
        begun: list[tuple[NamespaceHost, int, int]] = []
        try:
            for host in alone:
                begun.append((host, *self._begin(host)))  # noqa: PERF401  # those before one that fails count
        finally:
            problems = [problem for host, pid, pipe in begun if (problem := self._settled(host, pid, pipe))]
        if problems:
            raise Refused("\n".join(problems))

    def _ensure_init(self, host: NamespaceHost) -> None:
        if host.halted or host.frozen:
            raise Refused(f"host {host.name!r} is {'stopped' if host.halted else 'paused'}")
        if not host.init and (problem := self._settled(host, *self._begin(host))):
            raise Refused(problem)

    def _begin(self, host: NamespaceHost) -> tuple[int, int]:
        """Start a host's first process, which furnishes it; returns its number, and where it tells what went wrong."""
        ipc = self.ready(host.settings["ipc_of"]).namespaces[kernelcalls.NEWIPC] if host.settings["ipc_of"] else None
        read, write = os.pipe()

        def become() -> None:
            os.close(read)
            try:
                kernelcalls.die_with_parent()
                if host.namespaces:
                    _enter_again(host)
                    os.close(write)
                    hold()
                kernelcalls.unshare(
                    kernelcalls.NEWNS | kernelcalls.NEWUTS | (0 if ipc is not None else kernelcalls.NEWIPC)
                )
                if ipc is not None:
                    kernelcalls.setns(ipc, kernelcalls.NEWIPC)
                kernelcalls.setns(host.net, kernelcalls.NEWNET)
                if not host.settings["net_of"]:
                    set_sysctls(switch.AS_DOCKERS, but_not=host.settings["sysctls"])
                names = [self._names[network] for network in host.settings["names"]]
                rootfs.furnish(host.settings, "\n".join([host.settings["hosts_head"], *names]) + "\n")
            except (OSError, ValueError, OverflowError, Refused) as error:
                os.write(write, str(error).encode(errors="replace"))
                os._exit(1)
            os.close(write)
            hold()

        kernelcalls.unshare(kernelcalls.NEWPID)
        try:
            pid = fork(become)
        finally:
            kernelcalls.setns(self._own_pid, kernelcalls.NEWPID)
        os.close(write)
        return pid, read

    @staticmethod
    def _settled(host: NamespaceHost, pid: int, read: int) -> str:
        """Wait until a host is furnished, and take its namespaces; returns what went wrong, empty if nothing did."""
        with os.fdopen(read, "rb") as pipe:
            problem = pipe.read().decode(errors="replace")
        if problem:
            os.waitpid(pid, 0)
            return f"host {host.name!r} cannot be furnished: {problem}"
        for kind, name in _NAMESPACES.items():
            if kind not in host.namespaces:  # a host that was halted enters its own again
                host.namespaces[kind] = os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        host.init = pid
        return ""


def _enter_again(host: NamespaceHost) -> None:
    """In the first process of a host that was halted: enter its namespaces, and renew what is new at each start."""
    for kind in (kernelcalls.NEWUTS, kernelcalls.NEWIPC, kernelcalls.NEWNS):
        kernelcalls.setns(host.namespaces[kind], kind)
    kernelcalls.setns(host.net, kernelcalls.NEWNET)
    rootfs.renew(host.settings)


def _state(pid: int) -> str:
    """The letter of a process's state, as in proc(5); empty if the process does not exist."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
