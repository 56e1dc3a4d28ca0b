"""A carried kernel as a machine, ``scripts/in-carried``: there the host engine is tested, whatever this kernel has."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.lab.waiting import await_condition
from tests.lab.conftest import HERE
from tests.lab.test_local_death import alive, mounts, relatives

LABS = ("local",)

_ROOT = HERE.parents[1]
_SCRIPT = [sys.executable, str(_ROOT / "scripts/in-carried")]


@pytest.fixture(autouse=True)
def not_inside(kind: str) -> None:
    if Path("/proc/exitcode").exists():  # User-Mode Linux has it, and no other
        pytest.skip("this is a carried kernel already")


def inside(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*_SCRIPT, "sh", "-c", script], cwd="/", capture_output=True, text=True, timeout=60, check=False
    )


def test_a_program_runs_with_the_files_of_this_machine_and_may_write_the_checkout_alone(tmp_path: Path) -> None:
    secret = tmp_path / "there"
    secret.write_text("")
    its_own = f"/tmp/{secrets.token_hex(8)}"
    done = inside(f"pwd; ls {tmp_path}; touch /etc/mine; touch {its_own} && echo Grüße; exit 7")
    assert done.returncode == 7
    assert done.stdout == f"{_ROOT}\nGrüße\n"
    assert "/etc/mine': Read-only file system" in done.stderr
    assert not Path(its_own).exists()


def test_netem_is_that_kernels_own() -> None:
    done = inside("tc qdisc add dev lo root netem delay 30ms seed 5 && tc -j qdisc show dev lo && uname -r && id -u")
    assert (done.returncode, done.stderr) == (0, "")
    shown, release, user = done.stdout.splitlines()
    assert '"delay":0.03' in shown
    assert '"seed":5' in shown
    assert release != Path("/proc/sys/kernel/osrelease").read_text().strip()
    assert user == "0"


_WITHOUT_IPV6 = """
import json, socket, sys
from testbed import LocalLab
from testbed.errors import EnvironmentUnfitError

told = {}
try:
    socket.socket(socket.AF_INET6)
except OSError as error:
    told["inet6"] = error.strerror
with LocalLab("compose.yaml", netem="host") as lab:
    client, link = lab.host("client"), lab.link("client -> server")

    def tried(port=8888):
        connect = f"import socket; socket.create_connection(('server', {port}), 2)"
        return (client.run(["python3", "-c", connect]).stderr or "connected").splitlines()[-1]

    told["clean"] = tried()
    lab.impair("client -> server", delay="30ms", loss="5%", seed=7)
    told["proof"] = sorted({check.verdict for checks in lab.prove("client -> server", most_s=3).values()
                            for check in checks})
    lab.heal()
    lab.cut("client -> server")
    told["cut"] = tried()
    told["lost"] = link.lost_in_cut()
    lab.mend()
    with lab.capture("client -> server") as capture:
        told["mended"] = tried()
    told["flows"] = len(capture.flows())
    lab.cut("client -> server tcp/8888", reject=True)
    told["rejected"], told["beside"] = tried(), tried(9)
    lab.verify()
    told["evidence"] = [check.seen for each in lab.evidence for check in each.checks]
open("/tmp/compose.yaml", "w").write(sys.argv[1])
try:
    LocalLab("/tmp/compose.yaml", netem="host").up()
except EnvironmentUnfitError as error:
    told["asked"] = str(error)
print(json.dumps(told))
"""


@pytest.mark.slow
def test_where_the_kernel_knows_no_ipv6_links_are_impaired_cut_narrowed_captured_and_proven() -> None:
    networks = {"lan": {"enable_ipv6": True, "ipam": {"config": [{"subnet": "fd00:fc::/64"}]}}}
    services = {"one": {"image": "x", "x-testbed": {"local": {"path": "."}}, "networks": ["lan"]}}
    file = json.dumps({"services": services, "networks": networks})
    done = subprocess.run(
        [*_SCRIPT, "--no-ipv6", sys.executable, "-c", f"import sys; sys.path += {sys.path!r}\n{_WITHOUT_IPV6}", file],
        cwd="/", capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["inet6"] == "Address family not supported by protocol"
    assert told["clean"] == told["mended"] == "connected"
    assert told["proof"] == ["holds"]
    assert "timed out" in told["cut"]
    assert told["lost"] > 0
    assert told["flows"] == 1
    assert "Connection refused" in told["rejected"]
    assert "Connection refused" in told["beside"]  # nobody listens there: the server itself says so
    assert any("told by 1 reset" in each for each in told["evidence"])
    assert "has no IPv6" in told["asked"]
    assert "fd00:fc::1/64" in told["asked"]


def test_a_program_that_is_not_there_is_told() -> None:
    done = subprocess.run([*_SCRIPT, "nosuch"], cwd="/", capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert re.search(r"Error: \[Errno \d+\] .*: 'nosuch'", done.stderr), "not found, or not in a folder closed to us"


def test_whoever_waits_for_it_is_killed_and_nothing_is_left() -> None:
    before = mounts()
    with subprocess.Popen([*_SCRIPT, "sh", "-c", "echo up; sleep 98766"], cwd="/", stdout=subprocess.PIPE) as waiting:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == b"up\n"
        everyone = relatives(waiting.pid) - {waiting.pid}
        assert len(everyone) >= 3
        waiting.kill()
    await_condition(lambda: alive(everyone), lambda left: not left, deadline_s=2.0)
    assert mounts() == before
