"""Prove a link by probes: send them from host to host, have them judged, and leave the link as it was.

The probes draw from the netem's random numbers. So the netem is put there afresh afterwards, with its seed: what a
test sends is lost as if there had been no proof.
"""

from __future__ import annotations

import secrets
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from testbed.judge import probes
from testbed.judge import statistics as exact
from testbed.links import qdisc
from testbed.model.evidence import Check
from testbed.model.impairment import CLEAN, Impairment
from testbed.model.topology import LinkRef

if TYPE_CHECKING:
    from testbed.labs.lab import Lab

_CLEAN_PROBES = 100
_CLEAN_PACE_S = 0.001


def probe(lab: Lab, ref: LinkRef, asked: Impairment, *, alpha: float = exact.ALPHA, most_s: float = 2.5) -> list[Check]:
    """Probe a link whose impairment is in force, and judge it; its netem is put there afresh before and after.

    ``most_s``: how long the probes of one direction may be sent. Raises AgentError, ImpairmentNotAppliedError.
    """
    table = _table(lab, ref, asked)
    plan = probes.plan(asked, limit_packets=qdisc.sized_limit(asked), alpha=alpha, most_s=most_s)
    lab.put_afresh(ref, CLEAN)
    try:
        clean = fly(lab, ref, count=_CLEAN_PROBES, pace_s=_CLEAN_PACE_S, size_bytes=plan.size_bytes, quiet_s=0.3)
        lab.put_afresh(ref, asked)
        flight = fly(
            lab, ref, count=plan.count, pace_s=plan.pace_s, size_bytes=plan.size_bytes, quiet_s=plan.quiet_s,
            checksum=plan.checksum,
        )  # fmt: skip
        spread = train = None
        if plan.spread:
            spread = fly(
                lab, ref, count=plan.spread, pace_s=plan.spread_pace_s, size_bytes=plan.size_bytes, quiet_s=plan.quiet_s
            )
        if plan.train:
            lab.put_afresh(ref, asked)
            train = fly(
                lab, ref, count=plan.train, pace_s=0.0, size_bytes=plan.train_bytes, quiet_s=plan.quiet_s
            )  # fmt: skip
    finally:
        lab.put_afresh(ref, asked)
    return probes.judge(asked, flight, clean=clean, spread=spread, train=train, table=table, alpha=alpha)


def fly(
    lab: Lab, ref: LinkRef, *, count: int, pace_s: float, size_bytes: int, quiet_s: float, checksum: bool = True
) -> probes.Flight:
    """Send one flight of probes over a link as it is, and collect it."""
    src, dst = lab.hosts[ref.src], lab.hosts[ref.dst]
    source, address = _addresses(src.addresses(ref.network), dst.addresses(ref.network))
    number = secrets.randbits(63)
    port = dst.inside().call("probe_listen", address=address, flight=number)["port"]
    lasts_s = count * max(pace_s, 0.001) * 2 + 10
    try:
        sent: dict[str, Any] = src.inside().call(
            "probe_send", source=source, address=address, port=port, flight=number, count=count, pace_s=pace_s,
            size_bytes=size_bytes, checksum=checksum, answer_within_s=lasts_s + 20,
        )  # fmt: skip
    finally:
        seen: dict[str, Any] = dst.inside().call(
            "probe_collect", expect=count, quiet_s=quiet_s, deadline_s=quiet_s + lasts_s,
            answer_within_s=quiet_s + lasts_s + 20,
        )  # fmt: skip
    return probes.Flight(
        sent_ns=sent["sent_ns"],
        arrivals=[(int(number), int(when)) for number, when in seen["arrivals"]],
        damaged=seen["damaged"],
        size_bytes=size_bytes,
    )


def _addresses(sources: tuple[str, ...], targets: tuple[str, ...]) -> tuple[str, str]:
    """One address of each host, of the same family; IPv4 first."""
    for version in (4, 6):
        mine, theirs = (
            [each for each in addresses if ip_address(each).version == version] for addresses in (sources, targets)
        )
        if mine and theirs:
            return mine[0], theirs[0]
    raise ValueError(f"no address family in common: {', '.join(sources)} and {', '.join(targets)}")


def _table(lab: Lab, ref: LinkRef, asked: Impairment) -> list[int]:
    if not asked.jitter_s or asked.distribution == "uniform":
        return []
    table: list[int] = lab.hosts[ref.dst].inside().call("delay_table", name=asked.distribution)
    return table
