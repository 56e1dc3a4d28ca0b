"""`testbed envelope` on real links finds the loss from which on a program gets too little."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.lab.conftest import cli

_COMPOSE = """
services:
  client:
    image: debian:trixie-slim
    command: [sleep, infinity]
    x-testbed: {local: {path: ., python: true}}
  server:
    image: debian:trixie-slim
    command: [python3, server.py]
    x-testbed: {local: {path: ., python: true}}
"""
_SERVER = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 9000))
while True:
    data, peer = s.recvfrom(100)
    s.sendto(data, peer)
"""
_CLIENT = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect(("server", 9000))
s.settimeout(0.2)
for n in range(100):
    s.send(b"%d" % n)
got = 0
try:
    while got < 100:
        s.recv(100)
        got += 1
except OSError:
    pass
sys.exit(got < 65)
"""
_TEST = """
import pytest

@pytest.mark.impair("client -> server", delay="1ms")
def test_echo(lab):
    assert lab.host("client").run(["python3", "client.py"]).ok
"""


@pytest.mark.timeout(200)
def test_the_worst_loss_is_found_on_the_local_lab(tmp_path: Path) -> None:
    files = {"compose.yaml": _COMPOSE, "server.py": _SERVER, "client.py": _CLIENT, "test_it.py": _TEST}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    # 65 of 100 arrive with a probability of 88 % at a loss of 30 %, of 18 % at 40 %, of 0.2 % at 50 %.
    search = ["envelope", "--vary", "loss=0..70%", "--levels", "8", "--probability", "50%", "--seed", "1", "--json"]
    words = ["--lab", "local", "--testbed-lateness", "warn", "-p", "no:cacheprovider", "test_it.py"]
    done = cli(*search, "--", *words, cwd=tmp_path, within_s=180)
    assert done.returncode == 0, done.stderr
    (column,) = json.loads(done.stdout)["columns"]
    held, fails = (int(column[key].rstrip("%")) for key in ("held", "fails_from"))
    assert held <= 30, "the test passes there, and fails at 40 %"
    assert fails >= 40
    assert fails - held <= 20
    (folder,) = (tmp_path / "report" / "envelope").iterdir()
    dropped: dict[str, int] = {}
    for run in map(json.loads, (folder / "envelope.jsonl").read_text().splitlines()[1:]):
        lines = map(json.loads, (folder / "head" / f"{run['run']:05}.jsonl").read_text().splitlines())
        (test,) = [line["test"] for line in lines if "test" in line]
        (link,) = test["attempts"][-1]["links"] if "attempts" in test else test["links"]
        dropped.setdefault(run["vary"][0], int(link["counters"]["dropped_packets"]))
    assert dropped["loss=0%"] == 0
    assert dropped["loss=70%"] > 50, "the links were as the search says"
