"""A client vanishes: only a server with a heartbeat notices."""

import re

import pytest
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed


def wait_until(condition):
    """Wait until it is true; fail after 30 s."""
    Retrying(retry=retry_if_result(lambda met: not met), stop=stop_after_delay(30), wait=wait_fixed(0.05))(condition)


def clients(lab, server):
    """How many clients a server believes to have."""
    lines = re.findall(r"^(\d+) clients$", lab.host(server).logs(), re.MULTILINE)
    return int(lines[-1]) if lines else 0


@pytest.mark.impair("client <-> server", delay="20ms")
@pytest.mark.impair("client <-> silent-server", delay="20ms")
def test_who_notices_that_a_client_is_gone(lab):
    for server in ("server", "silent-server"):
        lab.host("client").start(["python3", "client.py", server], ready="connected")
        wait_until(lambda server=server: clients(lab, server) == 1)
    lab.isolate("client")
    with lab.timed("noticed"):
        wait_until(lambda: clients(lab, "server") == 0)
    assert clients(lab, "silent-server") == 1, "TCP alone would tell after two hours"
