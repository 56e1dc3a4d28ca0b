"""`testbed envelope` on real links finds how long a program waits for an answer, in two versions of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from testbed.units import parse_time
from tests.lab.conftest import cli
from tests.lab.test_two_versions import git

_COMPOSE = """
services:
  client:
    image: debian:trixie-slim
    command: [sleep, infinity]
    x-testbed: {local: {path: ., python: true}}
  server:
    image: debian:trixie-slim
    command: [python3, -S, -E, server.py]
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
s.settimeout(WAITS_S)
s.send(b"x")
try:
    s.recv(100)
except TimeoutError:
    sys.exit(1)
"""
_TEST = """
import pytest

@pytest.mark.impair("client -> server", loss="0.001%")
def test_echo(lab):
    assert lab.host("client").run(["python3", "-S", "-E", "client.py"]).ok
"""


@pytest.mark.timeout(300)
def test_of_two_versions_the_one_that_waits_less_fails_from_a_shorter_delay_on(tmp_path: Path) -> None:
    files = {"compose.yaml": _COMPOSE, "server.py": _SERVER, "test_it.py": _TEST, ".gitignore": "report\n__pycache__\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    git(tmp_path, "init", "-q")
    for waits_s, tag in ((0.87, "patient"), (0.12, "hasty")):
        (tmp_path / "client.py").write_text(_CLIENT.replace("WAITS_S", str(waits_s)))
        git(tmp_path, "add", "-A")
        git(tmp_path, "commit", "-q", "-m", tag)
        git(tmp_path, "tag", tag)
    # Of 0, 250, 500, 750 ms and 1 s, hasty waits long enough for the first alone, and patient for all but the last.
    search = ["--vary", "delay=0..1s", "--levels", "5", "--probability", "50%", "--seed", "1", "--base", "patient"]
    words = ["--lab", "local", "--testbed-lateness", "warn", "-p", "no:cacheprovider", "test_it.py"]
    done = cli("envelope", *search, "--markdown", "out.md", "--", *words, cwd=tmp_path, within_s=280)
    assert done.returncode == 0, done.stderr
    # To one level, as narrow as an interval may stay undecided.
    sentence = r"worse: head fails from delay (250ms|500ms) on; base held to (500ms|750ms) \("
    assert re.search(rf"\n{sentence}head ", done.stdout), done.stdout
    assert re.search(rf"\n\* {sentence}", (tmp_path / "out.md").read_text())
    (folder,) = (tmp_path / "report" / "envelope").iterdir()
    for line in (folder / "envelope.jsonl").read_text().splitlines()[1:]:
        run = json.loads(line)
        lines = map(json.loads, (folder / run["version"] / f"{run['run']:05}.jsonl").read_text().splitlines())
        (test,) = [line["test"] for line in lines if "test" in line]
        assert len(test["links"]) == 1, test
        (link,) = test["links"]
        (delay,) = [check["kernel"] for check in link["checks"] if check["field"] == "delay"] or ["0s"]
        assert f"delay={delay}" == run["vary"][0], "the links were as the search says"
        (program,) = test["programs"]
        assert run["outcome"] == "failed" or program["duration_s"] >= parse_time(delay), "and nothing went past them"
    assert git(tmp_path, "worktree", "list").count("\n") == 1
