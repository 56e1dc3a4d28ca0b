"""Packets that a filter might take for somebody else's: python3 crossing.py COMMAND ARGUMENTS…

send ADDRESS PORT BYTES COUNT [SOURCE]      datagrams, from an address of one's own
forge ADDRESS PORT COUNT MAC SOURCE MARK    frames from any MAC and IPv4 address, with a mark and a priority
tagged ADDRESS PORT COUNT TYPE              frames of this type (8100: an IPv4 packet with a VLAN's tag), without answer
received SEEN                               how many frames the interface with an address has had
ask ADDRESS PORT BYTES [COUNT]              exchanges, one after the other, their time in seconds
echo PORT                                   the other side of that, over both families
address CIDR                                another IPv4 address for the interface that has the network
interface MAC SEEN                          another MAC address for the interface that has an address
macvlan CIDR ADDRESS PORT COUNT             datagrams from a macvlan with this address, which goes afterwards
"""

import errno
import fcntl
import ipaddress
import socket
import struct
import sys
import time
from pathlib import Path


def udp(address: str) -> socket.socket:
    """A socket of the address' family."""
    return socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)


def send(address: str, port: str, size: str, count: str, source: str = "") -> None:
    """Numbered datagrams, no faster than a receiver's buffer takes them."""
    with udp(address) as sender:
        if source:
            sender.bind((source, 0))
        for _ in range(int(count)):
            sender.sendto(bytes(int(size)), (address, int(port)))
            time.sleep(0.002)


def checksum(data: bytes) -> int:
    """RFC 1071, of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return 0xFFFF - ((total + (total >> 16)) & 0xFFFF)


def interface_of(address: str) -> str:
    """The name of the interface that has this address, or is on its network."""
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            interfaces = []
            for request in (0x8915, 0x891B):  # SIOCGIFADDR, SIOCGIFNETMASK
                try:
                    answer = fcntl.ioctl(asking, request, struct.pack("16s24x", name.encode()))
                except OSError:
                    break
                interfaces.append(socket.inet_ntoa(answer[20:24]))
        if len(interfaces) == 2 and ipaddress.ip_address(address) in ipaddress.ip_network(
            "/".join(interfaces), strict=False
        ):
            return name
    raise SystemExit(f"no interface is on the network of {address}")


def neighbour(address: str, port: str) -> bytes:
    """The MAC address of a neighbour, once it has been asked, for the sake of a datagram."""
    send(address, port, "1", "1")
    for _ in range(200):
        for line in Path("/proc/net/arp").read_text().splitlines()[1:]:
            if line.split()[0] == address and line.split()[3] != "00:00:00:00:00:00":
                return bytes.fromhex(line.split()[3].replace(":", ""))
        time.sleep(0.01)
    raise SystemExit(f"{address} did not answer")


def forge(address: str, port: str, count: str, mac: str, source: str, mark: str) -> None:
    """Whatever a host may write on its own cable."""
    packet = struct.pack("!HHHH", 40000, int(port), 9, 0) + b"7"
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(packet), 1, 0, 64, 17, 0)
    ip += socket.inet_aton(source) + socket.inet_aton(address)
    ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    frame = neighbour(address, port) + bytes.fromhex(mac.replace(":", "")) + b"\x08\x00" + ip + packet
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, int(mark))
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 0x10000)
        wire.bind((interface_of(address), 0))
        for _ in range(int(count)):
            wire.send(frame)


def tagged(address: str, port: str, count: str, kind: str) -> None:
    """As an interface of a VLAN sends, or a program that speaks no IP."""
    name = interface_of(address)
    own = bytes.fromhex(Path(f"/sys/class/net/{name}/address").read_text().strip().replace(":", ""))
    frame = neighbour(address, port) + own + bytes.fromhex(kind) + struct.pack("!HH", 7, 0x0800) + bytes(100)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind((name, 0))
        for _ in range(int(count)):
            wire.send(frame)


def received(seen: str) -> None:
    """By proc_pid_net(5), dev."""
    rows = [line.replace(":", " ").split() for line in Path("/proc/net/dev").read_text().splitlines()]
    print(next(row[2] for row in rows if row[0] == interface_of(seen)))


def ask(address: str, port: str, size: str, count: str = "1") -> None:
    """Exchanges. All answers are awaited: those to a closed socket would be answered by ICMP errors."""
    with udp(address) as asking:
        asking.settimeout(3)
        asking.connect((address, int(port)))
        begun = time.monotonic()
        for _ in range(int(count)):
            asking.send(bytes(int(size)))
            asking.recv(65536)
        print(time.monotonic() - begun)


def echo(port: str) -> None:
    """Send back one byte for each datagram, from the address that it came to."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as echoing:
        echoing.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        echoing.bind(("::", int(port)))
        print("ready", flush=True)
        while True:
            _, whom = echoing.recvfrom(65536)
            echoing.sendto(b"x", whom)


def request(kind: int, flags: int, body: bytes, *allowed: int) -> None:
    """One change by rtnetlink(7); some errors are as good."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as kernel:
        kernel.send(struct.pack("=IHHII", 16 + len(body), kind, 0x1 | 0x4 | flags, 1, 0) + body)
        (code,) = struct.unpack_from("=i", kernel.recv(4096), 16)
    if code and -code not in allowed:
        raise SystemExit(f"rtnetlink request {kind}: {-code}")


def attribute(kind: int, data: bytes) -> bytes:
    """Padded to four bytes."""
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def add_address(index: int, cidr: str) -> None:
    """As ``ip address add``: RTM_NEWADDR."""
    one = ipaddress.ip_interface(cidr)
    body = struct.pack("=BBBBI", socket.AF_INET, one.network.prefixlen, 0, 0, index)
    body += b"".join(attribute(kind, one.ip.packed) for kind in (1, 2))  # IFA_ADDRESS, IFA_LOCAL
    request(20, 0x400, body, errno.EEXIST)


def address(cidr: str) -> None:
    """Another address for an interface."""
    add_address(socket.if_nametoindex(interface_of(str(ipaddress.ip_interface(cidr).ip))), cidr)


def macvlan(cidr: str, address: str, port: str, count: str) -> None:
    """As ``ip link add link … type macvlan mode bridge``, up, and packets through it alone."""
    beneath = socket.if_nametoindex(interface_of(address))
    mode = attribute(2, attribute(1, struct.pack("=I", 4)))  # IFLA_INFO_DATA, IFLA_MACVLAN_MODE, bridge
    info = attribute(18, attribute(1, b"macvlan\0") + mode)  # IFLA_LINKINFO, IFLA_INFO_KIND
    names = attribute(3, b"mv\0") + attribute(5, struct.pack("=I", beneath))  # IFLA_IFNAME, IFLA_LINK
    request(16, 0x400 | 0x200, struct.pack("=BxHiII", 0, 0, 0, 1, 1) + names + info)
    index = socket.if_nametoindex("mv")
    try:
        add_address(index, cidr)
        with udp(address) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"mv")
            for _ in range(int(count)):
                sender.sendto(b"7", (address, int(port)))
                time.sleep(0.01)
    finally:
        request(17, 0, struct.pack("=BxHiII", 0, 0, index, 0, 0))


def interface(mac: str, seen: str) -> None:
    """As ``ip link set address`` (netdevice(7), SIOCSIFHWADDR)."""
    name = interface_of(seen)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        request = struct.pack("16sH6s16x", name.encode(), 1, bytes.fromhex(mac.replace(":", "")))
        fcntl.ioctl(asking, 0x8924, request)


if __name__ == "__main__":
    {command.__name__: command for command in (send, forge, tagged, received, ask, echo, address, interface, macvlan)}[
        sys.argv[1]
    ](*sys.argv[2:])
