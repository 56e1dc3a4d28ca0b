"""Published ports of a local lab: sockets of this machine that listen, and are handed to the agent."""

from __future__ import annotations

import contextlib
import socket
from contextlib import ExitStack
from dataclasses import dataclass

from testbed.backends.local.blueprint import LabPlan, Published
from testbed.backends.local.localagent import LocalAgent
from testbed.errors import EnvironmentUnfitError


@dataclass(frozen=True, kw_only=True)
class Listener:
    """A socket of the machine, and the host and port that its connections or datagrams lead to."""

    host: str
    port: int
    protocol: str
    socket: socket.socket


def listen(undo: ExitStack, plan: LabPlan) -> list[Listener]:
    """A listening socket of the machine for each published port. Raises EnvironmentUnfitError if some are taken."""
    listeners: list[Listener] = []
    taken: list[str] = []
    for host in plan.hosts:
        for port in plan.services[host.service].published:
            try:
                listener = listener_at(port)
            except OSError as error:
                span = f"-{port.last}" if port.last else ""
                taken.append(f"{port.host_ip}:{port.port}{span} for {host.name}: {error.strerror}")
                continue
            undo.callback(listener.close)
            listeners.append(Listener(host=host.name, port=port.target, protocol=port.protocol, socket=listener))
    if taken:
        raise EnvironmentUnfitError(f"ports cannot be published: {'; '.join(taken)}")
    return listeners


def listener_at(published: Published) -> socket.socket:
    """A socket at a published port; at the first free port of a range. Raises OSError."""
    family = socket.AF_INET6 if ":" in published.host_ip else socket.AF_INET
    for port in range(published.port, published.last):
        with contextlib.suppress(OSError):  # the last one's is raised
            return _socket_at((published.host_ip, port), family, published.protocol)
    return _socket_at((published.host_ip, published.last or published.port), family, published.protocol)


def _socket_at(address: tuple[str, int], family: socket.AddressFamily, protocol: str) -> socket.socket:
    if protocol == "tcp":
        return socket.create_server(address, family=family)
    receiver = socket.socket(family, socket.SOCK_DGRAM)
    try:
        receiver.bind(address)
    except OSError:
        receiver.close()
        raise
    return receiver


def hand_over(agent: LocalAgent, plan: LabPlan, listeners: list[Listener]) -> None:
    """Have the agent accept what connects, from now on."""
    if not listeners:
        return
    first = {host.name: host.interfaces[0].plain[0] for host in plan.hosts if host.interfaces}
    ticket = agent.child.passed([listener.socket.fileno() for listener in listeners])
    agent.channel.call(
        "publish", ticket=ticket, targets=[(first[listener.host], listener.port) for listener in listeners]
    )
    for listener in listeners:
        listener.socket.close()
