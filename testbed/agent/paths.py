"""The paths that packets take through ports: what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import splice
from .attached import AttachedPort
from .batch import Batch
from .kernelpool import KernelPool


def amiss(ports: Mapping[str, AttachedPort | None], kernels: KernelPool, tc: Batch) -> dict[str, dict[str, Any]]:
    """See `ports.Ports.paths`. ``ports``: by name, None for one that is not attached; ``tc``: of this kernel."""
    problems: dict[str, list[str]] = {}
    whole = list[AttachedPort]()
    for name, attached in ports.items():
        if attached is None:
            problems[name] = [f"it is not attached any more{kernels.last_death}"]
        elif not attached.exists:
            problems[name] = [
                f"its veth {attached.veth} no longer exists: its host was started again, or left the network"
            ]
        else:
            problems[name] = attached.devices_amiss()
            whole.append(attached)
    shown = _shown(tc, [redirect for port in whole for redirect in port.outer])
    for port in whole:
        problems[port.name] += splice.missing(port.outer, shown)
    for kernel in kernels.running:
        carries = [port for port in whole if port.kernel is kernel]
        if carries and kernel.stopped:
            for port in carries:
                problems[port.name].append(f"the carried kernel {kernel.name} stands still: its process is stopped")
            continue
        shown = _shown(kernel.tc, [redirect for port in carries for redirect in port.inner])
        links = kernel.links(redirect.source for port in carries for redirect in port.inner)
        for port in carries:
            here = {redirect.source: links[redirect.source] for redirect in port.inner}
            for name, state in here.items():
                if state != "up":
                    problems[port.name].append(f"{name} in the carried kernel is {state}")
            problems[port.name] += splice.missing(port.inner, shown)
    there = {port.name for port in whole}
    return {name: {"amiss": texts, "gone": name not in there} for name, texts in problems.items()}


def _shown(tool: Batch, redirects: Sequence[splice.Redirect]) -> dict[str, Any]:
    """What the tool shows of redirects, by line; nothing where it complains."""
    lines = list(dict.fromkeys(redirect.show() for redirect in redirects))
    outcome = tool.run(lines)
    failed = {complaint["line"] for complaint in outcome.complaints}
    return dict(zip((line for line in lines if line not in failed), outcome.shown, strict=False))
