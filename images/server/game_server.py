"""A game's server: tells each player the state of the world 60 times a second, over UDP or over TCP.

    game_server.py [--transport udp|tcp] [--port 8890] [--updates 600] [--rate 60] [--journal FILE] …

A player that says hello (or connects) gets that many updates, numbered, with TCP_NODELAY on TCP, then the word that
this was all. Over UDP what is lost stays lost: the next update is newer. Ready when it listens, or has printed
"ready". Stops on SIGTERM and SIGINT. Exit status: see images/README.md.
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
from journal import Journal, now_ns
from stopping import Stop

_SAY_AGAIN_S = 0.2
_SAY_FOR_S = 5.0


class Player:
    """One player's updates; a thread of its own."""

    def __init__(
        self, number: int, sock: socket.socket, options: argparse.Namespace, journal: Journal, stop: Stop
    ) -> None:
        self.number, self.sock, self.options, self.journal, self.stop = number, sock, options, journal, stop
        self.peer: Any = None
        self.ended = threading.Event()

    def run(self) -> None:
        """Send an update at each tick; one that the kernel does not take at once holds up those that follow."""
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
                self._say_end()
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

    def _say_end(self) -> None:
        if self.peer is None:
            return  # the end of the connection says it
        until = time.monotonic() + _SAY_FOR_S
        while not self.ended.wait(_SAY_AGAIN_S) and time.monotonic() < until and not self.stop.asked:
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
    listener: socket.socket, options: argparse.Namespace, journal: Journal, stop: Stop
) -> list[threading.Thread]:
    """A thread for each player that connects, until asked to stop."""
    listener.listen(64)
    print(f"ready game tcp {listener.getsockname()[1]}", flush=True)
    listener.setblocking(False)
    threads: list[threading.Thread] = []
    while stop.await_ready(listener, select.POLLIN, 0.0) and not stop.asked:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            sock, peer = listener.accept()
            sock.setblocking(True)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            player = Player(len(threads) + 1, sock, options, journal, stop)
            journal.accept(player.number, sock, peer)
            threads.append(_begin(player))
    return threads


def serve_udp(sock: socket.socket, options: argparse.Namespace, journal: Journal, stop: Stop) -> list[threading.Thread]:
    """A thread for each player that says hello, until asked to stop."""
    print(f"ready game udp {sock.getsockname()[1]}", flush=True)
    players: dict[Any, Player] = {}
    threads: list[threading.Thread] = []
    while stop.await_ready(sock, select.POLLIN, 0.0) and not stop.asked:
        try:
            data, peer = sock.recvfrom(65535, socket.MSG_DONTWAIT)
        except OSError as error:  # a player went away: the kernel tells of an earlier datagram
            if not isinstance(error, BlockingIOError):
                journal.error(None, "recvfrom", error)
            continue
        message = wire.read_datagram(data)
        if message is None or message.state != wire.WHOLE:
            journal.received(0, None, None, size=len(data), sent_ns=None, state=wire.CORRUPT)
            continue
        journal.control(0, message.flow, "received")
        if message.kind == wire.HELLO and peer not in players:
            players[peer] = Player(len(players) + 1, sock, options, journal, stop)
            players[peer].peer = peer
            threads.append(_begin(players[peer]))
        elif message.kind == wire.ENDED and peer in players:
            players[peer].ended.set()
    return threads


def _begin(player: Player) -> threading.Thread:
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
    parser.add_argument("--rate", type=float, default=60.0, metavar="PER_S", help="updates a second (default: 60)")
    parser.add_argument(
        "--size", type=int, default=200, metavar="BYTES", help="of an update, its header of 28 included"
    )
    parser.add_argument(
        "--drain", type=float, default=5.0, metavar="SECONDS", help="to wait for a player's end (default: 5)"
    )
    parser.add_argument("--journal", metavar="FILE")
    options = parser.parse_args()
    if not wire.HEADER_BYTES <= options.size <= 65507 or options.rate <= 0 or options.updates < 0:
        parser.error(f"--size: {wire.HEADER_BYTES} to 65507 bytes; --rate: above 0; --updates: 0 or more")
    stop = Stop()
    kind = socket.SOCK_DGRAM if options.transport == "udp" else socket.SOCK_STREAM
    with (
        Journal(options.journal, program="game_server.py", transport=options.transport) as journal,
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
