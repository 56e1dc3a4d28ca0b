"""A project with a planted bug for searches over seeds: a client that gives up if its farewell's answer is lost.

The server is gone once it has answered the farewell. So if that answer is lost, which is one packet in two hundred, the
client's farewell is never acknowledged.
"""

from __future__ import annotations

from pathlib import Path

from tests.lab.programs import exchange_project

FAILING_SEED = 86
"""One of those under which the answer to the farewell is lost; the 25 before it pass."""
_SERVER = """
import socket
port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
port.bind(("", 7000))
print("listening", flush=True)
data = b""
while data != b"bye":
    data, peer = port.recvfrom(100)
    port.sendto(b"ack " + data, peer)
"""
_CLIENT = """
import socket, sys
port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
port.connect(("server", 7000))
port.settimeout(0.5)

def send(message, tries):
    for _ in range(tries):
        try:
            port.send(message)
            while port.recv(100) != b"ack " + message:
                pass
            return
        except (TimeoutError, ConnectionRefusedError):
            pass
    sys.exit(f"{message.decode()}: not acknowledged")

for number in range(int(sys.argv[1])):
    send(b"%d" % number, 10)
send(b"bye", 3)
"""
TEST = """
import pytest

@pytest.mark.impair("server -> client", delay="30ms", jitter="5ms", loss="0.5%")
@pytest.mark.impair("client -> server", delay="30ms", loss="5%")
def test_bye(lab, at_most):
    lab.host("server").start(["python3", "server.py"], ready="listening")
    done = lab.host("client").run(["python3", "client.py", str(at_most(20, "messages"))], timeout="60s")
    assert done.ok, done.stderr
"""


def lay_out(folder: Path) -> None:
    """Write the stack, its programs, and ``test_bye.py``."""
    exchange_project.lay_out(folder)
    for name, text in {"programs/server.py": _SERVER, "programs/client.py": _CLIENT, "test_bye.py": TEST}.items():
        (folder / name).write_text(text, encoding="utf-8")
