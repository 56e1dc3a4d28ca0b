"""A lab as it is at this moment, as JSON, for those who watch: it reads the kernel's counters, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from testbed.errors import AgentError
from testbed.evidence.proof import QueueCounts
from testbed.judge import impairments
from testbed.lab.lab import Lab
from testbed.lab.ports import Port, Source, flat
from testbed.lab.shaper import Shaped
from testbed.netem import qdisc, readback


def picture(lab: Lab) -> dict[str, Any]:
    """The hosts by network, each link that is impaired or cut, each bottleneck: as asked, and as its kernel has it."""
    topology = lab.topology
    hosts = {host: topology.networks_of(host) for host in list(lab.hosts)}
    links = [link for port in lab.ports for link in _links(lab, port)]
    return {
        "stack": lab.run_id,
        "networks": {name: [host for host in hosts if name in hosts[host]] for name in topology.networks},
        "links": sorted(links, key=lambda link: (link["network"], link["link"])),
        "bottlenecks": [_bottleneck(shaped, counts) for shaped, counts in lab.shaper.now()],
    }


def _bottleneck(shaped: Shaped, counts: QueueCounts | None) -> dict[str, Any]:
    return {
        "bottleneck": str(shaped),
        "dst": shaped.port.host,
        "network": shaped.port.network,
        "asked": shaped.bottleneck.describe(),
        "profile": shaped.profile,
        "counts": None if counts is None else asdict(counts),
    }


def _links(lab: Lab, port: Port) -> Iterator[dict[str, Any]]:
    busy = [item for item in list(port.sources.items()) if item[1].impairment is not None or item[1].cut is not None]
    if not busy:
        return
    try:
        shown = port.channel.call("tc", port=port.name, lines=[qdisc.show(port.device)], needs=[])["shown"]
    except AgentError:  # it goes at this moment
        shown = []
    for ref, source in busy:
        netem = readback.find_netem(flat(shown), source.minor)
        impairment = source.impairment
        yield {
            "link": str(ref),
            "src": ref.src,
            "dst": ref.dst,
            "network": ref.network,
            "asked": None if impairment is None else impairment.describe(),
            "profile": lab.ledger.last_put(ref)[1],
            "cut": None if source.cut is None else source.cut.describe(),
            "timeline": _position(port, source),
            "kernel": None if netem is None else impairments.kernel_words(netem.get("options", {})),
            "counts": None if netem is None else _counts(netem),
        }


def _counts(netem: Mapping[str, Any]) -> dict[str, int]:
    """Since the netem was put there: what left it and what it lost; and what waits in it now."""
    return {
        "sent_packets": netem["packets"],
        "sent_bytes": netem["bytes"],
        "dropped_packets": netem["drops"],
        "queued_packets": netem["qlen"],
        "queued_bytes": netem.get("backlog", 0),
    }


def _position(port: Port, source: Source) -> dict[str, Any] | None:
    """Where the link's timeline is; None if it has none that plays."""
    running = source.running
    if running is None or not running.begun:
        return None
    try:
        index = port.channel.call("look", name=running.name, since=running.fetched)["in_force"] or 0
    except (AgentError, TypeError):  # it was halted at this moment
        return None
    moments = running.schedule.moments
    return {"step": index + 1, "of": len(moments), "at_s": moments[index].at_s, "repeat_s": running.schedule.repeat_s}
