"""The rights of every container of testbed, read from running ones: what SECURITY.md claims."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import docker
import pytest

from testbed import ComposeLab
from testbed.backends.docker.agents import ROLES
from testbed.backends.docker.engine import ROLE_LABEL, RUN_LABEL

LABS = ("compose",)

BITS = {
    "DAC_OVERRIDE": 1,
    "KILL": 5,
    "NET_ADMIN": 12,
    "NET_RAW": 13,
    "SYS_CHROOT": 18,
    "SYS_PTRACE": 19,
    "SYS_NICE": 23,
}
"""linux/capability.h"""
CAPABILITIES = {
    "ports": {"NET_ADMIN", "SYS_NICE"},
    "within": {"NET_ADMIN"},
    "capture": {"NET_RAW"},
    "inside": {"NET_ADMIN"},
    "files": {"SYS_CHROOT", "SYS_PTRACE", "DAC_OVERRIDE"},
    "signal": {"KILL"},
}
SHARES = {
    "ports": "host",
    "within": "container",
    "capture": "host",
    "inside": "container",
    "files": "none",
    "signal": "none",
}
DEVICES = {f"/dev/{device}" for device in ("null", "zero", "full", "random", "urandom", "tty")}
"""Which each container has; where root is not the machine's, as mounts (the OCI's runtime specification)."""
KERNELS_OWN = {"proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue"}
# What the agent's container sees of itself; in those among a host's processes, /proc/self alone is its own.
_TELL = """
import json, os, socket
def read(*paths):
    for path in paths:
        if os.path.exists(path):
            return open(path).read()
def tried(attempt):
    try:
        attempt()
    except OSError as error:
        return os.strerror(error.errno)
def listening():
    mine = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            mine |= {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
        except OSError:
            pass  # it has ended
    for name in ("tcp", "tcp6", "udp", "udp6"):
        for line in (read(f"/proc/net/{name}") or "").splitlines()[1:]:
            words = line.split()
            if words[3] == ("0A" if "tcp" in name else "07") and f"socket:[{words[9]}]" in mine:
                yield f"{name} {words[1]}"
print(json.dumps({
    "status": dict(line.split(":", 1) for line in read("/proc/self/status").splitlines()),
    "mounts": read("/proc/self/mountinfo"),
    "memory": read("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"),
    "pids": read("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"),
    "devices": sorted(os.listdir("/dev/net")) if os.path.isdir("/dev/net") else [],
    "write": tried(lambda: open("/opt/testbed/agent/new", "w")),
    "packets": tried(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3).close()),
    "rename": tried(lambda: socket.sethostname("other")),
    "listening": sorted(listening()),
}))
"""


@pytest.fixture(scope="module")
def containers(stack: ComposeLab) -> Iterator[dict[str, tuple[Any, Mapping[str, Any]]]]:
    """One container per role: what it reports of itself, and what the engine reports of it."""
    with ExitStack() as undo:
        undo.callback(stack.heal)
        stack.link("client -> server").impair(delay="1ms")
        undo.enter_context(stack.capture("server"))
        host = stack.hosts["client"]
        host.put("/tmp/file", b"")
        for other in ("signal", "within"):  # a lab starts the second with `--lab within`
            undo.callback(host.start_agent(other).close)
        described: dict[str, tuple[Any, Mapping[str, Any]]] = {}
        for container in stack.engine.labelled(RUN_LABEL, stack.run_id):
            if (role := container.labels.get(ROLE_LABEL)) is not None and role not in described:
                ran = stack.engine.exec(container.handle, ["python3", "-c", _TELL], env={}, workdir=None, user="")
                output = b""
                while (frame := ran.stream.frame(30.0)) is not None:
                    output += frame[1]
                ran.stream.close()
                described[role] = json.loads(output), stack.engine.state(container.handle)
        yield described


def test_these_are_all_kinds_of_container_that_we_start(containers: Mapping[str, object]) -> None:
    assert set(containers) == set(ROLES) == set(CAPABILITIES)


@pytest.mark.parametrize("role", CAPABILITIES)
def test_a_container_of_ours_may_do_what_it_must_and_no_more(
    containers: Mapping[str, tuple[dict[str, Any], Mapping[str, Any]]], stack: ComposeLab, role: str
) -> None:
    seen, inspected = containers[role]
    status = {key: value.strip() for key, value in seen["status"].items()}
    mask = sum(1 << BITS[capability] for capability in CAPABILITIES[role])
    assert {key: int(status[key], 16) for key in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")} == {
        "CapPrm": mask,
        "CapEff": mask,
        "CapBnd": mask,
        "CapInh": 0,
        "CapAmb": 0,
    }
    assert status["NoNewPrivs"] == "1"
    assert status["Uid"].split() == ["0"] * 4
    info = docker.from_env().info()  # what this engine can do at all
    assert status["Seccomp"] == (
        "2" if any("name=seccomp" in securityoption for securityoption in info["SecurityOptions"]) else "0"
    )

    host = inspected["HostConfig"]
    assert host["NetworkMode"].partition(":")[0] == SHARES[role]
    assert host["PidMode"].partition(":")[0] == ("container" if role in ("files", "signal") else "")
    assert not host["Privileged"]
    assert [key for key in ("Binds", "Mounts", "VolumesFrom", "PortBindings") if host.get(key)] == []
    assert inspected["Mounts"] == []
    assert seen["devices"] == (["tun"] if role in ("ports", "within") else [])
    assert seen["listening"] == []

    assert seen["write"] == "Read-only file system"
    assert seen["rename"] == "Operation not permitted"
    assert seen["packets"] == (None if role == "capture" else "Operation not permitted")
    writable = set()
    for line in seen["mounts"].splitlines():
        before, _, after = line.partition(" - ")
        place, how, kind = before.split()[4], before.split()[5].split(","), after.split()[0]
        assert "docker.sock" not in line
        if "rw" in how and kind not in KERNELS_OWN and not place.startswith(("/proc/", "/sys/")):  # the engine's masks
            writable.add(place)
    assert writable - DEVICES <= {"/dev", "/dev/shm", "/tmp"}

    if info["MemoryLimit"]:
        assert int(seen["memory"]) == host["Memory"] == ROLES[role].memory_bytes
    if info["PidsLimit"]:
        assert int(seen["pids"]) == host["PidsLimit"] == ROLES[role].most_tasks


def test_no_service_of_the_users_is_given_more_than_its_file_says(stack: ComposeLab) -> None:
    for host in stack.hosts.values():
        state = stack.engine.state(host.container)["HostConfig"]
        assert not state["Privileged"]
        assert [state[key] for key in ("CapAdd", "Binds", "Devices") if state.get(key)] == []
        assert re.fullmatch(r"testbed-[0-9a-f]{8}_\w+", state["NetworkMode"])
