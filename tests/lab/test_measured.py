"""Automatic metrics on a real kernel: they count exactly the packets that were sent."""

from __future__ import annotations

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
    if kind == "local":
        assert 0.005 < measures["cpu: client"] <= done.duration_s + 0.01
    else:
        assert "cpu: client" not in measures


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
