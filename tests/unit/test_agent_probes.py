"""The agent's probes over loopback: a packet that waits in the kernel keeps the time of its arrival."""

from __future__ import annotations

import threading
import time

import pytest

from testbed.agent.probes import Probes

COUNT = 200


def reading() -> int:
    """How many threads read probes; others of this process begin and end as they like."""
    return [thread.name for thread in threading.enumerate()].count("probes")


@pytest.mark.parametrize(("hold", "reads_at_once"), [(0, True), (COUNT, False), (2**31, True)])
def test_every_probe_is_collected_with_the_time_of_its_arrival(hold: int, reads_at_once: bool) -> None:
    """Held where the kernel holds as much, else read as it comes."""
    sender, receiver = Probes(), Probes()
    port = receiver.listen(address="127.0.0.1", flight=7, hold=hold, size_bytes=64)["port"]
    assert reading() == int(reads_at_once)
    sent = sender.send(
        source="127.0.0.1", address="127.0.0.1", port=port, flight=7, count=COUNT, pace_s=0.0, size_bytes=64
    )["sent_ns"]
    last_ns = time.time_ns()
    seen = receiver.collect(expect=COUNT, quiet_s=5.0, deadline_s=20.0)
    assert [number for number, _ in seen["arrivals"]] == list(range(COUNT))
    assert all(left <= came <= last_ns for left, (_, came) in zip(sent, seen["arrivals"], strict=True))
    assert seen["damaged"] == 0
    assert reading() == 0
