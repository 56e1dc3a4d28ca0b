"""The processor time of a container's programs, as the kernel of this machine counts it: cgroups(7), both versions.

The engine's own figures come once a second (Engine 20.10, also with `one-shot`), so that reading them would take a
second. They are not read of an engine on another machine, or in a virtual one: there, no process here is in a cgroup of
that container.
"""

from __future__ import annotations

from pathlib import Path

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def folder(pid: int, container: str, *, proc: Path = _PROC, cgroups: Path = _CGROUPS) -> Path | None:
    """The folder of a container's cgroup that counts its processor time; None if it is not here.

    ``pid``: of its first process, by the engine. ``container``: its id, which is in its cgroup's name.
    """
    try:
        lines = (proc / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in sorted(lines, reverse=True):  # version 2 has the number 0: last, as version 1's counts where both are
        _, controllers, path = line.split(":", 2)
        parts = Path(path).parts
        last = next((number for number, part in enumerate(parts) if container in part), None)
        if last is None or (controllers and "cpuacct" not in controllers.split(",")):
            continue
        place = Path(cgroups / "cpuacct" if controllers else cgroups, *parts[1 : last + 1])
        if used_s(place) is not None:
            return place
    return None


def used_s(place: Path) -> tuple[int, float] | None:
    """The number of a cgroup, a new one each time it is made, and its processor time in seconds; None if it is gone."""
    try:
        number = place.stat().st_ino
        if (file := place / "cpuacct.usage").exists():
            return number, int(file.read_text()) / 1e9
        counted = dict(line.split() for line in (place / "cpu.stat").read_text().splitlines())
        return number, int(counted["usage_usec"]) / 1e6
    except (OSError, ValueError, KeyError):
        return None
