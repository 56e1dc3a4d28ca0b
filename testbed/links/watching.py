"""Count what passes a port without impairing it, in whatever kernel it is. Pure.

u32 and not flower, because the engine's own kernel may have no flower; it serves no more than to count. As on an
impaired port, what no filter names takes HTB's direct queue.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, ip_address

FIRST_MINOR = 0x3000
"""Minor number of the first source's class; of the same port's impaired sources only the 12,000th has it."""

# Asked last: what leads to an impairment comes first, and is not counted here.
_PRIORITY = 60_000

_CLASS_RATE = "100gbit"
_QUEUE_PACKETS = 1000


def root(device: str) -> str:
    """The line that gives a port its classful root."""
    return f"qdisc replace dev {device} root handle 1: htb default 0 direct_qlen {_QUEUE_PACKETS}"


def source(device: str, minor: int, addresses: Iterable[str]) -> list[str]:
    """The lines that give one source a class of its own, which counts its packets and lets them pass."""
    flow = f"1:{minor:x}"
    lines = [f"class replace dev {device} parent 1: classid {flow} htb rate {_CLASS_RATE} quantum 60000"]
    for address in addresses:
        old = isinstance(ip_address(address), IPv4Address)
        family, match, bits = (f"ip prio {_PRIORITY}", "ip", 32) if old else (f"ipv6 prio {_PRIORITY + 1}", "ip6", 128)
        chosen = f"u32 match {match} src {address}/{bits}"
        lines.append(f"filter add dev {device} parent 1: protocol {family} {chosen} flowid {flow}")
    return lines
