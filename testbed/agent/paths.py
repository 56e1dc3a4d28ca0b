"""The ways that packets take through ports: what is amiss with them, and how many went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import carried, devices, splice
from .attached import Port
from .batch import Batch
from .detour import Detour

FAR_END = "the host's own end of it"


def amiss(
    ports: Mapping[str, Port | None], kernels: Sequence[carried.CarriedKernel], tc: Batch, *, buried: str
) -> dict[str, dict[str, Any]]:
    """See the operation ``paths``; of each port by its name, None for one that is not attached.

    ``tc``: of this kernel. ``buried``: why ports may not be attached any more.
    """
    problems: dict[str, list[str]] = {}
    whole = list[Port]()
    for name, attached in ports.items():
        if attached is None:
            problems[name] = [f"it is not attached any more{buried}"]
        elif not attached.exists:
            problems[name] = [
                f"its veth {attached.veth} no longer exists: its host was started again, or left the network"
            ]
        else:
            problems[name] = _outside(attached)
            whole.append(attached)
    shown = _shown(tc, [redirect for port in whole for redirect in port.outer])
    for port in whole:
        problems[port.name] += splice.missing(port.outer, shown)
    for kernel in kernels:
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


def _outside(port: Port) -> list[str]:
    """What is wrong with a port's devices in this kernel."""
    if port.detour is None or port.released:
        return splice.amiss(devices.device(port.veth), master=port.bridge, far_end=FAR_END)
    gate, end = port.detour.gate, port.detour.end
    problems = splice.amiss(devices.device(port.veth), far_end=FAR_END)
    problems += splice.amiss(devices.device(gate), master=port.bridge) + splice.amiss(devices.device(end))
    return problems + (splice.amiss(devices.device(port.bridge)) if port.bridge is not None else [])


def _shown(tool: Batch, redirects: Sequence[splice.Redirect]) -> dict[str, Any]:
    """What the tool shows of redirects, by line; nothing where it complains."""
    lines = list(dict.fromkeys(redirect.show() for redirect in redirects))
    outcome = tool.run(lines)
    failed = {complaint["line"] for complaint in outcome.complaints}
    return dict(zip((line for line in lines if line not in failed), outcome.shown, strict=False))


def passed(detour: Detour) -> dict[str, dict[str, int]]:
    """What its carried kernel took and gave, each way. Raises OSError if the taps are gone."""
    return {"to_host": _way(detour.gate, detour.end), "from_host": _way(detour.end, detour.gate)}


def _way(into: str, out_of: str) -> dict[str, int]:
    """What the carried kernel took from one tap, and gave to another."""
    taken = {f"in_{unit}": devices.statistic(into, f"tx_{unit}") for unit in ("packets", "bytes")}
    given = {f"out_{unit}": devices.statistic(out_of, f"rx_{unit}") for unit in ("packets", "bytes")}
    return {**taken, **given, "refused_packets": devices.statistic(into, "tx_dropped")}
