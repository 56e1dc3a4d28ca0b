"""A game's player: requests state updates and notes each as it arrives.

    game_client.py HOST [--transport udp|tcp] [--port 8890] [--journal FILE] …

Stops at the end of the updates. Exit status: 0, or 1 if the end did not arrive within the deadline (images/README.md).
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

_REPEAT_HELLO_S = 0.2


class Player:
    """One player."""

    def __init__(self, sock: socket.socket, options: argparse.Namespace, journal: JournalWriter, stop: Stop) -> None:
        self.sock, self.options, self.journal, self.stop = sock, options, journal, stop
        self.updates = 0
        self.ended = False
        self.frames = wire.Deframer()

    def play(self) -> None:
        """Receive updates until the end."""
        deadline = time.monotonic() + self.options.deadline
        hello_at = time.monotonic()
        udp = self.options.transport == "udp"
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        poll.register(self.stop, select.POLLIN)
        while not self.ended and not self.stop.requested and (now := time.monotonic()) < deadline:
            until = deadline
            if udp and not self.updates:
                if now >= hello_at:
                    self._send(wire.HELLO)
                    hello_at = now + _REPEAT_HELLO_S
                until = min(hello_at, deadline)
            poll.poll(max(0.0, 1000 * (until - time.monotonic())))
            if self.stop.requested:
                return
            if udp:
                self._read_datagram()
            else:
                self._read_stream()

    def _send(self, kind: int) -> None:
        try:
            self.sock.send(wire.frame(kind, 0, 0, now_ns()))
            self.journal.control(1, 0, "sent")
        except OSError as error:  # the server does not listen yet
            self.journal.error(1, "send", error)

    def _take(self, message: wire.Message) -> None:
        self.updates += 1
        self.journal.received(1, message)

    def _read_datagram(self) -> None:
        try:
            data = self.sock.recv(65535, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            self.journal.error(1, "recv", error)
            return
        message = wire.read_datagram(data)
        if message is None:
            self.journal.unreadable(1, len(data))
        elif message.kind == wire.END:
            self.journal.control(1, message.flow, "received")
            self._send(wire.ENDED)
            self.ended = True
        else:
            self._take(message)

    def _read_stream(self) -> None:
        try:
            data = self.sock.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        for message in self.frames.feed(data):
            self._take(message)
        self.ended = not data


def main() -> int:
    """Play one game."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("host", nargs="?", default=os.environ.get("SERVER_HOST", "localhost"))
    parser.add_argument("--transport", choices=("udp", "tcp"), default="udp")
    parser.add_argument("--port", type=int, default=8890)
    parser.add_argument("--deadline", type=float, default=60.0, metavar="SECONDS", help="for everything (default: 60)")
    parser.add_argument("--journal", metavar="FILE")
    options = parser.parse_args()
    stop = Stop()
    kind = socket.SOCK_DGRAM if options.transport == "udp" else socket.SOCK_STREAM
    with JournalWriter(options.journal, program="game_client.py", transport=options.transport) as journal:
        with socket.socket(socket.AF_INET, kind) as sock:
            began_ns, why = now_ns(), "done"
            player = Player(sock, options, journal, stop)
            try:
                sock.settimeout(options.deadline)
                sock.connect((options.host, options.port))
                journal.connect(1, began_ns, sock)
                sock.settimeout(None)  # with one, recv() waits for it in spite of MSG_DONTWAIT
                player.play()
            except (OSError, wire.StreamCorruptError) as error:
                journal.error(1, "play", error)
                why = "reset" if isinstance(error, ConnectionError) else "error"
            journal.close(1, why if player.ended else "stop" if stop.requested else "error", sock)
        print(json.dumps({"updates": player.updates, "ended": player.ended}), flush=True)
    return 0 if player.ended else 1


if __name__ == "__main__":
    sys.exit(main())
