"""A project of two hosts that exchange messages at intervals, for pytest in virtual time: its programs, its stack."""

from __future__ import annotations

from pathlib import Path

_COMPOSE = """
services:
  client: &host
    image: none
    x-testbed: {local: {path: programs, python: true}}
    command: sleep infinity
  server: *host
"""
_SERVER = """
import socket
listener = socket.create_server(("", 7000))
print("listening", flush=True)
peer, _ = listener.accept()
while data := peer.recv(100):
    peer.sendall(data)
"""
# Prints each round trip in nanoseconds.
_CLIENT = """
import socket, sys, time
count, every_s = int(sys.argv[1]), float(sys.argv[2])
peer = socket.create_connection(("server", 7000))
for _ in range(count):
    began = time.monotonic_ns()
    peer.sendall(bytes(20))
    peer.recv(100)
    print(time.monotonic_ns() - began)
    time.sleep(every_s)
"""
_TEST = """
import pytest

@pytest.mark.impair("client -> server", "lossy-latency")
def test_messages(lab):
    lab.host("server").start(["python3", "server.py"], ready="listening")
    done = lab.host("client").run(["python3", "client.py", "{count}", "{every_s:g}"], timeout="{timeout_s:g}s")
    assert done.ok, done.stderr
"""


def lay_out(folder: Path) -> None:
    """Write the stack and its programs."""
    (folder / "programs").mkdir()
    for name, text in {"programs/server.py": _SERVER, "programs/client.py": _CLIENT, "compose.yaml": _COMPOSE}.items():
        (folder / name).write_text(text, encoding="utf-8")


def test_of(*, count: int, every_s: float) -> str:
    """A test that exchanges so many messages; it may take twice the time that it waits."""
    return _TEST.format(count=count, every_s=every_s, timeout_s=2 * count * every_s)


test_of.__test__ = False  # type: ignore[attr-defined]  # pytest must not collect it
