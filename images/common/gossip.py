"""A peer of a gossip: numbered datagrams to every peer, and from every one of them.

    gossip.py --peer ADDRESS/FLOW_OUT … [--messages N] [--size BYTES] [--rate PER_S] [--begin FILE] [--journal FILE] …

Each peer is one ``conn`` of the journal, counted from 1 in the order given. Ready when it has printed "ready"; it
begins once the file is there. To each peer it says that this was all, until that is answered or the deadline is over;
then it prints a line of JSON and answers the others' words until SIGTERM. Exit status: 0 if every message was taken by
the kernel and every flow's end was heard, else 1 (images/README.md).
"""

import argparse
import json
import os
import select
import socket
import sys
import time

import wire
from journal import Journal, now_ns
from stopping import Stop

_SAY_AGAIN_S = 0.5
_LOOK_AGAIN_S = 0.05


class Peer:
    """One other, and what is sent to it."""

    def __init__(self, conn: int, text: str, port: int) -> None:
        host, _, flow = text.rpartition("/")
        self.conn, self.flow, self.address = conn, int(flow), (host, port)
        self.taken = 0
        self.ended = False


class Gossip:
    """One socket, and everybody that is spoken to."""

    def __init__(self, peers: list[Peer], options: argparse.Namespace, journal: Journal) -> None:
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

    def _say(self, peer: Peer, sequence: int) -> None:
        at_ns = now_ns()
        data = wire.frame(wire.MESSAGE, peer.flow, sequence, at_ns, self._options.size)
        taken = self._send(peer, data)
        self._journal.sent(at_ns, peer.conn, peer.flow, sequence, size=len(data), believed=taken, taken=taken)
        peer.taken += bool(taken)

    def _say_end(self, peer: Peer) -> None:
        if self._send(peer, wire.frame(wire.END, peer.flow, self._options.messages, now_ns())):
            self._journal.control(peer.conn, peer.flow, "sent")

    def read(self) -> None:
        """Take every datagram that is there; answer the words that a flow has ended."""
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
                self._journal.received(conn, None, None, size=len(data), sent_ns=None, state=wire.CORRUPT)
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
                self._journal.received(
                    conn, message.flow, message.sequence, size=message.size_bytes, sent_ns=message.sent_ns,
                    state=message.state,
                )  # fmt: skip

    def run(self, stop: Stop) -> None:
        """Every message when it is due, the peers in turn; then the end; then listen until asked to stop."""
        options, peers = self._options, list(self._peers.values())
        poll = select.poll()
        poll.register(stop, select.POLLIN)
        poll.register(self.sock, select.POLLIN)
        while options.begin and not os.path.exists(options.begin) and not stop.asked:
            poll.poll(1000 * _LOOK_AGAIN_S)
            self.read()
        began = time.monotonic()
        deadline, number, say_at, told = began + options.deadline, 0, began, False
        total = options.messages * len(peers)
        while not stop.asked:
            now = time.monotonic()
            due = deadline
            if number < total:
                due = began + number / (options.rate * len(peers))
                if now >= due:
                    self._say(peers[number % len(peers)], number // len(peers))
                    number, say_at = number + 1, now
                    continue
            elif not all(peer.ended for peer in peers) and now < deadline:
                if now >= say_at:
                    for peer in peers:
                        if not peer.ended:
                            self._say_end(peer)
                    say_at = now + _SAY_AGAIN_S
                due = say_at
            elif not told:
                told = True
                self.tell()
            poll.poll(None if told else 1000 * max(0.0, min(due, deadline) - time.monotonic()))
            self.read()

    def tell(self) -> None:
        """Print what became of it."""
        peers = self._peers.values()
        done = {"taken": sum(peer.taken for peer in peers), "ended": sum(peer.ended for peer in peers)}
        print(json.dumps({"messages": self._options.messages * len(peers), **done, "errors": self._errors}), flush=True)

    @property
    def complete(self) -> bool:
        """Whether all was sent, and every end heard."""
        return all(peer.taken == self._options.messages and peer.ended for peer in self._peers.values())


def main() -> int:
    """Talk with everybody."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8904)
    parser.add_argument("--peer", action="append", default=[], metavar="ADDRESS/FLOW", help="repeatable")
    parser.add_argument("--messages", type=int, default=10, metavar="N", help="to each peer (default: 10)")
    parser.add_argument(
        "--size", type=int, default=100, metavar="BYTES", help="of a message, its header of 28 included"
    )
    parser.add_argument("--rate", type=float, default=10.0, metavar="PER_S", help="messages a second to each peer")
    parser.add_argument("--begin", metavar="FILE", help="begin once this file is there (default: at once)")
    parser.add_argument("--deadline", type=float, default=60.0, metavar="SECONDS", help="from then on (default: 60)")
    parser.add_argument("--journal", metavar="FILE")
    options = parser.parse_args()
    if not wire.HEADER_BYTES <= options.size <= 65507:
        parser.error(f"--size {options.size}: a datagram holds {wire.HEADER_BYTES} to 65507 bytes")
    if not options.peer or options.messages < 1 or options.rate <= 0:
        parser.error("--peer: at least one; --messages: 1 or more; --rate: more than 0")
    stop = Stop()
    peers = [Peer(conn, text, options.port) for conn, text in enumerate(options.peer, start=1)]
    with Journal(options.journal, program="gossip.py", transport="udp") as journal:
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
