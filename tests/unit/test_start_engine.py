"""scripts/start-engine: an engine that ends at its start, on machines that are scripts on a PATH."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).parents[2]
_PANIC = """panic: runtime error: index out of range [0] with length 0
goroutine 1 [running]:
github.com/docker/libnetwork.(*controller).reservePools(0x56515fe05e70?)"""


_RULES = """-P POSTROUTING ACCEPT
-A POSTROUTING -s 172.30.0.0/16 ! -o br-34eb2c62890a -j MASQUERADE
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
"""
_BRIDGES = """4: docker0: <NO-CARRIER,BROADCAST,MULTICAST,UP> mtu 1500 qdisc noqueue state DOWN
7: br-34eb2c62890a: <NO-CARRIER,BROADCAST,MULTICAST,UP> mtu 1500 qdisc noqueue state DOWN
8: br-lan: <BROADCAST,MULTICAST,UP> mtu 1500 qdisc noqueue state UP
"""


class Machine:
    """A repository, and a dockerd that is a script: it leaves `answers` once it does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.networks = folder / "lib/network/files/local-kv.db"
        self.networks.parent.mkdir(parents=True)
        self.networks.write_text("networks")
        (folder / "scripts").mkdir()
        for name in ("start-engine", "steps.sh"):
            shutil.copy(_REPOSITORY / "scripts" / name, folder / "scripts" / name)
        for tool in ("iptables", "ip"):  # never the machine's own
            self._program(f"bin/{tool}", f'echo "{tool} $*" >>{folder}/tools; cat {folder}/{tool}.$2 2>/dev/null; true')
        self._program(".venv/bin/python", f"[ -e {folder}/answers ] || {{ echo no engine answers; exit 1; }}")

    def _program(self, name: str, text: str) -> None:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (self.folder / name).chmod(0o755)

    def dockerd(self, text: str) -> None:
        self._program("bin/dockerd", f"echo $$ >>{self.folder}/starts\n{text}\ntouch {self.folder}/answers\nsleep 60")

    def run(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.folder / "scripts/start-engine", self.folder / "log/dockerd.log", self.folder / "lib"],
            env={"PATH": f"{self.folder}/bin:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
            timeout=50,
        )

    def left(self, tool: str, word: str, text: str) -> None:
        """What a tool prints if this is its second word."""
        (self.folder / f"{tool}.{word}").write_text(text)

    @property
    def changes(self) -> list[str]:
        """What tools were told to change."""
        lines = (self.folder / "tools").read_text().splitlines() if (self.folder / "tools").exists() else []
        return [line for line in lines if " -D " in line or " delete " in line]

    @property
    def starts(self) -> list[int]:
        return [int(line) for line in (self.folder / "starts").read_text().split()]

    @property
    def aside(self) -> list[str]:
        return [path.read_text() for path in self.networks.parent.glob("local-kv.db.damaged-*")]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    for pid in machine.starts:
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it has ended by itself


def test_an_engine_that_starts(machine: Machine) -> None:
    machine.dockerd("")
    done = machine.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert (len(machine.starts), machine.networks.read_text(), machine.aside) == (1, "networks", [])
    assert machine.changes == []


def test_a_list_of_networks_that_the_engine_cannot_read_is_set_aside(machine: Machine) -> None:
    machine.dockerd(f"if [ -e {machine.networks} ]; then echo '{_PANIC}'; exit 2; fi")
    machine.left("iptables", "nat", _RULES)
    machine.left("ip", "link", _BRIDGES)
    done = machine.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert "cannot read its list of networks (dockerd ended: panic: runtime error: index out of range" in done.stdout
    assert (len(machine.starts), machine.networks.exists(), machine.aside) == (2, False, ["networks"])
    assert machine.changes == [
        "iptables -t nat -D POSTROUTING -s 172.30.0.0/16 ! -o br-34eb2c62890a -j MASQUERADE",
        "ip link delete br-34eb2c62890a",
    ]


def test_an_engine_that_ends_for_another_reason_is_told_at_once(machine: Machine) -> None:
    machine.dockerd("echo failed to start daemon: no space left on device; exit 1")
    done = machine.run()
    assert done.returncode == 2
    assert "bootstrap: dockerd ended: failed to start daemon: no space left on device\n" in done.stderr
    assert (len(machine.starts), machine.networks.read_text(), machine.aside) == (1, "networks", [])


def test_a_new_list_that_does_not_help_is_told(machine: Machine) -> None:
    machine.dockerd(f"echo '{_PANIC}'; exit 2")
    done = machine.run()
    assert done.returncode == 2
    assert "dockerd ended: panic" in done.stderr
    assert (len(machine.starts), machine.aside) == (2, ["networks"])
