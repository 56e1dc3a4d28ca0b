"""Count what passes a port without impairing it, in whatever kernel it is. Pure.

u32 and not flower, because the engine's own kernel may have no flower; it serves no more than to count. As on an
impaired port, what no filter names takes HTB's direct queue.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, ip_address

from testbed.spec.topology import ALL_TRAFFIC, Traffic

FIRST_MINOR = 0x3000
"""Minor number of the first source's class; of the same port's impaired sources only the 12,000th has it."""

# Asked last: what leads to an impairment comes first, and is not counted here. A part comes before the whole.
_PRIORITY = 60_000
_PROTOCOLS = {"ip": {"tcp": 6, "udp": 17, "icmp": 1}, "ip6": {"tcp": 6, "udp": 17, "icmp": 58}}

_CLASS_RATE = "100gbit"
_QUEUE_PACKETS = 1000


def root(device: str) -> str:
    """The line that gives a port its classful root."""
    return f"qdisc replace dev {device} root handle 1: htb default 0 direct_qlen {_QUEUE_PACKETS}"


def source(device: str, minor: int, addresses: Iterable[str], traffic: Traffic = ALL_TRAFFIC) -> list[str]:
    """The lines that give one source, or a part of its traffic, a class of its own, which counts and lets pass.

    Ports are looked for where they are without options and extension headers.
    """
    flow = f"1:{minor:x}"
    lines = [f"class replace dev {device} parent 1: classid {flow} htb rate {_CLASS_RATE} quantum 60000"]
    first = _PRIORITY - (4 if traffic.port else 2 if traffic.protocol else 0)
    for address in addresses:
        old = isinstance(ip_address(address), IPv4Address)
        family, match, bits = (f"ip prio {first}", "ip", 32) if old else (f"ipv6 prio {first + 1}", "ip6", 128)
        chosen = f"u32 match {match} src {address}/{bits}"
        if traffic.protocol:
            chosen += f" match {match} protocol {_PROTOCOLS[match][traffic.protocol]} 0xff"
        ports = [f" match {match} {end} {traffic.port} 0xffff" for end in ("dport", "sport")] if traffic.port else [""]
        lines += [f"filter add dev {device} parent 1: protocol {family} {chosen}{port} flowid {flow}" for port in ports]
    return lines
