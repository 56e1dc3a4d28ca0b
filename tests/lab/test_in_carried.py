"""A carried kernel as a machine (``scripts/in-carried``): tests of the host engine on any kernel."""

from __future__ import annotations

import json
import os
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


def test_services_in_the_files_of_an_image_meet_that_kernels_netem() -> None:
    if any(path.startswith("/var/tmp/") for path in os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        pytest.skip("the packages of scripts/ordinary's Python are in /var/tmp, of which that machine has its own")
    argv = [*_SCRIPT, sys.executable, "-m", "tests.lab.programs.image_in_carried"]
    done = subprocess.run(argv, cwd=_ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    sees, of_the_other, took_s = done.stdout.splitlines()
    user, *issue, names = re.findall(r"'([^']+)'", sees)[:5]
    assert (user, issue, names) == ("7", ["of", "the", "image"], "bin"), sees
    assert "gone" not in sees
    assert of_the_other == "False", "what a host writes is its own"
    assert float(took_s) >= 0.06, "30 ms each way"


def test_a_port_within_a_host_has_its_netem_on_an_ifb() -> None:
    argv = [*_SCRIPT, sys.executable, "-m", "tests.lab.programs.within_in_carried"]
    done = subprocess.run(argv, cwd=_ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert 0.03 <= seen["impaired_s"] < 0.06, "each packet is delayed once"
    assert max(seen["before_s"], seen["released_s"], seen["after_s"]) < 0.03
    assert seen["paths"] == {"amiss": [], "gone": False}
    assert seen["came"] == {"came_packets": 3, "refused_packets": 0}, "three handshakes"
    assert "the redirect of packets from far to" in seen["broken"][0]
    assert (seen["left"], seen["qdiscs"]) == (["lo", "far"], ["noqueue"])


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
