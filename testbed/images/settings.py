"""The settings of an image: what runs in it, as whom, where, and how it is stopped and checked. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Of an image that sets none (moby, oci/defaults.go)."""
SHELL = ("/bin/sh", "-c")
_NS = 1e-9
# The kernel's names of processors (uname(2)), and those of images (Go's GOARCH).
_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "armv6l": "arm",
    "i686": "386",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
}


@dataclass(frozen=True, kw_only=True)
class HealthCheck:
    """A health check; times in seconds. Defaults: docker-compose and Dockerfile reference, HEALTHCHECK."""

    test: tuple[str, ...]
    interval_s: float = 30.0
    timeout_s: float = 30.0
    start_period_s: float = 0.0
    retries: int = 3


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an image says of the programs in it."""

    environment: Mapping[str, str] = field(default_factory=dict)
    workdir: str = "/"
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    shell: tuple[str, ...] = SHELL
    """The command that runs a shell line."""
    health_check: HealthCheck | None = None
    stop_signal: str = "SIGTERM"
    user: str = ""
    volumes: tuple[str, ...] = ()
    """Folders that are volumes, a new one for each container if nothing else is mounted there."""


def of_config(config: Mapping[str, Any]) -> Settings:
    """From ``config`` of an image's configuration (image-spec, config.md), or of what an engine shows of an image."""
    shell = tuple(config.get("Shell") or SHELL)
    pairs = (item.partition("=") for item in config.get("Env") or ())
    return Settings(
        environment={name: value for name, _, value in pairs},
        workdir=config.get("WorkingDir") or "/",
        entrypoint=tuple(config.get("Entrypoint") or ()),
        command=tuple(config.get("Cmd") or ()),
        shell=shell,
        health_check=_health_check(config.get("Healthcheck") or {}, shell),
        stop_signal=config.get("StopSignal") or "SIGTERM",
        user=config.get("User") or "",
        volumes=tuple(sorted(config.get("Volumes") or ())),
    )


def _health_check(check: Mapping[str, Any], shell: tuple[str, ...]) -> HealthCheck | None:
    kind, *words = check.get("Test") or ["NONE"]
    if kind == "NONE" or not words:
        return None
    base = HealthCheck(test=(*shell, words[0]) if kind == "CMD-SHELL" else tuple(words))
    return HealthCheck(
        test=base.test,
        interval_s=(check.get("Interval") or 0) * _NS or base.interval_s,
        timeout_s=(check.get("Timeout") or 0) * _NS or base.timeout_s,
        start_period_s=(check.get("StartPeriod") or 0) * _NS,
        retries=check.get("Retries") or base.retries,
    )


def platform_problem(*, os: str, architecture: str, machine: str) -> str | None:
    """Why programs of a platform do not run on a machine (uname's); None if they do."""
    ours = _ARCHITECTURES.get(machine, machine)
    if os not in ("linux", ""):
        return f"it is for {os}; a local lab runs Linux programs"
    if architecture in (ours, "") or (ours, architecture) in (("amd64", "386"), ("arm64", "arm")):
        return None
    return f"it is for {architecture}, and this machine is {ours}: name an image that was built for {ours}"
