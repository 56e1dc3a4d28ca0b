"""Changes to network devices, addresses and routes over one rtnetlink socket: many per write, without processes.

Message formats: rtnetlink(7), linux/if_link.h, linux/if_addr.h, linux/neighbour.h, linux/rtnetlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Self

from .protocol import Refused

_NETLINK_ROUTE = 0
_NLMSG_ERROR = 2
_REQUEST, _ACK, _REPLACE, _EXCL, _CREATE = 0x1, 0x4, 0x100, 0x200, 0x400
_RTM_NEWLINK, _RTM_DELLINK, _RTM_NEWADDR, _RTM_NEWROUTE, _RTM_NEWNEIGH = 16, 17, 20, 24, 28

_IFF_UP = 0x1
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_TXQLEN = 1, 3, 4, 10, 13
_IFLA_LINKINFO, _IFLA_AF_SPEC, _IFLA_NET_NS_FD = 18, 26, 28
_INFO_SLAVE_KIND, _INFO_SLAVE_DATA = 4, 5
_IFLA_INET6_ADDR_GEN_MODE, _IN6_ADDR_GEN_MODE_NONE = 8, 1
_INFO_KIND, _INFO_DATA = 1, 2
_VETH_INFO_PEER = 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_IFA_F_NODAD = 0x02
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
# linux/neighbour.h
_NDA_LLADDR, _NUD_REACHABLE, _NTF_MASTER = 2, 0x02, 0x04
_RT_TABLE_MAIN, _RTPROT_STATIC, _RTN_UNICAST = 254, 4, 1

BRIDGE_PORT = {"hairpin": 4, "learning": 8, "flood": 9, "mcast_flood": 27, "bcast_flood": 30, "isolated": 33}
"""Settings of a bridge port: bridge(8)'s name of each, and its IFLA_BRPORT_… number in linux/if_link.h."""

_IPV6_MIN_MTU = 1280
_IF_INET6 = Path("/proc/net/if_inet6")

# A reply takes some 800 bytes of the socket's buffer, which holds 200 KiB.
_REQUESTS_AT_ONCE = 64


@dataclass(frozen=True)
class NetlinkRequest:
    """One request."""

    description: str
    """For error messages."""
    kind: int
    flags: int
    body: bytes


def bridge(name: str, index: int, *, mtu: int, mac: str = "") -> NetlinkRequest:
    """Create a bridge, up. ``mtu`` in bytes; ``mac``: none for that of whichever of its ports the kernel chooses."""
    info = _attribute(_IFLA_LINKINFO, _text(_INFO_KIND, "bridge"))
    attributes = _text(_IFLA_IFNAME, name) + _u32(_IFLA_MTU, mtu) + info
    attributes += _attribute(_IFLA_ADDRESS, bytes.fromhex(mac.replace(":", ""))) if mac else b""
    return NetlinkRequest(f"bridge {name}", _RTM_NEWLINK, _CREATE | _EXCL, _link(index, _IFF_UP) + attributes)


def veth(
    name: str, index: int, *, master: int, peer: str, peer_namespace: int, peer_mac: str, mtu: int, queue_packets: int
) -> NetlinkRequest:
    """Create a pair: one end here on a bridge, up; the other in the namespace behind a descriptor, still down.

    (The kernel cannot set the other one up in the same request.)
    """
    other = _link(0, 0) + _text(_IFLA_IFNAME, peer) + _u32(_IFLA_MTU, mtu)
    other += _attribute(_IFLA_ADDRESS, bytes.fromhex(peer_mac.replace(":", ""))) + _u32(_IFLA_NET_NS_FD, peer_namespace)
    info = _text(_INFO_KIND, "veth") + _attribute(_INFO_DATA, _attribute(_VETH_INFO_PEER, other))
    attributes = _text(_IFLA_IFNAME, name) + _u32(_IFLA_MTU, mtu) + _u32(_IFLA_MASTER, master)
    attributes += _u32(_IFLA_TXQLEN, queue_packets) + _attribute(_IFLA_LINKINFO, info)
    return NetlinkRequest(f"veth {name} to {peer}", _RTM_NEWLINK, _CREATE | _EXCL, _link(index, _IFF_UP) + attributes)


def cable(name: str, index: int, peer: str, peer_index: int, *, mtu: int) -> NetlinkRequest:
    """Create a pair with both ends here, still down and on no bridge."""
    other = _link(peer_index, 0) + _text(_IFLA_IFNAME, peer) + _u32(_IFLA_MTU, mtu)
    info = _text(_INFO_KIND, "veth") + _attribute(_INFO_DATA, _attribute(_VETH_INFO_PEER, other))
    attributes = _text(_IFLA_IFNAME, name) + _u32(_IFLA_MTU, mtu) + _attribute(_IFLA_LINKINFO, info)
    return NetlinkRequest(f"cable {name} to {peer}", _RTM_NEWLINK, _CREATE | _EXCL, _link(index, 0) + attributes)


def intermediate(name: str, index: int) -> NetlinkRequest:
    """Create an ifb: what is redirected to it passes its qdiscs and goes on from there (ifb.c). Index 0: any."""
    attributes = _text(_IFLA_IFNAME, name) + _attribute(_IFLA_LINKINFO, _text(_INFO_KIND, "ifb"))
    return NetlinkRequest(f"ifb {name}", _RTM_NEWLINK, _CREATE | _EXCL, _link(index, 0) + attributes)


def up(index: int) -> NetlinkRequest:
    """Set a device up."""
    return NetlinkRequest(f"device {index} up", _RTM_NEWLINK, 0, _link(index, _IFF_UP))


def down(index: int) -> NetlinkRequest:
    """Set a device down."""
    link = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, 0, _IFF_UP)
    return NetlinkRequest(f"device {index} down", _RTM_NEWLINK, 0, link)


def enslave(index: int, master: int) -> NetlinkRequest:
    """Put a device on a bridge; 0 takes it off."""
    return NetlinkRequest(f"device {index} on {master}", _RTM_NEWLINK, 0, _link(index, 0) + _u32(_IFLA_MASTER, master))


def bridge_port(index: int, **settings: bool) -> NetlinkRequest:
    """NetlinkRequest settings of a device as a bridge port, by their names in `BRIDGE_PORT`."""
    data = b"".join(_attribute(BRIDGE_PORT[name], bytes([on])) for name, on in settings.items())
    info = _text(_INFO_SLAVE_KIND, "bridge") + _attribute(_INFO_SLAVE_DATA, data)
    return NetlinkRequest(
        f"bridge port {index}: {settings}", _RTM_NEWLINK, 0, _link(index, 0) + _attribute(_IFLA_LINKINFO, info)
    )


def reached_through(index: int, mac: bytes) -> NetlinkRequest:
    """Have the device's bridge send frames for this MAC address to the device, as if it had learned that."""
    body = struct.pack("=BxxxiHBB", socket.AF_BRIDGE, index, _NUD_REACHABLE, _NTF_MASTER, 0)
    return NetlinkRequest(
        f"{mac.hex(':')} through device {index}", _RTM_NEWNEIGH, _CREATE | _REPLACE, body + _attribute(_NDA_LLADDR, mac)
    )


def hardware_address(index: int, mac: bytes) -> NetlinkRequest:
    """Give a device that is still down this MAC address."""
    return NetlinkRequest(
        f"{mac.hex(':')} of device {index}", _RTM_NEWLINK, 0, _link(index, 0) + _attribute(_IFLA_ADDRESS, mac)
    )


def queue(index: int, packets: int) -> NetlinkRequest:
    """Set the length of a device's queue; a classful qdisc takes its children's length from it."""
    return NetlinkRequest(f"queue of device {index}", _RTM_NEWLINK, 0, _link(index, 0) + _u32(_IFLA_TXQLEN, packets))


def without_addresses(index: int, *, mtu: int, queue_packets: int) -> NetlinkRequest:
    """Set MTU and queue length of a device that is still down, and let it have no IPv6 address."""
    attributes = _u32(_IFLA_MTU, mtu) + _u32(_IFLA_TXQLEN, queue_packets)
    # Below RFC 8200's minimum MTU, or without IPv6, the kernel refuses the attribute.
    if mtu >= _IPV6_MIN_MTU and _IF_INET6.exists():
        none = _attribute(_IFLA_INET6_ADDR_GEN_MODE, struct.pack("=B", _IN6_ADDR_GEN_MODE_NONE))
        attributes += _attribute(_IFLA_AF_SPEC, _attribute(socket.AF_INET6, none))
    return NetlinkRequest(f"device {index} without addresses", _RTM_NEWLINK, 0, _link(index, 0) + attributes)


def delete(index: int) -> NetlinkRequest:
    """Delete a device, and its peer with it."""
    return NetlinkRequest(f"delete device {index}", _RTM_DELLINK, 0, _link(index, 0))


def address(index: int, cidr: str) -> NetlinkRequest:
    """Add an address such as ``"172.18.0.2/16"`` to a device; without duplicate address detection (RFC 4862 5.4).

    Raises Refused for an IPv6 address if the kernel has no IPv6.
    """
    interface = ip_interface(cidr)
    if interface.version == 6 and not _IF_INET6.exists():
        raise Refused(
            f"this machine has no IPv6 (its kernel was started with ipv6.disable=1, or was built without), and a "
            f"network needs {cidr}: remove `enable_ipv6` and IPv6 subnets from the Compose file"
        )
    packed = interface.ip.packed
    family = socket.AF_INET if interface.version == 4 else socket.AF_INET6
    body = struct.pack("=BBBBI", family, interface.network.prefixlen, 0, 0, index)
    body += _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
    match interface:
        case IPv4Interface() if interface.network.prefixlen < 31:
            body += _attribute(_IFA_BROADCAST, interface.network.broadcast_address.packed)
        case IPv6Interface():
            body += _u32(_IFA_FLAGS, _IFA_F_NODAD)
    return NetlinkRequest(f"address {cidr}", _RTM_NEWADDR, _CREATE | _EXCL, body)


def route(destination: str, gateway: str) -> NetlinkRequest:
    """Add a route; the default route's destination is ``"0.0.0.0/0"``."""
    network, via = ip_network(destination), ip_address(gateway)
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    fields = (family, network.prefixlen, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, 0, _RTN_UNICAST, 0)
    body = struct.pack("=BBBBBBBBI", *fields)
    if network.prefixlen:
        body += _attribute(_RTA_DST, network.network_address.packed)
    body += _attribute(_RTA_GATEWAY, via.packed)
    return NetlinkRequest(f"route {destination} via {gateway}", _RTM_NEWROUTE, _CREATE | _EXCL, body)


class Netlink:
    """An rtnetlink socket; it stays in the network namespace where it was opened."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._socket.settimeout(20.0)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._socket.close()

    def apply(self, changes: Sequence[NetlinkRequest]) -> None:
        """Make the changes in order, continuing after one that fails. Raises Refused naming every failed one."""
        problems: list[str] = []
        for start in range(0, len(changes), _REQUESTS_AT_ONCE):
            problems += self._apply(changes[start : start + _REQUESTS_AT_ONCE])
        if problems:
            raise Refused("; ".join(problems))

    def _apply(self, changes: Sequence[NetlinkRequest]) -> list[str]:
        pending: dict[int, NetlinkRequest] = {}
        requests = b""
        for change in changes:
            self._sequence += 1
            pending[self._sequence] = change
            header = (16 + len(change.body), change.kind, _REQUEST | _ACK | change.flags, self._sequence, 0)
            requests += _padded(struct.pack("=IHHII", *header) + change.body)
        self._socket.send(requests)
        problems = []
        while pending:
            reply = self._socket.recv(65536)
            while reply:
                length, kind, _flags, sequence, _port = struct.unpack_from("=IHHII", reply)
                if kind == _NLMSG_ERROR and sequence in pending:
                    change = pending.pop(sequence)
                    (code,) = struct.unpack_from("=i", reply, 16)
                    if code:
                        problems.append(f"{change.description}: {_reason(-code)}")
                reply = reply[(length + 3) & ~3 :]
        return problems


def _reason(code: int) -> str:
    return f"{errno.errorcode.get(code, code)}, {os.strerror(code)}"


def _link(index: int, flags: int) -> bytes:
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, flags)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _attribute(kind: int, data: bytes) -> bytes:
    return _padded(struct.pack("=HH", 4 + len(data), kind) + data)


def _u32(kind: int, number: int) -> bytes:
    return _attribute(kind, struct.pack("=I", number))


def _text(kind: int, text: str) -> bytes:
    return _attribute(kind, text.encode() + b"\0")
