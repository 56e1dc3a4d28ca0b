"""Hosts and programs as a lab's users see them."""

from __future__ import annotations

import abc
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, overload

from testbed import units
from testbed.errors import EnvironmentUnfitError, InvalidValueError, LabError
from testbed.evidence.programs import ProgramRun
from testbed.lab.channel import Channel
from testbed.lab.wholeness import Wholeness


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a program in a host ended."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str
    duration_s: float
    """From the request to start it to the end of its output; seconds."""
    cpu_s: float | None = None
    """Processor time of it and of what it waited for, in a local lab; seconds. None where that is not known."""

    @property
    def ok(self) -> bool:
        """Whether it exited with status 0."""
        return self.exit_code == 0


class Program(abc.ABC):
    """A program running in a host."""

    @property
    def account(self) -> ProgramRun | None:
        """What the results file says about it; None if that is unknown."""
        return None

    @abc.abstractmethod
    def wait(self, timeout: str = "30s") -> Result:
        """Wait until it ends. On time-out raises CommandTimeoutError with its last output, and leaves it running."""

    @abc.abstractmethod
    def stop(self, signal: str = "SIGTERM", timeout: str = "10s") -> Result:
        """Send a signal to it and to all that it started, and wait until it ends; SIGKILL after ``timeout``."""

    @property
    @abc.abstractmethod
    def ended(self) -> bool:
        """Whether it has ended, or closed its output."""

    @property
    @abc.abstractmethod
    def output(self) -> str:
        """What it has printed so far, stdout and stderr in order of arrival."""


class Host(abc.ABC):
    """A place where programs run, with network interfaces of its own."""

    name: str
    _whole: Wholeness
    """What stops and starts it."""

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: str = "30s",
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str = "",
    ) -> Result:
        """Run a program to its end. A status other than 0 is in the result; it raises nothing.

        ``env`` adds to the environment. On time-out kills the program and all that it started, and raises
        CommandTimeoutError.
        """
        program = self.start(argv, env=env, workdir=workdir, user=user)
        try:
            return program.wait(timeout)
        except BaseException:
            program.stop("SIGKILL")
            raise

    @overload
    def start(self, *, timeout: str | None = None) -> None: ...

    @overload
    def start(
        self,
        argv: Sequence[str],
        *,
        ready: int | str | Callable[[Program], bool] | None = None,
        timeout: str | None = None,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str = "",
    ) -> Program: ...

    def start(
        self,
        argv: Sequence[str] | None = None,
        *,
        ready: int | str | Callable[[Program], bool] | None = None,
        timeout: str | None = None,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str = "",
    ) -> Program | None:
        """``start(["cmd", …])``: start a program in the host; with ``ready``, return once it is ready.

        ``ready``: a TCP port to wait for, a string to wait for in the output, or a callable ``f(program) -> bool``.
        Raises CommandTimeoutError after ``timeout`` (10 s), saying what was seen last.

        ``start()``: start the host itself, after `stop` or `kill`. Returns once its health check passes and its links
        are impaired as before; timelines and flapping begin anew. Does nothing if the host runs. Raises
        ServiceFailedError with its last lines if it is not healthy after ``timeout`` (default: the up-deadline), and
        LabError if a host that it depends on is stopped.
        """
        if argv is not None:
            return self.launch(argv, ready=ready, timeout=timeout or "10s", env=env, workdir=workdir, user=user)
        if ready is not None or env is not None or workdir is not None or user:
            raise TypeError(f"`{self.name}`: start() without a program starts the host: it takes timeout= alone")
        self._whole.start(self.name, timeout)
        return None

    @property
    def restarts(self) -> int:
        """How often its service was started again by itself, as `restart:` asks, since it was last started."""
        return 0

    @abc.abstractmethod
    def launch(
        self,
        argv: Sequence[str],
        *,
        ready: int | str | Callable[[Program], bool] | None,
        timeout: str,
        env: Mapping[str, str] | None,
        workdir: str | None,
        user: str,
    ) -> Program:
        """Start a program: see `start`."""

    # --- the host itself -------------------------------------------------------------------------

    def stop(self, *, timeout: str | None = None) -> None:
        """Stop the host: its main program gets its stop signal, and SIGKILL after ``timeout``.

        ``timeout``: default is its ``stop_grace_period:``, else 10 s. The host is off its networks until `start`. The
        next test finds it running again. Does nothing if it is stopped.
        """
        self._whole.stop(self.name, timeout)

    def restart(self, *, timeout: str | None = None) -> None:
        """`stop`, then `start` within ``timeout``."""
        self._whole.restart(self.name, None, timeout)

    def kill(self, signal: str = "SIGKILL") -> None:
        """Send a signal to the host's main program. SIGKILL ends the host as a crash does; this returns once it ended.

        After another signal the host may end at any time in this test, or not. Raises LabError for an unknown signal.
        """
        check_signal(signal)
        self._whole.kill(self.name, signal)

    def pause(self) -> None:
        """Pause every process in the host until `resume`. Packets to it wait, and its links stay as they are."""
        self._whole.pause(self.name)

    def resume(self) -> None:
        """Resume a paused host. Does nothing if it runs."""
        self._whole.resume(self.name)

    def interact(self, _argv: Sequence[str]) -> int:
        """Run a program on our own stdin, stdout and stderr, which may be a terminal; its exit status.

        Raises EnvironmentUnfitError if programs of this kind of host cannot have them.
        """
        raise EnvironmentUnfitError(f"`{self.name}`: programs in this kind of host cannot be joined to a terminal")

    @abc.abstractmethod
    def logs(self) -> str:
        """What the host's main program has printed."""

    @abc.abstractmethod
    def put(self, path: str, content: bytes | str, *, mode: int = 0o644) -> None:
        """Write a file, owned by root, into a folder that exists in the host.

        The file appears complete, mode included. It is written where the host's programs see it, a tmpfs included.
        Raises LabError.
        """

    @abc.abstractmethod
    def get(self, path: str) -> bytes:
        """Read a file as the host's programs see it. Raises FileNotFoundError, IsADirectoryError, LabError."""

    @abc.abstractmethod
    def addresses(self, network: str | None = None) -> tuple[str, ...]:
        """Its IP addresses: of one network, or of all."""

    def mac(self, _network: str) -> str | None:
        """The MAC address of its interface on a network, if it is known."""
        return None

    def source_addresses(self, network: str) -> tuple[str, ...]:
        """Every address that its packets on a network may come from."""
        return self.addresses(network)

    def marks(self, network: str) -> tuple[str, ...]:
        """What distinguishes the packets that it sends on a network: their source addresses, IP and MAC.

        Packets with other addresses, which it passes on, are recognized by the interface.
        """
        mac = self.mac(network)
        return (*self.source_addresses(network), *(() if mac is None else (mac,)))

    @abc.abstractmethod
    def published(self, port: int, *, protocol: str = "tcp") -> tuple[str, int]:
        """Where this machine reaches a port that the Compose file publishes (``ports:``): address and port number.

        ``port``: the host's own. What goes there crosses ``localhost -> HOST``. A proxy of the engine accepts these
        connections at once and makes one of its own over the link. Raises InvalidValueError if it is not published, and
        LabError if the host is stopped.
        """

    @abc.abstractmethod
    def url(self, scheme: str, port: int) -> str:
        """The URL of a published TCP port: ``url("http", 8080)`` is as ``http://127.0.0.1:49153``; see `published`."""

    @abc.abstractmethod
    def counters(self) -> dict[str, dict[str, int]]:
        """The counters of its network namespace, as in /proc/net/snmp and /proc/net/netstat, since the host started."""

    def inside(self) -> Channel:
        """The agent in its network namespace, which observes and probes. Raises LabError if it has none."""
        raise LabError(f"`{self.name}`: no agent runs inside, so it can be neither observed nor probed")

    @abc.abstractmethod
    def connections(self) -> list[dict[str, Any]]:
        """The TCP connections that its kernel still works on, also those whose program has ended."""

    def send_per_packet(self, network: str) -> dict[str, bool]:
        """Switch segmentation offloads off on its interface; returns what they were."""
        raise LabError(f"`{self.name}`: no agent runs inside, so its offloads on {network} cannot be changed")

    def send_as_before(self, network: str, offloads: Mapping[str, bool]) -> None:
        """Set them to what they were."""
        raise LabError(f"`{self.name}`: no agent runs inside, so {offloads} cannot be set on {network}")

    @abc.abstractmethod
    def follow(self) -> Log:
        """Follow what its main program prints; a context manager."""

    def end_test(self) -> None:
        """Release what only the test needed."""
        return


class Log(Protocol):
    """The output of a host's main program, line by line as it comes; a context manager."""

    def __enter__(self) -> Self:
        """Begin to read."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Let go of it."""

    def when(self, line: str, deadline_s: float) -> int | None:
        """Wait for a line. Returns when it was first printed, in ns since the epoch; None after the deadline."""


def check_signal(name: object) -> None:
    """Raise InvalidValueError unless this is a signal's name, as in ``"SIGTERM"``."""
    if not isinstance(name, str) or name not in signal.Signals.__members__:
        raise InvalidValueError(f"unknown signal {str(name)[:40]!r}; write it as 'SIGTERM' or 'SIGKILL'")


def seconds(text: str, name: str = "timeout") -> float:
    """The seconds of a deadline such as ``"10s"``."""
    return units.parse_time(text, name=name)
