"""Competing traffic: TCP and UDP flows of our own, from hosts to hosts, until a test ends them or ends itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from testbed import units
from testbed.errors import InvalidValueError, LabError
from testbed.evidence.flows import TrafficFlow
from testbed.lab.host import Host, Program, Result
from testbed.spec.links import LinkRef, PortRef
from testbed.text import shown

_PROGRAM = Path(__file__).with_name("programs") / "flows.py"
_MOST_TCP_FLOWS = 1000
_DATAGRAM_BYTES = (12, 65000)
_READY_WITHIN = "30s"


@dataclass(frozen=True, kw_only=True)
class Load:
    """What each sender sends."""

    tcp_flows: int = 0
    """TCP connections, each as fast as it gets."""
    udp_bps: float | None = None
    """The rate of a UDP flow's payload, evenly paced; bits per second. None: no such flow."""
    datagram_bytes: int = 1400
    """Payload of each datagram."""

    @classmethod
    def parse(cls, *, tcp: object, udp: object, size: object) -> Load:
        """From the user's words. Raises InvalidValueError with every problem."""
        problems, udp_bps = [], None
        flows = tcp if isinstance(tcp, int) and not isinstance(tcp, bool) else -1
        if not 0 <= flows <= _MOST_TCP_FLOWS:
            problems.append(f"tcp={shown(tcp)}: a number of flows from 0 to {_MOST_TCP_FLOWS}")
        if udp is not None:
            try:
                udp_bps = units.parse_rate(udp, name="udp")
                problems += [] if udp_bps > 0 else [f"udp={shown(udp)}: above 0; leave it out for none"]
            except InvalidValueError as error:
                problems += error.problems
        low, high = _DATAGRAM_BYTES
        size_bytes = size if isinstance(size, int) and not isinstance(size, bool) else -1
        if not low <= size_bytes <= high:
            problems.append(f"size={shown(size)}: of a datagram's payload, from {low} to {high} bytes")
        if tcp == 0 and udp is None:
            problems.append('what traffic? Give tcp=2, a number of flows, or udp="3mbit", or both')
        if problems:
            raise InvalidValueError(problems)
        return cls(tcp_flows=flows, udp_bps=udp_bps, datagram_bytes=size_bytes)


def refuse_parts(refs: Iterable[LinkRef]) -> None:
    """Refuse links that are narrowed. Raises InvalidValueError."""
    for ref in refs:
        if ref.traffic.protocol or ref.to:
            raise InvalidValueError(f"{ref}: traffic has ports of its own: name the two hosts alone")


@dataclass
class _Sender:
    ref: LinkRef
    program: Program
    names: dict[int, str]
    """By number, the flows."""


@dataclass
class CompetingTraffic:
    """Flows that run until `stop`, or the end of the test's body; a context manager that stops them."""

    load: Load
    flows: list[TrafficFlow] = field(default_factory=list)
    """Each flow with its account; empty until they are stopped."""
    _receivers: dict[PortRef, Program] = field(default_factory=dict)
    _senders: list[_Sender] = field(default_factory=list)

    def start(self, refs: Iterable[LinkRef], hosts: Mapping[str, Host]) -> None:
        """Start the flows of these links. Returns once every connection is open.

        The hosts need Python 3 and a /tmp. Raises LabError, CommandTimeoutError.
        """
        ports: dict[PortRef, dict[str, int]] = {}
        try:
            for number, ref in enumerate(refs):
                end, receiver = ref.receivers_port, hosts[ref.dst]
                address = receiver.addresses(ref.network)[0]
                if end not in ports:
                    self._receivers[end], ports[end] = _run(receiver, ["receive", address])
                argv = ["send", address]
                first = number * (_MOST_TCP_FLOWS + 1)
                names = {first + flow: f"tcp {flow}" for flow in range(1, self.load.tcp_flows + 1)}
                argv += ["--tcp-port", str(ports[end]["tcp"]), "--udp-port", str(ports[end]["udp"])]
                argv += ["--tcp", *map(str, names)] if names else []
                if self.load.udp_bps is not None:
                    names[first] = "udp"
                    argv += ["--udp", str(first), "--rate", str(self.load.udp_bps)]
                    argv += ["--size", str(self.load.datagram_bytes)]
                program, _ = _run(hosts[ref.src], argv)
                self._senders.append(_Sender(ref, program, names))
        except BaseException:
            self._end("SIGKILL")
            raise

    def stop(self) -> list[TrafficFlow]:
        """End the flows, and return each with its account; again, if they have been stopped.

        Raises LabError if a program ended by itself.
        """
        if self.flows or not self._senders:
            return self.flows
        sent, received = self._end("SIGTERM")
        self.flows = list(self._accounts(sent, received))
        return self.flows

    def _end(self, signal: str) -> tuple[list[Result], dict[PortRef, Result]]:
        """End every program, the senders first; how each ended."""
        sent: list[Result] = []
        received: dict[PortRef, Result] = {}
        with ExitStack() as undo:
            for end, receiver in self._receivers.items():
                undo.callback(_stop_receiver, received, end, receiver, signal)
            for sender in reversed(self._senders):
                undo.callback(_stop_sender, sent, sender, signal)
        return sent, received

    def _accounts(self, sent: list[Result], received: Mapping[PortRef, Result]) -> Iterator[TrafficFlow]:
        arrived = {end: _last(end.host, result) for end, result in received.items()}
        for sender, result in zip(self._senders, sent, strict=True):
            counted = _last(sender.ref.src, result)
            for number, name in sender.names.items():
                took = counted[str(number)]
                taken = arrived[sender.ref.receivers_port].get(str(number), _NOTHING)
                packets = name == "udp"
                yield TrafficFlow(
                    link=str(sender.ref),
                    network=sender.ref.network,
                    name=name,
                    sent_bytes=took["bytes"],
                    received_bytes=taken["bytes"],
                    sent_packets=took["packets"] if packets else None,
                    received_packets=taken["packets"] if packets else None,
                    duration_s=taken["duration_s"],
                    problem=took.get("failed"),
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.stop()


def _stop_sender(results: list[Result], sender: _Sender, signal: str) -> None:
    results.append(sender.program.stop(signal))


def _stop_receiver(results: dict[PortRef, Result], end: PortRef, program: Program, signal: str) -> None:
    results[end] = program.stop(signal)


_NOTHING = {"bytes": 0, "packets": 0, "duration_s": 0.0}


def _run(host: Host, argv: list[str]) -> tuple[Program, Any]:
    """Start our program in a host; it, and what it says when it is ready. Raises LabError."""
    content = _PROGRAM.read_bytes()
    path = f"/tmp/testbed-flows-{hashlib.sha256(content).hexdigest()[:12]}.py"  # noqa: S108  # in a host of the lab's; put is atomic, and whoever wrote it before wrote the same
    host.put(path, content)
    program = host.start(
        ["python3", path, *argv], ready=lambda program: program.ended or "\n" in program.output, timeout=_READY_WITHIN
    )
    first = program.output.partition("\n")[0]
    try:
        return program, json.loads(first)
    except ValueError:
        ended = program.stop("SIGKILL")
        raise LabError(
            f"traffic: `python3` in `{host.name}` did not start to {argv[0]} (exit status {ended.exit_code}): "
            f"{shown((ended.stderr or ended.stdout).strip()[-200:])}. The host needs Python 3 and a /tmp"
        ) from None


def _last(host: str, result: Result) -> Any:
    """The account that our program printed at its end. Raises LabError."""
    lines = result.stdout.splitlines()
    if len(lines) < 2:
        raise LabError(
            f"traffic: the program in `{host}` ended by itself (exit status {result.exit_code}): "
            f"{shown(result.stderr.strip()[-200:])}"
        )
    return json.loads(lines[-1])
