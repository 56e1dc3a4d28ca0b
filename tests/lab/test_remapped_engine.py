"""An engine that remaps the users of containers (``userns-remap``), started beside the machine's; by hand.

It has a network, mounts and images of its own, and ends with the test. Takes a minute, and root.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import ComposeLab
from testbed.backends.docker.images import ensure_netem
from testbed.lab.waiting import await_condition
from tests.lab.conftest import HERE

LABS = ("compose",)

pytestmark = [pytest.mark.by_hand, pytest.mark.timeout(900)]

_START = """
mount --make-rprivate /
mkdir -p /run/docker
mount -t tmpfs tmpfs /run/docker
ip link set lo up
exec dockerd --userns-remap=default --data-root "$0/data" --exec-root "$0/run" --pidfile "$0/pid" \\
     -H "unix://$0/socket" --default-address-pool base=10.213.0.0/16,size=24
"""


@pytest.fixture(scope="module")
def remapped(stack: ComposeLab) -> Iterator[dict[str, str]]:
    """The environment for that engine, which has the images of the paper's stack."""
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        pytest.skip("needs root, and dockerd")
    images = [ensure_netem(stack.engine, lambda _text: None)]
    images += [str(host.container.attrs["Config"]["Image"]) for host in stack.hosts.values()]
    with tempfile.TemporaryDirectory(prefix="testbed-engine-") as folder:
        os.chmod(folder, 0o711)  # noqa: S103  # its users look for their containers' roots below it
        environment = {**os.environ, "DOCKER_HOST": f"unix://{folder}/socket"}
        with Path(folder, "log").open("wb") as log:
            engine = subprocess.Popen(
                ["unshare", "--mount", "--net", "sh", "-c", _START, folder],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

        def answers() -> bool:
            done = subprocess.run(["docker", "version"], env=environment, capture_output=True, check=False)
            return done.returncode == 0 or engine.poll() is not None

        try:
            await_condition(answers, bool, deadline_s=60)
            assert engine.poll() is None, Path(folder, "log").read_text()
            with subprocess.Popen(["docker", "save", *images], stdout=subprocess.PIPE) as saved:
                subprocess.run(["docker", "load"], stdin=saved.stdout, env=environment, check=True, capture_output=True)
            yield environment
        finally:
            engine.send_signal(signal.SIGTERM)
            engine.wait(60)


def test_there_the_doctor_finds_nothing_missing_and_says_which_engine_it_is(remapped: dict[str, str]) -> None:
    argv = [sys.executable, "-c", "from testbed import doctor; print(*doctor.examine(print), sep='\\n')"]
    done = subprocess.run(argv, env=remapped, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    findings = {
        name: line
        for line in done.stdout.splitlines()
        for name in ("Docker engine", "carried kernel")
        if f"name='{name}'" in line
    }
    assert "userns-remap" in findings["Docker engine"]
    assert "state='ok'" in findings["carried kernel"]


def test_there_links_are_impaired_captured_and_cut_and_agents_may_do_no_more(remapped: dict[str, str]) -> None:
    tests = [f"{HERE}/test_privileges.py", f"{HERE}/test_impairments_are_real.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--lab", "compose", "-p", "no:cacheprovider", *tests],
        cwd=HERE.parents[1],
        env=remapped,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
