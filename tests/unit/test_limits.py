"""What a machine lacks for a lab of many hosts is reported before the start, with the setting to raise."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path

import pytest

from testbed.backends.local import limits, localplan
from testbed.backends.local.lab import LocalLab
from testbed.backends.local.limits import NAMESPACES, Machine, shortages
from testbed.compose import composefile
from testbed.errors import EnvironmentUnfitError
from testbed.spec import drawings

AMPLE = Machine(
    namespaces=dict.fromkeys(NAMESPACES, 100_000),
    descriptors=1_000_000,
    pids=4_194_304,
    processes=None,
    memory_bytes=2**40,
)


def test_an_ample_machine_lacks_nothing() -> None:
    assert list(shortages(AMPLE, hosts=5000, programs=5000)) == []


def test_everything_that_5000_hosts_lack_is_told_with_the_setting_to_raise() -> None:
    small = Machine(
        namespaces={**dict.fromkeys(NAMESPACES, 5001), "net": 5000},
        descriptors=20_000,
        pids=16_384,
        processes=None,
        memory_bytes=2**30,
    )
    assert list(shortages(small, hosts=5000, programs=5000)) == [
        "5,001 net namespaces; user.max_net_namespaces is 5,000: sysctl user.max_net_namespaces=10002",
        "25,064 open files in one process; the limit is 20,000: ulimit -Hn 50128 (as root)",
        "10,064 processes; kernel.pid_max is 16,384: sysctl kernel.pid_max=40256",
        "50.3 GiB of memory; 1.0 GiB are free",
    ]


def test_an_ordinary_users_processes_are_limited() -> None:
    (shortage,) = shortages(replace(AMPLE, processes=100), hosts=10, programs=50)
    assert shortage == "164 processes; this user may have 100: ulimit -Hu 328 (as root)"


def test_this_machine_is_looked_at() -> None:
    seen = Machine.look()
    assert seen.namespaces["net"] == int(Path("/proc/sys/user/max_net_namespaces").read_text())
    assert seen.descriptors == resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def test_a_lab_that_is_too_large_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits.Machine, "look", lambda: replace(AMPLE, descriptors=100))
    lab = LocalLab(drawings.star(50))
    with pytest.raises(EnvironmentUnfitError, match=r"50 hosts need 314 open files.*ulimit -Hn"):
        lab.up()
    assert lab.hosts == {}


def test_hosts_are_counted_before_they_are_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(*_arguments: object) -> None:
        raise AssertionError("planned")

    monkeypatch.setattr(Machine, "look", lambda: replace(AMPLE, namespaces=dict.fromkeys(NAMESPACES, 1_000)))
    monkeypatch.setattr(localplan, "make", make)
    with pytest.raises(EnvironmentUnfitError, match=r"^5000 hosts need 5,001 net namespaces"):
        LocalLab(drawings.star(5_000)).up()


def test_programs_are_counted_as_they_are_planned() -> None:
    server = {"command": ["x"], "x-testbed": {"local": {}}}
    drawing = drawings.dumbbell(2, 3, services={"left": server, "right": server})
    lab = LocalLab(drawing)
    planned = sum(bool(lab.plan.services[host.service].argv) for host in lab.plan.hosts)
    file = composefile.of_drawing(drawing, environment={})
    assert localplan.counts(file, lab.topology) == (len(lab.plan.hosts), planned) == (7, 5)
