"""A UDP server of framed messages, one per datagram.

    udp_server.py [--port 8889] [--journal FILE] [--receive-buffer BYTES] [--work SECONDS] …

Ready when it has printed "ready". It replies to requests, and answers the end of each flow. On SIGTERM and SIGINT it
reads what is in its receive buffer, then stops. Exit status: see images/README.md.
"""

import argparse
import contextlib
import os
import select
import socket
import sys
import time
from typing import Any

import wire
from journal import JournalWriter, now_ns
from stopping import Stop


def serve(sock: socket.socket, options: argparse.Namespace, journal: JournalWriter, stop: Stop) -> None:
    """Receive until asked to stop, and nothing is left to read."""
    sock.setblocking(False)
    while stop.await_ready(sock, select.POLLIN, 0.0):
        try:
            data, _, flags, peer = sock.recvmsg(options.read_size)
        except BlockingIOError:  # a wrong checksum: see BUGS in select(2)
            continue
        message = wire.read_datagram(data, cut=bool(flags & socket.MSG_TRUNC))
        if message is None:
            journal.unreadable(1, len(data))
        elif message.kind == wire.END:
            journal.control(1, message.flow, "received")
            _answer(sock, peer, wire.frame(wire.ENDED, message.flow, message.sequence, now_ns()), journal)
            journal.control(1, -1 - message.flow, "sent")
        else:
            _take(sock, peer, message, options, journal)


def _take(
    sock: socket.socket, peer: Any, message: wire.Message, options: argparse.Namespace, journal: JournalWriter
) -> None:
    journal.received(1, message)
    if options.work:
        time.sleep(options.work)
    if message.kind == wire.REQUEST and message.state == wire.WHOLE:
        at_ns = now_ns()
        reply = wire.reply_to(message, at_ns, options.reply_size)
        taken = _answer(sock, peer, reply, journal)
        journal.sent(at_ns, 1, -1 - message.flow, message.sequence, size=len(reply), believed=taken, taken=taken)


def _answer(sock: socket.socket, peer: Any, data: bytes, journal: JournalWriter) -> int:
    try:
        return sock.sendto(data, peer)
    except OSError as error:
        journal.error(1, "sendto", error)
        return 0


def main() -> int:
    """Serve until asked to stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default=os.environ.get("SERVER_HOST", ""))
    parser.add_argument("--port", type=int, default=int(os.environ.get("SERVER_UDP_PORT", "8889")))
    parser.add_argument("--journal", metavar="FILE", help="write a journal to this file")
    parser.add_argument("--reply-size", type=int, default=wire.HEADER_BYTES, metavar="BYTES")
    parser.add_argument("--receive-buffer", type=int, metavar="BYTES", help="SO_RCVBUF; the kernel doubles it")
    parser.add_argument("--read-size", type=int, default=65535, metavar="BYTES", help="of recv(); the rest is cut off")
    parser.add_argument("--work", type=float, default=0.0, metavar="SECONDS", help="time per message (default: 0)")
    options = parser.parse_args()
    if not wire.HEADER_BYTES <= options.reply_size <= 65507:
        parser.error(f"--reply-size {options.reply_size}: from {wire.HEADER_BYTES} to 65507 bytes")
    stop = Stop()
    with (
        JournalWriter(options.journal, program="udp_server.py", transport="udp") as journal,
        contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock,
    ):
        if options.receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, options.receive_buffer)
        sock.bind((options.host, options.port))
        print(f"ready udp {sock.getsockname()[1]}", flush=True)
        serve(sock, options, journal, stop)
        journal.close(1, "stop", sock)
    return 0


if __name__ == "__main__":
    sys.exit(main())
