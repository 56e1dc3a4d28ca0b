"""A UDP client: numbered messages of a size, at a rate, over flows; nothing is sent twice.

    udp_client.py HOST [PORT] [--connections C] [--messages N] [--size BYTES] [--rate PER_S] [--replies] …

Each flow has a socket of its own. After its messages it says that this was all, until that is answered or the
deadline is over. Exit status: 0 if every message was taken by the kernel, every flow's end was heard and, with
``--replies``, every message was answered; else 1 (images/README.md).
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

_SAY_AGAIN_S = 0.2


class Flow:
    """One socket and its messages."""

    def __init__(self, number: int, conn: int, options: argparse.Namespace, journal: Journal) -> None:
        self.number, self.conn, self.options, self.journal = number, conn, options, journal
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        began_ns = now_ns()
        self.sock.connect((options.host, options.port))
        self.sock.setblocking(False)
        journal.connect(conn, began_ns, self.sock)
        self.taken = self.answered = self.errors = 0
        self.ended = False

    def send(self, sequence: int) -> None:
        """Send the next message."""
        at_ns = now_ns()
        kind = wire.REQUEST if self.options.replies else wire.MESSAGE
        data = wire.frame(kind, self.number, sequence, at_ns, self.options.size)
        taken = self._send(data)
        self.journal.sent(at_ns, self.conn, self.number, sequence, size=len(data), believed=taken, taken=taken)
        self.taken += bool(taken)

    def say_end(self) -> None:
        """Say that this was all."""
        if self._send(wire.frame(wire.END, self.number, self.options.messages, now_ns())):
            self.journal.control(self.conn, self.number, "sent")

    def _send(self, data: bytes) -> int:
        try:
            return self.sock.send(data)
        except OSError as error:  # ECONNREFUSED belongs to a datagram before: this one was not sent (ip(7))
            self.errors += 1
            self.journal.error(self.conn, "send", error)
            return 0

    def read(self) -> None:
        """Take every datagram that is there."""
        while True:
            try:
                data = self.sock.recv(65535)
            except BlockingIOError:
                return
            except OSError as error:
                self.errors += 1
                self.journal.error(self.conn, "recv", error)
                continue
            message = wire.read_datagram(data)
            if message is None:
                self.journal.received(self.conn, None, None, size=len(data), sent_ns=None, state=wire.CORRUPT)
            elif message.kind == wire.ENDED:
                self.journal.control(self.conn, -1 - message.flow, "received")
                self.ended = True
            else:
                self.answered += message.state == wire.WHOLE
                self.journal.received(
                    self.conn, message.flow, message.sequence,
                    size=message.size_bytes, sent_ns=message.sent_ns, state=message.state,
                )  # fmt: skip


def run(flows: list[Flow], options: argparse.Namespace, stop: Stop) -> None:
    """All flows at once: each message when it is due, then the end."""
    poll = select.poll()
    poll.register(stop, select.POLLIN)
    for flow in flows:
        poll.register(flow.sock, select.POLLIN)
    began = time.monotonic()
    deadline = began + options.deadline
    sequence, say_at = 0, began
    while not stop.asked and time.monotonic() < deadline and not all(flow.ended for flow in flows):
        now = time.monotonic()
        if sequence < options.messages:
            due = began + (sequence / options.rate if options.rate else 0.0)
            if now >= due:
                for flow in flows:
                    flow.send(sequence)
                sequence, say_at = sequence + 1, now
                due = now if not options.rate else began + sequence / options.rate
        else:
            if now >= say_at:
                for flow in flows:
                    if not flow.ended:
                        flow.say_end()
                say_at = now + _SAY_AGAIN_S
            due = say_at
        poll.poll(max(0.0, 1000 * (min(due, deadline) - time.monotonic())))
        for flow in flows:
            flow.read()


def main() -> int:
    """Run all flows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("host", nargs="?", default=os.environ.get("SERVER_HOST", "localhost"))
    parser.add_argument("port", nargs="?", type=int, default=int(os.environ.get("SERVER_UDP_PORT", "8889")))
    parser.add_argument("--connections", type=int, default=1, metavar="C")
    parser.add_argument("--messages", type=int, default=1, metavar="N", help="of each flow (default: 1)")
    parser.add_argument(
        "--size", type=int, default=100, metavar="BYTES", help="of a message, its header of 28 included"
    )
    parser.add_argument(
        "--rate", type=float, default=100.0, metavar="PER_S", help="messages a second of each flow; 0: no limit"
    )
    parser.add_argument("--replies", action="store_true", help="ask for a reply to each message")
    parser.add_argument("--first-flow", type=int, default=0, metavar="N")
    parser.add_argument("--deadline", type=float, default=60.0, metavar="SECONDS", help="for everything (default: 60)")
    parser.add_argument("--journal", metavar="FILE")
    options = parser.parse_args()
    if not wire.HEADER_BYTES <= options.size <= 65507:
        parser.error(f"--size {options.size}: a datagram holds {wire.HEADER_BYTES} to 65507 bytes")
    if options.connections < 1 or options.messages < 0 or options.rate < 0:
        parser.error("--connections: 1 or more; --messages and --rate: 0 or more")
    stop = Stop()
    with Journal(options.journal, program="udp_client.py", transport="udp") as journal:
        flows = [
            Flow(options.first_flow + number, number + 1, options, journal) for number in range(options.connections)
        ]
        run(flows, options, stop)
        for flow in flows:
            journal.close(flow.conn, "done" if flow.ended else "stop", flow.sock)
            flow.sock.close()
    wanted = options.connections * options.messages
    done = {name: sum(getattr(flow, name) for flow in flows) for name in ("taken", "answered", "errors", "ended")}
    print(json.dumps({"messages": wanted, **done}), flush=True)
    complete = done["taken"] == wanted and done["ended"] == len(flows)
    return 0 if complete and (not options.replies or done["answered"] >= wanted) else 1


if __name__ == "__main__":
    sys.exit(main())
