"""The state of a severed link: its tc lines, their read-back, and the evidence.

A silent cut is filters and a netem that loses everything. They are on the port, before the impairments' filters. A cut
that rejects is filters at the port's gate, which redirect to a tap where the agent answers; see `netem.rejecting`. A
link that flaps is cut and mended in turns, in either way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from testbed import units
from testbed.evidence.proof import Check, LinkEvidence
from testbed.evidence.verdict import Verdict
from testbed.lab import beyond
from testbed.lab.playback import Playback
from testbed.netem import fragments, qdisc, readback, rejecting
from testbed.netem.schedule import Moment, Schedule
from testbed.spec.impairment import CLEAN
from testbed.spec.links import LinkRef, Traffic
from testbed.spec.timeline import Taken

DROP, REJECT = "drop", "reject"
SILENTLY = {DROP: "silently", REJECT: "rejecting"}


def ways(
    how: str,
    minor: int,
    addresses: Sequence[str],
    traffic: Traffic,
    targets: Sequence[str] = (),
    *,
    part: int = 0,
    gateway: qdisc.Gateway | None = None,
) -> tuple[qdisc.Filter, ...]:
    """The filters that lead into a cut. The gate needs none for fragments: the port's own filters follow them."""
    chosen = qdisc.cut_filters(minor, addresses, traffic, targets, part=part, gateway=gateway)
    return tuple(way for way in chosen if how == DROP or "ip_flags" not in way.keys)


@dataclass
class Cut:
    """A cut that is in force, or a link that flaps."""

    how: str
    """`DROP` or `REJECT`."""
    device: str
    """Where its filters are: the port's device, or its gate (`netem.rejecting`)."""
    minor: int
    """The source's, on the port."""
    ways: Sequence[qdisc.Filter]
    """What leads into it."""
    spares: Sequence[qdisc.Filter] = ()
    """At a gate: what these let pass is not of the link. They stay there, for other links."""
    on: str = ""
    """Where they let it pass to; see `rejecting.spare`."""
    tap: str = ""
    """Where a cut that rejects redirects to."""
    sender: int = 0
    """Whose tap that is, to the agent."""
    mark: int | None = None
    """The mark of answers, which pass the gate."""
    flapping: Playback | None = None
    up_s: float = 0.0
    down_s: float = 0.0
    lost_before: int = 0
    """Packets that the netem behind it had lost before: an earlier cut's netem keeps its count."""
    answered_before: Mapping[str, int] = field(default_factory=dict)
    """How this sender's rejected packets had been answered before: `agent.rejecting.Tap`."""

    @property
    def at_gate(self) -> bool:
        """Whether its filters are in the machine's own kernel, whoever executes netem."""
        return self.how == REJECT

    def prepare(self) -> list[str]:
        """The tc lines for what its filters lead to."""
        if self.at_gate:
            return [rejecting.spare(self.device, spare, self.on) for spare in self.spares]
        return qdisc.cut(self.device, self.minor, ())

    def put(self) -> list[str]:
        """The lines that cut."""
        if self.at_gate:
            return [rejecting.put(self.device, way, self.tap, self.mark) for way in self.ways]
        return [way.put(self.device) for way in self.ways]

    def delete(self) -> list[str]:
        """The lines that mend."""
        if self.at_gate:
            return [rejecting.delete(self.device, way) for way in self.ways]
        return [way.delete(self.device) for way in self.ways]

    def show(self) -> str:
        """The tc line that reads its filters back, among others."""
        return rejecting.show(self.device) if self.at_gate else qdisc.show_filters(self.device)

    def handles(self) -> list[tuple[int, int]]:
        """Priority and handle of each of its filters."""
        return [(way.priority, way.handle) for way in self.ways]

    def differences(self, filters: Any, qdiscs: Any) -> list[readback.Difference]:
        """Every way in which the kernel does not cut as asked."""
        if self.at_gate:
            spared = rejecting.differences(filters, self.spares, self.on, None)
            return spared + rejecting.differences(filters, self.ways, self.tap, self.mark)
        return self.netem_differences(qdiscs) + readback.filter_differences(filters, self.ways)

    def netem_differences(self, qdiscs: Any) -> list[readback.Difference]:
        """Whether what its filters lead to loses everything."""
        if self.at_gate:
            return []
        return readback.differences(qdisc.CUT, readback.find_netem(qdiscs, qdisc.cut_minor(self.minor)))

    def lost_packets(self, at_gate: Any, qdiscs: Any, answered: Mapping[str, int] | None = None) -> int:
        """Number of packets that met it, by the filters at the gate or by the netem, which counts all cuts.

        The gate's filters of a link that flaps count from 0 each time. Then the tap's count of their sender is used
        (``answered``), which includes packets that other cuts reject.
        """
        if self.at_gate and self.flapping is not None:
            return 0 if answered is None else answered["read"] - self.answered_before.get("read", 0)
        if self.at_gate:
            return rejecting.rejected_packets(at_gate, self.ways)
        netem = readback.find_netem(qdiscs, qdisc.cut_minor(self.minor))
        return 0 if netem is None else readback.counters(netem).dropped_packets

    def left(self, filters: Any) -> list[str]:
        """Each filter that is still there."""
        differing = [
            rejecting.missing(filters, way) if self.at_gate else readback.missing(filters, way) for way in self.ways
        ]
        return [str(dict(way.keys)) for way, gone in zip(self.ways, differing, strict=True) if not gone]

    # --- flapping --------------------------------------------------------------------------------

    def flap(self, name: str, up_s: float, down_s: float) -> Playback:
        """Its timeline as a link that flaps; the link is up first."""
        self.up_s, self.down_s = up_s, down_s
        moments = (Moment(at_s=0.0, impairment=CLEAN), Moment(at_s=up_s, impairment=qdisc.CUT))
        schedule = Schedule(moments=moments, repeat_s=round(up_s + down_s, 9))
        self.flapping = Playback(name=f"{name} flaps", schedule=schedule, cuts=True)
        return self.flapping

    def step_differences(self, cut: bool, seen: Any) -> list[readback.Difference]:
        """Whether a step cut or mended the link, by the filters that were read back after it."""
        filters = seen or ()
        if not cut:
            return [readback.Difference("filter", "none", way) for way in self.left(filters)]
        if self.at_gate:
            return rejecting.differences(filters, self.ways, self.tap, self.mark)
        return readback.filter_differences(filters, self.ways)

    def describe(self) -> str:
        """What was asked, in words."""
        if self.flapping is None:
            return SILENTLY[self.how]
        times = f"up {units.format_time(self.up_s)}, down {units.format_time(self.down_s)}"
        return f"flapping, {times}, {SILENTLY[self.how]}"

    # --- for another process ---------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """As JSON, without what its source says."""
        return {
            "how": self.how,
            "device": self.device,
            "tap": self.tap,
            "mark": self.mark,
            "up_s": self.up_s,
            "down_s": self.down_s,
            "lost_before": self.lost_before,
            "answered_before": dict(self.answered_before),
            "flapping": self.flapping and self.flapping.state(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], minor: int, ways: Sequence[qdisc.Filter]) -> Self:
        """As another process left it."""
        flapping = state["flapping"] and Playback.from_state(state["flapping"])
        return cls(**{**state, "flapping": flapping}, minor=minor, ways=ways)


def evidence(
    ref: LinkRef,
    cut: Cut,
    *,
    command: str,
    differences: Sequence[str],
    lost_packets: int,
    steps: Sequence[Taken],
    answered: Mapping[str, int] | None,
    others: int | None = None,
    elsewhere: str = "",
    another_path: str = "",
    past: Sequence[str] = (),
    rewritten: str | None = None,
) -> LinkEvidence:
    """The evidence of a cut: whether the kernel held it, how many packets met it, and their fate.

    ``answered``: how the agent answered this sender's rejected packets, on this link and others. ``others``: number of
    fragmented datagrams of other traffic that met it. ``elsewhere``: how many packets took which other network;
    ``another_path``: what to do if none met the cut. ``past``: ways by which packets may have passed it.
    ``rewritten``: a warning of packets that NAT gave another address.
    """
    seen = f"{_plural(lost_packets, 'packet')} {'rejected' if cut.at_gate else 'lost'}"
    if answered is not None:
        resets, errors, none, failed = (
            answered[name] - cut.answered_before.get(name, 0) for name in ("reset", "error", "unanswered", "failed")
        )
        seen += f"; its sender was told by {_plural(resets, 'reset')} and {_plural(errors, 'ICMP error')}"
        seen += f"; {none} may not be answered" if none else ""
        seen += f"; {_plural(failed, 'answer')} the kernel did not take" if failed else ""
    kernel = "; ".join(differences) or ("as asked" if cut.flapping is None else f"{len(steps)} steps taken")
    check = Check(
        field="cut",
        asked=cut.describe(),
        kernel=kernel,
        seen=seen,
        verdict=Verdict.FAILS if differences else Verdict.SHOWN,
    )
    narrowed = [fragments.check(ref.traffic, others)] if ref.traffic.protocol else []
    problems = [problem for problem in (fragments.problem(ref.traffic, others), *past) if problem]
    warnings = [] if lost_packets else ["no packet met the cut", *filter(None, [beyond.of_names(ref)])]
    if elsewhere and lost_packets:
        warnings = [f"{elsewhere}, which this cut does not reach"]
    elif elsewhere:
        problems, warnings = [*problems, f"no packet met the cut, but {elsewhere}: {another_path}"], []
    return LinkEvidence(
        link=str(ref),
        network=ref.network,
        asked={"cut": cut.describe()},
        command=command,
        checks=[check, *narrowed],
        read_back=Verdict.FAILS if differences else Verdict.HOLDS,
        counters=Verdict.FAILS if problems else Verdict.HOLDS if lost_packets else Verdict.SHOWN,
        problems=problems,
        met_packets=lost_packets,
        warnings=[*warnings, *filter(None, [rewritten])],
        steps=steps,
    )


def _plural(count: int, name: str) -> str:
    return f"{count} {name}" + ("" if count == 1 else "s")
