"""Apply impairments to links, play timelines, and clear them; each change is read back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from testbed import reading
from testbed.errors import AgentError, EnvironmentUnfitError, LabError
from testbed.evidence.proof import LinkEvidence
from testbed.evidence.verdict import Verdict
from testbed.judge import counting
from testbed.lab.backend import Backend
from testbed.lab.elsewhere import Elsewhere
from testbed.lab.ledger import Applied, Ledger
from testbed.lab.playback import Playback, begin_together
from testbed.lab.ports import HELD, Port, Ports, Source, flat, show_entry
from testbed.netem import indexed, qdisc, readback
from testbed.netem.buckets import refuse_small_bucket
from testbed.netem.profiles import find_table
from testbed.netem.schedule import compile_timeline
from testbed.spec.impairment import Impairment
from testbed.spec.links import ALL_TRAFFIC, LinkRef
from testbed.spec.timeline import Timeline


class Impairer:
    """The impairments of a lab's links."""

    def __init__(self, ports: Ports, ledger: Ledger, elsewhere: Elsewhere, backend: Backend) -> None:
        self._ports = ports
        self._ledger = ledger
        self._elsewhere = elsewhere
        self._backend = backend
        self.before_first: Callable[[LinkRef], None] = lambda _ref: None
        """Called before a link is impaired; may raise ImpairmentNotAppliedError."""
        self.putting: Callable[[LinkRef, bool], AbstractContextManager[None]] = lambda _ref, _again: nullcontext()
        """Wraps the writing of an impairment. Its second argument: whether the sequence only begins again."""
        self.instead: Callable[[LinkRef, int, Impairment | Timeline], Impairment | Timeline] = as_asked
        """What is put on a link in place of what the test asks for, by how many it had before in this test."""
        ports.tenants.append(self)

    # --- as asked --------------------------------------------------------------------------------

    def apply(self, ref: LinkRef, wanted: Impairment | Timeline, *, profile: str = "") -> Applied:
        """Apply what a test or a user asks: write it, read it back, and note it in the history.

        Of a timeline the first step is written; `play` begins the rest. ``profile``: its name, for reports.

        Raises ImpairmentNotAppliedError, and InvalidValueError where a timeline's steps cannot follow each other.
        """
        started = time.perf_counter()
        self._ledger.reported.discard(ref)
        wanted = self.instead(ref, self._ledger.earlier(ref), wanted)
        seed = self._ledger.seed(ref, wanted, seedable=self._backend.seedable)
        if isinstance(wanted, Timeline):
            schedule = compile_timeline(wanted, seed=seed)
            self.halt(ref)
            applied = replace(self._write_or_renew(ref, schedule.moments[0].impairment, started), timeline=wanted)
            self._prepare(ref, Playback(name=f"{ref} on {ref.network}", schedule=schedule))
        else:
            self.halt(ref)
            applied = self._write_or_renew(ref, wanted if seed is None else replace(wanted, seed=seed), started)
        applied = replace(applied, profile=profile)
        self._ledger.history.append(applied)
        return applied

    def play(self) -> None:
        """Begin every prepared timeline at the same moment, their 0 s."""
        begin_together(
            (port.channel, source.running)
            for port in self._ports
            for source in port.sources.values()
            if source.running is not None and not source.running.begun
        )

    def rewrite(self, ref: LinkRef, impairment: Impairment) -> None:
        """Write an impairment as a new netem, whose random numbers begin with its seed; not in the history."""
        self._write(ref, impairment, time.perf_counter(), afresh=True)

    def restore(self, ref: LinkRef, impairment: Impairment, running: Playback | None) -> None:
        """Write an earlier impairment again, and prepare its timeline for `play`; not in the history."""
        self._write_or_renew(ref, impairment, time.perf_counter())
        if running is not None:
            self._prepare(ref, running)

    def restart(self, ref: LinkRef, *, keep_queue: bool) -> None:
        """Begin a link's sequence of random numbers, or packet numbers, again. ``keep_queue``: change it in place."""
        port, _ = self._ports.known(ref)
        with self.putting(ref, True):
            self._write(ref, port.applied[ref], time.perf_counter(), afresh=not keep_queue)

    def clear(self, ref: LinkRef) -> None:
        """Remove a link's impairment, and read back that it is gone."""
        port = self._ports.of(ref)
        if port is None or ref not in port.applied:
            return
        source = port.sources[ref]
        self.halt(ref)
        lines = [qdisc.clear(port.device, source.minor)]
        if ref.traffic != ALL_TRAFFIC or source.counted or source.gateway is not None:
            # The filters of a part would keep its traffic from the whole link's next impairment.
            filters = source.filters(ref.traffic)
            lines += [filter_.delete(port.device) for filter_ in filters]
            lines += [qdisc.stop_counting(port.device, source.minor)] if source.counted else []
            source.led = source.counted = False
        try:
            answer = self._ports.tc(port, [*lines, qdisc.get(port.device, source.minor)])
        except AgentError as error:
            if error.kind != "gone":
                raise
            source.impairment = None  # it went with the port
            return
        if not answer["shown"] or readback.find_netem(answer["shown"][-1], source.minor) is not None:
            raise LabError(f"{ref}: still impaired after healing; tc said: {answer['complaints']}")
        source.impairment = None

    # --- as it is --------------------------------------------------------------------------------

    def now(self, ref: LinkRef) -> tuple[Impairment, Mapping[str, Any] | None]:
        """The impairment of a link at this moment, and the kernel's own account of it, or None."""
        port, source = self._ports.known(ref)
        impairment = port.applied[ref]
        if source.running is None:
            return impairment, self._ports.netem(ref)
        look = source.running.look(port.channel)
        self._ledger.add_steps(ref, look.taken)
        if look.played and look.impairment is not None:
            return look.impairment, look.kernel
        return impairment, self._ports.netem(ref)

    def impairments(self) -> dict[LinkRef, Impairment]:
        """The impairment of each impaired link; of a timeline, the step in force."""
        return {ref: self.now(ref)[0] for ref in self._ports.impaired}

    def fetch_steps(self, ref: LinkRef) -> None:
        """Fetch the steps that a link's timeline has taken."""
        port, source = self._ports.of(ref), self._ports.source(ref)
        if port is not None and source is not None and source.running is not None:
            self._ledger.add_steps(ref, source.running.look(port.channel).taken)

    # --- timelines -------------------------------------------------------------------------------

    def _prepare(self, ref: LinkRef, running: Playback) -> None:
        port, source = self._ports.known(ref)
        for moment in running.schedule.moments:
            refuse_small_bucket(ref, moment.impairment, mtu=port.mtu)
            self._store_tables(port, moment.impairment)
        running.prepare(
            port.channel,
            port=port.name,
            show=qdisc.get(port.device, source.minor),
            parent=f"1:{source.minor:x}",
            needs=[source.ifindex],
            lines=[
                [qdisc.leaf(port.device, source.minor, moment.impairment, spare=source.spare)]
                for moment in running.schedule.moments
            ],
        )
        source.running = running

    def halt(self, ref: LinkRef) -> None:
        """Stop a link's timeline, if one runs, at its present step."""
        port, source = self._ports.of(ref), self._ports.source(ref)
        if port is None or source is None or source.running is None:
            return
        running, source.running = source.running, None
        look = running.halt(port.channel)
        self._ledger.add_steps(ref, look.taken)
        if look.played:
            source.impairment = look.impairment

    # --- a port that begins anew: `ports.Tenant` -------------------------------------------------

    def evict(self, port: Port) -> None:
        """Stop the timelines of a port that is gone. Keeps their steps, and notes that they ended early."""
        for ref, source in port.sources.items():
            if source.running is None:
                continue
            self.halt(ref)
            if steps := self._ledger.steps.get(ref):
                complaint = "the port began anew, because a host at it was started again, and the timeline ended here"
                steps.append(replace(steps[-1], complaint=complaint))

    def move_in(self, port: Port, *, but: LinkRef | None) -> None:
        """Write the impairments of a port on the new one in its place."""
        for ref, source in port.sources.items():
            if ref != but and source.impairment is not None:
                self._write(ref, source.impairment, time.perf_counter())

    # --- how it gets there -----------------------------------------------------------------------

    def _write_or_renew(self, ref: LinkRef, impairment: Impairment, started: float) -> Applied:
        """Write an impairment, on a new port if the old one is gone, and read it back."""
        self.before_first(ref)

        def write() -> Applied:
            self._ports.ready(ref)
            with self.putting(ref, False):
                return self._write(ref, impairment, started)

        try:
            applied = write()
        except AgentError as error:
            if error.kind != "gone":
                raise
            self._ports.renew(ref, by=self)
            applied = write()
        self._elsewhere.watch(ref)
        return applied

    def _write(self, ref: LinkRef, impairment: Impairment, started: float, *, afresh: bool = False) -> Applied:
        port = self._ports.ready(ref)
        self._ports.watch(ref)
        source = port.sources[ref]
        refuse_small_bucket(ref, impairment, mtu=port.mtu)
        device, minor, by_number = port.device, source.minor, impairment.by_number
        self._store_tables(port, impairment)
        lines: list[qdisc.TcLine] = [] if port.rooted else [*qdisc.root(device)]
        if not source.led:
            lines.append(qdisc.make_class(device, minor))
        spare = source.spare
        kept = source.impairment is not None and qdisc.can_change_in_place(source.impairment, impairment)
        if source.impairment is not None and (afresh or not kept):
            spare = not spare
        command = qdisc.leaf(device, minor, impairment, spare=spare)
        lines += [command, *qdisc.bucket(device, minor, impairment, spare=spare)]
        leading: list[qdisc.Filter] = []
        if not source.led or source.counted != by_number:
            leading = source.spares() + source.filters(ref.traffic, by_number=by_number)
        if by_number:
            lines += qdisc.count(device, minor, self.store_count(port, impairment))
        lines += [filter_.put(device) for filter_ in leading]
        if source.counted and not by_number:
            lines.append(qdisc.stop_counting(device, minor))
        lines += [qdisc.show_count(device, minor)] if by_number else []
        lines += [filter_.get(device) for filter_ in leading]
        lines += [qdisc.get(device, minor), qdisc.get_bucket(device, minor, spare=spare)]
        former = None if afresh or ref in self._ledger.reported else source.impairment
        before = [] if former is None else [qdisc.get(device, minor)]
        if impairment.duplicate_ratio and not (source.impairment and source.impairment.duplicate_ratio):
            self._begin_counting_copies(port, source)
        answer = self._ports.tc(port, [*before, *lines], source)
        failed = [complaint["line"] for complaint in answer["complaints"]]
        if former is not None and not any(line in failed for line in before):
            self._look_at_former(ref, former, readback.find_netem(answer["shown"].pop(0), minor))
        port.rooted = port.rooted or not any(line in failed for line in qdisc.root(device))
        if command not in failed:
            # The kernel now holds something new for this source, right or wrong.
            source.spare, source.impairment = spare, impairment
        source.counted = source.counted or by_number
        complaints = [f"{qdisc.describe(complaint['line'])}: {complaint['text']}" for complaint in answer["complaints"]]
        differences: list[readback.Difference] = []
        kernel: Mapping[str, Any] = {}
        if not complaints:
            *filters, leaf, behind = answer["shown"]
            qdiscs = [*leaf, *behind]
            kernel = readback.find_netem(qdiscs, minor) or {}
            source.sent_before, source.dropped_before = kernel.get("packets", 0), kernel.get("drops", 0)
            source.bytes_before = kernel.get("bytes", 0)
            misled = readback.filter_differences(flat(filters), leading)
            source.led = (source.led or bool(leading)) and not misled
            source.counted = by_number
            differences = netem_differences(impairment, kernel or None, qdiscs, flat(filters)) + misled
        if complaints or differences:
            source.led = False
            self._ports.suspect(port)
            raise self._ports.not_applied(ref, differences, *complaints, f"Command: tc {command}")
        return Applied(
            link=ref,
            impairment=impairment,
            command=f"tc {command}",
            kernel=kernel,
            took_s=time.perf_counter() - started,
        )

    def _look_at_former(self, ref: LinkRef, former: Impairment, netem: Mapping[str, Any] | None) -> None:
        """Check that an impairment held until another replaced it; if not, the next `verify` reports it."""
        if differences := readback.differences(former, netem):
            evidence = replace(
                lost(self._ledger, ref, former), warnings=[str(difference) for difference in differences]
            )
            self._ledger.over.append((evidence, [self._ports.not_applied(ref, differences, HELD)]))

    def _begin_counting_copies(self, port: Port, source: Source) -> None:
        """Note by how much the root's count exceeds the port's arrivals; any further excess is duplicates."""
        if port.entry is None:
            return
        lines = [*show_entry(port), qdisc.show(port.device)]
        answer = self._ports.tc(port, lines)
        if len(answer["shown"]) == len(lines):
            source.beyond_before = counting.beyond(*answer["shown"])

    def _store_tables(self, port: Port, impairment: Impairment) -> None:
        """Store the user's delay tables at the agent, for tc to read. Raises InvalidValueError."""
        for name in impairment.own_tables:
            self._ports.store(port, name, reading.read_bytes(find_table(self._backend.tables, name)))

    def store_count(self, port: Port, impairment: Impairment) -> str:
        """Store a program that drops packets by number at the agent. Returns its path; raises EnvironmentUnfitError."""
        name = f"{indexed.tags(impairment.drop_packets, impairment.drop_every)[0]}.o"
        path = self._ports.store(port, name, indexed.elf_object(impairment.drop_packets, impairment.drop_every))
        if self._backend.netem_engine == "host" and (reason := port.channel.call("try_program", path=path)):
            raise EnvironmentUnfitError(
                f"drop_packets and drop_every load a program into the kernel, which this machine's refuses: "
                f"{reason}. Use --netem carried"
            )
        return path

    def dropped_by_number(self, ref: LinkRef) -> int:
        """Number of packets that the current ``drop_packets`` and ``drop_every`` have lost on a link."""
        source = self._ports.source(ref)
        if source is None or not source.counted:
            return 0
        port, _ = self._ports.known(ref)
        answer = self._ports.tc(port, [qdisc.show_count(port.device, source.minor)], source)
        return readback.dropped_by_number(flat(answer["shown"]))


def as_asked(_ref: LinkRef, _earlier: int, wanted: Impairment | Timeline) -> Impairment | Timeline:
    """What the test asks for."""
    return wanted


def netem_differences(
    impairment: Impairment, netem: Mapping[str, Any] | None, qdiscs: Any, filters: Any
) -> list[readback.Difference]:
    """Every difference between what was asked for a link and what the kernel holds."""
    differences = readback.differences(impairment, netem) + readback.bucket_differences(impairment, qdiscs, netem)
    return differences + (readback.count_differences(impairment, filters) if impairment.by_number else [])


def lost(ledger: Ledger, ref: LinkRef, impairment: Impairment) -> LinkEvidence:
    """The evidence of a link whose port is gone."""
    command, profile = ledger.last_put(ref)
    return LinkEvidence(
        link=str(ref),
        network=ref.network,
        asked=impairment.words(),
        command=command,
        profile=profile,
        read_back=Verdict.FAILS,
        counters=Verdict.UNKNOWN,
        probe=Verdict.HOLDS if ref in ledger.probed else Verdict.NOT_ASKED,
    )
