"""Inside one host's network namespace: its interfaces, their offloads, its kernel's counters, its listeners."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from .protocol import Operation, Refused

_SYS_NET = Path("/sys/class/net")
_OFFLOADS = {
    "tso": "tcp-segmentation-offload",
    "gso": "generic-segmentation-offload",
    "gro": "generic-receive-offload",
}
_LISTEN = "0A"  # include/net/tcp_states.h
_POLL_S = 0.005


def operations() -> dict[str, Operation]:
    """The protocol's operations."""
    return {
        "interfaces": interfaces,
        "per_packet": per_packet,
        "counters": counters,
        "await_listener": await_listener,
    }


def interfaces() -> list[dict[str, Any]]:
    """Every interface but loopback: name, index, its peer's index on the other side, MAC address, MTU."""
    found = []
    for path in sorted(_SYS_NET.iterdir()):
        if path.name == "lo" or not (path / "iflink").exists():
            continue
        found.append(
            {
                "name": path.name,
                "ifindex": int((path / "ifindex").read_text()),
                "peer_ifindex": int((path / "iflink").read_text()),
                "mac": (path / "address").read_text().strip(),
                "mtu": int((path / "mtu").read_text()),
            }
        )
    return found


def per_packet(*, interface: str) -> dict[str, bool]:
    """Switch segmentation offloads off, so that a lost packet is one packet; returns what is in force.

    Raises Refused if one of them stays on.
    """
    words = [word for offload in _OFFLOADS for word in (offload, "off")]
    _ethtool("-K", interface, *words)
    (features,) = json.loads(_ethtool("--json", "-k", interface))
    state = {short: bool(features[long]["active"]) for short, long in _OFFLOADS.items()}
    if any(state.values()):
        raise Refused(f"offloads of {interface} stay on: {', '.join(name for name, on in state.items() if on)}")
    return state


def counters() -> dict[str, dict[str, int]]:
    """The kernel's own counters of this namespace: groups of /proc/net/snmp and /proc/net/netstat."""
    groups: dict[str, dict[str, int]] = {}
    for path in ("/proc/net/snmp", "/proc/net/netstat"):
        lines = Path(path).read_text().splitlines()
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            group, _, keys = names.partition(":")
            numbers = values.partition(":")[2].split()
            groups.setdefault(group, {}).update(zip(keys.split(), map(int, numbers), strict=True))
    return groups


def await_listener(*, port: int, deadline_s: float) -> dict[str, Any]:
    """Wait until a TCP socket listens on the port; ``listening`` false and what does listen if none does in time."""
    deadline = time.monotonic() + deadline_s
    while True:
        seen = listening_ports()
        if port in seen or time.monotonic() >= deadline:
            return {"listening": port in seen, "ports": sorted(seen)}
        time.sleep(_POLL_S)


def listening_ports() -> set[int]:
    """Every TCP port that a socket of this namespace listens on."""
    ports = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        path = Path(table)
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            fields = line.split()
            if fields[3] == _LISTEN:
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


def _ethtool(*arguments: str) -> str:
    done = subprocess.run(["ethtool", *arguments], capture_output=True, text=True, check=False, timeout=20)
    if done.returncode:
        raise Refused(f"`ethtool {' '.join(arguments)}` failed with status {done.returncode}: {done.stderr.strip()}")
    return done.stdout
