"""A UDP client: sends numbered messages over flows, each message once.

    udp_client.py HOST [PORT] [--connections C] [--messages N] [--size BYTES] [--rate PER_S] [--replies] …

Each flow has a socket of its own. After its messages it sends its end repeatedly, until that is answered or the
deadline has passed. Exit status: 0 if the kernel took every message, every flow's end was answered and, with
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
from journal import JournalWriter, now_ns
from stopping import Stop

_REPEAT_END_S = 0.2


class UdpFlow:
    """One socket and its messages."""

    def __init__(self, number: int, conn: int, options: argparse.Namespace, journal: JournalWriter) -> None:
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

    def send_end(self) -> None:
        """Send the end of the flow."""
        if self._send(wire.frame(wire.END, self.number, self.options.messages, now_ns())):
            self.journal.control(self.conn, self.number, "sent")

    def _send(self, data: bytes) -> int:
        try:
            return self.sock.send(data)
        except OSError as error:  # ECONNREFUSED concerns an earlier datagram; this one was not sent (ip(7))
            self.errors += 1
            self.journal.error(self.conn, "send", error)
            return 0

    def read(self) -> None:
        """Read every datagram that has arrived."""
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
                self.journal.unreadable(self.conn, len(data))
            elif message.kind == wire.ENDED:
                self.journal.control(self.conn, -1 - message.flow, "received")
                self.ended = True
            else:
                self.answered += message.state == wire.WHOLE
                self.journal.received(self.conn, message)


def run(flows: list[UdpFlow], options: argparse.Namespace, stop: Stop) -> None:
    """Run all flows at once: send each message when it is due, then the end."""
    poll = select.poll()
    poll.register(stop, select.POLLIN)
    for flow in flows:
        poll.register(flow.sock, select.POLLIN)
    began = time.monotonic()
    deadline = began + options.deadline
    sequence, end_at = 0, began
    while not stop.requested and time.monotonic() < deadline and not all(flow.ended for flow in flows):
        now = time.monotonic()
        if sequence < options.messages:
            due = began + (sequence / options.rate if options.rate else 0.0)
            if now >= due:
                for flow in flows:
                    flow.send(sequence)
                sequence, end_at = sequence + 1, now
                due = now if not options.rate else began + sequence / options.rate
        else:
            if now >= end_at:
                for flow in flows:
                    if not flow.ended:
                        flow.send_end()
                end_at = now + _REPEAT_END_S
            due = end_at
        poll.poll(max(0.0, 1000 * (min(due, deadline) - time.monotonic())))
        for flow in flows:
            flow.read()


def main() -> int:
    """Run all flows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("host", nargs="?", default=os.environ.get("SERVER_HOST", "localhost"))
    parser.add_argument("port", nargs="?", type=int, default=int(os.environ.get("SERVER_UDP_PORT", "8889")))
    parser.add_argument("--connections", type=int, default=1, metavar="C")
    parser.add_argument("--messages", type=int, default=1, metavar="N", help="per flow (default: 1)")
    parser.add_argument(
        "--size", type=int, default=100, metavar="BYTES", help="size of a message, 28 of header included"
    )
    parser.add_argument(
        "--rate", type=float, default=100.0, metavar="PER_S", help="messages per second and flow; 0: no limit"
    )
    parser.add_argument("--replies", action="store_true", help="request a reply to each message")
    parser.add_argument("--first-flow", type=int, default=0, metavar="N")
    parser.add_argument("--deadline", type=float, default=60.0, metavar="SECONDS", help="for everything (default: 60)")
    parser.add_argument("--journal", metavar="FILE")
    options = parser.parse_args()
    if not wire.HEADER_BYTES <= options.size <= 65507:
        parser.error(f"--size {options.size}: a datagram holds {wire.HEADER_BYTES} to 65507 bytes")
    if options.connections < 1 or options.messages < 0 or options.rate < 0:
        parser.error("--connections: 1 or more; --messages and --rate: 0 or more")
    stop = Stop()
    with JournalWriter(options.journal, program="udp_client.py", transport="udp") as journal:
        numbers = range(options.connections)
        flows = [UdpFlow(options.first_flow + number, number + 1, options, journal) for number in numbers]
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
