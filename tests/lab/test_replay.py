"""The same seed, the same packets, the same losses; and the line that a failed test prints."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from testbed import Lab
from tests.lab.conftest import Datagrams, await_quiet, prepare

BELOW_THE_LAB = True

ROOT = Path(__file__).parents[2]


def test_three_times_2000_packets_lose_the_same_ones_in_both_directions(lab: Lab) -> None:
    client, server = lab.hosts["client"], lab.hosts["server"]
    prepare(client, server)
    await_quiet(client, server)
    for link, flow in (
        ("client -> server", Datagrams(client, server)),
        ("server -> client", Datagrams(server, client)),
    ):
        lost = []
        for _attempt in range(3):
            lab.link(link).impair(loss="5%", seed=2020)
            lost.append(sorted(set(range(2000)) - set(flow.arrived(2000, pace_s=0.0005))))
        lab.heal()
        assert lost[0] == lost[1] == lost[2]
        # 2000 packets at 5 %: mean 100, σ = √(2000·0.05·0.95) ≈ 9.7; ± 5σ.
        assert 51 <= len(lost[0]) <= 149


_FAILING = """
import pytest

LISTEN = "import socket, time; s = socket.socket(2, 2); s.bind(('', 9)); print('up', flush=True); time.sleep(99)"
SEND = "import socket, sys; s = socket.socket(2, 2); [s.sendto(b'%d' % n, (sys.argv[1], 9)) for n in range(40)]"

@pytest.mark.impair("client <-> server", "lossy")
@pytest.mark.parametrize("word", ["a b"])
def test_fails(lab, word):
    lab.link("client -> server").impair(loss="30%")
    server, client = lab.host("server"), lab.host("client")
    server.start(["python3", "-c", LISTEN], ready="up")
    assert client.run(["python3", "-c", SEND, server.addresses()[0]]).ok
    lab.link("client -> server").impair(delay="5ms")
    lab.link("server -> client").impair([{"loss": "1%"}, {"at": "9s", "loss": "5%"}])
    assert False
"""


def test_a_failed_test_prints_the_line_that_repeats_it(stack: Lab, kind: str, tmp_path: Path) -> None:
    (tmp_path / "test_failing.py").write_text(_FAILING)

    def run(argv: list[str]) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *argv], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=110
        )
        assert done.returncode == 1, done.stdout
        return done.stdout

    # What the line must name: a file elsewhere, which lab, and a service that is there by a Compose profile alone.
    stack_file = tmp_path / "stack" / "compose.yaml"
    stack_file.parent.mkdir()
    text = (ROOT / "compose.yaml").read_text().replace("context: images", f"context: {ROOT / 'images'}")
    stack_file.write_text(text.replace("  client:\n", "  client:\n    profiles: [asking]\n"))
    options = ["--lab", kind, "--compose-file", "stack/compose.yaml", "--compose-profile", "asking"]
    first = run(["pytest", "-p", "no:cacheprovider", "test_failing.py", *options])
    line = next(line for line in first.splitlines() if line.startswith("pytest "))
    seed = re.search(r"--testbed-seed (\d+)", line)
    assert seed is not None
    assert f"seed {seed[1]}" in first.splitlines()[2], "the header names it too"
    assert line.startswith("pytest 'test_failing.py::test_fails[a b]' --testbed-seed ")
    assert f"--netem {stack.netem_engine} --lab {kind} --compose-file " in line

    def links(output: str) -> list[str]:
        return [line for line in output.splitlines() if re.match(r"\w+ -> \w+: ", line)]

    again = run(shlex.split(line))
    assert f"lab {kind}, netem {stack.netem_engine}, seed {seed[1]}" in again.splitlines()[2]
    assert links(again) == links(first)
    *asked, lost = links(first)
    assert [re.sub(r"seed=\d+", "seed", line) for line in asked] == [
        "client -> server: loss=5% seed (profile lossy)",
        "server -> client: loss=5% seed (profile lossy)",
        "client -> server: loss=30% seed",
        "client -> server: delay=5ms",  # nothing random: no seed
        "server -> client: timeline, 2 steps over 9s; begins with loss=1% limit=1000 seed; "
        'asked: [{"loss": "1%"}, {"at": "9s", "loss": "5%"}]',
    ]
    # 40 at 30 %: mean 12, σ ≈ 2.9; that none is lost happens once in 1.6 million runs. And the same again, above.
    assert re.fullmatch(r"client -> server: lost [1-9]\d* of 40 packets: drop_packets=[\d, -]+", lost)
    assert len(set(re.findall(r"seed=(\d+)", first))) == 4, "each link and each time has its own"
