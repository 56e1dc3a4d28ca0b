"""A lab as its users see it: hosts that run programs, links that can be impaired and healed.

A lab owns all resources and is a context manager. `ComposeLab` and `LocalLab` say how hosts come up (`backend`); what
can be done with links is in the parts that this joins: `ports`, `impairer`, `cutter`, `verifier`, `proving`,
`observing`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Self

from testbed.errors import InvalidValueError, LabError, Problems
from testbed.evidence.proof import Check, LinkEvidence
from testbed.judge import statistics as exact
from testbed.judge.plan import MOST_S
from testbed.lab import releasing, sequences
from testbed.lab.backend import Backend
from testbed.lab.carriage import Carriage
from testbed.lab.channel import Channel
from testbed.lab.connections import Connections
from testbed.lab.cutter import Cutter, flapping_times
from testbed.lab.elsewhere import Elsewhere
from testbed.lab.host import Host
from testbed.lab.impairer import Impairer
from testbed.lab.ledger import Applied, Ledger
from testbed.lab.measuring import Measuring
from testbed.lab.observer import LIMIT_BYTES, SNAP_BYTES, Observer, PortCapture
from testbed.lab.ports import Port, Ports
from testbed.lab.prober import Prober
from testbed.lab.recording import Recording
from testbed.lab.succession import Succession
from testbed.lab.suspensions import Suspensions
from testbed.lab.verifier import Verifier
from testbed.lab.wanted import impairments_of, profile_name
from testbed.lab.wholeness import Wholeness
from testbed.netem import readback
from testbed.netem.profiles import checked_side, read_trace
from testbed.observe.observation import Observation
from testbed.spec.impairment import Impairment
from testbed.spec.links import ALL_TRAFFIC, LinkRef, Traffic
from testbed.spec.profile import Profile
from testbed.spec.timeline import Taken, Timeline
from testbed.text import shown


class Link:
    """One direction between two hosts."""

    def __init__(self, lab: Lab, ref: LinkRef) -> None:
        self._lab = lab
        self.ref = ref

    def __repr__(self) -> str:
        return f"<Link {self.ref} on {self.ref.network}>"

    def impair(self, impairment: Impairment | Timeline | Sequence[object] | None = None, **words: object) -> Applied:
        """Impair the link, and read the impairment back. It replaces the one before.

        ``link.impair(delay="40ms", loss="2%")`` or ``link.impair(Impairment(delay_s=0.04))``. A list of steps or
        ``trace="…"`` is a timeline, which begins at once. Raises ImpairmentNotAppliedError if the kernel does not
        hold every field.
        """
        if isinstance(impairment, list | tuple):
            impairment = self._lab.side(impairment)
        if impairment is not None and words:
            raise InvalidValueError("give an Impairment or words such as delay=, not both")
        if impairment is not None and not isinstance(impairment, Impairment | Timeline):
            raise InvalidValueError(
                f'link.impair({shown(impairment)}): give words such as delay="40ms"; '
                f'for a profile write lab.impair("{self.ref} on {self.ref.network}", {shown(impairment)})'
            )
        return self._lab.impairer.put(self.ref, impairment if impairment is not None else self._lab.side(words))

    def heal(self) -> None:
        """Remove the impairment, and read back that it is gone."""
        self._lab.heal_link(self.ref)

    def cut(self, *, reject: bool = False) -> None:
        """Cut the link: every IP packet is lost, silently, until `mend`. Its impairment stays beneath.

        ``reject``: answer lost packets as a firewall does: see `Lab.cut`.
        """
        self._lab.cut_links([self.ref], reject=reject)

    def flap(self, *, up: str, down: str, reject: bool = False) -> None:
        """Have the link go up and down until `mend`: see `Lab.flap`."""
        _truth("reject", reject)
        self._lab.cutter.flap([self.ref], *flapping_times(up, down), reject=reject)

    def mend(self) -> None:
        """End the cut. The impairment beneath is in force again."""
        self._lab.mend_link(self.ref)

    def lost_in_cut(self) -> int:
        """Number of packets lost or rejected by cuts of this link, in total."""
        return self._lab.cutter.lost_packets(self.ref)

    def dropped_by_number(self) -> int:
        """Number of packets that the current ``drop_packets`` and ``drop_every`` have lost."""
        return self._lab.impairer.dropped_by_number(self.ref)

    @property
    def impairment(self) -> Impairment | None:
        """The impairment in force, or None."""
        return self._lab.impairments.get(self.ref)

    def steps(self) -> list[Taken]:
        """The steps taken in this test, in order: of timelines, and of flapping."""
        return self._lab.steps(self.ref)

    def counters(self) -> readback.NetemCounters:
        """The counters of the link's netem since the link was last healed. A changed impairment counts on.

        Raises LabError if the link is not impaired.
        """
        return self._lab.counters(self.ref)


class Lab(Recording, Backend):
    """Hosts and links that are up together; a context manager."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.ports = Ports(self)
        self.whole = Wholeness(self)
        self.elsewhere = Elsewhere(self.ports, self.whole, self)
        self.carriage = Carriage(self.ports, self)
        self.connections = Connections(self)
        self.succession = Succession(
            self, self.ledger.programs, unwatch=self.carriage.watch_no_more, forget=self._forget_all
        )
        self.impairer = Impairer(self.ports, self.ledger, self.elsewhere, self)
        self.cutter = Cutter(self.ports, self.ledger, self.elsewhere, self.carriage, self)
        self.verifier = Verifier(
            self.ports, self.ledger, self.impairer, self.cutter, self.elsewhere, self.carriage, self.connections,
            self.whole, self.succession, self,
        )  # fmt: skip
        self.prober = Prober(self.ports, self.ledger, self.impairer, self.cutter, self.verifier, self)
        self.measuring = Measuring(self.ports, self)
        self.observer = Observer(self.ports, self.impairer, self)
        self.suspensions = Suspensions(self.ports, self.impairer, self.cutter, self.verifier)
        self.left_over = ""
        """Connections of the test that `end` could not have end; empty if there are none."""
        self._say: Callable[[str], None] = lambda _text: None
        self._testing = False

    # --- a test ----------------------------------------------------------------------------------

    def begin(self, seeds_from: str | None, links: Collection[LinkRef] = ()) -> None:
        """Begin a test: heal what is left, and forget the metrics, the history and the programs of the one before.

        Every host is brought back that was stopped, or was not left as it was when the stack came up. Raises LabError
        saying why one cannot be. What nothing impairs any more is as if it had never been impaired; ``links``: those to
        be impaired at once, to whose ports that is not done and undone. ``seeds_from``: what the seeds of random
        impairments that name none are derived from; None leaves them to the kernel.
        """
        self._testing = True
        self.ledger.begin(seeds_from)  # at first: if the rest fails, nothing of the test before is told of this one
        self.succession.begin()
        self._heal_all()
        self.whole.begin()
        releasing.release(self.ports, self.elsewhere, self.hosts, but=links)
        self.ledger.begin(seeds_from)  # nor is what was found as links were healed
        self.carriage.begin()
        self.verifier.begin()
        self.connections.begin()
        self.measuring.forget()
        self.left_over = ""

    def begin_body(self) -> None:
        """The packets of a test's body come now: begin the links' sequences, then the timelines, with them."""
        self.connections.begin_body()
        self.measuring.begin()
        sequences.begin(self.ports, self.impairer)
        self.impairer.play()

    def end(self) -> None:
        """End a test: heal every link, kill the programs that it left running, and have their connections end."""
        if self.succession.end():
            self._testing = False
            return
        with ExitStack() as each:
            each.callback(self._settle)
            for program in self.ledger.programs:
                if not program.ended:
                    each.callback(program.stop, "SIGKILL")
            each.callback(self._heal_all)
            each.callback(self.carriage.end)
            each.callback(self.whole.resume_all)  # first: nothing in a paused host can be ended
        self._testing = False

    def _settle(self) -> None:
        self.left_over = self.connections.settle()

    def verify(self) -> None:
        """Read every impaired link again, and look at each step that a timeline took; what was found is in `evidence`.

        So is what was found of links as they were healed, and of cuts as they were mended, since `begin`.

        Raises ImpairmentNotAppliedError if a link does not hold any more what was asked, if a step was not taken, if
        its queue overflowed though neither a rate nor a limit was asked, if the traffic took another path, or if an
        agent died.
        """
        self.measuring.end()
        self.verifier.verify()

    @property
    def evidence(self) -> list[LinkEvidence]:
        """What `verify` found of each impaired link, last."""
        return self.ledger.evidence

    # --- context ---------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.down()

    # --- hosts -----------------------------------------------------------------------------------

    def host(self, name: str) -> Host:
        """The host of that name. For an unknown one raises InvalidValueError with the nearest known name."""
        if name not in self.hosts:
            raise InvalidValueError(f"host {shown(name)}: {self.topology.unknown_host(name)}")
        return self.hosts[name]

    # --- links -----------------------------------------------------------------------------------

    def link(self, text: str) -> Link:
        """The link ``"client -> server"``."""
        refs = self.topology.links(text)
        if len(refs) > 1:
            raise InvalidValueError(
                f'link {shown(text)} names {len(refs)} links; use lab.impair, or name one with "->"'
            )
        return Link(self, refs[0])

    def impair(
        self,
        text: str,
        profile: str | Profile | Sequence[object] | None = None,
        *,
        prove: bool = False,
        **words: object,
    ) -> list[Applied]:
        """Impair ``"a -> b"``, or both directions of ``"a <-> b"``, by a profile, a list of steps, or words.

        A profile's forward half impairs the first direction, its reverse half the other. Every name and value is
        checked before anything is changed. Timelines begin at once, those of both directions together. ``prove``: also
        prove it: see `prove`.
        """
        _truth("prove", prove)
        wanted = self.wanted(text, profile, words)
        if prove:
            self.prober.plan(wanted)
        applied: list[Applied] = []
        try:
            for ref in self.there(wanted):
                impairment = wanted[ref]
                applied.append(self.impairer.arm(ref, impairment, profile=profile_name(profile)))
            if prove:
                self.prove(text)
            self.impairer.play()
        except BaseException:
            for done in applied:  # nothing half-applied
                self.impairer.clear(done.link)
            raise
        return applied

    def wanted(
        self, text: str, profile: str | Profile | Sequence[object] | None, words: Mapping[str, object]
    ) -> dict[LinkRef, Impairment | Timeline]:
        """What is asked of each link: `impairments_of`, by this lab's hosts, profiles and tables.

        Raises InvalidValueError.
        """
        return impairments_of(
            self.topology, self.profiles, text, profile, words, tables=self.tables, side=self.side
        )  # fmt: skip

    def side(self, words: object) -> Impairment | Timeline:
        """What words or a list of steps ask of a link. Raises InvalidValueError with every problem."""
        return checked_side(words, self.read_trace)

    def read_trace(self, name: str) -> str:
        """The text of a trace, by the name in a marker, a call or a command line. Raises InvalidValueError."""
        return read_trace(name)

    def prove(
        self, text: str, *, alpha: float = exact.ALPHA, most_s: float = MOST_S, tolerance: float | None = None
    ) -> dict[LinkRef, list[Check]]:
        """Send probes over each direction of a link, and compare what arrives with the impairment.

        Takes a few seconds per direction. ``alpha``: the probability that a direction that is as asked fails.
        ``most_s``: for how long probes are sent, per direction; seconds. ``tolerance``: the relative error of a share
        (of losses, duplicates, …) to detect with 90 % power, 0.5 for 50 %; raises InvalidValueError before probes are
        sent if that takes longer than ``most_s``. Without it, the checks say what can be detected in that time.
        Afterwards the link's random sequence begins anew. Raises ImpairmentNotAppliedError naming each field that is
        not as asked.
        """
        return self.prober.prove(self.topology.links(text), alpha=alpha, most_s=most_s, tolerance=tolerance)

    def heal(self) -> None:
        """Mend every cut and remove every impairment.

        A failure is raised once all others are removed. What was in force until now stays in the evidence. Outside a
        test, ports and hosts are then as they were before; in a test, before the next one that does not impair them.
        """
        for ref in self.ports.impaired:
            self.verifier.take_leave(ref)
        self._heal_all()
        if not self._testing:
            self.release()

    def heal_link(self, ref: LinkRef) -> None:
        """Take one link's impairment off; what it was until now, and whether it held, goes into the next `verify`."""
        self.suspensions.heal(ref)
        self.verifier.take_leave(ref)
        self.impairer.clear(ref)
        if not self._testing:
            self.release()

    def release(self) -> None:
        """Have ports that nothing impairs or cuts, and hosts that send to none, be as before they were impaired."""
        releasing.release(self.ports, self.elsewhere, self.hosts)

    def _heal_all(self) -> None:
        self.suspensions.links.clear()
        with ExitStack() as each:
            for ref in self.ports.impaired:
                each.callback(self.impairer.clear, ref)
            for ref in self.ports.cut:
                each.callback(self.cutter.mend, ref)

    def cut(self, text: str, *, reject: bool = False) -> tuple[LinkRef, ...]:
        """Cut ``"a -> b"`` or both directions of ``"a <-> b"``: every IP packet is lost, silently, until `mend`.

        ``reject``: the switch answers each lost packet in the receiver's name: TCP with a reset (ECONNREFUSED while
        connecting, ECONNRESET later), UDP with ICMP port unreachable (ECONNREFUSED), the rest with ICMP
        administratively prohibited. No other cut and no impairment affects these answers. Returns the links.
        """
        return self.cut_links(self.topology.links(text), reject=reject)

    def cut_links(
        self, refs: Iterable[LinkRef], *, reject: bool = False, watched: bool = True
    ) -> tuple[LinkRef, ...]:  # fmt: skip
        """Cut these links, or none if one of them cannot be; ``watched``: see `Cutter.cut`."""
        _truth("reject", reject)
        before = self.ports.cut
        refs = self.there(refs)
        with ExitStack() as undo:
            for ref in refs:
                if ref not in before:
                    undo.callback(self.mend_link, ref)
                self.cutter.cut(ref, reject=reject, watched=watched)
            undo.pop_all()
        return refs

    def flap(self, text: str, *, up: str, down: str, reject: bool = False) -> None:
        """Have ``"a -> b"`` or ``"a <-> b"`` go up and down until `mend`: up for ``up``, cut for ``down``, again.

        The agent does it beside the kernel, for all these links at the same moments. Impairments stay in force while
        a link is up. ``reject``: answer lost packets: see `cut`. `Link.steps` has each step with its time.
        """
        refs, times_s = self.check_flap(text, up=up, down=down, reject=reject)
        self.cutter.flap(self.there(refs), *times_s, reject=reject)

    def check_flap(
        self, text: str, *, up: str, down: str, reject: bool = False
    ) -> tuple[tuple[LinkRef, ...], tuple[float, float]]:
        """What `flap` is asked. Raises InvalidValueError with every problem."""
        problems = Problems()
        with problems.gathered():
            _truth("reject", reject)
        with problems.gathered():
            refs = self.topology.links(text)
        with problems.gathered():
            times_s = flapping_times(up, down)
        problems.tell()
        return refs, times_s

    def mend(self, text: str | None = None) -> None:
        """End the cuts and the flapping of these links, or of all."""
        for ref in self.topology.links(text) if text is not None else [*self.ports.cut, *self.suspensions.links]:
            self.mend_link(ref)

    def mend_link(self, ref: LinkRef) -> None:
        """End the cut of one direction; what it was, and whether it held, goes into the next `verify`."""
        self.suspensions.mend(ref)
        self.cutter.mend(ref)

    def partition(self, *groups: Iterable[str], traffic: str = "", reject: bool = False) -> tuple[LinkRef, ...]:
        """Cut every link between hosts of different groups, both ways, on every network that they share.

        ``lab.partition({"a", "b"}, {"c[*]"})``. Hosts in no group keep all their links. Traffic that routers forward
        between groups is cut as well. ``traffic``: cut only this part, as in ``"tcp/8888"``. ``reject``: see `cut`.
        `mend` without arguments ends it. Before anything is cut, raises InvalidValueError for unknown hosts, a host in
        two groups, and groups that no link joins. Returns the links.
        """
        _truth("reject", reject)
        refs = self._part_of(traffic, lambda part: self.topology.links_between(*groups, traffic=part))
        return self.cut_links(refs, reject=reject, watched=False)  # on every network: there is no other to watch

    def isolate(self, host: str, *, traffic: str = "", reject: bool = False) -> tuple[LinkRef, ...]:
        """Cut every link of a host, or of several, as in ``"a[*]"``. Arguments: see `partition`."""
        _truth("reject", reject)
        refs = self._part_of(traffic, lambda part: self.topology.links_around(host, traffic=part))
        return self.cut_links(refs, reject=reject, watched=False)

    def _part_of(self, traffic: str, links: Callable[[Traffic], tuple[LinkRef, ...]]) -> tuple[LinkRef, ...]:
        """The links, each narrowed to this traffic. Raises InvalidValueError with every problem of both."""
        problems = Problems()
        part, refs = ALL_TRAFFIC, tuple[LinkRef, ...]()
        with problems.gathered():
            if not isinstance(traffic, str):
                raise InvalidValueError(f"traffic={shown(traffic)}: must be text, as in 'tcp/8888'")
            part = Traffic.parse(traffic)
        with problems.gathered():
            refs = links(part)
        problems.tell()
        return refs

    @property
    def impairments(self) -> dict[LinkRef, Impairment]:
        """What each impaired link is impaired with; of a timeline, the step in force."""
        return self.impairer.impairments()

    def steps(self, ref: LinkRef) -> list[Taken]:
        """The steps that were taken on a link since `begin`, in order: of timelines, and of its flapping."""
        self.impairer.fetch_steps(ref)
        self.cutter.fetch_steps(ref)
        return self.ledger.stepped.get(ref, [])

    def counters(self, ref: LinkRef) -> readback.NetemCounters:
        """The counters of a link's netem. Raises LabError if there is none."""
        netem = self.ports.netem(ref)
        if netem is None:
            raise LabError(f"{ref} is not impaired: there is nothing that counts its packets")
        return readback.counters(netem)

    def there(self, refs: Iterable[LinkRef]) -> tuple[LinkRef, ...]:
        """Those of these links whose hosts have not ended: see `Wholeness.there`. Raises LabError if none is left."""
        return self.whole.there(refs, self._say)

    # --- observing -------------------------------------------------------------------------------

    def capture(self, port: str, *, limit_bytes: int = LIMIT_BYTES, snap_bytes: int | None = None) -> PortCapture:
        """Capture the packets at a port while a block runs, before and after its impairment.

        ``"server"`` or ``"server on lan"``: every packet from and to that host. ``"client -> server"``: only those
        exchanged with the client. Keeps the last ``limit_bytes``, and ``snap_bytes`` of each packet (None: all of it).
        Impair first: a port without an impairment has one capture point instead of two.
        """
        return self.observer.capture(port, limit_bytes=limit_bytes, snap_bytes=snap_bytes)

    def observe(
        self,
        *,
        hosts: Iterable[str] | None = None,
        captures: Iterable[str] | None = None,
        snap_bytes: int | None = SNAP_BYTES,
        limit_bytes: int = LIMIT_BYTES,
        every: str = "10ms",
    ) -> AbstractContextManager[Observation]:
        """Observe while a block runs: kernel counters, every TCP socket over time, and packets.

        ::

            with lab.observe() as seen:
                lab.host("client").run(["python3", "client.py", "server"])
            assert seen.host("client").counters.retransmitted_segments == 0

        ``hosts``: whose counters and sockets; None for all. ``captures``: which ports, as for `capture`; None for those
        that are impaired at the start. ``snap_bytes``: bytes to keep of each packet; None for all, which costs more.
        ``limit_bytes``: bytes to keep per port, the latest. ``every``: how often sockets are read, as far as 2 % of a
        core suffice.
        """
        chosen = [self.host(name) for name in (self.hosts if hosts is None else hosts)]
        return self.observer.observe(
            hosts=chosen, captures=captures, snap_bytes=snap_bytes, limit_bytes=limit_bytes, every=every
        )

    # --- agents that died: `succession` ----------------------------------------------------------

    def _forget_all(self) -> list[Port]:
        """Know no more of any port, nor of what was on it: its agent is dead. Returns the ports."""
        left = [*self.ports.clear(), *(watched.port for watched in self.elsewhere.watched.values())]
        for known in (self.elsewhere.watched, self.suspensions.links, self.prober.clocks_proven):
            known.clear()
        return left

    # --- hosts that stop and start: `wholeness.Life` ------------------------------------------

    def suspend(self, host: str) -> None:
        """Take the impairments and cuts off a host's links, to be put back by `resume_links`."""
        self.suspensions.suspend(host)

    def resume_links(self, _hosts: Collection[str]) -> None:
        """Put back what was suspended, as far as both ends of the links are up."""
        self.suspensions.resume(self.whole.running)

    def sweep(self, agent: Channel) -> None:
        """Forget the ports that went with their hosts: before anything is sent to hosts that were started again."""
        gone = set(agent.call("sweep"))
        self.ports.forget(*(port for port in self.ports if port.name in gone))
        self.elsewhere.forget(gone)


def _truth(name: str, said: object) -> None:
    """Refuse what is neither True nor False: any text would be true."""
    if not isinstance(said, bool):
        raise InvalidValueError(f"{name}={shown(said)}: must be True or False")
