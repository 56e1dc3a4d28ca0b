"""A game's server: sends each player 60 state updates per second, over UDP or TCP.

    game_server.py [--transport udp|tcp] [--port 8890] [--updates 600] [--rate 60] [--journal FILE] …

A player that sends a hello, or connects, gets numbered updates and then the end of the flow; over TCP with TCP_NODELAY.
Over UDP lost updates are not sent again: the next one is newer. Ready when it listens, or has printed "ready". Stops on
SIGTERM and SIGINT. Exit status: see images/README.md.
"""

import argparse
import contextlib
import os
import select
import socket
import sys
import threading
import time
from typing import Any

import wire
from journal import JournalWriter, now_ns
from stopping import Stop

_REPEAT_END_S = 0.2
_REPEAT_FOR_S = 5.0


class Updates:
    """The updates of one player, sent by a thread of its own."""

    def __init__(
        self, number: int, sock: socket.socket, options: argparse.Namespace, journal: JournalWriter, stop: Stop
    ) -> None:
        self.number, self.sock, self.options, self.journal, self.stop = number, sock, options, journal, stop
        self.peer: Any = None
        self.ended = threading.Event()

    def run(self) -> None:
        """Send an update at each tick; one that the kernel does not take at once delays those that follow."""
        began = time.monotonic()
        why = "done"
        try:
            for sequence in range(self.options.updates):
                if select.select(
                    [self.stop], [], [], max(0.0, began + sequence / self.options.rate - time.monotonic())
                )[0]:
                    why = "stop"
                    break
                self._update(sequence)
            if why == "done":
                self._send_end()
        except OSError as error:
            self.journal.error(self.number, "update", error)
            why = "reset" if isinstance(error, ConnectionError) else "error"
        finally:
            if self.peer is None:
                self._close(why)

    def _update(self, sequence: int) -> None:
        at_ns, size, taken = now_ns(), self.options.size, 0
        data = memoryview(wire.frame(wire.MESSAGE, self.number, sequence, at_ns, size))
        try:
            if self.peer is not None:
                taken = self.sock.sendto(data, self.peer)
            while taken < size:
                taken += self.sock.send(data[taken:])
        finally:
            self.journal.sent(at_ns, self.number, self.number, sequence, size=size, believed=taken, taken=taken)

    def _send_end(self) -> None:
        if self.peer is None:
            return  # over TCP the end of the connection
        until = time.monotonic() + _REPEAT_FOR_S
        while not self.ended.wait(_REPEAT_END_S) and time.monotonic() < until and not self.stop.requested:
            self.sock.sendto(wire.frame(wire.END, self.number, self.options.updates, now_ns()), self.peer)
            self.journal.control(self.number, self.number, "sent")

    def _close(self, why: str) -> None:
        with contextlib.suppress(OSError):  # it is closed already
            self.sock.shutdown(socket.SHUT_WR)
            self.sock.settimeout(self.options.drain)
            while self.sock.recv(4096):
                pass
        self.journal.close(self.number, why, self.sock)
        self.sock.close()


def serve_tcp(
    listener: socket.socket, options: argparse.Namespace, journal: JournalWriter, stop: Stop
) -> list[threading.Thread]:
    """A thread for each player that connects, until asked to stop."""
    listener.listen(64)
    print(f"ready game tcp {listener.getsockname()[1]}", flush=True)
    listener.setblocking(False)
    threads: list[threading.Thread] = []
    while stop.await_ready(listener, select.POLLIN, 0.0) and not stop.requested:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            sock, peer = listener.accept()
            sock.setblocking(True)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            player = Updates(len(threads) + 1, sock, options, journal, stop)
            journal.accept(player.number, sock, peer)
            threads.append(_begin(player))
    return threads


def serve_udp(
    sock: socket.socket, options: argparse.Namespace, journal: JournalWriter, stop: Stop
) -> list[threading.Thread]:
    """A thread for each player that sends a hello, until asked to stop."""
    print(f"ready game udp {sock.getsockname()[1]}", flush=True)
    players: dict[Any, Updates] = {}
    threads: list[threading.Thread] = []
    while stop.await_ready(sock, select.POLLIN, 0.0) and not stop.requested:
        try:
            data, peer = sock.recvfrom(65535, socket.MSG_DONTWAIT)
        except OSError as error:  # a player is gone: the kernel reports the error of an earlier datagram
            if not isinstance(error, BlockingIOError):
                journal.error(None, "recvfrom", error)
            continue
        message = wire.read_datagram(data)
        if message is None or message.state != wire.WHOLE:
            journal.unreadable(0, len(data))
            continue
        journal.control(0, message.flow, "received")
        if message.kind == wire.HELLO and peer not in players:
            players[peer] = Updates(len(players) + 1, sock, options, journal, stop)
            players[peer].peer = peer
            threads.append(_begin(players[peer]))
        elif message.kind == wire.ENDED and peer in players:
            players[peer].ended.set()
    return threads


def _begin(player: Updates) -> threading.Thread:
    thread = threading.Thread(target=player.run)
    thread.start()
    return thread


def main() -> int:
    """Serve until asked to stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transport", choices=("udp", "tcp"), default="udp")
    parser.add_argument("--host", default=os.environ.get("SERVER_HOST", ""))
    parser.add_argument("--port", type=int, default=8890)
    parser.add_argument("--updates", type=int, default=600, metavar="N", help="for each player (default: 600)")
    parser.add_argument("--rate", type=float, default=60.0, metavar="PER_S", help="updates per second (default: 60)")
    parser.add_argument(
        "--size", type=int, default=200, metavar="BYTES", help="size of an update, 28 of header included"
    )
    parser.add_argument(
        "--drain", type=float, default=5.0, metavar="SECONDS", help="wait for a player's end (default: 5)"
    )
    parser.add_argument("--journal", metavar="FILE")
    options = parser.parse_args()
    if not wire.HEADER_BYTES <= options.size <= 65507 or options.rate <= 0 or options.updates < 0:
        parser.error(f"--size: {wire.HEADER_BYTES} to 65507 bytes; --rate: above 0; --updates: 0 or more")
    stop = Stop()
    kind = socket.SOCK_DGRAM if options.transport == "udp" else socket.SOCK_STREAM
    with (
        JournalWriter(options.journal, program="game_server.py", transport=options.transport) as journal,
        contextlib.closing(socket.socket(socket.AF_INET, kind)) as sock,
    ):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((options.host, options.port))
        serve = serve_udp if options.transport == "udp" else serve_tcp
        for thread in serve(sock, options, journal, stop):
            thread.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
