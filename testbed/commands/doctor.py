"""What this machine can do: every capability, found by trying it, and how to get a missing one."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from typing import Literal

from testbed import units
from testbed.backends.docker import images
from testbed.backends.docker.agents import enters_network
from testbed.backends.docker.capabilities import NetemAbilities, probe_netem
from testbed.backends.docker.engine import Engine, refusals_raised
from testbed.backends.docker.runs import runs
from testbed.backends.local.capabilities import LocalAbilities, probe_local
from testbed.compose import command
from testbed.errors import EnvironmentUnfitError, TestbedError
from testbed.evidence.findings import Finding
from testbed.judge.noise import Noise

_SEED_SINCE = (6, 6)
_MOST_STOLEN = 0.05
_LATEST_S = 0.005
_NO_LINK = "no link can be impaired"

State = Literal["ok", "limited", "missing"]


@refusals_raised()
def examine(say: Callable[[str], None]) -> list[Finding]:
    """Try everything that a lab needs. Builds the agent's image if it is missing, as a lab would."""
    findings = [Finding(name="Python", state="ok", found=f"{platform.python_version()} on {os.uname().machine}")]
    local = probe_local(say)
    local_only = "local labs alone can run" if local.closed is None else "no lab can run"
    without_engine: State = "limited" if local.impairs else "missing"
    findings += [_compose(without_engine, local_only), local_finding(local)]
    try:
        engine = Engine()
    except EnvironmentUnfitError as error:
        remedy = "apt-get install docker.io (Debian, Ubuntu), or Docker Desktop; then start it"
        return [*findings, _problem("Docker engine", error, without_engine, costs=local_only, remedy=remedy)]
    findings += [Finding(name="Docker engine", state="ok", found=engine.describe()), _base(engine)]
    if not enters_network(engine):
        costs = "each impaired host has a kernel of its own, and cuts cannot reject (--lab within)"
        problem, remedy = "no container can enter it", "an engine that is root's"
        findings.append(_problem("engine's network", problem, "limited", costs=costs, remedy=remedy))
    try:
        tag = images.ensure_netem(engine, say)
    except TestbedError as error:
        remedy = "testbed images; it says what went wrong"
        return [*findings, _problem("agent's image", error, "missing", costs=_NO_LINK, remedy=remedy)]
    findings.append(Finding(name="agent's image", state="ok", found=tag))
    try:
        findings += netem_findings(probe_netem(engine, tag))
    except TestbedError as error:
        remedy = "does the engine allow host networking and NET_ADMIN for containers?"
        findings.append(_problem("agent", error, "missing", costs=_NO_LINK, remedy=remedy))
    return [*findings, _leftovers(engine)]


def fit(findings: Sequence[Finding]) -> bool:
    """Whether a lab can run here."""
    return all(finding.state != "missing" for finding in findings)


def _problem(name: str, problem: object, state: State, *, costs: str, remedy: str) -> Finding:
    line, *_log = str(problem).split("\n")
    return Finding(name=name, state=state, found=line, costs=costs, remedy=remedy)


def _tried(name: str, works: str, problem: str | None, state: State, *, costs: str, remedy: str) -> Finding:
    """A capability: ``works`` describes it, unless there is a problem."""
    if problem is None:
        return Finding(name=name, state="ok", found=works)
    return _problem(name, problem, state, costs=costs, remedy=remedy)


def local_finding(able: LocalAbilities) -> Finding:
    """Whether local labs run, and with which netem."""
    name = "local lab"
    if able.closed is not None:
        return _problem(name, able.closed, "limited", costs="`--lab local` does not work", remedy=able.remedy)
    how = "as root" if able.root else "without root, in a user namespace"
    if able.host_netem is None:
        return Finding(name=name, state="ok", found=f"{how}, with this kernel's netem")
    if able.carried is not None:
        costs = "links of a local lab cannot be impaired: this kernel has no netem, and none can be carried"
        remedy = "modprobe tun; chmod 0666 /dev/net/tun (as root)" if able.tun else "see what the kernel said"
        return _problem(name, f"{how}; {able.carried}", "limited", costs=costs, remedy=remedy)
    wait = "" if able.fetched else "; the first impaired link waits until it is fetched from Debian's archive (50 MB)"
    return Finding(name=name, state="ok", found=f"{how}, with a kernel that we carry{wait}")


def _compose(state: State, costs: str) -> Finding:
    try:
        return Finding(name="Compose v2", state="ok", found=" ".join(command.find()))
    except EnvironmentUnfitError as error:
        return _problem("Compose v2", error, state, costs=costs, remedy=command.HOW_TO_GET)


def _base(engine: Engine) -> Finding:
    problem = None if engine.image_labels(images.BASE) is not None else f"{images.BASE} is not on the engine"
    costs, remedy = "the first lab pulls it, or builds it from Debian's archive", "testbed images"
    return _tried("base image", f"{images.BASE} is on the engine", problem, "limited", costs=costs, remedy=remedy)


def netem_findings(able: NetemAbilities) -> list[Finding]:
    """What executes netem in containers' labs, and how well."""
    carried_needed: State = "limited" if able.host_netem is None else "missing"
    findings = [
        _tried(
            "netem of this kernel",
            f"Linux {able.kernel}: tried, works",
            None if able.host_netem is None else f"Linux {able.kernel}: {able.host_netem}",
            "limited" if able.boot_s is not None else "missing",
            costs="netem is carried: about 0.2 ms more round trip",
            remedy="modprobe sch_netem; or a kernel that has it (WSL2, Firecracker and some boards do not)",
        ),
        _tried(
            "taps (/dev/net/tun)",
            "can be opened by a container",
            able.tun,
            carried_needed,
            costs="no kernel can be carried",
            remedy="modprobe tun",
        ),
        _tried(
            "carried kernel",
            f"Linux {able.carried_kernel}, up in {able.boot_s or 0.0:.1f} s",
            None if able.boot_s is not None else able.not_booted or "not tried",
            carried_needed,
            costs="`--netem carried` does not work",
            remedy="see taps",
        ),
    ]
    if able.boot_s is not None:
        findings.append(
            _tried(
                "carried kernel runs first",
                "before other processes (SCHED_DEADLINE)",
                able.waits_its_turn or None,
                "limited",
                costs="beside busy processes packets are some milliseconds late",
                remedy="an engine that is root's; or --lab local as root",
            )
        )
    seeded = able.host_netem is not None or able.version >= _SEED_SINCE
    findings.append(
        _tried(
            "seeded loss and jitter",
            f"by the {'host' if able.host_netem is None else 'carried'} engine",
            None if seeded else f"Linux {able.kernel}",
            "limited",
            costs="the host engine draws its own random numbers: runs cannot be replayed",
            remedy=f"Linux {'.'.join(map(str, _SEED_SINCE))} or newer; or --netem carried",
        )
    )
    if able.host_netem is None:
        costs, remedy = "cuts cannot reject with `--netem host`", "modprobe act_skbedit; or --netem carried"
        marks = able.host_marks
        findings.append(_tried("marks (act_skbedit)", "tried, work", marks, "limited", costs=costs, remedy=remedy))
    return findings if able.noise is None else [*findings, _noise(able.noise)]


def _noise(noise: Noise) -> Finding:
    """The machine's own noise floor, which every lab can live with if it is known."""
    stolen = noise.steal_ratio > _MOST_STOLEN

    def time(value_s: float, digits: int = 6) -> str:
        return units.format_time(round(value_s, digits))

    return Finding(
        name="noise of this machine",
        state="limited" if stolen or noise.overshoot_p99_s > _LATEST_S else "ok",
        found=f"timers late by {time(noise.overshoot_median_s)} (99 %: {time(noise.overshoot_p99_s)}), idle round trip "
        f"{time(noise.round_trip_median_s)}; processors: {noise.steal_ratio:.0%} stolen, {noise.idle_ratio:.0%} idle",
        costs=f"one-way delays below {time(noise.least_delay_s, 4)} and jitters below {time(noise.least_jitter_s, 4)} "
        f"are off by more than a tenth",
        remedy="a machine of its own: another guest of its host takes processor time" if stolen else "",
    )


def _leftovers(engine: Engine) -> Finding:
    ids = ", ".join(dict.fromkeys(run.id for run in runs(engine)))
    return _tried(
        "other runs on the engine",
        "none",
        ids or None,
        "limited",
        costs="they share the machine; one whose owner was killed is cleared up by the next run",
        remedy="testbed down --stale (dead owners), testbed down --all (every one)",
    )
