"""The paths that packets take through ports: what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import splice
from .attached import AttachedPort
from .batch import Batch
from .kernelpool import KernelPool


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
    shown = _shown(tc, [redirect for port in present for redirect in port.outer])
    for port in present:
        problems[port.name] += splice.missing(port.outer, shown)
    for kernel in kernels.running:
        carried = [port for port in present if port.kernel is kernel]
        if carried and kernel.stopped:
            for port in carried:
                problems[port.name].append(f"the carried kernel {kernel.name} stands still: its process is stopped")
            continue
        shown = _shown(kernel.tc, [redirect for port in carried for redirect in port.inner])
        links = kernel.links(dict.fromkeys(name for port in carried for name in _devices(port)))
        for port in carried:
            for name in _devices(port):
                if links[name] != "up":
                    problems[port.name].append(f"{name} in the carried kernel is {links[name]}")
            problems[port.name] += splice.missing(port.inner, shown)
    names = {port.name for port in present}
    return {name: {"amiss": texts, "gone": name not in names} for name, texts in problems.items()}


def _devices(port: AttachedPort) -> list[str]:
    """Its devices in its carried kernel."""
    return list(dict.fromkeys(name for redirect in port.inner for name in (redirect.source, redirect.target)))


def _shown(tool: Batch, redirects: Sequence[splice.Redirect]) -> dict[str, Any]:
    """The read-backs of redirects, by line; none for a line that fails."""
    lines = list(dict.fromkeys(redirect.show() for redirect in redirects))
    output = tool.run(lines)
    failed = {complaint["line"] for complaint in output.complaints}
    return dict(zip((line for line in lines if line not in failed), output.shown, strict=False))
