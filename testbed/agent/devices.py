"""Network devices of this machine's kernel: read from /sys/class/net, and set up, by name or index."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from . import splice
from .netlink import Netlink, delete, queue, up, without_addresses
from .protocol import Refused

SYS_NET = Path("/sys/class/net")
_NET_ADDR_SET, _SIOCGIFADDR = "3", 0x8915  # linux/netdevice.h, linux/sockios.h
_SIOCGIFCONF, _IFREQ_BYTES = 0x8912, 40  # linux/sockios.h, linux/if.h
_WAY_OUT = "tbo"
_IF_INET6 = Path("/proc/net/if_inet6")
QUEUE_PACKETS = 1000
"""Of each device of ours: a classful qdisc takes its children's length from it, and Docker's veths have none."""


def device(name: str) -> splice.Device:
    """A device as it is now."""
    folder = SYS_NET / name
    try:
        flags = int((folder / "flags").read_text(), 16)
    except OSError:
        return splice.Device(name=name, flags=None)
    try:
        carrier = (folder / "carrier").read_text().strip() == "1"
    except OSError:  # the device is down
        carrier = False
    try:
        master = (folder / "master").readlink().name
    except OSError:
        master = None
    return splice.Device(name=name, flags=flags, carrier=carrier, master=master)


def name_of(ifindex: int) -> str:
    """The name of the device with this index. Raises Refused."""
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        raise Refused(
            f"no interface with index {ifindex} here; is the agent on the engine's host network? "
            f"Where no container can enter that network, as with a rootless Podman: --lab within"
        ) from None


def index_of(device: str) -> int | None:
    """The index of a device; None if it does not exist."""
    try:
        return int((SYS_NET / device / "ifindex").read_text())
    except OSError:
        return None


def mac(device: str) -> bytes:
    """A device's MAC address. Raises OSError if the device is gone."""
    return bytes.fromhex((SYS_NET / device / "address").read_text().strip().replace(":", ""))


def gateway(bridge: str) -> dict[str, Any] | None:
    """A bridge's own ``ifindex``, ``mac`` and ``addresses``; None if it has none that stay.

    NAT may give the addresses to others' packets.

    Without a MAC address that was set, a bridge takes one of its ports', and another as they come and go.
    """
    try:
        is_set = (SYS_NET / bridge / "addr_assign_type").read_text().strip() == _NET_ADDR_SET
        addresses = [*_ipv4(bridge), *_ipv6(bridge)]
        own = {"ifindex": index_of(bridge), "mac": mac(bridge).hex(":"), "addresses": addresses}
        return own if is_set and addresses else None
    except OSError:  # it is gone
        return None


def _ipv4(device: str) -> list[str]:
    """A device's first address, which MASQUERADE takes; netdevice(7)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            reply = fcntl.ioctl(any_socket, _SIOCGIFADDR, struct.pack("16s16x", device.encode()))
        except OSError:  # it has none
            return []
    return [socket.inet_ntoa(reply[20:24])]


def _ipv6(device: str) -> list[str]:
    """A device's global addresses; empty on a machine without IPv6."""
    try:
        rows = [line.split() for line in Path("/proc/net/if_inet6").read_text().splitlines()]
    except OSError:
        return []
    return [
        socket.inet_ntop(socket.AF_INET6, bytes.fromhex(address))
        for address, _, _, scope, _, name in rows
        if name == device and scope == "00"
    ]


def own_addresses() -> list[str]:
    """Every address of this machine but loopback's; netdevice(7), SIOCGIFCONF."""
    size = 64 * 1024
    room = ctypes.create_string_buffer(size)
    request = struct.pack("iP", size, ctypes.addressof(room))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        used, _ = struct.unpack("iP", fcntl.ioctl(any_socket, _SIOCGIFCONF, request))
    ipv4 = [socket.inet_ntoa(room.raw[at + 20 : at + 24]) for at in range(0, used, _IFREQ_BYTES)]
    rows = [line.split() for line in _IF_INET6.read_text().splitlines()] if _IF_INET6.exists() else []
    ipv6 = [socket.inet_ntop(socket.AF_INET6, bytes.fromhex(row[0])) for row in rows]
    return [address for address in dict.fromkeys([*ipv4, *ipv6]) if not ip_address(address).is_loopback]


def is_bridge(name: str) -> bool:
    """Whether a device is a bridge."""
    return (SYS_NET / name / "bridge").exists()


def is_interface(ifindex: int) -> bool:
    """Whether a device with this index exists."""
    try:
        socket.if_indextoname(ifindex)
    except OSError:
        return False
    return True


def statistic(device: str, name: str) -> int:
    """One of a device's counters, by the kernel's name for it. Raises OSError if the device is gone."""
    return int((SYS_NET / device / "statistics" / name).read_text())


def set_queue(ifindex: int, packets: int) -> None:
    """Set the length of a device's queue."""
    with Netlink() as here:
        here.apply([queue(ifindex, packets)])


def have_up(tap: str, *, mtu: int, queue_packets: int) -> None:
    """Set a tap up that is on no bridge and has no address."""
    index = socket.if_nametoindex(tap)
    with Netlink() as here:
        here.apply([without_addresses(index, mtu=mtu, queue_packets=queue_packets), up(index)])


def way_out_of(ifindex: int) -> str:
    """The name of the ifb that packets from a host pass; ``ifindex``: of the veth."""
    return f"{_WAY_OUT}{ifindex}"


def delete_ways_out(*veths: int) -> None:
    """Delete the ifbs of these veths, and of those that are gone, which an agent that was killed has left."""
    indexes = {index for index, _ in socket.if_nameindex()}
    for index, name in socket.if_nameindex():
        number = name.removeprefix(_WAY_OUT)
        if number != name and number.isdecimal() and (int(number) in veths or int(number) not in indexes):
            with Netlink() as here:
                here.apply([delete(index)])


def delete_device(name: str) -> None:
    """Delete a device that was made, such as a persistent tap."""
    with Netlink() as here:
        here.apply([delete(socket.if_nametoindex(name))])
