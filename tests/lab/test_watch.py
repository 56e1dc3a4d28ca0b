"""`testbed watch` beside a running session: what it sees of its lab, which it leaves as it is."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.lab.conftest import run

LABS = ("local",)
_SUITE = """
import json, os, subprocess, sys
import pytest
from testbed.lab.waiting import await_condition

def seen():
    argv = [sys.executable, "-m", "testbed.commands.cli", "watch", "--once", "--json", "--pid", str(os.getpid())]
    return json.loads(subprocess.run(argv, check=True, capture_output=True, text=True, timeout=100).stdout)

@pytest.mark.impair("client -> server", delay="30ms", loss="0%")
def test_watched(lab):
    (bottleneck,) = lab.shape("server -> client", rate="8mbit", queue="20kB")
    assert lab.host("client").run(["python3", "-c", "import socket; socket.create_connection(('server', 8888))"]).ok
    await_condition(lambda: bottleneck.counters().sent_packets, lambda sent: sent >= 2, deadline_s=20)
    lab.cut("server -> client")
    lab.impair("client -> server tcp/8888", [{"delay": "5ms"}, {"at": "60min", "delay": "6ms"}])
    before = bottleneck.counters()
    picture = seen()
    (place,) = picture["labs"][0]["bottlenecks"]
    counts = bottleneck.counters()
    assert (place["bottleneck"], place["asked"]) == ("server -> client", "rate=8mbit queue=20kB qdisc=fifo")
    assert 2 <= before.sent_packets <= place["counts"]["sent_packets"] <= counts.sent_packets
    (stack,) = picture["labs"]
    assert picture["test"] == "test_watched.py::test_watched"
    assert set(stack["networks"]["lan"]) == {"client", "server"}
    links = {link["link"]: link for link in stack["links"]}
    ends = "client -> server", "server -> client", "client -> server tcp/8888"
    whole, cut, part = (links[name] for name in ends)
    assert (whole["asked"], whole["kernel"]["delay"]) == ("delay=30ms loss=0%", "30ms")
    assert whole["counts"]["sent_packets"] >= 3
    assert cut["cut"] == "silently"
    assert part["timeline"] == {"step": 1, "of": 2, "at_s": 0.0, "repeat_s": None}

def test_healed(lab):
    (stack,) = seen()["labs"]
    assert stack["links"] == stack["bottlenecks"] == []
"""


def test_a_session_is_seen_as_it_is_and_its_tests_still_count(kind: str, project: Path) -> None:
    (project / "test_watched.py").write_text(_SUITE)
    options = ["-q", f"--lab={kind}", "--testbed-lateness=warn", "-p", "no:cacheprovider"]
    printed = run([sys.executable, "-m", "pytest", *options], cwd=project, env=os.environ)
    assert "2 passed" in printed
