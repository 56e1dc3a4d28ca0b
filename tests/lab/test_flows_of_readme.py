"""The twelve things that README teaches, on each kind of lab. Each fails if its impairment is missing or its link dead.

Other files test each of them in depth. Lower bounds of times hold on a busy machine, too; a minimum of several
exchanges is what a link without a delay stays below.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from testbed import Lab, Program, Result
from testbed.evidence.verdict import Verdict
from testbed.lab.waiting import await_condition
from testbed.report.files import load
from tests.lab.conftest import Datagrams, cli, stack_from_anywhere

_CONNECT = """
import socket, sys, time
def connect_s():
    began = time.monotonic()
    socket.create_connection(("server", int(sys.argv[1])), timeout=float(sys.argv[3])).close()
    return time.monotonic() - began
print(min(connect_s() for _ in range(int(sys.argv[2]))))
"""


def connect(lab: Lab, *, attempts: int = 1, timeout_s: float = 20) -> Result:
    """Have the client connect to the server and close, so many times; it prints the shortest handshake, in seconds."""
    argv = ["python3", "-c", _CONNECT, "8888", str(attempts), str(timeout_s)]
    return lab.host("client").run(argv, timeout="60s")


def connect_s(lab: Lab, *, attempts: int = 3) -> float:
    """The shortest of several handshakes, in seconds."""
    done = connect(lab, attempts=attempts)
    assert done.ok, done.stderr
    return float(done.stdout)


def refused(lab: Lab) -> bool:
    """Whether the client is told that nothing listens there."""
    return "ConnectionRefusedError" in connect(lab).stderr


@pytest.mark.impair("client -> server", "lossy-latency")
@pytest.mark.impair("server -> client", delay="40ms", loss="2%")
def test_1_a_marker_impairs_by_a_profile_and_by_values(lab: Lab) -> None:
    assert connect_s(lab) >= 0.030 + 0.040  # of 50 ± 5 ms, normal, hardly a packet in 100,000 takes less than 30 ms
    assert {str(ref): impairment.loss_ratio for ref, impairment in lab.impairer.impairments().items()} == {
        "client -> server": 0.05,
        "server -> client": 0.02,
    }


@pytest.mark.impair_each("client <-> server", "clean", "latency")
def test_2_a_marker_makes_a_test_of_each_profile(lab: Lab, profile: str) -> None:
    assert (connect_s(lab) >= 0.100) == (profile == "latency")


def test_3_a_call_impairs_counts_and_heals(lab: Lab, datagrams: Datagrams) -> None:
    lab.impair("client <-> server", delay="60ms")
    assert min(datagrams.round_trips(5)) >= 0.120
    link = lab.link("client -> server")
    link.impair(delay="60ms", loss="20%", seed=7)
    before = link.counters().dropped_packets
    lost = 100 - len(datagrams.arrived(100))
    assert 0 < lost <= link.counters().dropped_packets - before  # and of the words that end it
    lab.heal()
    assert min(datagrams.round_trips(5)) < 0.060
    assert datagrams.arrived(100) == list(range(100))


def test_4_a_link_is_narrowed_to_a_port(lab: Lab, datagrams: Datagrams) -> None:
    lab.impair("* -> server tcp/8888", delay="120ms")
    assert connect_s(lab) >= 0.120
    assert min(datagrams.round_trips(5)) < 0.060


@pytest.fixture
def under_way(lab: Lab, datagrams: Datagrams) -> Program:
    """The receiver of 400 datagrams that are under way before the test's body, and with it its timelines, begin."""
    receiver = datagrams.begin(400, pace_s=0.005)
    await_condition(lambda: lab.link("client -> server").counters().sent_packets, bool, deadline_s=60)
    return receiver


@pytest.mark.impair("client -> server", [{"delay": "5ms"}, {"at": "300ms", "outage": "300ms"}])
@pytest.mark.impair("server -> client", trace="traces/tunnel.csv")
def test_5_a_network_changes_over_time(lab: Lab, under_way: Program) -> None:
    arrived = json.loads(under_way.wait().stdout.splitlines()[1])
    lost = sorted(set(range(400)) - set(arrived))
    assert 0 < len(lost) < 150
    assert lost == list(range(lost[0], lost[-1] + 1)), "one outage"
    assert connect_s(lab) >= 0.005 + 0.038, "the trace begins with 39 to 41 ms"
    steps = lab.link("client -> server").steps()
    assert [(step.planned_s, step.complaint) for step in steps] == [(0, None), (0.3, None), (0.6, None)]


def test_6_a_cut_ends_connections_and_mending_brings_them_back(lab: Lab) -> None:
    lab.cut("client -> server tcp/8888", reject=True)
    assert refused(lab)
    assert lab.link("client -> server tcp/8888").lost_in_cut() == 1
    lab.mend("client -> server tcp/8888")
    connect_s(lab)


def test_7_hosts_are_parted_isolated_and_come_and_go(lab: Lab, datagrams: Datagrams) -> None:
    both = ["client -> server", "server -> client"]
    assert sorted(map(str, lab.partition({"client"}, {"server"}, reject=True))) == both
    assert refused(lab)
    lab.mend()
    assert sorted(map(str, lab.isolate("server", reject=True))) == both
    assert refused(lab)
    lab.mend()
    connect_s(lab)
    lab.flap("client -> server", up="200ms", down="200ms")
    assert 0 < len(datagrams.arrived(200, pace_s=0.005)) < 200
    lab.mend()
    assert datagrams.arrived(50) == list(range(50))


def test_8_a_host_that_was_killed_starts_again_behind_the_same_link(lab: Lab) -> None:
    lab.impair("client -> server", delay="120ms")
    server = lab.host("server")
    server.kill()
    assert not connect(lab, timeout_s=1).ok
    server.start()
    assert connect_s(lab) >= 0.120


@pytest.mark.impair("client -> server", delay="30ms", loss="5%", prove=True)
def test_9_probes_prove_a_link(lab: Lab) -> None:
    connect_s(lab)
    lab.verifier.verify()
    (link,) = lab.ledger.evidence
    assert [check.verdict for check in link.checks if check.field in ("delay", "loss")] == [Verdict.HOLDS] * 2
    assert link.probe is Verdict.HOLDS


@pytest.mark.impair("client -> server", drop_packets=[1])
def test_10_an_observation_shows_the_packet_that_was_lost(lab: Lab) -> None:
    with lab.observe(captures=["client -> server"], snap_bytes=None) as seen:
        assert connect_s(lab, attempts=1) >= 1  # RFC 6298: a SYN is sent again after a second
    (flow,) = seen.flows("server", "before")
    assert flow.handshake.syns == 2
    assert [passage.lost for passage in seen.passages("server@lan")][:2] == [True, False]
    assert seen.host("client").counters.retransmitted_segments == 1


_REPORTED = """
import pytest

LISTEN = "import signal, socket; s = socket.socket(2, 2); s.bind(('', 9)); print('up', flush=True); signal.pause()"
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
    lab.record("datagrams", 40, unit="1", better="higher")
    assert False

@pytest.mark.impair("client -> server", loss="50%")
def test_over_the_wrong_link(lab):
    assert lab.host("server").run(["true"]).ok
"""


def test_11_a_run_reports_what_did_not_count_and_repeats_what_failed(stack: Lab, kind: str, tmp_path: Path) -> None:
    (tmp_path / "test_reported.py").write_text(_REPORTED)

    def run(argv: list[str]) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *argv], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=250
        )
        assert done.returncode == 1, done.stdout
        return done.stdout

    # What the command must name: a file elsewhere, which lab, and a service that is there by a Compose profile alone.
    stack_file = tmp_path / "stack" / "compose.yaml"
    stack_file.parent.mkdir()
    text = stack_from_anywhere()
    stack_file.write_text(text.replace("  client:\n", "  client:\n    profiles: [asking]\n"))
    options = ["--lab", kind, "--compose-file", "stack/compose.yaml", "--compose-profile", "asking"]
    options.append("--testbed-lateness=warn")
    output = run(["pytest", "-p", "no:cacheprovider", "test_reported.py", *options])
    first, _, later = output.partition("INVALID: the impairment was not in force, or nothing met it")

    # A busy machine may be late, and is warned of.
    assert re.search(r"== 1 failed, (\d+ warnings?, )?1 invalid", later), later
    assert "test_over_the_wrong_link: impair('client -> server', loss='50%'): no packet met what it impairs" in later
    assert re.search(r"^ +delay +5ms +5ms +not measured", first, re.MULTILINE), (
        "asked, kernel and seen stand side by side"
    )
    session = load(tmp_path / "report" / "results.jsonl")
    tests = {test.id.partition("::")[2]: test.last for test in session.tests}
    failed, invalid = tests["test_fails[a b]"], tests["test_over_the_wrong_link"]
    assert (failed.outcome, invalid.outcome) == (Verdict.FAILS, Verdict.INVALID)
    assert [list(metric.values) for metric in failed.metrics if metric.name == "datagrams"] == [[40]]
    assert {path.name for path in tmp_path.glob("report/captures/*test_fails*/*")} >= {"server@lan.pcapng"}

    command = next(line for line in first.splitlines() if line.startswith("pytest "))
    seed = re.search(r"--testbed-seed (\d+)", command)
    assert seed is not None
    assert f"seed {seed[1]}" in first.splitlines()[2], "the header names it too"
    assert command.startswith("pytest 'test_reported.py::test_fails[a b]' --testbed-seed ")
    assert f"--netem {stack.netem_engine} --lab {kind} --compose-file " in command

    def links(output: str) -> list[str]:
        return [line for line in output.splitlines() if re.match(r"\w+ -> \w+: ", line)]

    again = run(shlex.split(command))
    assert f"lab {kind}, netem {stack.netem_engine}, seed {seed[1]}" in again.splitlines()[2]
    assert links(again) == links(first)
    *impairments, lost = links(first)
    assert [re.sub(r"seed=\d+", "seed", line) for line in impairments] == [
        "client -> server: loss=5% seed (profile lossy)",
        "server -> client: loss=5% seed (profile lossy)",
        "client -> server: loss=30% seed",
        "client -> server: delay=5ms",  # nothing random: no seed
        "server -> client: timeline, 2 steps over 9s; begins with loss=1% limit=1000 seed; "
        'asked: [{"loss": "1%"}, {"at": "9s", "loss": "5%"}]',
    ]
    # 40 at 30 %: mean 12, σ ≈ 2.9; that none is lost happens once in 1.6 million runs. And the same again, above.
    assert re.fullmatch(r"client -> server: lost [1-9]\d* of 40 packets: drop_packets=[\d, -]+", lost)
    kept = next(tmp_path.glob("report/captures/*test_fails*/lost.txt"))
    assert kept.read_text() == f"{lost}\n", "there as a whole, however long"
    assert len(set(re.findall(r"seed=(\d+)", first))) == 4, "each link and each time has its own"


def test_12_by_hand_links_are_impaired_and_proven_and_the_demonstration_runs(kind: str, project: Path) -> None:
    options = [
        word
        for text in ("client -> server=latency", "server -> client=[{delay: 70ms}, {at: 60s, outage: 2s}]")
        for word in ("--impair", text)
    ]
    done = cli(
        "exec", "--lab", kind, *options, "client", "--", "python3", "-c", _CONNECT, *("8888", "3", "20"), cwd=project
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) >= 0.120

    proven = cli("prove", "--lab", kind, "client -> server", "delay=30ms", "jitter=3ms", "loss=5%", cwd=project)
    assert proven.returncode == 0, proven.stderr
    assert "client -> server on lan: read-back holds, counters not asked, probe holds" in proven.stdout
    assert re.search(r"delay +30ms ± 3ms uniform +30ms ± 3ms +median \d.*holds\n +loss +5% +5% .*holds", proven.stdout)

    demo = cli("demo", "--lab", kind, "--messages", "4", "clean", "latency", cwd=project)
    assert demo.returncode == 0, demo.stderr
    report = json.loads((project / "report" / "demo.json").read_text())
    by_profile = {profile["profile"]: profile for profile in report["profiles"]}
    assert by_profile["clean"]["delivered"] == by_profile["latency"]["delivered"] == 4
    assert min(message["delivery_s"] for message in by_profile["latency"]["messages"]) >= 0.050
    assert min(message["connect_s"] for message in by_profile["latency"]["messages"]) >= 0.100
    assert "Message Test message 01 (clean)" in demo.stdout
    page = (project / "report" / "index.html").read_text()
    (data,) = re.findall(r'id="data">(.*?)</script>', page)
    (chart,) = json.loads(data)
    assert {name: len(points) for name, points in chart["groups"].items()} == {"clean": 4, "latency": 4}
    loaded = r"""(?:<[^<>]*\b(?:src|href)\s*=|\burl\(|@import|\bfetch\(|\bimport\()\s*["'`]?(?:\w+:)?//"""
    assert not re.search(loaded, page), "nothing is loaded from elsewhere"
