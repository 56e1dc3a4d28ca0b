"""Programs in the hosts of a local lab: started in all of a host's namespaces, signalled, reaped."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import socket
import struct
import termios
import warnings  # noqa: F401  # os.execvpe imports it, and an image has no such file
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

from . import kernelcalls, users
from .children import unreaped
from .hosts import Hosts, NamespaceHost
from .processes import exit_status, processes
from .protocol import Operation, Refused
from .tickets import Tickets

# asm-generic/ioctls.h
_TIOCSPTLCK, _TIOCGPTPEER = 0x40045431, 0x5441


@dataclass
class HostProcess:
    """A program that was started in a host."""

    pid: int
    status: int
    """The descriptor that gets its exit status."""


class Programs:
    """The running programs that this agent has started."""

    def __init__(self, hosts: Hosts, tickets: Tickets, *, may_change_user: bool) -> None:
        """Raises the agent's limit of open files to the maximum; programs keep the limit that it had before."""
        self._hosts = hosts
        self._tickets = tickets
        self._may_change_user = may_change_user
        self._running: dict[int, HostProcess] = {}
        self._started = 0
        self._limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (self._limits[1], self._limits[1]))

    def operations(self) -> dict[str, Operation]:
        """The protocol's operations."""
        return {"start": self.start, "terminal": self.terminal, "signal": self.signal}

    def start(self, *, programs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Start programs, all at once; returns of each a number to signal it by, and why it was ``refused``, if so.

        A program: ``host``, ``argv``, ``env``, ``workdir``, ``user``, ``ticket``, ``tty``. The ticket's descriptors:
        its stdin, stdout and stderr, and where to write its end as a struct ``=id``: its exit status (a shell's: 128
        plus the signal's number if it was killed; 126 or 127 if it was not started), and the CPU time, in seconds, of
        the program and of the children that it waited for.
        """
        with contextlib.ExitStack() as refusals:
            begun = [self._begin(refusals, **program) for program in programs]
            return [self._begun(number, refusal) for number, refusal in begun]

    def _begin(
        self,
        refusals: contextlib.ExitStack,
        *,
        host: str,
        argv: list[str],
        env: Mapping[str, str],
        workdir: str,
        user: str,
        ticket: str,
        tty: bool,
    ) -> tuple[int, BinaryIO]:
        """Fork a program; returns its number, and where it tells why it cannot be started. Raises Refused."""
        descriptors = self._tickets.take(ticket)
        try:
            target = self._hosts.ready(host)
            read, write = os.pipe()  # closed by the kernel when the child becomes the program

            def become() -> NoReturn:
                self._become_program(target, argv, env, workdir, user, descriptors[:3], tty=tty, refused=write)

            refusal = refusals.enter_context(os.fdopen(read, "rb"))
            try:
                with unreaped():
                    pid = self._hosts.fork_into(target, become)
                    self._started += 1
                    self._running[self._started] = HostProcess(pid, os.dup(descriptors[3]))
            finally:
                os.close(write)
            return self._started, refusal
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _begun(self, number: int, refusal: BinaryIO) -> dict[str, Any]:
        # In a process with threads, SIGCHLD may arrive through another thread although it is blocked in this
        # one. So the program may have ended, unreported, before we registered it.
        self._reap_one(number)
        return {"program": number, "refused": refusal.read().decode(errors="replace")}

    def terminal(self, *, host: str, ticket: str) -> None:
        """Open a pseudo-terminal in a host's own devpts; sends its ends through the socket of the ticket.

        The first is the master, the second the slave, for a program. Raises Refused.
        """
        (descriptor,) = self._tickets.take(ticket)
        with socket.socket(fileno=descriptor) as receiver:
            target = self._hosts.ready(host)
            ends: list[int] = []
            try:
                ends.append(os.open(f"/proc/{target.init}/root/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
                fcntl.ioctl(ends[0], _TIOCSPTLCK, struct.pack("=i", 0))
                ends.append(fcntl.ioctl(ends[0], _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
                socket.send_fds(receiver, [b"ends"], ends)
            except OSError as error:
                raise Refused(f"host {host!r} can open no terminal: {error}") from None
            finally:
                for end in ends:
                    os.close(end)

    def signal(self, *, programs: list[int], name: str) -> list[int]:
        """Signal programs and all processes in their sessions; returns the numbers of the processes signalled."""
        if name not in signal.Signals.__members__:
            raise Refused(f"unknown signal {name!r}; write it as SIGTERM or SIGINT")
        leaders = {self._running[number].pid for number in programs if number in self._running}
        signalled = []
        for pid in leaders.union(pid for pid, _, session, _ in processes() if session in leaders):
            with contextlib.suppress(ProcessLookupError):  # it has ended already, as wanted
                os.kill(pid, signal.Signals[name])
                signalled.append(pid)
        return signalled

    def reap(self) -> None:
        """Report the exit status of every program that has ended."""
        for number in list(self._running):
            self._reap_one(number)

    def _reap_one(self, number: int) -> None:
        if (running := self._running.get(number)) is None:
            return
        with contextlib.suppress(ChildProcessError):
            pid, status, used = os.wait4(running.pid, os.WNOHANG)
            if pid:
                with contextlib.suppress(OSError):  # the lab has closed its end
                    os.write(running.status, struct.pack("=id", exit_status(status), used.ru_utime + used.ru_stime))
                os.close(running.status)
                del self._running[number]

    def _become_program(
        self,
        host: NamespaceHost,
        argv: Sequence[str],
        env: Mapping[str, str],
        workdir: str,
        user: str,
        streams: Sequence[int],
        *,
        tty: bool,
        refused: int,
    ) -> NoReturn:
        """In the child: enter the host and become the program.

        If that fails, it writes the reason to stderr and ``refused``, and ends with a shell's exit status.
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
                set_limit(name, soft, hard)
            os.chdir(workdir)
            kernelcalls.keep_capabilities(frozenset(host.settings["capabilities"]))
            env = {"HOME": users.home(user), **env}
            if user and user not in ("root", "0", "0:0"):
                if self._may_change_user:
                    users.become(user)
                elif host.settings["image"]:
                    users.seem(user)
                else:
                    raise Refused(f"user {user!r}: without root, a local lab's programs run as the host's root alone")
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


def set_limit(name: str, soft: int, hard: int) -> None:
    """Set a limit of this process. Raises Refused."""
    number = getattr(resource, name)
    try:
        resource.setrlimit(number, (soft, hard))
    except (OSError, ValueError, OverflowError) as error:
        most = resource.getrlimit(number)[1]
        raise Refused(
            f"ulimit {name.removeprefix('RLIMIT_').lower()} {soft}:{hard}: {error}; the most here is {most}"
        ) from None
