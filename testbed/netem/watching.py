"""Count packets at a port without impairing them, whichever kernel has the port. Pure.

By u32 and not flower, because the engine's own kernel may have no flower. As on an impaired port, packets that no
filter matches take HTB's direct queue.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, ip_address

from testbed.spec.links import ALL_TRAFFIC, Traffic

FIRST_MINOR = 0x3000
"""Minor number of the first source's class; of the same port's impaired sources only the 12,000th has it."""

# Last of all: filters of impairments come first, and what they match is not counted here. The part of a source's
# traffic comes before the whole.
_PRIORITY = 60_000
_PROTOCOLS = {"ip": {"tcp": 6, "udp": 17, "icmp": 1}, "ip6": {"tcp": 6, "udp": 17, "icmp": 58}}

_CLASS_RATE = "100gbit"
_QUEUE_PACKETS = 1000


def root(device: str) -> str:
    """The line that gives a port its classful root."""
    return f"qdisc replace dev {device} root handle 1: htb default 0 direct_qlen {_QUEUE_PACKETS}"


def source(
    device: str,
    minor: int,
    addresses: Iterable[str],
    traffic: Traffic = ALL_TRAFFIC,
    *,
    rewritten: Iterable[str] = (),
    mac: str | None = None,
) -> list[str]:
    """The lines that give one source, or a part of its traffic, a class of its own, which counts and delays nothing.

    ``rewritten``: another's addresses, which NAT may have given to its packets (`netem.translated`); those that come
    from its ``mac`` are its own. Ports are looked for at their offset without IP options and extension headers.
    """
    flow = f"1:{minor:x}"
    lines = [f"class replace dev {device} parent 1: classid {flow} htb rate {_CLASS_RATE} quantum 60000"]
    first = _PRIORITY - (4 if traffic.port else 2 if traffic.protocol else 0)
    of_sender = f" match ether src {mac}"
    matches = [*((address, "") for address in addresses), *((address, of_sender) for address in rewritten if mac)]
    for address, more in matches:
        is_v4 = isinstance(ip_address(address), IPv4Address)
        family, match, bits = (f"ip prio {first}", "ip", 32) if is_v4 else (f"ipv6 prio {first + 1}", "ip6", 128)
        u32 = f"u32 match {match} src {address}/{bits}{more}"
        if traffic.protocol:
            u32 += f" match {match} protocol {_PROTOCOLS[match][traffic.protocol]} 0xff"
        ports = [f" match {match} {end} {traffic.port} 0xffff" for end in ("dport", "sport")] if traffic.port else [""]
        lines += [f"filter add dev {device} parent 1: protocol {family} {u32}{port} flowid {flow}" for port in ports]
    return lines
