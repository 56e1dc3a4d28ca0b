"""Automatic metrics on a real kernel: they count exactly the packets that were sent."""

from __future__ import annotations

import pytest

from testbed import Lab
from testbed.lab import overtime
from tests.lab.conftest import Datagrams

_LINK = "client -> server"
_SEND = """
import socket
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(50): sender.sendto(bytes(100), ("{}", 9))
"""
_FRAME_BYTES = 14 + 20 + 8 + 100
_PORT, _UPLOADED, _ANSWERED = 9100, 200_000, 10
_RECEIVE = """
import socket, sys, threading
def receive(connection):
    left = 200_000
    while left: left -= len(connection.recv(left))
    connection.sendall(bytes(10))
    connection.recv(1)
    connection.close()
listener = socket.create_server(("", int(sys.argv[1])))
while True: threading.Thread(target=receive, args=listener.accept()[:1]).start()
"""
# Three connections that end, and one that is refused.
_UPLOAD = """
import socket, sys
for _ in range(3):
    with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as connection:
        connection.sendall(bytes(200_000))
        connection.recv(10)
try: socket.create_connection((sys.argv[1], 1))
except ConnectionRefusedError: pass
"""
_KEEP_OPEN = """
import socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
connection.sendall(bytes(200_000))
connection.recv(10)
print("sent", flush=True)
connection.recv(1)
"""
_CONNECT = """
import socket
try: socket.create_connection(("{}", 8888), timeout=1.5)
except OSError: pass
"""


def measured(lab: Lab) -> dict[str, float]:
    programs = [run for program in lab.ledger.programs if (run := program.account) is not None]
    return {metric.name: metric.median for metric in lab.measuring.metrics(programs, lab.ledger.evidence)}


def test_packets_bytes_drops_and_programs(lab: Lab, datagrams: Datagrams, kind: str) -> None:
    lab.impair(_LINK, drop_packets=[3, 4], delay="1ms")
    address = lab.host("server").addresses("lan")[0]
    lab.lifecycle.begin_body()
    done = lab.host("client").run(["python3", "-c", _SEND.format(address)])
    assert done.ok, done.stderr
    lab.lifecycle.end_body()
    lab.verifier.verify()
    measures = measured(lab)
    assert measures[f"wire: packets {_LINK} on lan"] == 50
    assert measures[f"wire: bytes {_LINK} on lan"] == 48 * _FRAME_BYTES
    (took_s,) = (value for name, value in measures.items() if name.startswith("programs: client: python3 -c"))
    assert took_s == done.duration_s
    assert 0.005 < measures["cpu: client"] <= done.duration_s + 0.01
    assert "cpu: server" not in measures or kind == "compose", "in a local lab, nothing was started there"


def test_goodput_is_exactly_the_payload_that_arrived_while_programs_ran(lab: Lab) -> None:
    lab.impair(_LINK, delay="2ms", drop_packets=[9, 20])
    address = lab.host("server").addresses("lan")[0]
    lab.host("server").start(["python3", "-c", _RECEIVE, str(_PORT)], ready=_PORT)
    for kept_open in (False, True):
        lab.lifecycle.begin_body()
        done = lab.host("client").run(["python3", "-c", _UPLOAD, address, str(_PORT)])
        assert done.ok, done.stderr
        if kept_open:
            lab.host("client").start(["python3", "-c", _KEEP_OPEN, address, str(_PORT)], ready="sent")
        lab.lifecycle.end_body()
        received = lab.measuring.received
        many = 3 + kept_open
        assert 0 <= received["client", "server"] - many * _UPLOADED <= 3, "and a FIN of each connection that ended"
        assert 0 <= received["server", "client"] - many * _ANSWERED <= 3
        goodput = measured(lab)["goodput: client -> server"]
        assert goodput == pytest.approx(received["client", "server"] / done.duration_s, rel=0.01)


def test_a_lost_syn_is_a_time_out(lab: Lab) -> None:
    lab.impair(_LINK, drop_packets=[1])
    address = lab.host("server").addresses("lan")[0]
    lab.lifecycle.begin_body()
    assert lab.host("client").run(["python3", "-c", _CONNECT.format(address)]).ok
    lab.lifecycle.end_body()
    lab.verifier.verify()
    measures = measured(lab)
    assert measures["tcp: SYN time-outs of client"] == 1
    assert measures["tcp: segments sent again by client"] == 1
    assert measures[f"wire: packets {_LINK} on lan"] >= 3, "the lost one, the one sent again, and its ACK"


def test_what_is_observed_is_kept_over_time(lab: Lab) -> None:
    lab.lifecycle.begin("seed")
    lab.impair(_LINK, delay="30ms", drop_packets=[1])
    address = lab.host("server").addresses("lan")[0]
    with lab.observe():
        assert lab.host("client").run(["python3", "-c", _CONNECT.format(address)]).ok
    (seen,) = lab.ledger.observed
    series = {value.name.rpartition(": ")[2]: value for value in overtime.series(seen) if "client" in value.name}
    series |= {value.name: value for value in overtime.series(seen) if value.name.startswith("server@lan")}
    assert max(series["congestion window"].values) >= 1
    assert min(series["server@lan: one-way delay"].values) >= 0.03
    assert list(series["server@lan: packets lost"].values) == [0.0, 1.0]
    assert series["server@lan: packets lost"].times_s[1] < series["server@lan: one-way delay"].times_s[-1]
