"""A server of five services, a letter each: echo, two writes, upload, acknowledgements, one long message."""

from __future__ import annotations

import socket
import socketserver
import time

from faults import FAULTS

PORT = 9100
_UNACKNOWLEDGED = 50


class Service(socketserver.BaseRequestHandler):
    """One connection."""

    def handle(self) -> None:
        """Serve what the first letter asks for, until the client ends."""
        connection: socket.socket = self.request
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        letter = connection.recv(1)
        stream = connection.makefile("rb")
        if letter == b"e":
            while request := stream.read(100):
                if "slow server" in FAULTS:
                    time.sleep(0.010)
                connection.sendall(request[:10])
        elif letter == b"w":
            while stream.read(40) and stream.read(60):
                connection.sendall(b"done")
        elif letter == b"u":
            stream.read(1)
            began = time.monotonic()
            while stream.read(1 << 16):
                pass
            connection.sendall(f"{time.monotonic() - began}\n".encode())
        elif letter == b"a":
            with connection.makefile("wb") as answers:
                for number, line in enumerate(stream, start=1):
                    if "not acknowledged" not in FAULTS or number % _UNACKNOWLEDGED:
                        answers.write(line)
        elif letter == b"m":
            message = connection.recv(1024) if "truncated" in FAULTS else stream.readline()
            connection.sendall(f"{len(message)}\n".encode())
            stream.read()  # until the client ends: a close with unread data would reset the connection


class Server(socketserver.ThreadingTCPServer):
    """Serves each connection in a thread."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64


if __name__ == "__main__":
    Server(("", PORT), Service).serve_forever()
