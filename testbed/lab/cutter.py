"""Cut links, make them flap, and mend them; each change is read back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from testbed import units
from testbed.errors import (
    AgentError,
    EnvironmentUnfitError,
    ImpairmentNotAppliedError,
    InvalidValueError,
    LabError,
    Problems,
)
from testbed.evidence.proof import LinkEvidence
from testbed.lab import elsewhere, severed, strangers
from testbed.lab.backend import Backend
from testbed.lab.carriage import Carriage
from testbed.lab.elsewhere import Elsewhere
from testbed.lab.ledger import Ledger
from testbed.lab.playback import begin_together
from testbed.lab.ports import Port, Ports, Reading, Source, flat
from testbed.netem import qdisc, readback
from testbed.spec.impairment import Impairment
from testbed.spec.links import LinkRef
from testbed.spec.topology import Topology
from testbed.text import shown

# Steps are at most 10 ms late, and must not run into the next one.
_SHORTEST_FLAP_S = 0.05
_GATE_NEEDS = {
    engine: f"To reject, the machine's own kernel must have {', '.join(names)}: modprobe -a {' '.join(names)}"
    for engine, names in {
        "host": ("cls_bpf", "act_mirred", "act_skbedit"),
        "carried": ("cls_bpf", "act_mirred"),
    }.items()
}


class Cutter:
    """The cuts of a lab's links."""

    def __init__(
        self, ports: Ports, ledger: Ledger, elsewhere: Elsewhere, carriage: Carriage, backend: Backend
    ) -> None:
        self._ports = ports
        self._ledger = ledger
        self._elsewhere = elsewhere
        self._carriage = carriage
        self._backend = backend
        ports.tenants.append(self)

    # --- as asked --------------------------------------------------------------------------------

    def cut(self, refs: Iterable[LinkRef], *, reject: bool, watched: bool = True) -> tuple[LinkRef, ...]:
        """Cut these links, or none if one of them cannot be; each is read back. Returns the links.

        ``watched``: also count packets that take another network. Raises ImpairmentNotAppliedError.
        """
        before, refs = self._ports.cut, tuple(refs)
        with ExitStack() as undo:
            for ref in refs:
                if ref not in before:
                    undo.callback(self.mend, ref)
                self._cut_one(ref, reject=reject, watched=watched)
            undo.pop_all()
        return refs

    def _cut_one(self, ref: LinkRef, *, reject: bool, watched: bool) -> None:
        how = severed.REJECT if reject else severed.DROP
        known = self._of(ref)
        if known is not None and known.flapping is not None:
            self.mend(ref)
        try:
            self._cut(ref, how)
        except AgentError as error:
            if error.kind != "gone":
                raise
            self._ports.renew(ref, by=self)
            self._cut(ref, how)
        if watched:
            self._elsewhere.watch(ref)

    def flap(self, refs: Sequence[LinkRef], up_s: float, down_s: float, *, reject: bool) -> None:
        """Make these links flap from now on, all in step. Raises ImpairmentNotAppliedError."""
        how = severed.REJECT if reject else severed.DROP
        for ref in refs:
            self.mend(ref)
            try:
                self._prepare(ref, up_s, down_s, how)
            except AgentError as error:
                if error.kind != "gone":
                    raise
                self._ports.renew(ref, by=self)
                self._prepare(ref, up_s, down_s, how)
            self._elsewhere.watch(ref)
        begin_together(
            (self._ports.known(ref)[0].channel, cut.flapping)
            for ref in refs
            if (cut := self._of(ref)) is not None and cut.flapping is not None
        )

    def mend(self, ref: LinkRef) -> None:
        """End the cut of one direction and read back that nothing leads into it. Raises LabError.

        The next `Verifier.verify` reports it, and whether it held until now.
        """
        if (cut := self._of(ref)) is None:
            return
        port, source = self._ports.known(ref)
        try:
            self.fetch_steps(ref, halt=True)
            evidence, differences, lost_packets, late = self._look(ref)
            answer, still = self._take_off(port, cut)
        except (AgentError, ImpairmentNotAppliedError) as error:
            if isinstance(error, AgentError) and error.kind != "gone":
                raise
            source.cut = None  # it went with the port
            gone = f"it ended before it was mended: {error}"
            evidence = severed.evidence(
                ref, cut, command="", differences=[gone], lost_packets=0, steps=(), answered=None
            )
            self._ledger.over.append((evidence, [self._ports.not_applied(ref, [], gone)]))
            return
        if still:
            raise LabError(f"{ref}: {', '.join(still)} still cut after mending; tc said: {answer['complaints']}")
        source.met_cut = source.met_cut or lost_packets > cut.lost_before
        if cut.at_gate:
            source.rejected_packets += lost_packets
        problems = [*self._ledger.step_problems(ref, cuts=True), *evidence.problems, *late]
        self._ledger.over.append((evidence, self._ports.errors(ref, differences, problems)))
        source.cut = None

    # --- as it is --------------------------------------------------------------------------------

    def _of(self, ref: LinkRef) -> severed.Cut | None:
        source = self._ports.source(ref)
        return None if source is None else source.cut

    def around(self, ref: LinkRef) -> LinkRef | None:
        """The cut, or flapping link, that all packets of this link meet; None if there is none."""
        port = self._ports.of(ref)
        sources = port.sources.items() if port is not None else ()
        return next((other for other, source in sources if source.cut is not None and other.covers(ref)), None)

    def fetch_steps(self, ref: LinkRef, *, halt: bool = False) -> None:
        """Fetch the steps of a link that flaps. ``halt``: also stop it, in its present state."""
        cut = self._of(ref)
        if cut is None or cut.flapping is None:
            return
        look = cut.flapping.halt if halt else cut.flapping.look

        def differences(impairment: Impairment, seen: Any) -> list[readback.Difference]:
            return cut.step_differences(impairment == qdisc.CUT, seen)

        self._ledger.add_steps(ref, look(self._ports.known(ref)[0].channel, differences).taken)

    def evidence(self, ref: LinkRef) -> LinkEvidence:
        """The evidence of a cut at this moment. Raises LabError if the link is not cut."""
        if self._of(ref) is None:
            raise LabError(f"{ref} is not cut")
        self.fetch_steps(ref)
        return self._look(ref)[0]

    def _look(self, ref: LinkRef) -> tuple[LinkEvidence, list[readback.Difference], int, list[str]]:
        """The evidence of a cut, its differences, the number of packets that met it, and problems of lateness."""
        port, source = self._ports.known(ref)
        cut = source.cut
        assert cut is not None  # noqa: S101  # both callers have looked
        reading = self._ports.read(port, [ref])
        differences = self._differences(source, cut, reading)
        lost_packets = cut.lost_packets(reading.at_gate, reading.qdiscs, self._answered(ref, cut))
        evidence, late = self._evidence(ref, cut, reading, differences)
        return evidence, differences, lost_packets, late

    def examine(
        self, ref: LinkRef, cut: severed.Cut, reading: Reading
    ) -> tuple[LinkEvidence, list[readback.Difference], list[str]]:
        """The evidence of a cut, its differences, and why the test does not count."""
        self.fetch_steps(ref)
        differences = self._differences(self._ports.known(ref)[1], cut, reading)
        evidence, late = self._evidence(ref, cut, reading, differences)
        return evidence, differences, [*self._ledger.step_problems(ref, cuts=True), *evidence.problems, *late]

    def _differences(self, source: Source, cut: severed.Cut, reading: Reading) -> list[readback.Difference]:
        spared = [] if cut.at_gate else readback.filter_differences(reading.filters, source.spares())
        if cut.flapping is not None:  # its steps were read back one by one
            return cut.netem_differences(reading.qdiscs) + spared
        return cut.differences(reading.at_gate if cut.at_gate else reading.filters, reading.qdiscs) + spared

    def _answered(self, ref: LinkRef, cut: severed.Cut) -> Mapping[str, int] | None:
        """How the rejected packets of a link's source were answered so far; None for a silent cut."""
        port, _ = self._ports.known(ref)
        return port.channel.call("rejected", ifindex=cut.sender) if cut.at_gate else None

    def _evidence(
        self, ref: LinkRef, cut: severed.Cut, reading: Reading, differences: Sequence[readback.Difference]
    ) -> tuple[LinkEvidence, list[str]]:
        """The evidence of a cut, and why the test does not count because of its carrier's lateness."""
        port, source = self._ports.known(ref)
        answered = self._answered(ref, cut)
        steps = [step for step in self._ledger.stepped.get(ref, ()) if step.cut is not None]
        ways = elsewhere.ways(self._elsewhere.went(ref))
        evidence = severed.evidence(
            ref,
            cut,
            command=f"tc {cut.put()[0]}" if cut.ways else "",
            differences=[str(difference) for difference in differences],
            lost_packets=cut.lost_packets(reading.at_gate, reading.qdiscs, answered) - cut.lost_before,
            steps=steps,
            answered=answered,
            elsewhere=ways,
            another_path=self._elsewhere.what_to_do(ref) if ways else "",
            others=source.others(reading.filters),
            past=[text for text in (strangers.problem(self._backend, ref, port), self._elsewhere.problem(ref)) if text],
            rewritten=self._ports.rewritten(ref, reading),
        )
        return self._carriage.timed(evidence, ref, port, None, nothing_passes=cut.flapping is None)

    def lost_packets(self, ref: LinkRef) -> int:
        """Number of packets that the cuts of a link have lost or rejected."""
        source = self._ports.source(ref)
        if source is None:
            return 0
        port, rejected = self._ports.known(ref)[0], source.rejected_packets
        try:
            netem = self._ports.leaf(ref, qdisc.cut_minor(source.minor))
            if source.cut is not None and source.cut.at_gate:
                filters = flat(self._ports.tc(port, [source.cut.show()], source, at_gate=True)["shown"])
                rejected += source.cut.lost_packets(filters, (), self._answered(ref, source.cut))
        except AgentError as error:
            if error.kind != "gone":  # its counters went with the port
                raise
            return 0
        return rejected + (0 if netem is None else readback.counters(netem).dropped_packets)

    # --- a port that begins anew: `ports.Tenant` -------------------------------------------------

    def evict(self, port: Port) -> None:
        """A cut goes with its port."""

    def move_in(self, port: Port, *, but: LinkRef | None) -> None:
        """Cut links on a new port as they were cut on the one before it."""
        for ref, source in port.sources.items():
            if ref == but or source.cut is None:
                continue
            if source.cut.flapping is None:
                self._cut(ref, source.cut.how)
            else:
                self.flap([ref], source.cut.up_s, source.cut.down_s, reject=source.cut.how == severed.REJECT)

    # --- how it gets there -----------------------------------------------------------------------

    def _cut(self, ref: LinkRef, how: str) -> None:
        port = self._ports.ready(ref)
        source = port.sources[ref]
        if source.cut is not None and source.cut.how == how:
            return
        before, cut = source.cut, self._new(port, ref, how)
        source.cut = cut  # perhaps only a part of it; mending removes what is there
        try:
            self._put(port, ref, cut, [*cut.prepare(), *cut.put()], [cut.show()])
        except BaseException:
            if before is not None:
                self._take_off(port, cut)
                source.cut = before
            raise
        if before is not None:
            source.cut = before
            self.mend(ref)
            source.cut = cut

    def _new(self, port: Port, ref: LinkRef, how: str) -> severed.Cut:
        """A new cut, with what it needs. Raises InvalidValueError, EnvironmentUnfitError."""
        source = port.sources[ref]
        self._ports.watch(ref)
        ways = source.ways(how, ref.traffic)
        if how == severed.DROP:
            _refuse_silence(port, ref)
            return severed.Cut(how=how, device=port.device, minor=source.minor, ways=ways)
        _refuse_rejection(port, ref)
        outward = source.gateway is not None and source.gateway.outward
        try:
            place = port.channel.call("rejecting", port=port.name, ifindex=source.ifindex, outward=outward)
        except AgentError as error:
            if error.kind == "gone":
                raise
            raise EnvironmentUnfitError(f"{ref}: to reject packets, the agent needs a tap: {error}") from None
        return severed.Cut(
            how=how,
            device=place["gate"],
            minor=source.minor,
            ways=ways,
            spares=source.spares(),
            on=place["on"],
            tap=place["tap"],
            sender=place["sender"],
            mark=place["mark"],
            answered_before=place["counts"],
        )

    def _put(
        self, port: Port, ref: LinkRef, cut: severed.Cut, lines: Sequence[qdisc.TcLine], shows: Sequence[qdisc.TcLine]
    ) -> None:
        """Run lines that cut, and read back. Raises ImpairmentNotAppliedError."""
        source = port.sources[ref]
        if not cut.at_gate:
            spared = [spare.put(port.device) for spare in source.spares()]
            lines = [*([] if port.rooted else qdisc.root(port.device)), *spared, *lines]
            shows = [*shows, qdisc.get(port.device, qdisc.cut_minor(source.minor))]
        answer = self._ports.tc(port, [*lines, *shows], source, at_gate=cut.at_gate)
        failed = [complaint["line"] for complaint in answer["complaints"]]
        port.rooted = port.rooted or (not cut.at_gate and not any(line in failed for line in qdisc.root(port.device)))
        complaints = [f"{qdisc.describe(complaint['line'])}: {complaint['text']}" for complaint in answer["complaints"]]
        differences: list[readback.Difference] = []
        if not complaints:
            filters, qdiscs = answer["shown"][0], flat(answer["shown"][1:])
            differences = cut.netem_differences(qdiscs) if cut.flapping else cut.differences(filters, qdiscs)
            differences += [] if cut.at_gate else readback.filter_differences(filters, source.spares())
            cut.lost_before = cut.lost_packets((), qdiscs)
        if complaints or differences:
            self._ports.suspect(port)
            hints = [_GATE_NEEDS[self._backend.netem_engine]] if complaints and cut.at_gate else []
            raise self._ports.not_applied(
                ref, differences, *complaints, f"The link was to be cut, {cut.describe()}", *hints
            )

    def _prepare(self, ref: LinkRef, up_s: float, down_s: float, how: str) -> None:
        """Prepare a flapping link at the agent."""
        port = self._ports.ready(ref)
        source, cut = port.sources[ref], self._new(port, ref, how)
        running = cut.flap(f"{ref} on {ref.network}", up_s, down_s)
        source.cut = cut
        self._put(port, ref, cut, cut.prepare(), [cut.show()])
        running.prepare(
            port.channel,
            port=port.name,
            lines=[cut.delete(), cut.put()],
            show=cut.show(),
            needs=[source.ifindex],
            filters=cut.handles(),
            at_gate=cut.at_gate,
        )

    def _take_off(self, port: Port, cut: severed.Cut) -> tuple[Any, list[str]]:
        """Remove a cut's filters. Returns tc's answer, and the filters that are still there."""
        answer = self._ports.tc(port, [*cut.delete(), cut.show()], at_gate=cut.at_gate)
        return answer, cut.left(answer["shown"][-1]) if answer["shown"] else ["nothing can be read back: perhaps"]


def _refuse_rejection(port: Port, ref: LinkRef) -> None:
    """Refuse a silent cut of a part of traffic that is rejected: filters that reject come first."""
    for other, source in port.sources.items():
        within = other != ref and ref.covers(other)
        if within and source.cut is not None and not source.cut.at_gate:
            raise InvalidValueError(f"{ref} cannot reject while {other} is cut silently: mend that, or reject it too")


def _refuse_silence(port: Port, ref: LinkRef) -> None:
    for other, source in port.sources.items():
        around = other != ref and other.covers(ref)
        if around and source.cut is not None and source.cut.at_gate:
            raise InvalidValueError(f"{ref} cannot be cut silently while {other} rejects: mend that, or reject both")


def check_flap(topology: Topology, text: str, *, up: str, down: str) -> tuple[tuple[LinkRef, ...], tuple[float, float]]:
    """The links that are to flap, and `flapping_times`. Raises InvalidValueError with every problem."""
    problems = Problems()
    with problems.gathered():
        refs = topology.links(text)
    with problems.gathered():
        times_s = flapping_times(up, down)
    problems.tell()
    return refs, times_s


def flapping_times(up: str, down: str) -> tuple[float, float]:
    """How long a link that flaps is up and cut in each turn; seconds. Raises InvalidValueError with every problem."""
    times, problems = [], list[str]()
    for name, text in (("up", up), ("down", down)):
        try:
            time_s = units.parse_time(text, name=name)
            if time_s < _SHORTEST_FLAP_S:
                problems.append(f"{name}={shown(text)}: at least {units.format_time(_SHORTEST_FLAP_S)}")
            times.append(time_s)
        except InvalidValueError as error:
            problems += error.problems
    if problems:
        raise InvalidValueError(problems)
    return times[0], times[1]
