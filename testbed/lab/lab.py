"""A lab as its users see it: hosts that run programs, links that can be impaired and healed.

A lab owns all resources and is a context manager. `ComposeLab` and `LocalLab` provide the hosts (`backend`). The work
is done by the parts that this joins, from `ports` to `lifecycle`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from testbed.errors import InvalidValueError, Problems
from testbed.evidence.proof import Check
from testbed.judge import statistics as exact
from testbed.judge.plan import MOST_S
from testbed.lab import wanted
from testbed.lab.backend import Backend
from testbed.lab.carriage import Carriage
from testbed.lab.competing import CompetingTraffic, Load, refuse_parts
from testbed.lab.connections import Connections, KernelReadings
from testbed.lab.cutter import Cutter, check_flap, flapping_times
from testbed.lab.elsewhere import Elsewhere
from testbed.lab.host import Host
from testbed.lab.impairer import Impairer
from testbed.lab.ledger import Applied, Ledger
from testbed.lab.lifecycle import Lifecycle
from testbed.lab.measuring import Measuring
from testbed.lab.observer import LIMIT_BYTES, SNAP_BYTES, Observer, PortCapture
from testbed.lab.ports import Port, Ports
from testbed.lab.prober import Prober
from testbed.lab.recording import Recording
from testbed.lab.shaper import Shaped, Shaper
from testbed.lab.succession import AgentOwner, Succession
from testbed.lab.suspensions import Suspensions
from testbed.lab.verifier import Verifier
from testbed.lab.wholeness import HostControl, Wholeness
from testbed.netem import readback
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
            impairment = wanted.side(self._lab, impairment)
        if impairment is not None and words:
            raise InvalidValueError("give an Impairment or words such as delay=, not both")
        if impairment is not None and not isinstance(impairment, Impairment | Timeline):
            raise InvalidValueError(
                f'link.impair({shown(impairment)}): give words such as delay="40ms"; '
                f'for a profile write lab.impair("{self.ref} on {self.ref.network}", {shown(impairment)})'
            )
        impairment = wanted.side(self._lab, words) if impairment is None else impairment
        applied = self._lab.impairer.apply(self.ref, impairment)
        self._lab.impairer.play()
        return applied

    def heal(self) -> None:
        """Remove the impairment, and read back that it is gone."""
        self._lab.lifecycle.heal_link(self.ref)

    def cut(self, *, reject: bool = False) -> None:
        """Cut the link: every IP packet is lost, silently, until `mend`. Its impairment stays beneath.

        ``reject``: answer lost packets as a firewall does: see `Lab.cut`.
        """
        _check_truth("reject", reject)
        self._lab.cutter.cut(self._lab.whole.there([self.ref]), reject=reject)

    def flap(self, *, up: str, down: str, reject: bool = False) -> None:
        """Have the link go up and down until `mend`: see `Lab.flap`."""
        _check_truth("reject", reject)
        self._lab.cutter.flap([self.ref], *flapping_times(up, down), reject=reject)

    def mend(self) -> None:
        """End the cut. The impairment beneath is in force again."""
        self._lab.lifecycle.mend_link(self.ref)

    def lost_in_cut(self) -> int:
        """Number of packets lost or rejected by cuts of this link, in total."""
        return self._lab.cutter.lost_packets(self.ref)

    def dropped_by_number(self) -> int:
        """Number of packets that the current ``drop_packets`` and ``drop_every`` have lost."""
        return self._lab.impairer.dropped_by_number(self.ref)

    @property
    def impairment(self) -> Impairment | None:
        """The impairment in force, or None."""
        return self._lab.impairer.impairments().get(self.ref)

    def steps(self) -> list[Taken]:
        """The steps taken in this test, in order: of timelines, and of flapping."""
        self._lab.impairer.fetch_steps(self.ref)
        self._lab.cutter.fetch_steps(self.ref)
        return self._lab.ledger.stepped.get(self.ref, [])

    def counters(self) -> readback.NetemCounters:
        """The counters of the link's netem since the link was last healed. A changed impairment counts on.

        Raises LabError if the link is not impaired.
        """
        return self._lab.ports.counters(self.ref)


class Lab(Recording, Backend, HostControl, AgentOwner, KernelReadings):
    """Hosts and links that are up together; a context manager."""

    def __init__(self, say: Callable[[str], None] = lambda _text: None) -> None:
        """``say``: called with each line about the lab's progress."""
        self._say = say
        self.ledger = Ledger()
        self.ports = Ports(self)
        self.whole = Wholeness(self, suspend=self._suspend, resume_links=self._resume_links, say=say)
        self.elsewhere = Elsewhere(self.ports, self.whole, self)
        self.carriage = Carriage(self.ports, self)
        self.connections = Connections(self, self)
        self.succession = Succession(
            self, self.ledger.programs, unwatch=self.carriage.watch_no_more, forget=self._forget_all
        )
        self.shaper = Shaper(self.ports, self.ledger, self.carriage, self)
        self.impairer = Impairer(self.ports, self.ledger, self.elsewhere, self)
        self.cutter = Cutter(self.ports, self.ledger, self.elsewhere, self.carriage, self)
        self.verifier = Verifier(
            self.ports,
            self.ledger,
            self.impairer,
            self.cutter,
            self.shaper,
            self.elsewhere,
            self.carriage,
            self.connections,
            self.whole,
            self.succession,
            self,
        )
        self.prober = Prober(self.ports, self.ledger, self.impairer, self.cutter, self.shaper, self.verifier, self)
        self.measuring = Measuring(self.ports, self, self)
        self.observer = Observer(self.ports, self.impairer, self)
        self.suspensions = Suspensions(self.ports, self.impairer, self.cutter, self.verifier)
        self.shaper.running, self.shaper.moving = self.whole.running, self.suspensions.moved
        self.lifecycle = Lifecycle(
            self.ports,
            self.ledger,
            self.impairer,
            self.cutter,
            self.shaper,
            self.verifier,
            self.elsewhere,
            self.carriage,
            self.connections,
            self.whole,
            self.succession,
            self.suspensions,
            self.measuring,
            self,
        )

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
                f'link {shown(text)} names {len(refs)} links; use lab.impair, or name one, as in "{refs[0]} on '
                f'{refs[0].network}"'
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
        checked before anything is changed. Timelines begin at once, those of both directions together. A bottleneck
        that it has (``shape``) is put at the port at which the links end, as by `Lab.shape`, and stays until the same
        links are impaired again, or `heal`. ``prove``: also prove it: see `prove`.
        """
        _check_truth("prove", prove)
        asks = wanted.impairments_of(self, text, profile, words)
        name = wanted.profile_name(profile)
        shapes = [(self.whole.there(refs), bottleneck) for refs, bottleneck in asks.shapes]
        if prove:
            self.prober.plan(asks.links, shared=[ref for refs, _ in shapes for ref in refs])
        applied: list[Applied] = []
        shaped: list[Shaped] = []
        try:
            self.shaper.forget(asks.links)
            for refs, bottleneck in shapes:
                for ref in refs:
                    self.impairer.halt(ref)  # a timeline that is about to end anyway would not let its port be moved
                shaped += self.shaper.shape(refs, bottleneck, profile=name, with_links=True)
            for ref in self.whole.there(asks.links):
                applied.append(self.impairer.apply(ref, asks.links[ref], profile=name))  # noqa: PERF401  # cleared if one fails
            if prove:
                self.prove(text)
            self.impairer.play()
        except BaseException:
            for earlier in applied:  # nothing half-applied
                self.impairer.clear(earlier.link)
            for bottleneck_there in shaped:
                self.shaper.remove(bottleneck_there)
            raise
        return applied

    def prove(
        self, text: str, *, alpha: float = exact.ALPHA, most_s: float = MOST_S, tolerance: float | None = None
    ) -> dict[LinkRef, list[Check]]:
        """Send probes over each direction of a link, and compare what arrives with the impairment.

        Takes a few seconds per direction. ``alpha``: the probability that a correct direction fails.
        ``most_s``: the longest sending time per direction, seconds. ``tolerance``: the relative error of a share
        (of losses, duplicates, …) to detect with 90 % power, 0.5 for 50 %; raises InvalidValueError before probes are
        sent if that takes longer than ``most_s``. Without it, the checks say what can be detected in that time.
        Afterwards the link's random sequence begins anew. Raises ImpairmentNotAppliedError naming each field that is
        not as asked.
        """
        return self.prober.prove(self.topology.links(text), alpha=alpha, most_s=most_s, tolerance=tolerance)

    def shape(
        self, text: str, *, rate: str, queue: str | None = None, qdisc: str = "fifo", ecn: bool | None = None
    ) -> list[Shaped]:
        """Give the port at which these links end one rate and one queue, which all their packets share, until `heal`.

        ::

            (bottleneck,) = lab.shape("* -> server", rate="8mbit", queue="200kB", qdisc="fq_codel")

        It comes behind the impairments of the links. ``rate``: bits per second, Ethernet headers included. ``queue``:
        how much may wait; by default 100 ms at the rate for ``fifo`` and ``red``, else the kernel's own limit.
        ``qdisc``: ``fifo``, ``codel``, ``fq_codel``, ``cake`` or ``red``, as far as the kernel has them. ``ecn``:
        whether packets of flows that know ECN are marked and not dropped; by default as the kernel does by itself.
        Returns the bottleneck of each port; its `Shaped.counters` are of its queue. Raises InvalidValueError with every
        problem, ImpairmentNotAppliedError, EnvironmentUnfitError.
        """
        refs, bottleneck = wanted.bottleneck_of(self, text, {"rate": rate, "queue": queue, "qdisc": qdisc, "ecn": ecn})
        return self.shaper.shape(self.whole.there(refs), bottleneck)

    def traffic(self, text: str, *, tcp: int = 0, udp: str | None = None, size: int = 1400) -> CompetingTraffic:
        """Send competing traffic over these links until it is stopped, or the test's body ends.

        ::

            with lab.traffic("b -> server", tcp=2, udp="3mbit"):
                …

        ``tcp``: flows per link, each as fast as it gets. ``udp``: the rate of one UDP flow per link, payload bits per
        second, in datagrams of ``size`` bytes. `CompetingTraffic.stop` returns the flows with the bytes that were sent
        and received; the results have them, too. Programs of testbed's own send it: the hosts need Python 3 and a
        /tmp. Raises InvalidValueError with every problem, LabError, CommandTimeoutError.
        """
        problems = Problems()
        with problems.gathered():
            refs = self.topology.links(text)
            refuse_parts(refs)
        with problems.gathered():
            load = Load.parse(tcp=tcp, udp=udp, size=size)
        problems.tell()
        started = CompetingTraffic(load)
        started.start(self.whole.there(refs), self.hosts)
        self.ledger.traffic.append(started)
        return started

    def heal(self) -> None:
        """Mend every cut and remove every impairment.

        A failure is raised once all others are removed. What was in force until now stays in the evidence. Outside a
        test, ports and hosts are then as they were before; in a test, before the next one that does not impair them.
        """
        self.lifecycle.heal()

    def cut(self, text: str, *, reject: bool = False) -> tuple[LinkRef, ...]:
        """Cut ``"a -> b"`` or both directions of ``"a <-> b"``: every IP packet is lost, silently, until `mend`.

        ``reject``: the switch answers each lost packet in the receiver's name: TCP with a reset (ECONNREFUSED while
        connecting, ECONNRESET later), UDP with ICMP port unreachable (ECONNREFUSED), the rest with ICMP
        administratively prohibited. No other cut and no impairment affects these answers. Returns the links.
        """
        return self._cut(self.topology.links(text), reject=reject)

    def _cut(self, refs: Iterable[LinkRef], *, reject: bool, watched: bool = True) -> tuple[LinkRef, ...]:
        _check_truth("reject", reject)
        return self.cutter.cut(self.whole.there(refs), reject=reject, watched=watched)

    def flap(self, text: str, *, up: str, down: str, reject: bool = False) -> None:
        """Have ``"a -> b"`` or ``"a <-> b"`` go up and down until `mend`: up for ``up``, cut for ``down``, again.

        The agent does it beside the kernel, for all these links at the same moments. Impairments stay in force while
        a link is up. ``reject``: answer lost packets: see `cut`. `Link.steps` has each step with its time.
        """
        problems = Problems()
        with problems.gathered():
            _check_truth("reject", reject)
        with problems.gathered():
            refs, times_s = check_flap(self.topology, text, up=up, down=down)
        problems.tell()
        self.cutter.flap(self.whole.there(refs), *times_s, reject=reject)

    def mend(self, text: str | None = None) -> None:
        """End the cuts and the flapping of these links, or of all."""
        for ref in self.topology.links(text) if text is not None else [*self.ports.cut, *self.suspensions.links]:
            self.lifecycle.mend_link(ref)

    def partition(self, *groups: Iterable[str], traffic: str = "", reject: bool = False) -> tuple[LinkRef, ...]:
        """Cut every link between hosts of different groups, both ways, on every network that they share.

        ``lab.partition({"a", "b"}, {"c[*]"})``. Hosts in no group keep all their links. Traffic that routers forward
        between groups is cut as well. ``traffic``: cut only this part, as in ``"tcp/8888"``. ``reject``: see `cut`.
        `mend` without arguments ends it. Before anything is cut, raises InvalidValueError for unknown hosts, a host in
        two groups, and groups that no link joins. Returns the links.
        """
        _check_truth("reject", reject)
        refs = self._part_of(traffic, lambda part: self.topology.links_between(*groups, traffic=part))
        return self._cut(refs, reject=reject, watched=False)  # no other path is left to watch

    def isolate(self, host: str, *, traffic: str = "", reject: bool = False) -> tuple[LinkRef, ...]:
        """Cut every link of a host, or of several, as in ``"a[*]"``. Arguments: see `partition`."""
        _check_truth("reject", reject)
        refs = self._part_of(traffic, lambda part: self.topology.links_around(host, traffic=part))
        return self._cut(refs, reject=reject, watched=False)

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
            hosts=chosen,
            captures=captures,
            snap_bytes=snap_bytes,
            limit_bytes=limit_bytes,
            every=every,
            keep=self.ledger.observed.append,
        )

    # --- what the parts need of each other -------------------------------------------------------

    def _forget_all(self) -> list[Port]:
        """Forget every port and what was on it: its agent is dead. Returns the ports."""
        ports = [*self.ports.clear(), *(watched.port for watched in self.elsewhere.watched.values())]
        for known in (self.elsewhere.watched, self.suspensions.links, self.prober.clocks_proven):
            known.clear()
        return ports

    def _suspend(self, host: str) -> None:
        self.suspensions.suspend(host)
        self.shaper.suspend(host)

    def _resume_links(self) -> None:
        self.shaper.resume()
        self.suspensions.resume(self.whole.running)


def _check_truth(name: str, value: object) -> None:
    """Refuse values other than True and False: any text would count as true."""
    if not isinstance(value, bool):
        raise InvalidValueError(f"{name}={shown(value)}: must be True or False")
