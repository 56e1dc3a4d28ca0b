"""A TCP client: sends numbered messages over connections, and checks every send.

    client.py HOST [PORT] [--connections C] [--messages N] [--size BYTES] [--rate PER_S] [--replies] …

Each connection is a flow and sends N messages; flow numbers start at ``--first-flow``. Message n is due n / rate after
the first connect, whatever became of earlier ones; with ``--rate 0`` messages are sent as fast as the kernel takes
them. A broken connection is opened again, after a wait that doubles each time, until ``--deadline``; with ``--replies``
unanswered messages are then sent again. At the end the client shuts its side down, and waits until the server has read
everything. Exit status: see images/README.md. The last line of its output is a JSON object with counts.
"""

import argparse
import contextlib
import json
import os
import random
import select
import socket
import sys
import threading
import time
from collections import deque

import wire
from journal import JournalWriter, now_ns
from stopping import Stop

_READ_BYTES = 65536
_FINISH_S = 2.0  # after a signal


class GaveUpError(Exception):
    """The deadline has passed, or the program was asked to stop."""


class ConnectionNumbers:
    """Numbers the attempts to connect; thread-safe."""

    def __init__(self) -> None:
        self._last, self._lock = 0, threading.Lock()

    def next(self) -> int:
        """The next number."""
        with self._lock:
            self._last += 1
            return self._last


class TcpFlow:
    """The messages of one connection and of its replacements."""

    def __init__(
        self, number: int, options: argparse.Namespace, journal: JournalWriter, numbers: ConnectionNumbers, stop: Stop
    ) -> None:
        self.number, self.options, self.journal, self.numbers, self.stop = number, options, journal, numbers, stop
        self.to_send = deque(range(options.messages))
        self.unanswered: dict[int, None] = {}
        self.taken = self.answered = self.connects = self.errors = 0
        self.finished = self.cut_short = False
        self._random = random.Random(number)  # noqa: S311  # spreads attempts to connect; nothing secret
        self._began = self._paced_from = time.monotonic()

    def run(self) -> None:
        """Send everything, over as many connections as necessary."""
        wait_s = self.options.back_off
        while not self.finished:
            conn = self.numbers.next()
            try:
                with self._connect(conn) as sock:
                    wait_s = self.options.back_off
                    self._use(conn, sock)
                    self.finished = not self.cut_short
                    return
            except GaveUpError:
                return
            except (OSError, wire.StreamCorruptError):  # noted where it happened
                self.errors += 1
                self.to_send.extendleft(reversed(self.unanswered))
                self.unanswered.clear()
                if self.options.no_reconnect:
                    return
                back_off_s = wait_s * (0.5 + self._random.random() / 2)
                if time.monotonic() + back_off_s >= self._deadline or self._stopped(back_off_s):
                    return
                wait_s = min(2 * wait_s, 2.0)

    @property
    def _deadline(self) -> float:
        return float(self._began + self.options.deadline)

    def _stopped(self, within_s: float) -> bool:
        return bool(select.select([self.stop], [], [], within_s)[0])

    def _connect(self, conn: int) -> socket.socket:
        began_ns = now_ns()
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(max(self._deadline - time.monotonic(), 0.001))
            sock.connect((self.options.host, self.options.port))
            if not self.connects:
                self._paced_from = time.monotonic()  # otherwise a lost SYN would be followed by a burst
            self.connects += 1
            self.journal.connect(conn, began_ns, sock)
        except OSError as error:
            sock.close()
            self.journal.error(conn, "connect", error)
            raise
        return sock

    def _use(self, conn: int, sock: socket.socket) -> None:
        why = "error"
        try:
            if self.options.careless:
                self._send_carelessly(conn, sock)
            else:
                self._exchange(conn, sock)
                self._await_end(sock)
            why = "done"
        except (OSError, wire.StreamCorruptError) as error:
            why = "reset" if isinstance(error, ConnectionResetError | BrokenPipeError) else "error"
            self.journal.error(conn, "exchange", error)
            raise
        except GaveUpError:
            why = "stop" if self.stop.requested else "error"
            if not self.stop.requested:
                self.journal.error(conn, "exchange", TimeoutError(f"not done within {self.options.deadline:g} s"))
            raise
        finally:
            self.journal.close(conn, why, sock)

    def _due(self, sequence: int) -> float:
        return self._paced_from + (sequence / self.options.rate if self.options.rate else 0.0)

    def _send_carelessly(self, conn: int, sock: socket.socket) -> None:
        """Send as the paper's client does: take any return of `send` as success, and wait for nothing."""
        sock.settimeout(None)
        while self.to_send:
            sequence = self.to_send[0]
            if self._stopped(max(0.0, self._due(sequence) - time.monotonic())):
                raise GaveUpError
            at_ns = now_ns()
            data = wire.frame(wire.MESSAGE, self.number, sequence, at_ns, self.options.size)
            try:
                taken = sock.send(data)
            except OSError:
                self.journal.sent(at_ns, conn, self.number, sequence, size=len(data), believed=0, taken=0)
                raise
            self.journal.sent(at_ns, conn, self.number, sequence, size=len(data), believed=len(data), taken=taken)
            self.taken += 1
            self.to_send.popleft()

    def _exchange(self, conn: int, sock: socket.socket) -> None:
        """Send due messages and read replies, until all are sent and answered."""
        sock.setblocking(False)
        replies = wire.Deframer()
        kind = wire.REQUEST if self.options.replies else wire.MESSAGE
        rest, at_ns, sequence = memoryview(b""), 0, 0
        size = self.options.size
        try:
            while rest or self.to_send or self.unanswered:
                now = time.monotonic()
                if not rest and self._may_send(now):
                    sequence, at_ns = self.to_send.popleft(), now_ns()
                    rest = memoryview(wire.frame(kind, self.number, sequence, at_ns, size))
                if rest:
                    with contextlib.suppress(BlockingIOError):
                        rest = rest[sock.send(rest) :]
                    if not rest:
                        self._note_sent(conn, at_ns, sequence, size)
                        if not self.options.replies and (self.options.rate == 0 or not self.to_send):
                            continue  # nothing to wait for or to read
                self._await(sock, sending=bool(rest))
                self._read(conn, sock, replies)
        finally:
            if rest:  # the connection broke, perhaps within a message
                done = size - len(rest)
                self.journal.sent(at_ns, conn, self.number, sequence, size=size, believed=done, taken=done)
                self.to_send.appendleft(sequence)

    def _may_send(self, now: float) -> bool:
        if not self.to_send or now < self._due(self.to_send[0]):
            return False
        return bool(len(self.unanswered) < self.options.window)

    def _note_sent(self, conn: int, at_ns: int, sequence: int, size: int) -> None:
        self.journal.sent(at_ns, conn, self.number, sequence, size=size, believed=size, taken=size)
        self.taken += 1
        if self.options.replies:
            self.unanswered[sequence] = None

    def _await(self, sock: socket.socket, *, sending: bool) -> None:
        """Wait until the socket is ready or a message is due. Raises GaveUpError."""
        now = time.monotonic()
        until = self._deadline
        if self.stop.requested:  # replies to sent messages still count
            self.cut_short = self.cut_short or bool(self.to_send)
            self.to_send.clear()
            until = min(until, now + (self.stop.left_s(_FINISH_S) or 0.0))
        if not sending and self.to_send and len(self.unanswered) < self.options.window:
            until = min(until, self._due(self.to_send[0]))
        poll = select.poll()
        poll.register(sock, select.POLLIN | (select.POLLOUT if sending else 0))
        if not self.stop.requested:
            poll.register(self.stop, select.POLLIN)
        poll.poll(max(0.0, 1000 * (until - now)))
        if self.stop.left_s(_FINISH_S) == 0.0 or time.monotonic() >= self._deadline:
            raise GaveUpError

    def _read(self, conn: int, sock: socket.socket, replies: wire.Deframer) -> None:
        try:
            data = sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionResetError("the server closed the connection before all was sent and answered")
        for reply in replies.feed(data):
            self.journal.received(conn, reply)
            if reply.state == wire.WHOLE and reply.sequence in self.unanswered:
                del self.unanswered[reply.sequence]
                self.answered += 1

    def _await_end(self, sock: socket.socket) -> None:
        """Shut the sending side down, and wait until the server has read everything and closes."""
        sock.shutdown(socket.SHUT_WR)
        while True:
            self._await(sock, sending=False)
            try:
                if not sock.recv(_READ_BYTES):
                    return
            except BlockingIOError:
                continue


def main() -> int:
    """Run all flows; 0 if the kernel took each message, and each request was answered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("host", nargs="?", default=os.environ.get("SERVER_HOST", "localhost"))
    parser.add_argument("port", nargs="?", type=int, default=int(os.environ.get("SERVER_PORT", "8888")))
    parser.add_argument("--connections", type=int, default=1, metavar="C")
    parser.add_argument("--messages", type=int, default=1, metavar="N", help="per connection (default: 1)")
    parser.add_argument(
        "--size", type=int, default=100, metavar="BYTES", help="size of a message, 28 of header included"
    )
    parser.add_argument("--rate", type=float, default=0.0, metavar="PER_S", help="messages per second and connection")
    parser.add_argument("--replies", action="store_true", help="request a reply to each message and wait for it")
    parser.add_argument("--window", type=int, default=64, metavar="N", help="most messages without reply (default: 64)")
    parser.add_argument("--first-flow", type=int, default=0, metavar="N")
    parser.add_argument("--deadline", type=float, default=60.0, metavar="SECONDS", help="for everything (default: 60)")
    parser.add_argument("--back-off", type=float, default=0.1, metavar="SECONDS", help="before the second attempt")
    parser.add_argument("--no-reconnect", action="store_true", help="end a flow with its first connection")
    parser.add_argument("--careless", action="store_true", help="as the paper: trust send(), wait for nothing")
    parser.add_argument("--journal", metavar="FILE")
    options = parser.parse_args()
    size_fits = wire.HEADER_BYTES <= options.size <= wire.MOST_BYTES
    ranges = (
        ("size", size_fits, f"{wire.HEADER_BYTES} to {wire.MOST_BYTES} bytes"),
        ("connections", options.connections >= 1, "1 or more"),
        ("messages", 0 <= options.messages < 2**32, "0 or more"),
        ("rate", options.rate >= 0, "0 (no limit) or more per second"),
        ("window", options.window >= 1, "1 or more"),
        ("deadline", options.deadline > 0, "above 0"),
    )
    problems = [f"--{name} {getattr(options, name):g}: must be {words}" for name, fits, words in ranges if not fits]
    if options.careless and options.replies:
        problems.append("--careless --replies: exclude each other, because a careless client waits for no reply")
    if problems:
        parser.error("; ".join(problems))
    options.no_reconnect = options.no_reconnect or options.careless
    stop, numbers = Stop(), ConnectionNumbers()
    threading.stack_size(256 * 1024)
    with JournalWriter(options.journal, program="client.py", transport="tcp") as journal:
        numbered = range(options.first_flow, options.first_flow + options.connections)
        flows = [TcpFlow(number, options, journal, numbers, stop) for number in numbered]
        running = [threading.Thread(target=flow.run) for flow in flows[1:]]
        for thread in running:
            thread.start()
        flows[0].run()
        for thread in running:
            thread.join()
    counts = {name: sum(vars(flow)[name] for flow in flows) for name in ("taken", "answered", "connects", "errors")}
    finished = sum(flow.finished for flow in flows)
    messages = options.connections * options.messages
    print(json.dumps({"messages": messages, "finished_flows": finished, **counts}), flush=True)
    return 0 if all(flow.finished for flow in flows) else 1


if __name__ == "__main__":
    sys.exit(main())
