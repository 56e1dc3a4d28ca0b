"""``many.py HOST PORT COUNT DEADLINE HOW [FLAG]``: so many clients at once, and what became of each, as it saw it.

HOW: ``ask`` sends a framed request and awaits the answer; ``say`` sends a line and closes, as the paper's client does.
With FLAG nobody who was answered leaves before the file FLAG is there; it prints ``all`` when there is no more to come.
"""

import errno
import json
import os
import selectors
import socket
import sys
import time

import wire

host, port, count, deadline_s, how = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), sys.argv[5]
flag = sys.argv[6] if len(sys.argv) > 6 else ""
ready = selectors.DefaultSelector()
held: list[socket.socket] = []
connected: list[float] = []
done: list[float] = []
failed: dict[str, int] = {}
began = time.monotonic()


def fail(name: str) -> None:
    """Count one that came to nothing."""
    failed[name] = failed.get(name, 0) + 1


def end(peer: socket.socket, error: str = "") -> None:
    """Let one go that is through, or came to nothing."""
    ready.unregister(peer)
    if error:
        fail(error)
    else:
        done.append(time.monotonic() - began)
    if flag and not error:
        held.append(peer)
    else:
        peer.close()


def step(peer: socket.socket, number: int, received: int) -> None:
    """Go on with one that is ready: it is connected, or an answer came."""
    if received < 0:
        if code := peer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            end(peer, errno.errorcode[code])
            return
        connected.append(time.monotonic() - began)
        if how == "say":
            peer.send(b"storm %04d" % number)
            end(peer)
            return
        peer.send(wire.frame(wire.REQUEST, number, 0, time.monotonic_ns(), 100))
        ready.modify(peer, selectors.EVENT_READ, (number, 0))
        return
    data = peer.recv(4096)
    if not data:
        end(peer, "closed")
    elif received + len(data) >= wire.HEADER_BYTES:
        end(peer)
    else:
        ready.modify(peer, selectors.EVENT_READ, (number, received + len(data)))


for number in range(count):
    peer = socket.socket()
    peer.setblocking(False)
    if (code := peer.connect_ex((host, port))) and code != errno.EINPROGRESS:
        fail(errno.errorcode[code])
        continue
    ready.register(peer, selectors.EVENT_WRITE, (number, -1))
while ready.get_map() and (left_s := began + deadline_s - time.monotonic()) > 0:
    for key, _ in ready.select(left_s):
        assert isinstance(key.fileobj, socket.socket)  # noqa: S101  # nothing else is registered
        try:
            step(key.fileobj, *key.data)
        except OSError as error:
            end(key.fileobj, errno.errorcode.get(error.errno or 0, type(error).__name__))
for key in list(ready.get_map().values()):
    assert isinstance(key.fileobj, socket.socket)  # noqa: S101  # nothing else is registered
    end(key.fileobj, "timed out connecting" if key.data[1] < 0 else "timed out waiting")
if flag:
    print("all", flush=True)
    while not os.path.exists(flag):
        time.sleep(0.01)
print(json.dumps({"connected_s": connected, "done_s": done, "failed": failed}))
