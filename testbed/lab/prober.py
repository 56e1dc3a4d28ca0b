"""Prove a link by probes: send them from host to host, judge what arrives, and leave the link as it was.

The probes use up random numbers of the netem. So the netem is written anew afterwards, with its seed: a test's packets
have the same fate as without the proof.
"""

from __future__ import annotations

import secrets
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from typing import Any

from testbed.errors import AgentError, ImpairmentNotAppliedError, InvalidValueError, LabError
from testbed.evidence.proof import Check, LinkEvidence, of_probes
from testbed.evidence.verdict import Verdict
from testbed.judge import impairments
from testbed.judge import statistics as exact
from testbed.judge.flight import Flight
from testbed.judge.plan import MOST_S, ProbePlan, plan
from testbed.lab.backend import Backend
from testbed.lab.channel import Channel
from testbed.lab.clocks import SAME, between
from testbed.lab.cutter import Cutter
from testbed.lab.impairer import Impairer
from testbed.lab.ledger import Ledger
from testbed.lab.ports import HELD, Ports
from testbed.lab.rows import Held, proven_rows
from testbed.lab.shaper import Shaper
from testbed.lab.verifier import Verifier
from testbed.netem import qdisc
from testbed.netem.profiles import find_table, table_numbers
from testbed.spec.impairment import CLEAN, Impairment
from testbed.spec.links import LOCALHOST, LinkRef
from testbed.spec.timeline import Timeline
from testbed.spec.words import is_table

_CLEAN_PROBES = 100
_CLEAN_PACE_S = 0.001
# A busy machine can make packets late or slow, so such a check fails only if it fails each time.
_LOOKS = 3
_CLOCK_PROBES = 5
_CLOCK_DELAY_S = 0.01


def unfit(ref: LinkRef, *, timeline: bool, shares: bool) -> str | None:
    """Why a link cannot be probed, if it cannot."""
    if ref.far not in ("", LOCALHOST):
        return f"{ref}: cannot be probed: testbed has no program outside the stack"
    if timeline:
        return f"{ref}: a timeline cannot be probed: the probes would take longer than its steps"
    if shares:
        return f"{ref}: cannot be probed: it shares a bottleneck, whose queue would delay the probes"
    if ref.traffic.protocol not in ("", "udp"):
        return f"{ref}: cannot be probed: probes are UDP datagrams, and {ref.traffic} is impaired alone"
    return None


def unprovable(wanted: Mapping[LinkRef, Impairment | Timeline], *, shared: Collection[LinkRef] = ()) -> list[str]:
    """Why some impairments can never be proven by probes; ``shared``: links that share a bottleneck."""
    reasons = (
        unfit(ref, timeline=isinstance(impairment, Timeline), shares=ref in shared)
        for ref, impairment in wanted.items()
    )
    return [reason for reason in reasons if reason]


def planned(
    impairment: Impairment, *, alpha: float = exact.ALPHA, most_s: float = MOST_S, tolerance: float | None = None
) -> ProbePlan:
    """The plan of probes for an impairment: see `Lab.prove`. Raises InvalidValueError."""
    limit_packets = qdisc.sized_limit(impairment)
    return plan(impairment, limit_packets=limit_packets, alpha=alpha, most_s=most_s, tolerance=tolerance)


class Prober:
    """Probes the links of a lab."""

    def __init__(
        self,
        ports: Ports,
        ledger: Ledger,
        impairer: Impairer,
        cutter: Cutter,
        shaper: Shaper,
        verifier: Verifier,
        backend: Backend,
    ) -> None:
        self._ports = ports
        self._ledger = ledger
        self._impairer = impairer
        self._cutter = cutter
        self._shaper = shaper
        self._verifier = verifier
        self._backend = backend
        self.clocks_proven: set[str | None] = set()
        """The carried kernels whose clock was proven."""
        impairer.before_first = self.prove_clock

    def plan(
        self,
        wanted: Mapping[LinkRef, Impairment | Timeline | None],
        *,
        alpha: float = exact.ALPHA,
        most_s: float = MOST_S,
        tolerance: float | None = None,
        shared: Collection[LinkRef] = (),
    ) -> dict[LinkRef, ProbePlan]:
        """The plan of probes for each of these impairments: see `Lab.prove`; None for a timeline.

        ``shared``: links that are about to share a bottleneck, beside those that do.
        Raises InvalidValueError with every reason against probing.
        """
        plans: dict[LinkRef, ProbePlan] = {}
        problems: list[str] = []
        for ref, impairment in wanted.items():
            shares = ref in shared or ref in self._shaper.links
            if why := unfit(ref, timeline=not isinstance(impairment, Impairment), shares=shares):
                problems.append(why)
            if cut := self._cut(ref):
                problems.append(f"{ref}: cannot be probed while {cut} is cut: no probe would arrive; mend it first")
            if not isinstance(impairment, Impairment):
                continue
            try:
                plans[ref] = planned(impairment, alpha=alpha, most_s=most_s, tolerance=tolerance)
            except InvalidValueError as error:
                problems += error.problems
        if problems:
            raise InvalidValueError(list(dict.fromkeys(problems)))
        return plans

    def _cut(self, ref: LinkRef) -> LinkRef | None:
        """The cut, or flapping link, that would lose and count this link's probes; None if there is none."""
        return self._cutter.around(replace(ref, traffic=replace(ref.traffic, protocol="udp")))

    def asked(self, ref: LinkRef) -> Impairment | None:
        """A link's impairment; None if a timeline runs there."""
        source = self._ports.source(ref)
        if source is not None and source.running is not None:
            return None
        return (source.impairment if source is not None else None) or CLEAN

    def prove(
        self, refs: Sequence[LinkRef], *, alpha: float, most_s: float, tolerance: float | None
    ) -> dict[LinkRef, list[Check]]:
        """Probe links and judge what arrived: see `Lab.prove`. Raises ImpairmentNotAppliedError."""
        self.plan({ref: self.asked(ref) for ref in refs}, alpha=alpha, most_s=most_s, tolerance=tolerance)
        seen = {ref: self.probe(ref, alpha=alpha, most_s=most_s, tolerance=tolerance) for ref in refs}
        for ref, checks in seen.items():
            if wrong := [str(check) for check in checks if check.verdict is Verdict.FAILS]:
                self._ledger.evidence[:] = [self.proven(ref) for ref in seen]
                raise self._ports.not_applied(ref, [], "probes did not see what was asked", *wrong)
        return seen

    def probe(
        self, ref: LinkRef, *, alpha: float = exact.ALPHA, most_s: float = MOST_S, tolerance: float | None = None
    ) -> list[Check]:
        """The same for one direction, without raising: the verdicts are in the checks, and in the evidence.

        Raises if the kernel no longer holds the impairment: probing would reinstall it and hide the fault.
        """
        impairment = self.asked(ref)
        plans = self.plan({ref: impairment}, alpha=alpha, most_s=most_s, tolerance=tolerance)
        held = self._verifier.held_now(ref)
        if held is not None and held.differences:
            raise self._ports.not_applied(ref, held.differences, HELD)
        kernel = impairments.kernel_words(((held and held.netem) or {}).get("options", {}))
        checks = [
            replace(check, kernel=kernel.get(check.field, check.kernel))
            for check in self._probe(ref, impairment or CLEAN, plans[ref], alpha)
        ]
        if held is None:
            self._impairer.clear(ref)
        self._ledger.probed[ref] = checks
        return checks

    def proven(self, ref: LinkRef) -> LinkEvidence:
        """The evidence of a link by read-back, and by probes if it was just probed; probes reset the counters."""
        held = self._verifier.held_now(ref) or Held(CLEAN, None, ())
        checks = self._ledger.probed.get(ref, [])
        command, profile = self._ledger.last_put(ref)
        return LinkEvidence(
            link=str(ref),
            network=ref.network,
            asked=held.impairment.words(),
            command=command,
            profile=profile,
            checks=proven_rows(held, checks),
            read_back=Verdict.FAILS if held.differences else Verdict.HOLDS,
            counters=Verdict.NOT_ASKED,
            probe=of_probes(checks),
            warnings=[*(str(difference) for difference in held.differences), *held.impairment.realised],
        )

    # --- how -------------------------------------------------------------------------------------

    def _probe(self, ref: LinkRef, impairment: Impairment, plan: ProbePlan, alpha: float) -> list[Check]:
        """Probe a link whose impairment is in force; its netem is written anew before and after.

        Raises AgentError, ImpairmentNotAppliedError.
        """
        table = self._table(ref, impairment)
        checks: list[Check] = []
        for _look in range(_LOOKS):
            checks = self._probe_once(ref, impairment, plan, table, alpha)
            if not impairments.perhaps_busy(checks):
                break
        return checks

    def _probe_once(
        self, ref: LinkRef, impairment: Impairment, plan: ProbePlan, table: Sequence[int], alpha: float
    ) -> list[Check]:
        def paced(count: int, pace_s: float) -> Flight:
            return self.fly(
                ref,
                count=count,
                pace_s=pace_s,
                size_bytes=plan.size_bytes,
                quiet_s=plan.quiet_s,
                checksum=plan.checksum,
            )

        def row(count: int, pace_s: float) -> Flight | None:
            if not count:
                return None
            return self.fly(
                ref, count=count, pace_s=pace_s, size_bytes=plan.train_bytes, quiet_s=plan.quiet_s, rush=True
            )

        ends = (ref.senders_port, ref.receivers_port)
        with self._verifier.taps.leaving_out([port for port in self._ports if port.ref in ends]):
            try:
                self._impairer.rewrite(ref, CLEAN)
                clean, clean_train = paced(_CLEAN_PROBES, _CLEAN_PACE_S), row(plan.clean_train, 0.0)
                self._impairer.rewrite(ref, impairment)
                flight = paced(plan.count, plan.pace_s)
                spread = paced(plan.spread, plan.spread_pace_s) if plan.spread else None
                self._impairer.rewrite(ref, impairment)
                train = row(plan.train, plan.train_pace_s)
            finally:
                self._impairer.rewrite(ref, impairment)
        return impairments.judge(
            impairment,
            flight,
            clean=clean,
            spread=spread,
            train=train,
            clean_train=clean_train,
            table=table,
            alpha=alpha,
        )

    def prove_clock(self, ref: LinkRef) -> None:
        """Measure one delay of each carried kernel's netem, once per kernel.

        tc reads the kernel's unit of time from /proc/net/psched. Without that file it sets 1/15.6 of every delay, and
        its read-back still shows the requested delay. Raises ImpairmentNotAppliedError; not if no probe arrives.
        """
        if self._backend.netem_engine != "carried" or unfit(ref, timeline=False, shares=False) or self._cut(ref):
            return
        impairment = Impairment(delay_s=_CLOCK_DELAY_S)
        try:
            kernel = self._ports.ready(ref).kernel
            if kernel in self.clocks_proven:
                return
            self._impairer.rewrite(ref, impairment)
        except AgentError as error:
            if error.kind != "gone":
                raise
            return  # the port begins anew; the next impairment proves the clock
        self.clocks_proven.add(kernel)
        try:
            flight = self.fly(ref, count=_CLOCK_PROBES, pace_s=0.001, size_bytes=64, quiet_s=_CLOCK_DELAY_S * 10)
        finally:
            self._impairer.clear(ref)
        if early := [delay_s for delay_s in flight.delays_s.values() if delay_s < _CLOCK_DELAY_S]:
            seen = statistics.median(early)
            raise ImpairmentNotAppliedError(
                f"{ref}: the clock of the carried kernel's netem is wrong: a delay of {_CLOCK_DELAY_S * 1e3:g} ms took "
                f"{seen * 1e3:.3g} ms. Its tc could not read /proc/net/psched: is /proc mounted where it runs?"
            )

    def fly(
        self,
        ref: LinkRef,
        *,
        count: int,
        pace_s: float,
        size_bytes: int,
        quiet_s: float,
        checksum: bool = True,
        rush: bool = False,
    ) -> Flight:
        """Send one flight of probes over a link as it is, and collect it.

        ``rush``: catch up after a late probe. Probes of a link that is narrowed to a port come from there; if the
        sender uses it itself, as a server that answers does, they go there.
        """
        fly = partial(
            self._fly,
            ref,
            count=count,
            pace_s=pace_s,
            size_bytes=size_bytes,
            quiet_s=quiet_s,
            checksum=checksum,
            rush=rush,
        )
        try:
            return fly(source_port=ref.traffic.port)
        except AgentError as error:
            if error.kind != "in use":
                raise
        return fly(port=ref.traffic.port)

    def _fly(
        self,
        ref: LinkRef,
        *,
        count: int,
        pace_s: float,
        size_bytes: int,
        quiet_s: float,
        checksum: bool,
        rush: bool,
        source_port: int = 0,
        port: int = 0,
    ) -> Flight:
        (src, sources), (dst, targets) = self._end(ref, ref.src), self._end(ref, ref.dst)
        source, address = _addresses(sources, targets)
        number = secrets.randbits(63)
        offset = SAME if self._on_one_machine(ref) else between(src, dst)
        late_ns = offset.error_ns - offset.ns
        hold = count if rush or not pace_s else 0
        listener = dst.call("probe_listen", address=address, flight=number, hold=hold, size_bytes=size_bytes, port=port)
        lasts_s = count * max(pace_s, 0.001) * 2 + 10
        try:
            sending: dict[str, Any] = src.call(
                "probe_send",
                source=source,
                address=address,
                port=listener["port"],
                flight=number,
                count=count,
                pace_s=pace_s,
                size_bytes=size_bytes,
                checksum=checksum,
                source_port=source_port,
                rush=rush,
                answer_within_s=lasts_s + 20,
            )
        finally:
            collected: dict[str, Any] = dst.call(
                "probe_collect",
                expect=count,
                quiet_s=quiet_s,
                deadline_s=quiet_s + lasts_s,
                answer_within_s=quiet_s + lasts_s + 20,
            )
        return Flight(
            sent_ns=sending["sent_ns"],
            arrivals=[(int(number), int(when) + late_ns) for number, when in collected["arrivals"]],
            damaged=collected["damaged"],
            size_bytes=size_bytes,
            clock_error_ns=offset.error_ns,
        )

    def _on_one_machine(self, ref: LinkRef) -> bool:
        """Whether both ends have one clock; what is beyond the stack is seen from the receiver's machine."""
        return len({self._backend.machine_of(name) for name in ref.hosts}) <= 1

    def _end(self, ref: LinkRef, name: str) -> tuple[Channel, tuple[str, ...]]:
        """The agent at one end of a link, and the end's addresses."""
        if name not in ref.hosts:
            port = self._ports.of(ref)
            gateway = None if port is None else self._ports.attached(ref.hosts[0], ref.network).gateway
            return self._backend.machines_agent(), tuple(gateway["addresses"]) if gateway is not None else ()
        host = self._backend.hosts[name]
        return host.inside(), host.addresses(ref.network)

    def _table(self, ref: LinkRef, impairment: Impairment) -> list[int]:
        if not impairment.jitter_s or impairment.distribution == "uniform":
            return []
        if is_table(impairment.distribution):
            return table_numbers(find_table(self._backend.tables, impairment.distribution))
        table: list[int] = self._backend.hosts[ref.hosts[-1]].inside().call("delay_table", name=impairment.distribution)
        return table


def _addresses(sources: tuple[str, ...], targets: tuple[str, ...]) -> tuple[str, str]:
    """One address of each host, of the same family; IPv4 first."""
    for version in (4, 6):
        mine, theirs = (
            [address for address in addresses if ip_address(address).version == version]
            for addresses in (sources, targets)
        )
        if mine and theirs:
            return mine[0], theirs[0]
    raise LabError(f"no address family in common: {', '.join(sources)} and {', '.join(targets)}")
