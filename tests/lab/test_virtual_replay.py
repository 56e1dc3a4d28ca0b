"""`testbed replay`, from end to end: a recorded test is proven identical, and what differs is shown or named."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from testbed.kernel import building, bytecode
from testbed.observe import pcapng
from testbed.report.files import load
from tests.lab.programs import exchange_project

pytestmark = [
    pytest.mark.skipif(
        building.find() is None, reason="no kernel with a simulated clock: `testbed kernel build` builds one"
    ),
    pytest.mark.timeout(600),
]

# Hidden folders are not taken for the project's: what such a file changes is found in the packets alone.
SUITE = """
from pathlib import Path

def test_first(lab):
    assert lab.host("client").run(["true"]).ok

def test_last(lab):
    lab.host("server").start(["python3", "server.py"], ready="listening")
    salt = Path(".hidden/salt").read_text()
    assert lab.host("client").run(["python3", "salted.py", salt]).ok
"""
SALTED = """
import socket, sys, time
peer = socket.create_connection(("server", 7000))
for number in range(6):
    peer.sendall(bytes([number]) if number != 4 else sys.argv[1].encode())
    peer.recv(100)
    time.sleep(1)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project, with a recorded run of its two tests."""
    bytecode.ensure(print)
    exchange_project.lay_out(tmp_path)
    (tmp_path / "test_two.py").write_text(SUITE)
    (tmp_path / "programs" / "salted.py").write_text(SALTED)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "salt").write_text("A")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    run(tmp_path, "pytest", "-p", "no:cacheprovider", "--virtual-time", "--testbed-seed", "7", "test_two.py")
    return tmp_path


def run(folder: Path, module: str, *arguments: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_test_is_identical_until_a_byte_or_a_program_is_another(folder: Path) -> None:
    recorded = (folder / "report" / "results.jsonl").read_bytes()
    output = run(folder, "testbed.commands.cli", "replay")
    (packets,) = re.findall(r"test_last: identical: (\d+) packets at 2 ports, and all results\n", output)
    assert int(packets) >= 2 * (3 + 6 * 3)
    assert "2 of 2 identical\n" in output

    (folder / ".hidden" / "salt").write_text("B")
    output = run(folder, "testbed.commands.cli", "replay", "report/results.jsonl", "test_last", status=1)
    assert "test_two.py::test_last: different\n" in output
    assert "0 of 1 identical, 1 different\n" in output
    (before, number) = re.findall(
        r"  (?:client|server)@default: packet (\d+) differs, by 4\.\d+ s; the first (\d+) are", output
    )[0]
    assert int(before) == int(number) + 1
    assert re.search(
        rf"    > {before}: recorded 4\.\d+ s, replayed 4\.\d+ s, .* 67 bytes, .* TCP PSH, ACK seq ", output
    )

    (folder / "programs" / "salted.py").write_text(f"{SALTED}\n")
    output = run(folder, "testbed.commands.cli", "replay", status=2)
    assert re.search(r"recorded with another revision of this folder's files: \w{16}, and here is \w{16}", output)
    assert (folder / "report" / "results.jsonl").read_bytes() == recorded


FAILS = """
import pytest

@pytest.mark.impair("client -> server", delay="40ms")
def test_that_fails(lab):
    lab.host("server").start(["python3", "server.py"], ready="listening")
    assert lab.host("client").run(["python3", "client.py", "6", "0.3"]).stdout == ""
"""


def test_a_test_that_failed_is_replayed_with_its_packets_and_tcp_info_at_no_cost_to_its_run(tmp_path: Path) -> None:
    bytecode.ensure(print)
    exchange_project.lay_out(tmp_path)
    (tmp_path / "test_one.py").write_text(FAILS)
    words = ("-p", "no:cacheprovider", "--virtual-time", "--testbed-seed", "7", "--junitxml", "junit.xml")

    def failed(most: int) -> tuple[str, dict[str, Any]]:
        output = run(tmp_path, "pytest", *words, f"--testbed-replays={most}", status=1)
        (test,) = load(tmp_path / "report" / "results.jsonl").tests
        return output, dict(test.last.content)

    output, test = failed(3)
    digests, replayed = test["packets"], test["replayed"]
    packets = sum(port["packets"] for port in digests["ports"].values())
    assert f"replayed, identical: all {packets} packets at 2 ports are in report/captures/" in output
    assert (replayed["same"], replayed["packets"]) == (True, packets)
    kept = [pcapng.read((tmp_path / path).read_bytes()).packets for path in replayed["captures"]]
    assert sum(map(len, kept)) == packets
    assert any("client :" in series["name"] for series in replayed["tcp_info"]["series"])
    assert "TCP_INFO in the replay" in (tmp_path / "report" / "index.html").read_text()
    assert (tmp_path / "junit.xml").stat().st_size, "it moves nothing that there is one now"

    output, test = failed(0)
    assert "replayed" not in test
    assert "replaying" not in output
    assert test["packets"] == digests, "the first run does nothing for its replay"


SEARCHED = """
from testbed.pytest.state import SEED

def test_that_fails(lab, pytestconfig):
    lab.host("server").start(["python3", "server.py"], ready="listening")
    assert lab.host("client").run(["python3", "client.py", "6", "0.3"]).ok
    assert pytestconfig.stash[SEED] != 4
"""
SEARCH = ("--testbed-seeds", "1..4", "--testbed-jobs", "2", "--testbed-shrink", "0")


@pytest.mark.parametrize(
    ("suite", "words", "name"),
    [
        pytest.param(FAILS, ("--testbed-seed", "7", "-n", "2"), "test_that_fails", id="tests"),
        pytest.param(SEARCHED, SEARCH, "test_that_fails (seed 4)", id="seeds"),
    ],
)
def test_a_test_of_one_of_several_kernels_is_replayed_in_its_share(
    tmp_path: Path, suite: str, words: tuple[str, ...], name: str
) -> None:
    """Of a test for each of two kernels, and of the second seed of the second one."""
    bytecode.ensure(print)
    exchange_project.lay_out(tmp_path)
    (tmp_path / "test_one.py").write_text("def test_passes(lab):\n    assert lab\n")
    (tmp_path / "test_two.py").write_text(suite)
    usual = ("-p", "no:cacheprovider", "--virtual-time", "--testbed-replays", "1")
    output = run(tmp_path, "pytest", *usual, *words, status=1)
    tests = {test.id: test.last.content for test in load(tmp_path / "report" / "results.jsonl").tests}
    replayed = tests[f"test_two.py::{name}"]["replayed"]
    assert f"replayed, identical: all {replayed['packets']} packets at 2 ports are in report/captures/" in output
