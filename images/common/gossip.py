"""A peer of a gossip: exchanges numbered datagrams with every other peer.

    gossip.py --peer ADDRESS/FLOW_OUT … [--messages N] [--size BYTES] [--rate PER_S] [--begin FILE] [--journal FILE] …

Each peer is one ``conn`` of the journal, counted from 1 in the order given. The program is ready when it has printed
"ready", and starts when the file exists. After its messages it sends each peer the end of the flow repeatedly, until
that is answered or the deadline has passed. Then it prints a line of JSON, and answers the ends of other peers' flows
until SIGTERM. Exit status: 0 if the kernel took every message and every flow's end was answered, else 1
(images/README.md).
"""

import argparse
import json
import os
import select
import socket
import sys
import time

import wire
from journal import JournalWriter, now_ns
from stopping import Stop

_REPEAT_END_S = 0.5
_POLL_S = 0.05


class Peer:
    """Another peer, and the flow to it."""

    def __init__(self, conn: int, text: str, port: int) -> None:
        host, _, flow = text.rpartition("/")
        self.conn, self.flow, self.address = conn, int(flow), (host, port)
        self.taken = 0
        self.ended = False


class Gossip:
    """One socket, and all peers."""

    def __init__(self, peers: list[Peer], options: argparse.Namespace, journal: JournalWriter) -> None:
        self._peers = {peer.address: peer for peer in peers}
        self._options, self._journal = options, journal
        self._errors = 0
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("", options.port))
        self.sock.setblocking(False)

    def _send(self, peer: Peer, data: bytes) -> int:
        try:
            return self.sock.sendto(data, peer.address)
        except OSError as error:
            self._errors += 1
            self._journal.error(peer.conn, "sendto", error)
            return 0

    def _send_message(self, peer: Peer, sequence: int) -> None:
        at_ns = now_ns()
        data = wire.frame(wire.MESSAGE, peer.flow, sequence, at_ns, self._options.size)
        taken = self._send(peer, data)
        self._journal.sent(at_ns, peer.conn, peer.flow, sequence, size=len(data), believed=taken, taken=taken)
        peer.taken += bool(taken)

    def _send_end(self, peer: Peer) -> None:
        if self._send(peer, wire.frame(wire.END, peer.flow, self._options.messages, now_ns())):
            self._journal.control(peer.conn, peer.flow, "sent")

    def read(self) -> None:
        """Read every datagram that has arrived; answer the ends of flows."""
        while True:
            try:
                data, address = self.sock.recvfrom(65535)
            except BlockingIOError:
                return
            except OSError as error:
                self._errors += 1
                self._journal.error(None, "recvfrom", error)
                continue
            peer, message = self._peers.get(address), wire.read_datagram(data)
            conn = peer.conn if peer is not None else 0
            if message is None:
                self._journal.unreadable(conn, len(data))
            elif message.kind == wire.ENDED:
                self._journal.control(conn, -1 - message.flow, "received")
                if peer is not None:
                    peer.ended = True
            elif message.kind == wire.END:
                self._journal.control(conn, message.flow, "received")
                answer = wire.frame(wire.ENDED, message.flow, message.sequence, now_ns())
                if peer is not None and self._send(peer, answer):
                    self._journal.control(conn, -1 - message.flow, "sent")
            else:
                self._journal.received(conn, message)

    def run(self, stop: Stop) -> None:
        """Send messages when they are due, to the peers in turn; then the ends; then read until asked to stop."""
        options, peers = self._options, list(self._peers.values())
        poll = select.poll()
        poll.register(stop, select.POLLIN)
        poll.register(self.sock, select.POLLIN)
        while options.begin and not os.path.exists(options.begin) and not stop.requested:
            poll.poll(1000 * _POLL_S)
            self.read()
        began = time.monotonic()
        deadline, number, end_at, reported = began + options.deadline, 0, began, False
        total = options.messages * len(peers)
        while not stop.requested:
            now = time.monotonic()
            due = deadline
            if number < total:
                due = began + number / (options.rate * len(peers))
                if now >= due:
                    self._send_message(peers[number % len(peers)], number // len(peers))
                    number, end_at = number + 1, now
                    continue
            elif not all(peer.ended for peer in peers) and now < deadline:
                if now >= end_at:
                    for peer in peers:
                        if not peer.ended:
                            self._send_end(peer)
                    end_at = now + _REPEAT_END_S
                due = end_at
            elif not reported:
                reported = True
                self.report()
            poll.poll(None if reported else 1000 * max(0.0, min(due, deadline) - time.monotonic()))
            self.read()

    def report(self) -> None:
        """Print the counts."""
        peers = self._peers.values()
        done = {"taken": sum(peer.taken for peer in peers), "ended": sum(peer.ended for peer in peers)}
        print(json.dumps({"messages": self._options.messages * len(peers), **done, "errors": self._errors}), flush=True)

    @property
    def complete(self) -> bool:
        """Whether the kernel took every message, and every end was answered."""
        return all(peer.taken == self._options.messages and peer.ended for peer in self._peers.values())


def main() -> int:
    """Run one peer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8904)
    parser.add_argument("--peer", action="append", default=[], metavar="ADDRESS/FLOW", help="repeatable")
    parser.add_argument("--messages", type=int, default=10, metavar="N", help="per peer (default: 10)")
    parser.add_argument(
        "--size", type=int, default=100, metavar="BYTES", help="size of a message, 28 of header included"
    )
    parser.add_argument("--rate", type=float, default=10.0, metavar="PER_S", help="messages per second and peer")
    parser.add_argument("--begin", metavar="FILE", help="start when this file exists (default: at once)")
    parser.add_argument("--deadline", type=float, default=60.0, metavar="SECONDS", help="after the start (default: 60)")
    parser.add_argument("--journal", metavar="FILE")
    options = parser.parse_args()
    if not wire.HEADER_BYTES <= options.size <= 65507:
        parser.error(f"--size {options.size}: a datagram holds {wire.HEADER_BYTES} to 65507 bytes")
    if not options.peer or options.messages < 1 or options.rate <= 0:
        parser.error("--peer: at least one; --messages: 1 or more; --rate: more than 0")
    stop = Stop()
    peers = [Peer(conn, text, options.port) for conn, text in enumerate(options.peer, start=1)]
    with JournalWriter(options.journal, program="gossip.py", transport="udp") as journal:
        gossip = Gossip(peers, options, journal)
        print("ready", flush=True)
        gossip.run(stop)
        gossip.read()
        for peer in peers:
            journal.close(peer.conn, "done" if peer.ended else "stop", gossip.sock)
        gossip.sock.close()
        return 0 if gossip.complete else 1


if __name__ == "__main__":
    sys.exit(main())
