"""Hosts that are network namespaces: joined by bridges in the agent's own, each with a root of its own for programs.

A host is a descriptor until its first program starts: then it gets process, mount, name and IPC namespaces as well,
held by a process that reaps what is left to it. Nothing has a name outside: all of it ends with the agent.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import connections, files, inside, kernelcalls, offloads, rootfs, switch
from .children import fork, hold
from .netlink import Netlink, down, up
from .processes import processes
from .protocol import Operation, Refused
from .sysctls import Sysctls, set_sysctls

_FREEZE_ROUNDS, _FREEZE_AGAIN_S = 400, 0.005


@dataclass(kw_only=True)
class Host(switch.Endpoint):
    """One host."""

    name: str
    ifindexes: dict[str, int] = field(default_factory=dict)
    """Of the switch's end of its cable to each network."""
    init: int = 0
    """The process that holds its other namespaces, or 0."""
    namespaces: dict[int, int] = field(default_factory=dict)
    """Descriptors of those, by kind."""
    halted: bool = False
    """Whether nothing may run in it, and its cables are dead."""
    frozen: bool = False
    """Whether what runs in it stands still."""


class Hosts:
    """Every host of this agent."""

    def __init__(self) -> None:
        self._hosts: dict[str, Host] = {}
        self._names: dict[str, str] = {}
        self._own_pid = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._switch = switch.Switch()

    def operations(self) -> dict[str, Operation]:
        """The protocol's operations."""
        return {
            "build": self.build,
            "put": self.put,
            "get": self.get,
            "counters": self.counters,
            "counters_of": self.counters_of,
            "connections": self.connections,
            "tcp_connections": self.tcp_connections,
            "destroy_tcp": self.destroy_tcp,
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

        A network: ``name``, ``mtu``, ``addresses`` (of the gateway, with prefix), ``names`` (lines for /etc/hosts).
        A host: ``name``, ``interfaces`` (``network``, ``name``, ``mac``, ``addresses``), ``routes`` (destination,
        gateway), ``sysctls`` (``*`` in a name is each interface), and what its programs see: ``hostname``,
        ``hosts_head``, ``names`` (the networks whose names it knows), ``files`` (of its image, in their order: source,
        target, mode, owner; no source for a folder, no mode for the source's own), ``folders``, ``binds``,
        ``volumes``, ``python``, ``capabilities``, ``limits``. Raises Refused; then the agent is of no more use.
        """
        self._names = {network["name"]: network["names"] for network in networks}
        rootfs.prepare(name for settings in hosts for name, *_ in settings["volumes"])
        with Sysctls() as sysctls:
            with self._switch.left():
                for settings in hosts:
                    try:
                        host = Host(name=settings["name"], net=switch.new_namespace(sysctls), settings=settings)
                    except OSError as error:
                        raise Refused(
                            f"network namespace {len(self._hosts) + 1} of {len(hosts)}: {error}; "
                            f"see user.max_net_namespaces, user.max_user_namespaces and `ulimit -n`"
                        ) from None
                    self._hosts[host.name] = host
            self._switch.connect(networks, list(self._hosts.values()), sysctls)
        return {host.name: host.ifindexes for host in self._hosts.values()}

    def named(self, name: str) -> Host:
        """The host of this name. Raises Refused."""
        if name not in self._hosts:
            raise Refused(f"no host {name!r}; known: {', '.join(self._hosts) or 'none'}")
        return self._hosts[name]

    def _within(self, host: str) -> AbstractContextManager[None]:
        """In the host's network namespace, for what is opened there."""
        return self._switch.within(self.named(host).net)

    # --- what their kernel tells of them, and offloads ---------------------------------------------

    def counters(self, *, host: str) -> dict[str, dict[str, int]]:
        """The kernel's own counters of a host: groups of /proc/net/snmp and /proc/net/netstat."""
        with self._within(host):
            return inside.counters()

    def counters_of(self, *, hosts: Sequence[str]) -> dict[str, dict[str, dict[str, int]]]:
        """The same of each of these hosts that has not been halted."""
        return {name: self.counters(host=name) for name in hosts if not self.named(name).halted}

    def connections(self, *, host: str) -> list[dict[str, Any]]:
        """Every TCP connection that a host's kernel still works on; see `inside.connections`."""
        with self._within(host):
            return inside.connections()

    def tcp_connections(self, *, hosts: Sequence[str]) -> dict[str, dict[str, Any]]:
        """What `connections.tcp_connections` tells of each of these hosts."""
        reports = {}
        for name in hosts:
            with self._within(name):
                reports[name] = connections.tcp_connections()
        return reports

    def destroy_tcp(self, *, host: str, ids: Sequence[str]) -> dict[str, Any]:
        """See `connections.destroy_tcp`."""
        with self._within(host):
            return connections.destroy_tcp(ids=ids)

    def listeners(self, *, host: str) -> list[int]:
        """The TCP ports that a host listens on."""
        with self._within(host):
            return sorted(inside.listening_ports())

    def per_packet(self, *, host: str, interface: str) -> dict[str, bool]:
        """Switch segmentation offloads off, so that a lost packet is one packet; Refused if one stays on.

        Returns what they were, for `put_back`.
        """
        with self._within(host):
            return offloads.switch_off(interface)

    def put_back(self, *, host: str, interface: str, offloads_were: dict[str, bool]) -> dict[str, bool]:
        """Set segmentation offloads to what they were; returns what is in force."""
        with self._within(host):
            return offloads.put_back(interface, offloads_were)

    # --- hosts that come and go --------------------------------------------------------------------

    def host_states(self) -> dict[str, dict[str, Any]]:
        """Of each host its first process (0: none yet), whether that lives, and whether the host was made to stand."""
        return {
            name: {
                "init": host.init, "lives": not host.init or _state(host.init) not in ("", "Z", "X"),
                "frozen": host.frozen or (host.init != 0 and _state(host.init) == "T"),
            }
            for name, host in self._hosts.items()
        }  # fmt: skip

    def halt_host(self, *, host: str) -> None:
        """End all that runs in a host, and take its cables' carrier; its files stay, as a stopped container's do."""
        place = self.named(host)
        if place.init:
            # The kernel ends the first process once all others in there are reaped: those of ours by our handler.
            with contextlib.suppress(ProcessLookupError):
                os.kill(place.init, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(place.init, 0)
            place.init = 0
            os.close(place.namespaces.pop(kernelcalls.NEWPID))
        place.halted, place.frozen = True, False
        with Netlink() as here:
            here.apply([down(index) for index in place.ifindexes.values()])

    def revive_host(self, *, host: str) -> None:
        """Have a halted host be one that programs may be started in again."""
        place = self.named(host)
        with Netlink() as here:
            here.apply([up(index) for index in place.ifindexes.values()])
        place.halted = False

    def freeze_host(self, *, host: str) -> None:
        """Have all that runs in a host stand still; Refused if something in there begins faster than it is stopped."""
        place = self.named(host)
        place.frozen = True
        for _ in range(_FREEZE_ROUNDS):
            moving = [pid for pid in self._inside(place) if _state(pid) not in ("T", "Z", "X", "")]
            if not moving:
                return
            for pid in moving:
                with contextlib.suppress(ProcessLookupError):  # it ended
                    os.kill(pid, signal.SIGSTOP)
            time.sleep(_FREEZE_AGAIN_S)
        self.thaw_host(host=host)
        raise Refused(f"host {host!r} cannot be paused: processes {moving} do not stand still")

    def thaw_host(self, *, host: str) -> None:
        """Have a host go on."""
        place = self.named(host)
        for pid in self._inside(place):
            with contextlib.suppress(ProcessLookupError):  # it ended
                os.kill(pid, signal.SIGCONT)
        place.frozen = False

    @staticmethod
    def _inside(host: Host) -> list[int]:
        """Every process in a host's process namespace."""
        if not host.init:
            return []
        ours = os.fstat(host.namespaces[kernelcalls.NEWPID]).st_ino
        members = []
        for pid, *_ in processes():
            with contextlib.suppress(OSError):  # it ended while we looked
                if os.stat(f"/proc/{pid}/ns/pid").st_ino == ours:
                    members.append(pid)
        return members

    # --- their files -------------------------------------------------------------------------------

    def put(self, *, host: str, path: str, data: str, mode: int) -> None:
        """Write a file in a host; ``data`` in base64. Raises Refused."""

        def write() -> bytes:
            files.write(path, base64.b64decode(data), mode)
            return b""

        self._look(host, write)

    def get(self, *, host: str, path: str) -> str:
        """A file of a host, in base64. Raises Refused; its kind: see `files.get`."""
        return base64.b64encode(self._look(host, lambda: files.read(path))).decode()

    def _look(self, name: str, work: Callable[[], bytes]) -> bytes:
        """Do something in a host's view of the file system; what it returned. Raises Refused."""
        host = self.ready(name)
        read, write = os.pipe()

        def there() -> None:
            try:
                kernelcalls.setns(host.namespaces[kernelcalls.NEWNS], kernelcalls.NEWNS)
                answer = b"\0" + work()
            except OSError as error:
                answer = bytes([error.errno or errno.EIO]) + (error.strerror or str(error)).encode()
            with os.fdopen(write, "wb") as out:
                out.write(answer)

        pid = fork(there)
        os.close(write)
        with os.fdopen(read, "rb") as answer:
            code, *_ = data = answer.read() or bytes([errno.EIO])
        os.waitpid(pid, 0)
        if code:
            raise files.refused(OSError(code, data[1:].decode(errors="replace")))
        return data[1:]

    def fork_into(self, host: Host, work: Callable[[], None]) -> int:
        """A child in the host's process namespace; its number."""
        kernelcalls.setns(host.namespaces[kernelcalls.NEWPID], kernelcalls.NEWPID)
        try:
            return fork(work)
        finally:
            kernelcalls.setns(self._own_pid, kernelcalls.NEWPID)

    # --- their processes ---------------------------------------------------------------------------

    def ready(self, name: str) -> Host:
        """The host of this name, with a first process and a file system of its own. Raises Refused."""
        host = self.named(name)
        self._ensure_init(host)
        return host

    def _ensure_init(self, host: Host) -> None:
        if host.halted or host.frozen:
            raise Refused(f"host {host.name!r} is {'stopped' if host.halted else 'paused'}")
        if host.init:
            return
        read, write = os.pipe()

        def become() -> None:
            os.close(read)
            try:
                kernelcalls.die_with_parent()
                if host.namespaces:
                    _enter_again(host)
                    os.close(write)
                    hold()
                kernelcalls.unshare(kernelcalls.NEWNS | kernelcalls.NEWUTS | kernelcalls.NEWIPC)
                kernelcalls.setns(host.net, kernelcalls.NEWNET)
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
        with os.fdopen(read, "rb") as answer:
            problem = answer.read().decode(errors="replace")
        if problem:
            os.waitpid(pid, 0)
            raise Refused(f"host {host.name!r} cannot be furnished: {problem}")
        kinds = {
            kernelcalls.NEWPID: "pid", kernelcalls.NEWNS: "mnt", kernelcalls.NEWUTS: "uts", kernelcalls.NEWIPC: "ipc",
        }  # fmt: skip
        for kind, word in kinds.items():
            if kind in host.namespaces:
                continue  # it was halted, and has its own again
            host.namespaces[kind] = os.open(f"/proc/{pid}/ns/{word}", os.O_RDONLY | os.O_CLOEXEC)
        host.init = pid


def _enter_again(host: Host) -> None:
    """In the first process of a host that was halted: its file system, with what is new at each start made new."""
    for kind in (kernelcalls.NEWUTS, kernelcalls.NEWIPC, kernelcalls.NEWNS):
        kernelcalls.setns(host.namespaces[kind], kind)
    kernelcalls.setns(host.net, kernelcalls.NEWNET)
    # Over the old one, whose processes are no more: an ordinary user may mount it only where one is to be seen.
    rootfs.renew(host.settings)


def _state(pid: int) -> str:
    """The letter of a process's state, as in proc(5); empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
