"""Engines beside the machine's, each with a network, mounts and images of its own; they end with the test."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from testbed import ComposeLab
from testbed.backends.docker.images import ensure_netem
from testbed.lab.waiting import await_condition
from tests.lab.conftest import HERE

_ALONE = """
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -p /run/docker /run/lock
ip link set lo up
"""
REMAPPED = """
exec dockerd --userns-remap=default --data-root "$0/data" --exec-root "$0/run" --pidfile "$0/pid" \\
     -H "unix://$0/socket" --default-address-pool base=10.213.0.0/16,size=24
"""
# The service runs as root may here: not above this process's limits, without systemd.
PODMAN = """
printf '[containers]\\ndefault_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]\\n' > "$0/containers.conf"
export CONTAINERS_CONF="$0/containers.conf"
exec podman --root "$0/data" --runroot "$0/run" --tmpdir "$0/tmp" --network-config-dir "$0/networks" \\
     --cgroup-manager cgroupfs --events-backend file system service -t 0 "unix://$0/socket"
"""


@contextmanager
def engine_beside(stack: ComposeLab, start: str, *programs: str) -> Iterator[dict[str, str]]:
    """The environment for an engine that this script starts, which has the images of a stack; needs root."""
    if missing := [program for program in programs if shutil.which(program) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("needs root")
    images = [ensure_netem(stack.engine, lambda _text: None)]
    images += [str(host.container.attrs["Config"]["Image"]) for host in stack.hosts.values()]
    with tempfile.TemporaryDirectory(prefix="testbed-engine-") as folder:
        os.chmod(folder, 0o711)  # noqa: S103  # its users look for their containers' roots below it
        environment = {**os.environ, "DOCKER_HOST": f"unix://{folder}/socket"}
        with Path(folder, "log").open("wb") as log:
            engine = subprocess.Popen(
                ["unshare", "--mount", "--net", "sh", "-c", _ALONE + start, folder],
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
            _end(engine)


def _end(engine: subprocess.Popen[bytes]) -> None:
    """End an engine, and whatever is left in its network: Podman is no parent of what it starts."""
    network = os.readlink(f"/proc/{engine.pid}/ns/net") if engine.poll() is None else None
    engine.send_signal(signal.SIGTERM)
    engine.wait(60)
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.readlink(process / "ns" / "net") == network:
                os.kill(int(process.name), signal.SIGKILL)


def findings(environment: dict[str, str]) -> dict[str, str]:
    """What the doctor finds there: a line for each name."""
    argv = [sys.executable, "-c", "from testbed.commands import doctor; print(*doctor.examine(print), sep='\\n')"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    return {
        name: line
        for line in done.stdout.splitlines()
        for name in ("Docker engine", "carried kernel")
        if f"name='{name}'" in line
    }


def passes(environment: dict[str, str], *arguments: str) -> None:
    """Run tests of tests/lab there, all of which must pass."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--lab", "compose", "-p", "no:cacheprovider", *arguments],
        cwd=HERE.parents[1],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout
