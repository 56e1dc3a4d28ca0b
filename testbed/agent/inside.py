"""Inside one host's network namespace: its interfaces, their offloads, its kernel's counters, its listeners."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import offloads
from .probes import Probes
from .protocol import Operation

SYS_NET = Path("/sys/class/net")
IF_INET6 = Path("/proc/net/if_inet6")
# include/net/tcp_states.h
_LISTEN = "0A"
_STATES = {
    "01": "ESTABLISHED",
    "02": "SYN-SENT",
    "03": "SYN-RECEIVED",
    "04": "FIN-WAIT-1",
    "05": "FIN-WAIT-2",
    "08": "CLOSE-WAIT",
    "09": "LAST-ACK",
    "0B": "CLOSING",
    "0C": "SYN-RECEIVED",
}
_POLL_S = 0.005
_SNMP6_GROUP = re.compile(r"(Ip|Icmp|Udp|UdpLite)6(?=[A-Z])")  # the kernel's names: Ip6InReceives, Udp6NoPorts, …
_LINK_SCOPE = "20"  # net/ipv6.h, IPV6_ADDR_LINKLOCAL


def operations() -> dict[str, Operation]:
    """The protocol's operations."""
    return {
        "interfaces": interfaces,
        "per_packet": per_packet,
        "put_back": put_back,
        "counters": counters,
        "await_listener": await_listener,
        "connections": connections,
        **Probes().operations(),
    }


def interfaces() -> list[dict[str, Any]]:
    """Every interface but loopback: name, index, the index of its peer on the other side, MAC address, MTU."""
    return [
        {
            "name": path.name,
            "ifindex": int((path / "ifindex").read_text()),
            "peer_ifindex": int((path / "iflink").read_text()),
            "mac": (path / "address").read_text().strip(),
            "mtu": int((path / "mtu").read_text()),
            "link_local": _link_local(path.name),
        }
        for path in sorted(SYS_NET.iterdir())
        if path.name != "lo" and (path / "iflink").exists()
    ]


def _link_local(interface: str) -> list[str]:
    """An interface's link-local IPv6 addresses, which no engine knows."""
    lines = [line.split() for line in IF_INET6.read_text().splitlines()] if IF_INET6.exists() else []
    return [
        socket.inet_ntop(socket.AF_INET6, bytes.fromhex(address))
        for address, _index, _length, scope, _flags, name in lines
        if name == interface and scope == _LINK_SCOPE
    ]


def per_packet(*, interface: str) -> dict[str, bool]:
    """Switch segmentation offloads off, so that a lost packet is one packet; returns their former state.

    Raises Refused if one of them stays on.
    """
    return offloads.switch_off(interface)


def put_back(*, interface: str, offloads_were: dict[str, bool]) -> dict[str, bool]:
    """Restore the segmentation offloads of before `per_packet`; returns what is in force."""
    return offloads.put_back(interface, offloads_were)


def counters() -> dict[str, dict[str, int]]:
    """The kernel's own counters of this namespace: groups of /proc/net/snmp, netstat, snmp6, sockstat and sockstat6.

    Those of sockstat are levels, not counts; their groups are called ``sockets TCP`` and so on (``inuse``, ``orphan``,
    ``tw``, ``alloc``, ``mem``). The groups of snmp6, such as ``Ip6``, are missing in a kernel without IPv6.
    """
    groups: dict[str, dict[str, int]] = {}
    for path in ("/proc/net/snmp", "/proc/net/netstat"):
        lines = Path(path).read_text().splitlines()
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            group, _, keys = names.partition(":")
            numbers = values.partition(":")[2].split()
            groups.setdefault(group, {}).update(zip(keys.split(), map(int, numbers), strict=True))
    for line in _lines("/proc/net/snmp6"):
        name, number = line.split()
        if match := _SNMP6_GROUP.match(name):
            groups.setdefault(match[0], {})[name.removeprefix(match[0])] = int(number)
    for path in ("/proc/net/sockstat", "/proc/net/sockstat6"):
        for line in _lines(path):
            group, _, rest = line.partition(":")
            words = rest.split()
            groups[f"sockets {group}"] = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    return groups


def _lines(path: str) -> list[str]:
    """The lines of a file that not every kernel has."""
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def await_listener(*, port: int, deadline_s: float) -> dict[str, Any]:
    """Wait until a TCP socket listens on the port; ``listening``: whether one does; ``ports``: all that do."""
    deadline = time.monotonic() + deadline_s
    while True:
        ports = listening_ports()
        if port in ports or time.monotonic() >= deadline:
            return {"listening": port in ports, "ports": sorted(ports)}
        time.sleep(_POLL_S)


def connections() -> list[dict[str, Any]]:
    """Every TCP connection of this namespace that may still exchange data; not those in TIME_WAIT.

    ``state`` is RFC 9293's name. ``retransmits``: how often the oldest unacknowledged segment was retransmitted without
    an acknowledgement.
    """
    open_connections = []
    for fields in _tcp_table():
        if (state := _STATES.get(fields[3])) is not None:
            unsent, unread = fields[4].split(":")
            open_connections.append(
                {
                    "local_port": _port(fields[1]),
                    "remote_port": _port(fields[2]),
                    "state": state,
                    "send_queue_bytes": int(unsent, 16),
                    "receive_queue_bytes": int(unread, 16),
                    "retransmits": int(fields[6], 16),
                }
            )
    return open_connections


def listening_ports() -> set[int]:
    """Every TCP port that a socket of this namespace listens on."""
    return {_port(fields[1]) for fields in _tcp_table() if fields[3] == _LISTEN}


def _tcp_table() -> Iterator[list[str]]:
    """The fields of each line of /proc/net/tcp and tcp6 (Documentation/networking/proc_net_tcp.rst)."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        path = Path(table)
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            yield line.split()


def _port(address: str) -> int:
    return int(address.rpartition(":")[2], 16)
