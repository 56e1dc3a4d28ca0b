"""The paths that packets take through ports: what is wrong with them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from . import devices, splice
from .attached import AttachedPort
from .batch import Batch
from .kernelpool import KernelPool

TAKES_WITHIN_S = 5.0
"""A kernel that runs takes a frame from its taps within this time, on the busiest machine."""
_LOOK_AGAIN_S = 0.02


def amiss(ports: Mapping[str, AttachedPort | None], kernels: KernelPool, tc: Batch) -> dict[str, dict[str, Any]]:
    """See `AttachedPorts.paths`. ``ports``: by name, None if not attached. ``tc``: of this machine."""
    problems: dict[str, list[str]] = {}
    present: list[AttachedPort] = []
    for name, port in ports.items():
        if port is None:
            problems[name] = [f"it is not attached any more{kernels.last_death}"]
        elif not port.exists:
            problems[name] = [f"its veth {port.veth} no longer exists: its host was started again, or left the network"]
        else:
            problems[name] = port.devices_amiss()
            present.append(port)
    shown = _shown(tc, (redirect.show() for port in present for redirect in port.outer))
    for port in present:
        problems[port.name] += splice.missing(port.outer, shown)
    for kernel in kernels.running:
        carried = [port for port in present if port.kernel is kernel]
        if carried and kernel.stopped:
            for port in carried:
                problems[port.name].append(f"the carried kernel {kernel.name} stands still: its process is stopped")
            continue
        shown = _shown(kernel.tc, (redirect.show() for port in carried for redirect in port.inner))
        links = kernel.links(dict.fromkeys(name for port in carried for name in _devices(port)))
        for port in carried:
            for name in _devices(port):
                if links[name] != "up":
                    problems[port.name].append(f"{name} in the carried kernel is {links[name]}")
            problems[port.name] += splice.missing(port.inner, shown)
        ports_of = {tap: port for port in carried for tap in port.sides().values() if tap is not None}
        for tap, count in standing(ports_of, tc).items():
            problems[ports_of[tap].name].append(
                f"{count} frames wait at the tap {tap}, and the carried kernel {kernel.name} takes none of them"
            )
    names = {port.name for port in present}
    return {name: {"amiss": texts, "gone": name not in names} for name, texts in problems.items()}


def untaken(taps: Iterable[str], tc: Batch) -> dict[str, int]:
    """The taps with frames that their kernel has not taken yet, and how many.

    A tap's qdisc counts the frames that it gave to the tap, and the tap those that were read from it, or did not fit.
    """
    lines = {f"qdisc show dev {tap}": tap for tap in taps}
    handed = {
        lines[line]: sum(row.get("packets", 0) for row in rows if row.get("root"))
        for line, rows in _shown(tc, lines).items()
    }
    taken = {tap: _taken(tap) for tap in handed}
    return {tap: handed[tap] - count for tap, count in taken.items() if count is not None and count < handed[tap]}


def standing(taps: Iterable[str], tc: Batch) -> dict[str, int]:
    """The taps from which a kernel that runs takes no frames though there are some, and how many wait."""
    before = {tap: _taken(tap) for tap in taps}
    left = untaken(before, tc)
    deadline = time.monotonic() + TAKES_WITHIN_S
    while left and time.monotonic() < deadline:
        time.sleep(_LOOK_AGAIN_S)
        left = {tap: count for tap, count in left.items() if _taken(tap) == before[tap]}
    return left


def _taken(tap: str) -> int | None:
    """The frames that left a tap's queue; None if the tap is gone."""
    try:
        return devices.statistic(tap, "tx_packets") + devices.statistic(tap, "tx_dropped")
    except OSError:
        return None


def _devices(port: AttachedPort) -> list[str]:
    """Its devices in its carried kernel."""
    return list(dict.fromkeys(name for redirect in port.inner for name in (redirect.source, redirect.target)))


def _shown(tool: Batch, lines: Iterable[str]) -> dict[str, Any]:
    """The read-backs, by line; none for a line that fails."""
    lines = list(dict.fromkeys(lines))
    output = tool.run(lines)
    failed = {complaint["line"] for complaint in output.complaints}
    return dict(zip((line for line in lines if line not in failed), output.shown, strict=False))
