"""Who answers where: TCP connections, datagrams and pings, and what the sender's kernel says of each.

knock.py open PORT …             listen on TCP and echo datagrams on each port, both families
knock.py at KIND/ADDRESS/PORT …  knock once each; prints [outcome, seconds] of each: "ok", an errno's name, "silence"
knock.py hold ADDRESS PORT       connect, print "held"; once there is /tmp/go, send; prints how it ended
"""

import errno
import json
import os
import selectors
import socket
import sys
import time

_PATIENCE_S = 0.6


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def serve(ports: list[int]) -> None:
    """Listen, and echo, for ever."""
    ready = selectors.DefaultSelector()
    for port in ports:
        for family in (socket.AF_INET, socket.AF_INET6):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                listener = socket.socket(family, kind)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind(("", port))
                if kind == socket.SOCK_STREAM:
                    listener.listen(64)
                ready.register(listener, selectors.EVENT_READ)
    held = []
    print("ready", flush=True)
    while True:
        for key, _ in ready.select():
            caller = key.fileobj
            assert isinstance(caller, socket.socket)
            if caller.type == socket.SOCK_STREAM:
                held.append(caller.accept()[0])
            else:
                data, peer = caller.recvfrom(99)
                caller.sendto(data, peer)


def knock(where: str) -> tuple[str, float]:
    """One knock; what came back, and after how many seconds."""
    kind, address, port = where.split("/")
    target = socket.getaddrinfo(address, int(port) or None, _family(address))[0][4]
    began = time.monotonic()
    try:
        if kind == "tcp":
            with socket.socket(_family(address), socket.SOCK_STREAM) as probe:
                probe.settimeout(_PATIENCE_S)
                probe.connect(target)
        else:
            protocol, word = 0, b"word"
            if kind == "icmp":
                new = ":" in address
                protocol = socket.IPPROTO_ICMPV6 if new else socket.IPPROTO_ICMP
                word = bytes([128 if new else 8]) + bytes(7)
            with socket.socket(_family(address), socket.SOCK_DGRAM, protocol) as probe:
                probe.settimeout(_PATIENCE_S)
                probe.connect(target)
                probe.send(word)
                probe.recv(99)
        outcome = "ok"
    except TimeoutError:
        outcome = "silence"
    except OSError as error:
        outcome = errno.errorcode.get(error.errno or 0, str(error))
    return outcome, time.monotonic() - began


def hold(address: str, port: int) -> None:
    """A connection that lasts until it breaks."""
    with socket.create_connection((address, port), timeout=5) as connection:
        print("held", flush=True)
        try:
            while not os.path.exists("/tmp/go"):
                time.sleep(0.01)
            connection.sendall(b"word")
            connection.recv(1)
        except OSError as error:
            print(errno.errorcode.get(error.errno or 0, str(error)))


if __name__ == "__main__":
    if sys.argv[1] == "open":
        serve([int(word) for word in sys.argv[2:]])
    elif sys.argv[1] == "at":
        print(json.dumps([knock(word) for word in sys.argv[2:]]))
    else:
        hold(sys.argv[2], int(sys.argv[3]))
