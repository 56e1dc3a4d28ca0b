"""Print the way to an address as JSON, hop by hop: ``route.py ADDRESS``.

Datagrams with a time to live of 1, 2, … are sent; who lets one die says so (ICMP, RFC 792), and the target itself
says that nobody listens there. The kernel hands these words over in the socket's error queue; ip(7), IP_RECVERR.
"""

import json
import select
import socket
import struct
import sys

IP_RECVERR, IPV6_RECVERR = 11, 25
PORT, MOST_HOPS, WITHIN_S = 33434, 16, 5.0


def offender(ttl: int, target: str) -> str:
    """Who answered a datagram of this time to live."""
    old = ":" not in target
    family = socket.AF_INET if old else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        if old:
            probe.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
            probe.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        else:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
            probe.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
        probe.sendto(b"?", (target, PORT))
        waiting = select.poll()
        waiting.register(probe, select.POLLERR)
        if not waiting.poll(WITHIN_S * 1000):
            sys.exit(f"nobody answered a datagram with {ttl} hops to live within {WITHIN_S:g} s")
        _, words, _, _ = probe.recvmsg(64, 512, socket.MSG_ERRQUEUE)
    # linux/errqueue.h: struct sock_extended_err, 16 bytes, then the offender's socket address.
    _, _, data = words[0]
    address = data[16:]
    (kind,) = struct.unpack_from("=H", address)
    return socket.inet_ntop(kind, address[4:8] if kind == socket.AF_INET else address[8:24])


def main() -> None:
    """Ask with ever more hops until the target itself answers."""
    target, hops = sys.argv[1], []
    for ttl in range(1, MOST_HOPS + 1):
        hops.append(offender(ttl, target))
        if hops[-1] == target:
            break
    print(json.dumps(hops))


if __name__ == "__main__":
    main()
