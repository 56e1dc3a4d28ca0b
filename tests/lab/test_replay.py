"""The same seed loses the same packets, and so does the printed command of a failed test."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import Lab
from testbed.lab import wanted
from tests.lab import truth
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


@pytest.mark.parametrize(
    "words",
    [{"loss": "30%"}, {"loss": "30%", "burst": 3}, {"drop_packets": [2, "10-40"]}, {"loss": "30%", "delay": "5ms"}],
)
def test_a_sequence_begins_with_the_body_of_a_test_whatever_crossed_the_link_before(
    lab: Lab, datagrams: Datagrams, words: dict[str, object]
) -> None:
    (ref,) = lab.topology.links("client -> server")
    lost = []
    for before in (0, 7):
        lab.heal()
        lab.lifecycle.begin("of one test")
        lab.impairer.apply(ref, wanted.side(lab, words))
        if before:
            datagrams.arrived(before)
        lab.lifecycle.begin_body()
        lost.append(sorted(set(range(200)) - set(datagrams.arrived(200, pace_s=0.001))))
        lab.verifier.verify()
        (tally,) = [link.tally for link in lab.ledger.evidence]
        assert tally is not None
        # Those of the body and the words that end it; by number, they are lost before netem.
        assert 150 <= tally.arrived_packets <= 260, "and none of before"
    assert lost[0] == lost[1] != []


_LEAKY = """
import pytest

SINK = "import socket, sys; s = socket.create_server(('', int(sys.argv[1])), backlog=64); print('up', flush=True)\\n" \
       "held = []\\nwhile True: held.append(s.accept())"
# Connections that nobody closes, with data on its way when its program is killed; and one to the service itself.
LEAVE = "import socket, sys, time\\n" \
        "own = socket.create_connection((sys.argv[1], 8888))\\n" \
        "held = [socket.create_connection((sys.argv[1], int(sys.argv[2]))) for _ in range(8)]\\n" \
        "for each in held: each.setblocking(False); each.send(b'x' * 100_000)\\n" \
        "print('sent', flush=True); time.sleep(99)"
LISTEN = "import signal, socket; s = socket.socket(2, 2); s.bind(('', 9)); print('up', flush=True); signal.pause()"
SEND = "import socket, sys; s = socket.socket(2, 2); [s.sendto(b'%d' % n, (sys.argv[1], 9)) for n in range(60)]"
READ = "import socket, sys; s = socket.create_server(('', int(sys.argv[1]))); print('up', flush=True)\\n" \
       "taken, _ = s.accept()\\nwhile taken.recv(65536): pass"
WRITE = "import socket, sys\\n" \
        "with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as s: s.sendall(b'x' * 90_000)"

def python(host, program, *words, ready=None):
    return host.start(["python3", "-c", program, *map(str, words)], ready=ready, timeout="30s")

@pytest.fixture
def ends(lab):
    server = lab.host("server")
    return lab.host("client"), server, server.addresses()[0]

def leave(ends, port):
    client, server, address = ends
    python(server, SINK, port, ready="up")
    python(client, LEAVE, address, port, ready="sent")

def udp(ends):
    client, server, address = ends
    python(server, LISTEN, ready="up")
    assert python(client, SEND, address).wait().ok
    assert False

def tcp(ends, port):
    client, server, address = ends
    python(server, READ, port, ready="up")
    assert python(client, WRITE, address, port).wait("60s").ok
    assert False
"""
_ROUND = """
@pytest.mark.impair("client <-> server", delay="20ms", loss="20%")
def test_leaves_{0}(ends): leave(ends, 9300 + {0})

@pytest.mark.impair("client -> server", loss="20%")
def test_udp_{0}(ends): udp(ends)

@pytest.mark.impair("client <-> server", delay="20ms", loss="20%")
def test_leaves_again_{0}(ends): leave(ends, 9400 + {0})

@pytest.mark.impair("client -> server", loss="10%", delay="2ms")
def test_tcp_{0}(ends): tcp(ends, 9500 + {0})
"""
_LOST = re.compile(r"client -> server: lost \d+ of (\d+) packets: drop_packets=([\d, -]+)")


def _failures(folder: Path, argv: list[str]) -> tuple[list[str], list[tuple[int, set[int]]]]:
    """The printed commands of a run; for each, the number of packets and the numbers of the lost ones."""
    done = subprocess.run(
        [sys.executable, "-m", *argv], cwd=folder, capture_output=True, text=True, check=False, timeout=1200
    )
    assert done.returncode == 1, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("pytest ")]
    lost = [(int(match[1]), set(_numbers(match[2]))) for match in _LOST.finditer(done.stdout)]
    assert len(lines) == len(lost), done.stdout
    return lines, lost


def _numbers(text: str) -> Iterator[int]:
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        yield from range(int(first), int(last or first) + 1)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [1, pytest.param(25, marks=pytest.mark.by_hand)])
def test_the_replay_line_loses_the_same_packets_whatever_earlier_tests_left_behind(
    kind: str, pytestconfig: pytest.Config, tmp_path: Path, count: int
) -> None:
    """Compared up to the end of the shorter run: timing decides how many packets TCP sends, not which are lost."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")  # or the folder of the Compose file may be the root
    (tmp_path / "test_leaky.py").write_text(_LEAKY + "".join(map(_ROUND.format, range(count))))
    options = [
        "--lab",
        kind,
        "--netem",
        pytestconfig.getoption("--netem"),
        "--compose-file",
        str(ROOT / "compose.yaml"),
        "--testbed-lateness=warn",
    ]
    lines, lost = _failures(tmp_path, ["pytest", "-p", "no:cacheprovider", "-q", "test_leaky.py", *options])
    assert len(lines) == 2 * count
    differing = []
    for line, (sent, numbers) in zip(lines, lost, strict=True):
        _, [(sent_again, numbers_again)] = _failures(tmp_path, shlex.split(line))
        common = min(sent, sent_again)
        first, again = ({number for number in some if number <= common} for some in (numbers, numbers_again))
        if first != again or common < 60:
            differing.append(f"{line}: {sent} packets, lost {sorted(first)}; {sent_again}, lost {sorted(again)}")
    assert not differing, "\n".join(differing)


_BURST = "import socket, sys; s = socket.socket(2, 2); [s.sendto(b'%d' % n, (sys.argv[1], 9)) for n in range(20)]"


def test_a_capture_ends_only_once_a_late_kernel_has_taken_what_came(lab: Lab, datagrams: Datagrams) -> None:
    """Or packets that are under way would be taken for lost, and named in what repeats the losses."""
    lab.impair("client -> server", loss="1%", seed=1)
    datagrams.arrived(1)
    address = lab.host("server").addresses()[0]
    before = lab.link("client -> server").counters().dropped_packets
    capture = lab.capture("client -> server")
    capture.begin()
    at = truth.place(lab)
    at.signal(signal.SIGSTOP)
    going_on = threading.Timer(0.2, at.signal, [signal.SIGCONT])
    try:
        assert lab.host("client").run(["python3", "-c", _BURST, address]).ok
        going_on.start()
        capture.end(at_once=True)
    finally:
        going_on.cancel()
        going_on.join()
        at.signal(signal.SIGCONT)
    passages = [passage for passage in capture.passages() if passage.before.length_bytes < 60]
    assert len(passages) == 20
    lost = sum(passage.lost for passage in passages)
    assert 0 <= lost - (lab.link("client -> server").counters().dropped_packets - before) <= 1, "just taken"
