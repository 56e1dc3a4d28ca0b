"""Which kernel settings forbid namespaces, on made-up settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.backends.docker.capabilities import NetemAbilities
from testbed.backends.local.capabilities import LocalAbilities, closers
from testbed.commands import doctor

_OPEN = {
    "kernel/unprivileged_userns_clone": "1",
    "kernel/apparmor_restrict_unprivileged_userns": "0",
    "user/max_user_namespaces": "63000",
    "user/max_net_namespaces": "63000",
}
_REMEDIES = {
    "kernel/unprivileged_userns_clone=0": (
        "sysctl kernel.unprivileged_userns_clone=1 (kernel.unprivileged_userns_clone is 0)"
    ),
    "kernel/apparmor_restrict_unprivileged_userns=1": (
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0 (kernel.apparmor_restrict_unprivileged_userns is 1)"
    ),
    "user/max_user_namespaces=0": "sysctl user.max_user_namespaces=10000 (user.max_user_namespaces is 0)",
    "user/max_net_namespaces=0": "sysctl user.max_net_namespaces=10000 (user.max_net_namespaces is 0)",
}
_NONE = "run as root; in a container, with --security-opt seccomp=unconfined"


def settings(folder: Path, values: dict[str, str]) -> Path:
    for name, value in values.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(value + "\n")
    return folder


@pytest.mark.parametrize(("missing", "state"), [(None, "ok"), ("Failed to load TC action module", "limited")])
def test_the_doctor_names_act_skbedit_where_this_kernels_netem_runs_without_it(missing: str | None, state: str) -> None:
    able = NetemAbilities(kernel="6.12.0", host_netem=None, tun=None, boot_s=1.0, host_marks=missing)
    (marks,) = (netem_finding for netem_finding in doctor.netem_findings(able) if "act_skbedit" in netem_finding.name)
    assert marks.state == state
    assert ("modprobe act_skbedit" in marks.remedy) == (missing is not None)


@pytest.mark.parametrize("closed", _REMEDIES)
def test_the_doctor_names_the_setting_that_closes_the_way_and_how_to_open_it(tmp_path: Path, closed: str) -> None:
    name, _, value = closed.partition("=")
    remedy = closers(settings(tmp_path, {**_OPEN, name: value}))
    assert remedy == _REMEDIES[closed]
    finding = doctor.local_finding(LocalAbilities(closed="unshare: Operation not permitted", remedy=remedy))
    assert (finding.state, finding.found, finding.remedy) == ("limited", "unshare: Operation not permitted", remedy)


def test_all_that_closes_it_is_named(tmp_path: Path) -> None:
    closed = dict(remedy.split("=") for remedy in _REMEDIES)
    assert closers(settings(tmp_path, closed)) == "; ".join(_REMEDIES.values())


def test_where_no_setting_closes_it_or_the_kernel_has_none_it_is_something_else(tmp_path: Path) -> None:
    assert closers(tmp_path) == _NONE
    assert closers(settings(tmp_path, _OPEN)) == _NONE


def test_the_doctor_shows_the_first_line_of_a_problem_and_no_log() -> None:
    finding = doctor.local_finding(
        LocalAbilities(closed="it could not be built: no network\nStep 1/9\nErr:1", remedy="")
    )
    assert finding.found == "it could not be built: no network"
