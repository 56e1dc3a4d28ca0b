"""Verify the links of a test: whether the kernel held each impairment, and what the packets met.

These are levels 1 and 2 of a link's proof: read-back and counters. Probes are level 3: `prober`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence, Set
from typing import Any

from testbed.errors import AgentError, ImpairmentNotAppliedError
from testbed.evidence.proof import LinkEvidence, Tally, of_probes
from testbed.evidence.verdict import Verdict
from testbed.judge import counting
from testbed.lab import beyond, elsewhere, impairer, strangers
from testbed.lab.backend import Backend
from testbed.lab.carriage import Carriage, PortPath
from testbed.lab.connections import Connections
from testbed.lab.cutter import Cutter
from testbed.lab.elsewhere import Elsewhere
from testbed.lab.impairer import Impairer
from testbed.lab.ledger import Ledger
from testbed.lab.notapplied import together
from testbed.lab.ports import Port, Ports, Reading, Source
from testbed.lab.rows import Held, earlier, rows
from testbed.lab.shaper import Shaper
from testbed.lab.succession import Succession
from testbed.lab.taps import Taps
from testbed.lab.wholeness import Wholeness
from testbed.netem import fragments, qdisc, readback, translated
from testbed.spec.impairment import CLEAN, Impairment
from testbed.spec.links import LinkRef


class Verifier:
    """Verifies a lab's impaired and cut links."""

    def __init__(
        self,
        ports: Ports,
        ledger: Ledger,
        impairer: Impairer,
        cutter: Cutter,
        shaper: Shaper,
        elsewhere: Elsewhere,
        carriage: Carriage,
        connections: Connections,
        whole: Wholeness,
        succession: Succession,
        backend: Backend,
    ) -> None:
        self._ports = ports
        self._ledger = ledger
        self._impairer = impairer
        self._cutter = cutter
        self._shaper = shaper
        self._elsewhere = elsewhere
        self._carriage = carriage
        self._connections = connections
        self._whole = whole
        self._succession = succession
        self._backend = backend
        self.taps = Taps()
        """Counts packets that met a full queue before a carried kernel."""

    def begin(self) -> None:
        """Before a test: note what the ports have refused so far."""
        self.taps.begin(self._ports)
        for port in self._ports:
            for source in port.sources.values():
                source.met_cut, source.since_s = False, time.monotonic()
            try:
                port.refused = counting.overflows(self._ports.entry(port)) or 0
            except AgentError:  # the port is gone; a new one counts from 0
                port.refused = 0

    def verify(self) -> None:
        """Read every impaired link again: see `Lab.verify`."""
        evidence, over = self._ledger.evidence, self._ledger.over
        if deaths := self._succession.look():
            evidence[:] = [healed for healed, _ in over]
            raise ImpairmentNotAppliedError("\n".join(map(str, deaths)))
        self._connections.look()
        evidence[:] = [healed for healed, _ in over]
        changed = [ImpairmentNotAppliedError(str(change)) for change in self._whole.look()]
        wrong = [*changed, *(error for _, errors in over for error in errors)]
        over[:] = [(healed, ()) for healed, _ in over]  # raised once
        self._carriage.look()
        self.taps.look(self._ports)
        # There is no path to a stopped host; its links are suspended.
        standing = [port for port in self._ports if not self._whole.down(port.ref.host)]
        paths = self._carriage.paths(port for port in standing if self._carriage.used(port))
        for port in self._ports:
            refs = [ref for ref, source in port.sources.items() if source.impairment is not None or source.cut]
            try:
                self._along(port, paths.get(port.name), refs)
                reading = self._ports.read(port, refs) if refs else Reading((), (), ())
            except ImpairmentNotAppliedError as error:
                wrong.append(error)
                self._ledger.reported.update(refs)
                evidence += [impairer.lost(self._ledger, ref, impairment) for ref, impairment in port.applied.items()]
                continue
            for ref in refs:
                errors = self._verify(ref, port, reading)
                wrong += errors
                self._ledger.reported.update([ref] if errors else [])
            port.rewritten = translated.counted(reading.filters) if refs else port.rewritten
        for of_bottleneck, errors in self._shaper.look():
            evidence.append(of_bottleneck)
            wrong += errors
        if wrong:  # because an agent has died
            deaths = self._succession.look()
            raise ImpairmentNotAppliedError("\n".join(map(str, deaths)) if deaths else together(wrong))

    def _along(self, port: Port, path: PortPath | None, refs: Sequence[LinkRef]) -> None:
        """Raise ImpairmentNotAppliedError if the path through a port at which these links end is broken."""
        if path is None or not path.amiss or (path.gone and not refs):
            return
        ref = next(iter(refs or port.sources))
        raise self._ports.not_applied(ref, [], f"the path through the port is broken: {'; '.join(path.amiss)}")

    def _verify(self, ref: LinkRef, port: Port, reading: Reading) -> list[ImpairmentNotAppliedError]:
        source, wrong = port.sources[ref], list[ImpairmentNotAppliedError]()
        if source.impairment is not None:
            evidence, errors = self._verify_impairment(ref, port, reading)
            self._ledger.evidence.append(evidence)
            wrong += errors
        if source.cut:
            evidence, differences, problems = self._cutter.examine(ref, source.cut, reading)
            self._ledger.evidence.append(evidence)
            wrong += self._ports.errors(ref, differences, problems)
        return wrong

    def _verify_impairment(
        self, ref: LinkRef, port: Port, reading: Reading
    ) -> tuple[LinkEvidence, list[ImpairmentNotAppliedError]]:
        source = port.sources[ref]
        impairment = source.impairment or CLEAN
        evidence, differences = self._examine(ref, port, reading)
        timed, late = self._carriage.timed(
            evidence, ref, port, impairment, nothing_passes=impairment.loss_ratio == 1.0 and not source.running
        )
        problems = [*evidence.problems, *self._ledger.step_problems(ref, cuts=False), *late]
        return timed, self._ports.errors(ref, differences, problems)

    def take_leave(self, refs: Set[LinkRef], *, idle: bool = True) -> None:
        """Verify impaired links before they are healed. Errors that were raised before are not raised again.

        ``idle``: keep the evidence also of links that are in order and that no packet has met.

        Each port is read once: with many links it has many filters.
        """
        for port in self._ports:
            applied = port.applied
            leaving = [ref for ref in applied if ref in refs and ref not in self._ledger.reported]
            if not leaving:
                continue
            try:
                reading = self._ports.read(port, leaving)
            except ImpairmentNotAppliedError as error:
                if len(leaving) == 1:
                    self._ledger.over.append((impairer.lost(self._ledger, leaving[0], applied[leaving[0]]), [error]))
                else:  # some may be in order
                    for ref in leaving:
                        self.take_leave({ref}, idle=idle)
                continue
            ends = [port, *(self._ports.at(ref.src, ref.network) for ref in leaving)]
            self.taps.look(end for end in ends if end is not None)
            verified = [self._verify_impairment(ref, port, reading) for ref in leaving]
            self._ledger.over += [pair for pair in verified if idle or pair[1] or pair[0].met_packets != 0]

    # --- one link --------------------------------------------------------------------------------

    def held(self, ref: LinkRef, port: Port, reading: Reading) -> Held:
        """A link's impairment at this moment, and the kernel's account of it."""
        source = port.sources[ref]
        impairment = source.impairment or CLEAN
        filters = source.spares() + source.filters(ref.traffic, by_number=impairment.by_number)
        differences = readback.filter_differences(reading.filters, filters)
        if source.running is not None:
            now = self._now(ref)
            return Held(*now, readback.differences(*now) + differences)
        netem = readback.find_netem(reading.qdiscs, source.minor)
        own = [filter_ for filter_ in reading.filters if filter_.get("chain", 0) in (0, source.minor)]
        return Held(impairment, netem, impairer.netem_differences(impairment, netem, reading.qdiscs, own) + differences)

    def held_now(self, ref: LinkRef) -> Held | None:
        """The same, read from the kernel now; None if the link is not impaired."""
        port = self._ports.of(ref)
        if port is None or ref not in port.applied:
            return None
        try:
            reading = self._ports.read(port, [ref])
        except ImpairmentNotAppliedError as error:
            impairment = port.applied.get(ref, CLEAN)
            return Held(impairment, None, [readback.Difference("the link", "with both ends", f"{error}")])
        return self.held(ref, port, reading)

    def _now(self, ref: LinkRef) -> tuple[Impairment, Mapping[str, Any] | None]:
        try:
            return self._impairer.now(ref)
        except AgentError as error:
            raise self._ports.not_applied(ref, [], f"its timeline: {error}") from None

    def _examine(
        self, ref: LinkRef, port: Port, reading: Reading
    ) -> tuple[LinkEvidence, Sequence[readback.Difference]]:
        """The evidence of an impaired link, and the kernel's differences."""
        source, ledger = port.sources[ref], self._ledger
        held = self.held(ref, port, reading)
        impairment, at_taps = held.impairment, self.taps.refused(ref)
        tally = _tally(source, port, held, reading)
        problems, warnings = self._met(ref, source, impairment, tally)
        others_work = (
            counting.tap_warning(at_taps),
            counting.port_warning(self.taps.dropped(ref)),
            self._ports.rewritten(ref, reading),
            beyond.of_another_machine(ref, machine_is_ours=self._backend.machine_is_ours),
        )
        warnings += [text for text in others_work if text]
        problems += [text for text in (counting.tap_problem(at_taps),) if text]
        others = source.others(reading.filters)
        past = (strangers.problem(self._backend, ref, port), self._elsewhere.problem(ref))
        problems += [text for text in (fragments.problem(ref.traffic, others), *past) if text]
        narrowed = [fragments.check(ref.traffic, others)] if ref.traffic.protocol else []
        crossed = self._connections.crossed(ref)
        probed, by_number = ledger.probed.get(ref, []), source.lost_by_number(reading.filters)
        command, profile = ledger.last_put(ref)
        evidence = LinkEvidence(
            link=str(ref),
            network=ref.network,
            asked=impairment.words(),
            command=command,
            profile=profile,
            checks=[*rows(held, tally, probed, by_number), *narrowed, *earlier(crossed)],
            earlier_packets=None if crossed is None else crossed.packets,
            read_back=Verdict.FAILS if held.differences else Verdict.HOLDS,
            counters=Verdict.FAILS
            if problems
            else Verdict.HOLDS
            if tally is not None and tally.arrived_packets
            else Verdict.SHOWN,
            probe=of_probes(probed),
            tally=tally,
            at_taps=at_taps,
            problems=problems,
            met_packets=None if tally is None else tally.arrived_packets + (by_number or 0),
            warnings=warnings,
            steps=[step for step in ledger.stepped.get(ref, ()) if step.cut is None],
        )
        return evidence, held.differences

    def _met(
        self, ref: LinkRef, source: Source, impairment: Impairment, tally: Tally | None
    ) -> tuple[list[str], list[str]]:
        """Problems and warnings about the packets that a link's netem met, or should have met."""
        problems, warnings = list[str](), [*impairment.realised]
        if tally is None:
            return problems, warnings
        overflow = counting.overflow_problem(impairment, tally, limit_packets=qdisc.sized_limit(impairment))
        problems += [text for text in (overflow,) if text]
        ways = elsewhere.ways(self._elsewhere.went(ref))
        if ways and not tally.arrived_packets and not source.cut and not source.met_cut:
            problems.append(f"no packet crossed it, but {ways}: {self._elsewhere.what_to_do(ref)}")
        elif ways:
            warnings.append(f"{ways}, unimpaired by this link")
        elif not tally.arrived_packets:
            warnings += ["no packet crossed it", *filter(None, [beyond.of_names(ref)])]
        return problems, warnings


def _tally(source: Source, port: Port, held: Held, reading: Reading) -> Tally | None:
    """What a link's netem counted since it was written; None if there is none."""
    netem = readback.find_netem(reading.qdiscs, source.minor)
    if netem is None:
        return None
    counted = {
        **netem,
        "packets": netem["packets"] - source.sent_before,
        "drops": netem["drops"] - source.dropped_before,
    }
    if "bytes" in netem:
        counted["bytes"] = netem["bytes"] - source.bytes_before
    refused = reading.refused
    return counting.tally(
        held.impairment,
        counted,
        limit_packets=qdisc.sized_limit(held.impairment),
        refused=None if refused is None else refused - port.refused,
        changing=source.running is not None,
        beyond=_copies(source, port, reading),
    )


def _copies(source: Source, port: Port, reading: Reading) -> int | None:
    """Duplicates that a link's netem has made; known where it is the only one at its port that makes any."""
    doubling = [source for source in port.sources.values() if source.impairment and source.impairment.duplicate_ratio]
    if source.beyond_before is None or len(doubling) != 1 or doubling[0] is not source:
        return None
    now = counting.beyond(reading.entry, reading.qdiscs)
    return None if now is None else now - source.beyond_before
