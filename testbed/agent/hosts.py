"""Hosts that are network namespaces: joined by bridges in the agent's own, each with a root of its own for programs.

A host is a descriptor until its first program starts: then it gets process, mount, name and IPC namespaces as well,
held by a process that reaps what is left to it. Nothing has a name outside: all of it ends with the agent.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import grp
import itertools
import os
import posixpath
import pwd
import resource
import shutil
import signal
import socket
import stat
import struct
import termios
import time
import traceback
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Self

from . import connections, files, inside, kernelcalls, offloads, passage, protocol, relay, sockets
from .netlink import Change, Netlink, address, bridge, cable, down, enslave, route, up, veth
from .processes import exit_status, processes
from .protocol import Operation, Refused

SCRATCH = Path("/run")
"""The agent's own tmpfs, in its own mount namespace. Not /tmp, where a project may lie whose files are to be shown; nor
below /dev: a carried kernel, which reads what is here, has one of its own."""
_NEW_ROOT = SCRATCH / "root"
_VOLUMES = SCRATCH / "volumes"
_FRESH_PROC = SCRATCH / "proc"
_BELOW = SCRATCH / "below"

# What a host has of its own; the rest of the machine's file system is shown read-only.
_OWN = frozenset({"proc", "sys", "dev", "tmp", "run", "lost+found"})
_HIDDEN = ("proc", "sys", "dev")
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")

# asm-generic/ioctls.h
_TIOCSPTLCK, _TIOCGPTPEER = 0x40045431, 0x5441

# linux/if.h: 15 characters; an index of our own choice spares asking for it.
_FIRST_BRIDGE, _FIRST_VETH = 1000, 10_000
_QUEUE_PACKETS = 1000
_PORTS_A_BRIDGE = 128
_NAMESPACES_A_PROC = 64
_MESSAGE_BYTES = 64
_FREEZE_ROUNDS, _FREEZE_AGAIN_S = 400, 0.005

# The machine's name servers cannot be reached from here, and would be waited for; loopback refuses at once.
_NO_NAME_SERVER = "nameserver 127.0.0.1\n"
_LINKS_FOLLOWED = 40  # path_resolution(7)

# sysctl(8) names below /proc/sys; what Docker sets in a container's network namespace (libnetwork, moby daemon/oci).
_PROC_SYS = Path("/proc/sys")
_NO_IPV6 = {"net.ipv6.conf.all.disable_ipv6": "1", "net.ipv6.conf.default.disable_ipv6": "1"}
# Seen by programs alone, or where there are several interfaces: set no sooner.
_AS_DOCKERS = {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ip_forward": "0"}
# Addresses of the kernel's own making are of use at once, as ours are: nobody here has another's (RFC 4862 5.4).
_NO_DUPLICATES = {"net.ipv6.conf.all.accept_dad": "0", "net.ipv6.conf.default.accept_dad": "0"}
_SWITCH_SYSCTLS = {**_NO_IPV6, **_NO_DUPLICATES, "net.ipv4.ip_forward": "0"}


@dataclass
class Host:
    """One host."""

    name: str
    net: int
    """Descriptor of its network namespace."""
    settings: Mapping[str, Any]
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


@dataclass
class Running:
    """A program that was started in a host."""

    pid: int
    status: int
    """Descriptor that hears how it ended."""


class Hosts:
    """Every host of this agent, and the programs in them."""

    def __init__(self, passing: socket.socket, *, may_change_user: bool) -> None:
        """``passing``: where descriptors arrive, each message with the ticket that a request names."""
        self._passing = passing
        self._may_change_user = may_change_user
        self._passed: dict[str, list[int]] = {}
        self._hosts: dict[str, Host] = {}
        self._names: dict[str, str] = {}
        self._running: dict[int, Running] = {}
        self._started = 0
        self._helpers: set[int] = set()
        self._own_net = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._own_pid = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (self._limits[1], self._limits[1]))
        _set_sysctls(_SWITCH_SYSCTLS)
        _NEW_ROOT.mkdir(exist_ok=True)
        signal.signal(signal.SIGCHLD, self._reap)

    def operations(self) -> dict[str, Operation]:
        """The protocol's operations."""
        return {
            "build": self.build,
            "start": self.start,
            "terminal": self.terminal,
            "signal": self.signal,
            "put": self.put,
            "get": self.get,
            "counters": self.counters,
            "connections": self.connections,
            "tcp_connections": self.tcp_connections,
            "destroy_tcp": self.destroy_tcp,
            "capturing": self.capturing,
            "inside": self.inside,
            "end_helper": self.end_helper,
            "listeners": self.listeners,
            "per_packet": self.per_packet,
            "put_back": self.put_back,
            "publish": self.publish,
            "host_states": self.host_states,
            "halt_host": self.halt_host,
            "revive_host": self.revive_host,
            "freeze_host": self.freeze_host,
            "thaw_host": self.thaw_host,
        }

    # --- networks and hosts ------------------------------------------------------------------------

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
        with _Sysctls() as sysctls:
            return self._build(networks, hosts, sysctls)

    def _build(
        self, networks: list[dict[str, Any]], hosts: list[dict[str, Any]], sysctls: _Sysctls
    ) -> dict[str, dict[str, int]]:
        for name, *_ in (volume for settings in hosts for volume in settings["volumes"]):
            _volume(name).mkdir(parents=True, exist_ok=True)
        try:
            for settings in hosts:
                self._hosts[settings["name"]] = Host(settings["name"], _new_namespace(sysctls), settings)
        except OSError as error:
            raise Refused(
                f"network namespace {len(self._hosts) + 1} of {len(hosts)}: {error}; "
                f"see user.max_net_namespaces, user.max_user_namespaces and `ulimit -n`"
            ) from None
        finally:
            kernelcalls.setns(self._own_net, kernelcalls.NEWNET)
        changes: list[Change] = []
        ends = Counter(each["network"] for settings in hosts for each in settings["interfaces"])
        switches: dict[str, Iterator[int]] = {}
        mtus = {network["name"]: network["mtu"] for network in networks}
        free = itertools.count(_FIRST_BRIDGE + len(networks))
        for number, network in enumerate(networks):
            made, switches[network["name"]] = _switch(number, network, ends[network["name"]], free)
            changes += made
        with Netlink() as here:
            here.apply(changes)
        changes = []
        for number, network in enumerate(networks):
            if any(":" in cidr for cidr in network["addresses"]):
                _set_sysctls({f"net.ipv6.conf.br{number}.disable_ipv6": "0"})
            changes += [address(_FIRST_BRIDGE + number, cidr) for cidr in network["addresses"]]
        number = 0
        for host in self._hosts.values():
            for interface in host.settings["interfaces"]:
                master, mtu = next(switches[interface["network"]]), mtus[interface["network"]]
                index = _FIRST_VETH + number
                number += 1
                changes.append(
                    veth(
                        f"veth{number}", index, master=master, peer=interface["name"], peer_namespace=host.net,
                        peer_mac=interface["mac"], mtu=mtu, queue_packets=_QUEUE_PACKETS,
                    )
                )  # fmt: skip
                host.ifindexes[interface["network"]] = index
        with Netlink() as here:
            here.apply(changes)
        for host in self._hosts.values():
            with self._in_net(host):
                _address(host.settings, sysctls)
        return {host.name: host.ifindexes for host in self._hosts.values()}

    @contextlib.contextmanager
    def _in_net(self, host: Host) -> Iterator[None]:
        """In the host's network namespace, for what is opened there."""
        kernelcalls.setns(host.net, kernelcalls.NEWNET)
        try:
            yield
        finally:
            kernelcalls.setns(self._own_net, kernelcalls.NEWNET)

    def _host(self, name: str) -> Host:
        if name not in self._hosts:
            raise Refused(f"no host {name!r}; known: {', '.join(self._hosts) or 'none'}")
        return self._hosts[name]

    def counters(self, *, host: str) -> dict[str, dict[str, int]]:
        """The kernel's own counters of a host: groups of /proc/net/snmp and /proc/net/netstat."""
        with self._in_net(self._host(host)):
            return inside.counters()

    def connections(self, *, host: str) -> list[dict[str, Any]]:
        """Every TCP connection that a host's kernel still works on; see `inside.connections`."""
        with self._in_net(self._host(host)):
            return inside.connections()

    def tcp_connections(self, *, hosts: Sequence[str]) -> dict[str, dict[str, Any]]:
        """What `connections.tcp_connections` tells of each of these hosts."""
        found = {}
        for name in hosts:
            with self._in_net(self._host(name)):
                found[name] = connections.tcp_connections()
        return found

    def destroy_tcp(self, *, host: str, ids: Sequence[str]) -> dict[str, Any]:
        """See `connections.destroy_tcp`."""
        with self._in_net(self._host(host)):
            return connections.destroy_tcp(ids=ids)

    def listeners(self, *, host: str) -> list[int]:
        """The TCP ports that a host listens on."""
        with self._in_net(self._host(host)):
            return sorted(inside.listening_ports())

    def per_packet(self, *, host: str, interface: str) -> dict[str, bool]:
        """Switch segmentation offloads off, so that a lost packet is one packet; Refused if one stays on.

        Returns what they were, for `put_back`.
        """
        with self._in_net(self._host(host)):
            return offloads.switch_off(interface)

    def put_back(self, *, host: str, interface: str, offloads_were: dict[str, bool]) -> dict[str, bool]:
        """Set segmentation offloads to what they were; returns what is in force."""
        with self._in_net(self._host(host)):
            return offloads.put_back(interface, offloads_were)

    def publish(self, *, ticket: str, targets: list[tuple[str, int]]) -> None:
        """Pass on every connection to the listening sockets behind a ticket, each to its own address and port."""
        listeners = self._take(ticket)
        if len(listeners) != len(targets):
            raise Refused(f"{len(listeners)} sockets for {len(targets)} published ports")

        def serve() -> None:
            relay.serve([(socket.socket(fileno=each), (host, port))
                         for each, (host, port) in zip(listeners, targets, strict=True)])  # fmt: skip

        self._help(serve)
        for each in listeners:
            os.close(each)

    def inside(self, *, host: str, ticket: str) -> int:
        """Start an agent in a host's network namespace; behind the ticket, where it reads and where it answers.

        Returns its number, for `end_helper`.
        """
        place = self._host(host)

        def serve(asked: BinaryIO, answered: BinaryIO) -> None:
            kernelcalls.setns(place.net, kernelcalls.NEWNET)
            watched = sockets.Sockets()
            operations = {**inside.operations(), **connections.operations(), **watched.operations()}
            protocol.serve(operations, asked, answered)

        return self._serve_beside(ticket, serve)

    def capturing(self, *, ticket: str) -> int:
        """Start an agent that captures at the switch's ports; as `inside`."""

        def serve(asked: BinaryIO, answered: BinaryIO) -> None:
            from . import capture  # its thread pool's modules are a tenth of an agent's start

            with capture.Captures() as captures:
                protocol.serve({**captures.operations(), **passage.Passages().operations()}, asked, answered)

        return self._serve_beside(ticket, serve)

    def end_helper(self, *, pid: int) -> None:
        """Kill one of the agents beside this one, if it is still there."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # until it is reaped the number is its own
        try:
            if pid in self._helpers:
                os.kill(pid, signal.SIGKILL)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})

    def _serve_beside(self, ticket: str, work: Callable[[BinaryIO, BinaryIO], None]) -> int:
        """A child that answers requests of its own; its number."""
        requests, answers = self._take(ticket)

        def serve() -> None:
            os.dup2(requests, 0)
            os.dup2(answers, 1)
            with os.fdopen(0, "rb") as asked, os.fdopen(1, "wb") as answered:
                work(asked, answered)

        pid = self._help(serve)
        os.close(requests)
        os.close(answers)
        return pid

    def _help(self, work: Callable[[], None]) -> int:
        """A child that works beside the programs; its number."""

        def begin() -> None:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, set())
            kernelcalls.die_with_parent()
            work()

        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        try:
            pid = _fork(begin)
            self._helpers.add(pid)
            return pid
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})

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
        place = self._host(host)
        if place.init:
            # The kernel ends the first process once all others in there are reaped: those that we started, by `_reap`.
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
        place = self._host(host)
        with Netlink() as here:
            here.apply([up(index) for index in place.ifindexes.values()])
        place.halted = False

    def freeze_host(self, *, host: str) -> None:
        """Have all that runs in a host stand still; Refused if something in there begins faster than it is stopped."""
        place = self._host(host)
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
        place = self._host(host)
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
        found = []
        for pid, *_ in processes():
            with contextlib.suppress(OSError):  # it ended while we looked
                if os.stat(f"/proc/{pid}/ns/pid").st_ino == ours:
                    found.append(pid)
        return found

    # --- programs ----------------------------------------------------------------------------------

    def start(
        self,
        *,
        host: str,
        argv: list[str],
        env: Mapping[str, str],
        workdir: str,
        user: str,
        ticket: str,
        tty: bool = False,
    ) -> dict[str, Any]:
        """Start a program; returns a number to signal it by, and why it could not be started, if so (``refused``).

        Behind the ticket: its stdin, stdout and stderr, and where to write the four bytes of its exit status (as a
        shell has it: 128 and the signal's number if it was killed; 126 or 127 if it was not started).
        """
        descriptors = self._take(ticket)
        try:
            place = self._host(host)
            self._ensure_init(place)
            read, write = os.pipe()  # closed by the kernel as the program takes the child's place

            def become() -> NoReturn:
                self._become_program(place, argv, env, workdir, user, descriptors[:3], tty=tty, refused=write)

            with os.fdopen(read, "rb") as answer:
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
                try:
                    pid = self._fork_into(place, become)
                    self._started += 1
                    self._running[self._started] = Running(pid, os.dup(descriptors[3]))
                finally:
                    os.close(write)
                    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
                number = self._started
                # Where there are threads the signal comes through one of them, blocked here or not: the program may
                # have ended before it was known, and nobody would be told.
                self._reap_one(number)
                return {"program": number, "refused": answer.read().decode(errors="replace")}
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def terminal(self, *, host: str, ticket: str) -> None:
        """Open a terminal of a host's own, whose name its programs find; its ends go to the socket behind the ticket.

        The first is the one that shows, the second the one for a program. Raises Refused.
        """
        place = self._host(host)
        (descriptor,) = self._take(ticket)
        with socket.socket(fileno=descriptor) as asker:
            self._ensure_init(place)
            ends: list[int] = []
            try:
                ends.append(os.open(f"/proc/{place.init}/root/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
                fcntl.ioctl(ends[0], _TIOCSPTLCK, struct.pack("=i", 0))
                ends.append(fcntl.ioctl(ends[0], _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
                socket.send_fds(asker, [b"ends"], ends)
            except OSError as error:
                raise Refused(f"host {host!r} has no terminal to give: {error}") from None
            finally:
                for end in ends:
                    os.close(end)

    def signal(self, *, programs: list[int], name: str) -> list[int]:
        """Signal programs and all that they started and that has not left their session; returns who was reached."""
        if name not in signal.Signals.__members__:
            raise Refused(f"unknown signal {name!r}; write it as SIGTERM or SIGINT")
        leaders = {self._running[number].pid for number in programs if number in self._running}
        reached = []
        for pid in leaders.union(pid for pid, _, session, _ in processes() if session in leaders):
            with contextlib.suppress(ProcessLookupError):  # it ended first, which is what is wanted
                os.kill(pid, signal.Signals[name])
                reached.append(pid)
        return reached

    def _reap(self, _number: int, _frame: object) -> None:
        """Tell of every program that has ended."""
        for helper in list(self._helpers):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(helper, os.WNOHANG)[0]:
                    self._helpers.discard(helper)
        for number in list(self._running):
            self._reap_one(number)

    def _reap_one(self, number: int) -> None:
        if (running := self._running.get(number)) is None:
            return
        with contextlib.suppress(ChildProcessError):
            pid, status = os.waitpid(running.pid, os.WNOHANG)
            if pid:
                with contextlib.suppress(OSError):  # the lab does not want to know any more
                    os.write(running.status, struct.pack("=i", exit_status(status)))
                os.close(running.status)
                del self._running[number]

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
        host = self._host(name)
        self._ensure_init(host)
        read, write = os.pipe()

        def there() -> None:
            try:
                kernelcalls.setns(host.namespaces[kernelcalls.NEWNS], kernelcalls.NEWNS)
                answer = b"\0" + work()
            except OSError as error:
                answer = bytes([error.errno or errno.EIO]) + (error.strerror or str(error)).encode()
            with os.fdopen(write, "wb") as out:
                out.write(answer)

        pid = _fork(there)
        os.close(write)
        with os.fdopen(read, "rb") as answer:
            code, *_ = data = answer.read() or bytes([errno.EIO])
        os.waitpid(pid, 0)
        if code:
            raise files.refused(OSError(code, data[1:].decode(errors="replace")))
        return data[1:]

    def _take(self, ticket: str) -> list[int]:
        """The descriptors that were passed with a ticket."""
        while ticket not in self._passed:
            message, descriptors, _flags, _address = socket.recv_fds(self._passing, _MESSAGE_BYTES, 64)
            if not message:
                raise Refused(f"no descriptors came with ticket {ticket!r}")
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
            self._passed[message.decode()] = descriptors
        return self._passed.pop(ticket)

    def _fork_into(self, host: Host, work: Callable[[], None]) -> int:
        """A child in the host's process namespace."""
        kernelcalls.setns(host.namespaces[kernelcalls.NEWPID], kernelcalls.NEWPID)
        try:
            return _fork(work)
        finally:
            kernelcalls.setns(self._own_pid, kernelcalls.NEWPID)

    def _become_program(
        self, host: Host, argv: Sequence[str], env: Mapping[str, str], workdir: str, user: str,
        streams: Sequence[int], *, tty: bool, refused: int,
    ) -> NoReturn:  # fmt: skip
        """In the child: enter the host and become the program.

        If that cannot be, it ends with a shell's exit status, and the reason is told on stderr and to ``refused``.
        """

        def give_up(reason: str, status: int) -> NoReturn:
            for descriptor, text in ((2, reason + "\n"), (refused, reason)):
                os.write(descriptor, text.encode(errors="replace"))
            os._exit(status)

        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        try:
            kernelcalls.die_with_parent()
            os.setsid()
            if tty:
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            for kind in (kernelcalls.NEWUTS, kernelcalls.NEWIPC, kernelcalls.NEWNS):
                kernelcalls.setns(host.namespaces[kind], kind)
            kernelcalls.setns(host.net, kernelcalls.NEWNET)
            resource.setrlimit(resource.RLIMIT_NOFILE, self._limits)
            for name, (soft, hard) in host.settings["limits"].items():
                _limit(name, soft, hard)
            os.chdir(workdir)
            kernelcalls.keep_capabilities(frozenset(host.settings["capabilities"]))
            env = {"HOME": _home(user), **env}
            if user and user not in ("root", "0", "0:0"):
                self._change_user(user)
            for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, set())
        except (OSError, ValueError, OverflowError, Refused) as error:
            give_up(f"{argv[0]}: not started: {error}", 126)
        try:
            os.execvpe(argv[0], list(argv), dict(env))  # noqa: S606  # argv as it is, no shell
        except FileNotFoundError:
            give_up(f"exec: {argv[0]!r}: no such file, or not found in $PATH ({env.get('PATH', '')})", 127)
        except OSError as error:
            give_up(f"exec: {argv[0]!r}: {error.strerror}", 126)
        except (ValueError, OverflowError) as error:  # a zero byte among the arguments or in the environment
            give_up(f"exec: {argv[0]!r}: {error}", 126)

    def _change_user(self, user: str) -> None:
        if not self._may_change_user:
            raise Refused(f"user {user!r}: without root, a local lab's programs run as the host's root alone")
        uid, gid = _identity(user)
        name, _, group = user.partition(":")
        if name.isdecimal():
            with contextlib.suppress(KeyError):  # groups list names
                name = pwd.getpwuid(uid).pw_name
        os.setgroups([] if group else [each.gr_gid for each in grp.getgrall() if name in each.gr_mem])
        os.setgid(gid)
        os.setuid(uid)

    # --- a host's own processes and files ----------------------------------------------------------

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
                    _hold()
                kernelcalls.unshare(kernelcalls.NEWNS | kernelcalls.NEWUTS | kernelcalls.NEWIPC)
                kernelcalls.setns(host.net, kernelcalls.NEWNET)
                _set_sysctls(_AS_DOCKERS, but_not=host.settings["sysctls"])
                names = [self._names[network] for network in host.settings["names"]]
                _furnish(host.settings, "\n".join([host.settings["hosts_head"], *names]) + "\n")
            except (OSError, ValueError, OverflowError, Refused) as error:
                os.write(write, str(error).encode(errors="replace"))
                os._exit(1)
            os.close(write)
            _hold()

        kernelcalls.unshare(kernelcalls.NEWPID)
        try:
            pid = _fork(become)
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
    kernelcalls.mount("proc", "/proc", "proc", kernelcalls.MS_NOSUID | kernelcalls.MS_NODEV)
    kernelcalls.bind("/proc/sys", "/proc/sys", read_only=True)
    for target, mode in (*((folder, "755") for folder in host.settings["folders"]), ("/dev/shm", "1777")):  # noqa: S108  # the host's own
        kernelcalls.unmount(target)
        _tmpfs(Path(target), mode)


def _state(pid: int) -> str:
    """The letter of a process's state, as in proc(5); empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _limit(name: str, soft: int, hard: int) -> None:
    """Set a limit of this process. Raises Refused."""
    number = getattr(resource, name)
    try:
        resource.setrlimit(number, (soft, hard))
    except (OSError, ValueError, OverflowError) as error:
        most = resource.getrlimit(number)[1]
        raise Refused(
            f"ulimit {name.removeprefix('RLIMIT_').lower()} {soft}:{hard}: {error}; the most here is {most}"
        ) from None


def _fork(work: Callable[[], None]) -> int:
    """A child that does the work and ends; its number."""
    pid = os.fork()
    if pid:
        return pid
    status = 70  # EX_SOFTWARE
    try:
        work()
        status = 0
    except BaseException:  # noqa: BLE001  # nothing of the child may run on in the parent's code
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def _hold() -> NoReturn:
    """Be a host's first process: hold its namespaces and reap what is left to it."""
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own is closed already
            if int(descriptor) > 2:
                os.close(int(descriptor))
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1):
        os.dup2(null, standard)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while True:
        signal.sigwait({signal.SIGCHLD})
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _new_namespace(sysctls: _Sysctls) -> int:
    kernelcalls.unshare(kernelcalls.NEWNET)
    sysctls.set(_NO_IPV6)  # before a link comes up: each would solicit and be solicited
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _switch(
    number: int, network: Mapping[str, Any], ends: int, free: Iterator[int]
) -> tuple[list[Change], Iterator[int]]:
    """What makes a network's switch, and the bridge for each cable to it; ``free``: indexes for further devices.

    One bridge, or one with further ones around it: what a port costs a bridge grows with the ports it has, as it looks
    at all of them for each (br_if.c, br_features_recompute), and it has 1,023 at the most.
    """
    core, mtu = _FIRST_BRIDGE + number, network["mtu"]
    changes = [bridge(f"br{number}", core, mtu=mtu)]
    if ends <= _PORTS_A_BRIDGE:
        return changes, itertools.repeat(core)
    leaves = []
    for leaf in range(-(-ends // _PORTS_A_BRIDGE)):
        index, near, far = next(free), next(free), next(free)
        leaves.append(index)
        changes.append(bridge(f"br{number}x{leaf}", index, mtu=mtu))
        changes.append(cable(f"tr{number}x{leaf}", near, f"tr{number}y{leaf}", far, mtu=mtu))
        changes += [enslave(near, core), enslave(far, index), up(near), up(far)]
    return changes, (leaf for leaf in leaves for _ in range(_PORTS_A_BRIDGE))


def _address(settings: Mapping[str, Any], sysctls: _Sysctls) -> None:
    """In a host's network namespace: addresses, routes, sysctls."""
    has_ipv6 = any(":" in cidr for interface in settings["interfaces"] for cidr in interface["addresses"])
    if has_ipv6:
        own = {f"net.ipv6.conf.{interface['name']}.accept_dad": "0" for interface in settings["interfaces"]}
        sysctls.set({**dict.fromkeys(_NO_IPV6, "0"), **_NO_DUPLICATES, **own})
    if len(settings["interfaces"]) > 1:
        sysctls.set(_AS_DOCKERS)
    for name, value in settings["sysctls"].items():
        each = [interface["name"] for interface in settings["interfaces"]] if "*" in name else [""]
        sysctls.set({name.replace("*", one): value for one in each})
    changes = [up(socket.if_nametoindex("lo"))]
    for interface in settings["interfaces"]:
        index = socket.if_nametoindex(interface["name"])
        changes += [up(index), *(address(index, cidr) for cidr in interface["addresses"])]
    changes += [route(destination, gateway) for destination, gateway in settings["routes"]]
    with Netlink() as there:
        there.apply(changes)


class _Sysctls:
    """The way to the settings of many network namespaces: a /proc that is new every now and then.

    Each way into /proc/sys of a namespace is as long as there are namespaces that were there before, for a file system
    keeps their entries of one name in one chain (fs/proc/proc_sysctl.c, proc_sys_compare); each mount has its own
    (since Linux 5.8).
    """

    def __init__(self) -> None:
        self._taken = 0

    def __enter__(self) -> Self:
        _FRESH_PROC.mkdir(exist_ok=True)
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._taken:
            kernelcalls.unmount(_FRESH_PROC)

    def set(self, values: Mapping[str, str]) -> None:
        """Set these in the network namespace that we are in. Raises Refused."""
        if self._taken % _NAMESPACES_A_PROC == 0:
            if self._taken:
                kernelcalls.unmount(_FRESH_PROC)
            kernelcalls.mount("proc", _FRESH_PROC, "proc", kernelcalls.MS_NOSUID | kernelcalls.MS_NODEV)
        self._taken += 1
        _set_sysctls(values, proc_sys=_FRESH_PROC / "sys")


def _set_sysctls(values: Mapping[str, str], *, but_not: Container[str] = (), proc_sys: Path = _PROC_SYS) -> None:
    by_folder: dict[str, dict[str, str]] = {}
    for name, value in values.items():
        if name not in but_not:
            # net.ipv4, net.ipv6, …: one way in for all of it, see above.
            folder = "/".join(name.split(".")[:2])
            by_folder.setdefault(folder, {})[name] = value
    for folder, those in by_folder.items():
        try:
            place = os.open(proc_sys / folder, os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            place = -1
        try:
            for name, value in those.items():
                _set_sysctl(place, name, value)
        finally:
            if place >= 0:
                os.close(place)


def _set_sysctl(folder: int, name: str, value: str) -> None:
    """Set one below the folder of its first two words."""
    try:
        if folder < 0:
            raise FileNotFoundError
        file = os.open("/".join(name.split(".")[2:]), os.O_WRONLY, dir_fd=folder)
        try:
            os.write(file, value.encode())
        finally:
            os.close(file)
    except FileNotFoundError:
        if not name.startswith("net.ipv6."):  # a kernel without IPv6 has none to switch off
            raise Refused(f"sysctl {name}: this kernel has none of that name in a network namespace") from None
    except OSError as error:
        raise Refused(f"sysctl {name}={value}: {error.strerror}") from None


# --- a root of its own -----------------------------------------------------------------------------


def _furnish(settings: Mapping[str, Any], hosts_file: str) -> None:
    """In a host's first process: a file system of its own, most of it the machine's, read-only."""
    kernelcalls.sethostname(settings["hostname"])
    root = _NEW_ROOT
    _tmpfs(root, "755")
    _mirror(Path("/"), root, read_only=True, leave_out=_OWN)
    for name in ("proc", "sys", "dev", "tmp", "run"):
        (root / name).mkdir()
    _tmpfs(root / "tmp", "1777")
    _tmpfs(root / "run", "755")
    _tmpfs(root / "dev", "755")
    _devices(root / "dev")
    kernelcalls.mount("proc", root / "proc", "proc", kernelcalls.MS_NOSUID | kernelcalls.MS_NODEV)
    kernelcalls.bind(root / "proc/sys", root / "proc/sys", read_only=True)
    kernelcalls.mount("sysfs", root / "sys", "sysfs", kernelcalls.MS_RDONLY | kernelcalls.MS_NOSUID)
    bin_folder = root / "run/testbed/bin"
    bin_folder.mkdir(parents=True)
    for name in ("python3", "python") if settings["python"] else ():
        (bin_folder / name).symlink_to(settings["python"])
    for source, target, mode, owner in settings["files"]:
        if source:
            _file(root, source, target, mode, owner)
        else:
            _folder(root, target, mode, owner)
    for name, target, _ in settings["volumes"]:  # out of the image, before anything is shown over that
        volume, below = _volume(name), f"{target.rstrip('/')}/"
        if any(f"{each[1]}/".startswith(below) for each in settings["files"]) and not any(volume.iterdir()):
            _copy_all(_place(root, target), volume)  # as the engine fills a new volume
    shown: list[tuple[str, str, bool]] = [("", target, False) for target in settings["folders"]]
    shown += [(str(_volume(name)), target, read_only) for name, target, read_only in settings["volumes"]]
    shown += settings["binds"]
    for source, target, read_only in sorted(shown, key=lambda each: _depth(each[1])):  # as the engine has it
        if source:
            kernelcalls.bind(source, _place(root, target, a_file=not os.path.isdir(source)), read_only=read_only)
        else:
            _tmpfs(_place(root, target), "755")
    _own_file(root, "etc/hosts", hosts_file)
    _own_file(root, "etc/hostname", settings["hostname"] + "\n")
    _own_file(root, "etc/resolv.conf", _NO_NAME_SERVER)
    closed = kernelcalls.MS_REMOUNT | kernelcalls.MS_BIND | kernelcalls.MS_RDONLY
    kernelcalls.mount("none", root, "", closed)
    kernelcalls.pivot_root(root)


def _volume(name: str) -> Path:
    """Where a volume lies, whatever its name is."""
    return _VOLUMES / f"volume-{name}"


def _depth(target: str) -> int:
    return len(Path(posixpath.normpath(target)).parts)


def _tmpfs(target: Path, mode: str) -> None:
    kernelcalls.mount("tmpfs", target, "tmpfs", kernelcalls.MS_NOSUID | kernelcalls.MS_NODEV, f"mode={mode}")


def _mirror(source: Path, target: Path, *, read_only: bool = False, leave_out: frozenset[str] = frozenset()) -> None:
    """Show everything of one folder in another, read-only or as each is there."""
    for entry in sorted(os.scandir(source), key=lambda entry: entry.name):
        place = target / entry.name
        if entry.name in leave_out:
            continue
        if entry.is_symlink():
            place.symlink_to(os.readlink(entry.path))
        elif entry.is_dir() or entry.is_file():
            place.mkdir() if entry.is_dir() else place.touch()
            kernelcalls.bind(entry.path, place, read_only=read_only)


def _place(root: Path, path: str, *, a_file: bool = False) -> Path:
    """A folder, or a file, to mount on in the new root; made where the machine has none."""
    place = _inside(root, path)
    _refuse_hidden(root, place, path)
    if not place.exists():
        folder = next(parent for parent in place.parents if parent.is_dir())
        if not os.access(folder, os.W_OK) or _read_only(folder):
            _open_up(folder)
        if a_file:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
        else:
            place.mkdir(parents=True)
    return place


def _inside(root: Path, path: str) -> Path:
    """Where a path leads in the new root: symbolic links are followed as a program there would follow them."""
    left, place, links = path.split("/")[::-1], root, 0
    while left:
        name = left.pop()
        if name in ("", "."):
            continue
        if name == "..":
            place = place if place == root else place.parent
            continue
        _make_searchable(place)
        inner = place / name
        if not inner.is_symlink():
            place = inner
            continue
        links += 1
        if links > _LINKS_FOLLOWED:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink(inner)
        place = root if target.startswith("/") else place
        left += target.split("/")[::-1]
    return place


def _make_searchable(folder: Path) -> None:
    if folder.is_dir() and not os.access(folder, os.X_OK):
        _open_up(folder)


def _refuse_hidden(root: Path, place: Path, path: str, *, also_if_said: bool = False) -> None:
    """Raises Refused for a path that leads, by a link, to what is the kernel's and not the host's alone.

    What is bound from the machine's /dev is its own: whoever writes, chowns or chmods there does it to the machine.
    """
    top = place.relative_to(root).parts[:1]
    if top and top[0] in _HIDDEN and (also_if_said or posixpath.normpath(path).split("/")[1] != top[0]):
        raise Refused(f"{path} leads to /{place.relative_to(root)}, and a host has its own there")


def _open_up(folder: Path) -> None:
    """Put a tmpfs in a folder's place that shows what the folder has, to write beside that.

    Where we may not look into it, an ordinary user's lab shows it empty: nobody in there could look into it either.
    """
    seen, readable = folder.stat(), os.access(folder, os.R_OK | os.X_OK)
    _BELOW.mkdir(exist_ok=True)
    kernelcalls.bind(folder, _BELOW)
    _tmpfs(folder, f"{stat.S_IMODE(seen.st_mode):o}")
    with contextlib.suppress(OSError):  # an ordinary user has nobody to give it to
        os.chown(folder, seen.st_uid, seen.st_gid)
    if readable:
        _mirror(_BELOW, folder)
    kernelcalls.unmount(_BELOW)


def _folder(root: Path, path: str, mode: int, owner: str) -> Path:
    """A folder of the image: made, with those it lies in, unless it is there; one to write in."""
    place, missing = _inside(root, path), []
    _refuse_hidden(root, place, path)
    while not place.is_dir():
        missing.append(place.name)
        place = place.parent
    if place != root and _read_only(place):
        _open_up(place)
    while missing:
        at_the_top = place == root
        place /= missing.pop()
        place.mkdir()
        if at_the_top:  # what lies in the root itself cannot be written to
            _tmpfs(place, "755")
        _own(place, owner)
        place.chmod(0o755 if missing else mode)
    return place


def _file(root: Path, source: str, target: str, mode: int | None, owner: str) -> None:
    """A file of the image, or a symbolic link: in its folder, or over the machine's file of that name.

    What is a link there is replaced, as BuildKit does it, and never followed.
    """
    folder, _, name = target.rpartition("/")
    inside = _inside(root, folder)
    place = inside / name
    _refuse_hidden(root, place, target, also_if_said=True)
    _make_searchable(inside)
    a_link, over = os.path.islink(source), None
    if a_link or place.is_symlink() or not place.exists():
        place = _folder(root, folder, 0o755, owner) / name
        _remove(place)
    elif _read_only(place):
        own = root / "run/testbed/files"
        own.mkdir(exist_ok=True)
        over, place = place, own / str(len(os.listdir(own)))
    if a_link:
        place.symlink_to(os.readlink(source))
        _own(place, owner)
        return
    shutil.copyfile(source, place)
    _own(place, owner)
    shutil.copystat(source, place)
    if mode is not None:
        place.chmod(mode)
    if over is not None:
        kernelcalls.bind(place, over)


def _remove(place: Path) -> None:
    """Take away a link or a file, if one is there: what a folder that was opened up has of the machine is mounted."""
    if place.is_symlink():
        place.unlink()
    elif place.is_file():
        with contextlib.suppress(OSError):  # nothing is mounted on it any more
            while True:
                kernelcalls.unmount(place)
        place.unlink()


def _copy_all(source: Path, target: Path) -> None:
    """Everything in a folder, with its owners."""
    shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    for folder, _, names in os.walk(source):
        for place in (Path(folder), *(Path(folder, name) for name in names)):
            seen = place.lstat()
            os.chown(target / place.relative_to(source), seen.st_uid, seen.st_gid, follow_symlinks=False)


def _own(place: Path, owner: str) -> None:
    """Give a new file, folder or link to its owner. Raises Refused where that cannot be."""
    if owner in ("", "root", "0", "0:0", "root:root"):
        return
    uid, gid = _identity(owner)
    try:
        os.chown(place, uid, gid, follow_symlinks=False)
    except OSError as error:
        why = "without root, everything in a local lab is root's" if error.errno == errno.EINVAL else error.strerror
        raise Refused(f"owner {owner!r} of /{place.relative_to(_NEW_ROOT)}: {why}") from None


def _identity(user: str) -> tuple[int, int]:
    """The numbers of ``user`` or ``user:group``, as the machine has them. Raises Refused."""
    name, _, group = user.partition(":")
    gid = 0
    try:
        if name.isdecimal():
            uid = int(name)
            with contextlib.suppress(KeyError):
                gid = pwd.getpwuid(uid).pw_gid
        else:
            entry = pwd.getpwnam(name or "root")
            uid, gid = entry.pw_uid, entry.pw_gid
    except KeyError:
        raise Refused(f"user {name!r} is not in the machine's /etc/passwd") from None
    try:
        return uid, int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid if group else gid
    except KeyError:
        raise Refused(f"group {group!r} is not in the machine's /etc/group") from None


def _home(user: str) -> str:
    """What HOME is to this user, as the engine says it."""
    name = user.partition(":")[0] or "0"
    try:
        return (pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)).pw_dir
    except KeyError:
        return "/"


def _read_only(folder: Path) -> bool:
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def _devices(folder: Path) -> None:
    for name in _DEVICES:
        if Path("/dev", name).exists():
            (folder / name).touch()
            kernelcalls.bind(f"/dev/{name}", folder / name)
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        (folder / name).symlink_to(f"/proc/self/fd{target}")
    (folder / "pts").mkdir()
    (folder / "shm").mkdir()
    _tmpfs(folder / "shm", "1777")
    with contextlib.suppress(OSError):  # a program without a terminal needs none; one with it has been given it
        kernelcalls.mount("devpts", folder / "pts", "devpts", kernelcalls.MS_NOSUID, "newinstance,ptmxmode=0666")
        (folder / "ptmx").symlink_to("pts/ptmx")


def _own_file(root: Path, name: str, content: str) -> None:
    """Put a file of the host's own over the machine's; where that is a link, or is not there, leave it."""
    place = root / name
    if place.is_symlink() or not place.is_file():
        return
    own = root / "run/testbed" / Path(name).name
    own.write_text(content)
    kernelcalls.bind(own, place, read_only=True)
