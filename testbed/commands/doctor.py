"""What this machine can do: every capability, each found by trying, and how to get what is missing."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence

from testbed import units
from testbed.backends.docker import images
from testbed.backends.docker.capabilities import NetemAbilities, probe_netem
from testbed.backends.docker.engine import Engine, refusals_told
from testbed.backends.docker.runs import runs
from testbed.backends.local.capabilities import LocalAbilities, probe_local
from testbed.compose import command
from testbed.errors import EnvironmentUnfitError, TestbedError
from testbed.evidence.findings import Finding
from testbed.judge.noise import Noise

_SEED_SINCE = (6, 6)
_MOST_STOLEN = 0.05
_LATEST_S = 0.005


@refusals_told()
def examine(say: Callable[[str], None]) -> list[Finding]:
    """Try everything that a lab needs. Builds the agent's image if it is not there, as a lab would."""
    findings = [
        Finding(name="Python", state="ok", found=f"{platform.python_version()} on {os.uname().machine}"),
    ]
    local = probe_local(say)
    findings += [_compose(local), *_local(local)]
    try:
        engine = Engine()
    except EnvironmentUnfitError as error:
        findings.append(
            Finding(
                name="Docker engine", state="limited" if local.impairs else "missing", found=str(error),
                costs="local labs alone can run" if local.closed is None else "no lab can run",
                remedy="apt-get install docker.io (Debian, Ubuntu), or Docker Desktop; then start it",
            )
        )  # fmt: skip
        return findings
    findings.append(Finding(name="Docker engine", state="ok", found=engine.describe()))
    findings.append(_base(engine))
    try:
        tag = images.ensure_netem(engine, say)
    except TestbedError as error:
        findings.append(
            Finding(
                name="agent's image", state="missing", found=str(error), costs="no link can be impaired",
                remedy="testbed images; it says what went wrong",
            )
        )  # fmt: skip
        return findings
    findings.append(Finding(name="agent's image", state="ok", found=tag))
    try:
        findings += _netem(probe_netem(engine, tag))
    except TestbedError as error:
        findings.append(
            Finding(
                name="agent", state="missing", found=str(error), costs="no link can be impaired",
                remedy="does the engine allow host networking and NET_ADMIN for containers?",
            )
        )  # fmt: skip
    findings.append(_leftovers(engine))
    return findings


def fit(findings: Sequence[Finding]) -> bool:
    """Whether a lab can run here."""
    return all(finding.state != "missing" for finding in findings)


def _local(able: LocalAbilities) -> list[Finding]:
    name = "local lab"
    if able.closed is not None:
        return [
            Finding(
                name=name, state="limited", found=able.closed, costs="`--lab local` does not work", remedy=able.remedy
            )
        ]
    how = "as root" if able.root else "without root, in a user namespace"
    if able.host_netem is None:
        return [Finding(name=name, state="ok", found=f"{how}, with this kernel's netem")]
    if able.carried is not None:
        costs = "links of a local lab cannot be impaired: this kernel has no netem, and none can be carried"
        remedy = "modprobe tun; chmod 0666 /dev/net/tun (as root)" if able.tun else "see what the kernel said"
        return [Finding(name=name, state="limited", found=f"{how}; {able.carried}", costs=costs, remedy=remedy)]
    found = f"{how}, with a kernel that we carry"
    if able.fetched:
        return [Finding(name=name, state="ok", found=found)]
    costs = "the first impaired link waits until it is fetched from Debian's archive (50 MB)"
    return [Finding(name=name, state="ok", found=f"{found}; {costs}")]


def _compose(local: LocalAbilities) -> Finding:
    try:
        return Finding(name="Compose v2", state="ok", found=" ".join(command.find()))
    except EnvironmentUnfitError as error:
        return Finding(
            name="Compose v2", state="limited" if local.impairs else "missing", found=str(error),
            costs="local labs alone can run" if local.closed is None else "no lab can run", remedy=command.HOW_TO_GET,
        )  # fmt: skip


def _base(engine: Engine) -> Finding:
    if engine.image_labels(images.BASE) is not None:
        return Finding(name="base image", state="ok", found=f"{images.BASE} is on the engine")
    return Finding(
        name="base image", state="limited", found=f"{images.BASE} is not on the engine",
        costs="the first lab pulls it, or builds it from Debian's archive", remedy="testbed images",
    )  # fmt: skip


def _netem(able: NetemAbilities) -> list[Finding]:
    host = (
        Finding(name="netem of this kernel", state="ok", found=f"Linux {able.kernel}: tried, works")
        if able.host_netem is None
        else Finding(
            name="netem of this kernel", state="limited" if able.boot_s is not None else "missing",
            found=f"Linux {able.kernel}: {able.host_netem}", costs="netem is carried: about 0.2 ms more round trip",
            remedy="modprobe sch_netem; or a kernel that has it (WSL2, Firecracker and some boards do not)",
        )
    )  # fmt: skip
    tun = (
        Finding(name="taps (/dev/net/tun)", state="ok", found="can be opened by a container")
        if able.tun is None
        else Finding(
            name="taps (/dev/net/tun)", state="limited" if able.host_netem is None else "missing", found=able.tun,
            costs="no kernel can be carried", remedy="modprobe tun",
        )
    )  # fmt: skip
    carried = (
        Finding(name="carried kernel", state="ok", found=f"Linux {able.carried_kernel}, up in {able.boot_s:.1f} s")
        if able.boot_s is not None
        else Finding(
            name="carried kernel", state="limited" if able.host_netem is None else "missing",
            found=able.not_booted or "not tried", costs="`--netem carried` does not work", remedy="see taps",
        )
    )  # fmt: skip
    first = Finding(
        name="carried kernel runs first", state="limited" if able.waits_its_turn else "ok",
        found=able.waits_its_turn or "before other processes (SCHED_DEADLINE)",
        costs="beside busy processes packets are some milliseconds late" if able.waits_its_turn else "",
        remedy="an engine that is root's; or --lab local as root" if able.waits_its_turn else "",
    )  # fmt: skip
    since = ".".join(map(str, _SEED_SINCE))
    seeded = able.host_netem is not None or able.version >= _SEED_SINCE
    seed = Finding(
        name="seeded loss and jitter", state="ok" if seeded else "limited",
        found=f"by the {'host' if able.host_netem is None else 'carried'} engine" if seeded else f"Linux {able.kernel}",
        costs="" if seeded else "the host engine draws its own random numbers: runs cannot be replayed",
        remedy="" if seeded else f"Linux {since} or newer; or --netem carried",
    )  # fmt: skip
    return [
        host,
        tun,
        carried,
        *([] if able.boot_s is None else [first]),
        seed,
        *([] if able.host_netem is not None else [_marks(able)]),
        *([] if able.noise is None else [_noise(able.noise)]),
    ]


def _marks(able: NetemAbilities) -> Finding:
    if able.host_marks is None:
        return Finding(name="marks (act_skbedit)", state="ok", found="tried, work")
    return Finding(
        name="marks (act_skbedit)", state="limited", found=able.host_marks,
        costs="cuts cannot reject with `--netem host`", remedy="modprobe act_skbedit; or --netem carried",
    )  # fmt: skip


def _noise(noise: Noise) -> Finding:
    """The machine's own noise floor; nothing needs more than that it is known."""
    late, far = units.format_time, f"{noise.steal_ratio:.0%} stolen, {noise.idle_ratio:.0%} idle"
    stolen = noise.steal_ratio > _MOST_STOLEN
    return Finding(
        name="noise of this machine", state="limited" if stolen or noise.overshoot_p99_s > _LATEST_S else "ok",
        found=f"timers late by {late(round(noise.overshoot_median_s, 6))} (99 %: "
              f"{late(round(noise.overshoot_p99_s, 6))}), idle round trip "
              f"{late(round(noise.round_trip_median_s, 6))}; processors: {far}",
        costs=f"one-way delays below {late(round(noise.least_delay_s, 4))} and jitters below "
              f"{late(round(noise.least_jitter_s, 4))} are off by more than a tenth",
        remedy="" if not stolen else "a machine of its own: another guest of its host takes processor time",
    )  # fmt: skip


def _leftovers(engine: Engine) -> Finding:
    left = runs(engine)
    if not left:
        return Finding(name="other runs on the engine", state="ok", found="none")
    return Finding(
        name="other runs on the engine", state="limited", found=", ".join(dict.fromkeys(run.id for run in left)),
        costs="they share the machine; one whose owner was killed is cleared up by the next run",
        remedy="testbed down --stale (dead owners), testbed down --all (every one)",
    )  # fmt: skip
