"""A TCP server of framed messages in five structures, with one protocol.

    server.py [--structure iterative|threads|fork|selectors|asyncio] [--port 8888] [--journal FILE] …

iterative serves one connection after the other, as the paper's server does; threads and fork start one thread or
process per connection; selectors and asyncio serve all in one thread. Ready when it listens. On SIGTERM and SIGINT it
still accepts the connections in the listener's queue, and reads and answers the messages that have arrived, for at most
``--drain`` seconds; then it stops. Exit status: see images/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import selectors
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import wire
from journal import JournalWriter, now_ns
from stopping import Stop

if TYPE_CHECKING:
    import asyncio

_READ_BYTES = 65536


@dataclass
class TcpSession:
    """One connection: messages in, replies out. Implements the protocol, but not waiting."""

    conn: int
    journal: JournalWriter
    options: argparse.Namespace
    sock: socket.socket
    frames: wire.Deframer = field(default_factory=wire.Deframer)
    replies: deque[tuple[wire.Message, int, memoryview]] = field(default_factory=deque)
    """Of each reply: the request, its time stamp, and the bytes that the kernel has not taken yet."""
    why: str = "done"

    @property
    def read_bytes(self) -> int:
        """The size of a read."""
        return self.options.one_recv or _READ_BYTES

    def take(self, data: bytes) -> bool:
        """Process data that was read; returns whether the connection continues."""
        if not data:
            self.why = "eof"
            return False
        try:
            for message in self.frames.feed(data):
                if self.options.work:
                    time.sleep(self.options.work)  # occupies the thread, as computing would
                self.journal.received(self.conn, message)
                if message.kind == wire.REQUEST:
                    at_ns = now_ns()
                    reply = wire.reply_to(message, at_ns, self.options.reply_size)
                    self.replies.append((message, at_ns, memoryview(reply)))
        except wire.StreamCorruptError as error:
            return self.fail("read", error)
        return not self.options.one_recv

    def fail(self, operation: str, error: BaseException) -> bool:
        """Note an error; returns False, because the connection does not continue."""
        self.journal.error(self.conn, operation, error)
        self.why = "reset" if isinstance(error, ConnectionResetError | BrokenPipeError) else "error"
        return False

    def sent(self, count: int) -> None:
        """Note that the kernel took ``count`` bytes of the first reply."""
        message, at_ns, rest = self.replies[0]
        if count < len(rest):
            self.replies[0] = (message, at_ns, rest[count:])
        else:
            self.replies.popleft()
            self._note_reply(message, at_ns, self.options.reply_size)

    def _note_reply(self, message: wire.Message, at_ns: int, taken: int) -> None:
        size, flow = self.options.reply_size, -1 - message.flow
        self.journal.sent(at_ns, self.conn, flow, message.sequence, size=size, believed=taken, taken=taken)

    def close(self) -> None:
        """Note incomplete messages and replies, then close."""
        if (part := self.frames.partial()) is not None:
            self.journal.received(self.conn, part)
        elif self.frames.held_bytes:
            self.journal.unreadable(self.conn, self.frames.held_bytes, wire.TRUNCATED)
        for message, at_ns, rest in self.replies:
            self._note_reply(message, at_ns, self.options.reply_size - len(rest))
        self.replies.clear()
        self.journal.close(self.conn, self.why, self.sock)
        self.sock.close()

    def drained(self) -> None:
        """Process what has arrived, without waiting, because the time to finish is over."""
        self.why = "stop"
        self.sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while self.take(self.sock.recv(_READ_BYTES)):
                pass
            with contextlib.suppress(OSError):  # the client does not read any more
                while self.replies:
                    self.sent(self.sock.send(self.replies[0][2]))


class TcpServer:
    """The listener, and methods that all structures use."""

    def __init__(self, options: argparse.Namespace, journal: JournalWriter, stop: Stop) -> None:
        self.options, self.journal, self.stop = options, journal, stop
        self.connections = 0
        self.listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if options.receive_buffer:
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, options.receive_buffer)
        self.listener.bind((options.host, options.port))
        self.listener.listen(options.backlog)
        print(f"ready {options.structure} {self.listener.getsockname()[1]}", flush=True)

    def session(self, sock: socket.socket, peer: Any) -> TcpSession:
        """The session of an accepted connection."""
        self.connections += 1
        sock.setblocking(True)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.journal.accept(self.connections, sock, peer)
        return TcpSession(self.connections, self.journal, self.options, sock)

    def accepted(self) -> Iterator[TcpSession]:
        """Accept connections; once asked to stop, those left in the queue, and close the listener."""
        self.listener.setblocking(False)
        while self.stop.await_ready(self.listener, select.POLLIN, 0.0):
            try:
                yield self.session(*self.listener.accept())
            except BlockingIOError:
                continue  # it was gone between poll and accept
            except OSError as error:
                self.refused(error)
        self.listener.close()

    def refused(self, error: OSError) -> None:
        """Note that accept failed. If descriptors or memory are short, connections stay in the queue."""
        self.journal.error(None, "accept", error)
        if not isinstance(error, ConnectionAbortedError):
            time.sleep(0.01)  # otherwise attempts would take all CPU time

    def serve(self, session: TcpSession) -> None:
        """Serve one connection to its end, blocking."""
        drain_s = self.options.drain
        try:
            while self.stop.await_ready(session.sock, select.POLLIN, drain_s):
                more = session.take(session.sock.recv(session.read_bytes))
                while session.replies:
                    if not self.stop.await_ready(session.sock, select.POLLOUT, drain_s):
                        return
                    session.sent(session.sock.send(session.replies[0][2], socket.MSG_DONTWAIT))
                if not more:
                    return
            session.drained()
        except OSError as error:
            session.fail("serve", error)
        finally:
            session.close()


def iterative(server: TcpServer) -> None:
    """Serve connections one after the other."""
    for session in server.accepted():
        server.serve(session)


def threads(server: TcpServer) -> None:
    """Serve each connection in a thread."""
    threading.stack_size(256 * 1024)
    running: list[threading.Thread] = []
    for session in server.accepted():
        running = [thread for thread in running if thread.is_alive()]
        thread = threading.Thread(target=server.serve, args=(session,))
        thread.start()
        running.append(thread)
    for thread in running:
        thread.join()


def fork(server: TcpServer) -> None:
    """Serve each connection in a process."""
    children: set[int] = set()

    def reap(flags: int) -> None:
        while children:
            pid, status = os.waitpid(-1, flags)
            if not pid:
                return
            children.discard(pid)
            if status:
                server.journal.error(None, "fork", ChildProcessError(f"process {pid} ended with status {status}"))

    for session in server.accepted():
        server.journal.flush()
        if pid := os.fork():
            children.add(pid)
            session.sock.close()
            reap(os.WNOHANG)
            continue
        status = 1
        try:
            server.listener.close()
            server.journal.forked()
            server.serve(session)
            server.journal.end()
            status = 0
        finally:
            os._exit(status)  # without the parent's exit handlers
    reap(0)


def with_selectors(server: TcpServer) -> None:  # noqa: C901  # small functions around one loop's state
    """Serve all connections in one thread, with readiness from epoll."""
    ready = selectors.DefaultSelector()
    ready.register(server.listener, selectors.EVENT_READ)
    ready.register(server.stop, selectors.EVENT_READ)
    server.listener.setblocking(False)
    open_sessions: dict[int, TcpSession] = {}
    ending: set[int] = set()

    def end(session: TcpSession) -> None:
        ready.unregister(session.sock)
        open_sessions.pop(session.conn)
        ending.discard(session.conn)
        session.close()

    def accept() -> bool:
        try:
            session = server.session(*server.listener.accept())
        except BlockingIOError:
            return False
        except OSError as error:
            server.refused(error)
            return False
        session.sock.setblocking(False)
        open_sessions[session.conn] = session
        ready.register(session.sock, selectors.EVENT_READ, session)
        return True

    def step(session: TcpSession, events: int) -> None:
        try:
            if events & selectors.EVENT_READ and session.conn not in ending:
                with contextlib.suppress(BlockingIOError):
                    if not session.take(session.sock.recv(session.read_bytes)):
                        ending.add(session.conn)
            with contextlib.suppress(BlockingIOError):
                while session.replies:
                    session.sent(session.sock.send(session.replies[0][2]))
        except OSError as error:
            session.fail("serve", error)
            end(session)
            return
        if session.replies:
            wanted = selectors.EVENT_WRITE | (0 if session.conn in ending else selectors.EVENT_READ)
            ready.modify(session.sock, wanted, session)
        elif session.conn in ending:
            end(session)
        else:
            ready.modify(session.sock, selectors.EVENT_READ, session)

    listening = True
    while True:
        left_s = server.stop.left_s(server.options.drain)
        if left_s is not None and listening:
            while accept():
                pass
            ready.unregister(server.listener)
            ready.unregister(server.stop)
            server.listener.close()
            listening = False
        if left_s == 0.0 or not (listening or open_sessions):
            break
        for key, events in ready.select(left_s):
            if key.fileobj is server.listener:
                accept()
            elif key.data is not None:
                step(key.data, events)
    for session in list(open_sessions.values()):
        try:
            session.drained()
        except OSError as error:
            session.fail("serve", error)
        end(session)


def with_asyncio(server: TcpServer) -> None:
    """Serve all connections in one thread, as coroutines."""
    global asyncio  # a third of this program's memory, which every fork would copy
    import asyncio

    asyncio.run(_coroutines(server))


async def _coroutines(server: TcpServer) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()

    def on_stop() -> None:
        loop.remove_reader(server.stop.fileno())
        stopping.set()

    loop.add_reader(server.stop.fileno(), on_stop)
    server.listener.setblocking(False)
    running: set[asyncio.Task[None]] = set()

    def begin(sock: socket.socket, peer: Any) -> None:
        session = server.session(sock, peer)
        session.sock.setblocking(False)
        task = loop.create_task(_coroutine(loop, session))
        running.add(task)
        task.add_done_callback(running.discard)

    def take() -> None:
        try:
            while True:
                begin(*server.listener.accept())
        except BlockingIOError:
            pass
        except OSError as error:
            server.refused(error)

    # Not sock_accept and sock_recv: they lose what they have taken when their task is cancelled.
    async def accept() -> None:
        while True:
            take()
            await _ready(loop.add_reader, loop.remove_reader, server.listener)

    accepting = loop.create_task(accept())
    await stopping.wait()
    accepting.cancel()
    await asyncio.gather(accepting, return_exceptions=True)
    take()
    server.listener.close()
    if running:
        await asyncio.wait(running, timeout=server.stop.left_s(server.options.drain))
    for task in list(running):
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def _coroutine(loop: asyncio.AbstractEventLoop, session: TcpSession) -> None:
    more = True
    try:
        while more:
            try:
                more = session.take(session.sock.recv(session.read_bytes))
            except BlockingIOError:
                await _ready(loop.add_reader, loop.remove_reader, session.sock)
            while session.replies:
                try:
                    session.sent(session.sock.send(session.replies[0][2]))
                except BlockingIOError:
                    await _ready(loop.add_writer, loop.remove_writer, session.sock)
    except asyncio.CancelledError:
        try:
            session.drained()
        except OSError as error:
            session.fail("serve", error)
    except OSError as error:
        session.fail("serve", error)
    finally:
        session.close()


async def _ready(add: Callable[..., None], remove: Callable[..., object], sock: socket.socket) -> None:
    """Wait until a socket is ready; ``add`` and ``remove``: the loop's methods for readers or for writers."""
    readiness: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def ready() -> None:
        if not readiness.done():
            readiness.set_result(None)

    add(sock, ready)
    try:
        await readiness
    finally:
        remove(sock)


STRUCTURES = {
    "iterative": iterative,
    "threads": threads,
    "fork": fork,
    "selectors": with_selectors,
    "asyncio": with_asyncio,
}


def main() -> int:
    """Serve until asked to stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structure", choices=STRUCTURES, default="iterative")
    parser.add_argument("--host", default=os.environ.get("SERVER_HOST", ""))
    parser.add_argument("--port", type=int, default=int(os.environ.get("SERVER_PORT", "8888")))
    parser.add_argument("--journal", metavar="FILE", help="write a journal to this file")
    parser.add_argument("--backlog", type=int, default=5, metavar="N", help="of listen(); the paper's is 5 (default)")
    parser.add_argument("--reply-size", type=int, default=wire.HEADER_BYTES, metavar="BYTES")
    parser.add_argument("--receive-buffer", type=int, metavar="BYTES", help="SO_RCVBUF; the kernel doubles it")
    parser.add_argument("--work", type=float, default=0.0, metavar="SECONDS", help="time per message (default: 0)")
    parser.add_argument("--drain", type=float, default=5.0, metavar="SECONDS", help="to finish at a stop (default: 5)")
    parser.add_argument(
        "--one-recv", type=int, metavar="BYTES", help="as the paper: one recv() of this size, then close"
    )
    options = parser.parse_args()
    if not wire.HEADER_BYTES <= options.reply_size <= wire.MOST_BYTES:
        parser.error(f"--reply-size {options.reply_size}: from {wire.HEADER_BYTES} to {wire.MOST_BYTES} bytes")
    stop = Stop()
    with JournalWriter(options.journal, program=f"server.py {options.structure}", transport="tcp") as journal:
        STRUCTURES[options.structure](TcpServer(options, journal, stop))
    return 0


if __name__ == "__main__":
    sys.exit(main())
