"""Bottlenecks: one rate and one queue at a port that several senders share, behind their own impairments."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from testbed import units
from testbed.errors import AgentError, EnvironmentUnfitError, ImpairmentNotAppliedError, InvalidValueError, LabError
from testbed.evidence.proof import Check, LinkEvidence, QueueCounts
from testbed.evidence.verdict import Verdict
from testbed.lab.backend import Backend
from testbed.lab.carriage import Carriage
from testbed.lab.ledger import Ledger
from testbed.lab.ports import HELD, Port, Ports
from testbed.netem import qdisc, readback, shaping
from testbed.spec.bottleneck import MARKS, Bottleneck, by_port, in_words, name_of
from testbed.spec.links import LinkRef, PortRef
from testbed.text import several

_MOST_REASONS = 5


@dataclass(frozen=True)
class Shaped:
    """A bottleneck at a port, as it was put there."""

    links: tuple[LinkRef, ...]
    """Whose packets share it; all end at the same port."""
    bottleneck: Bottleneck
    command: str
    """The tc line that made its queue."""
    took_s: float
    """From the call to the verified read-back; seconds."""
    read: Callable[[Shaped], QueueCounts] = field(repr=False, compare=False)
    profile: str = ""
    """The name of the profile that it came with; empty if it came with none."""
    with_links: bool = False
    """Whether it came with the impairment of its links, and goes when they get another."""

    def counters(self) -> QueueCounts:
        """What its queue has counted since the test's body began, or it was made. Raises LabError if it is gone."""
        return self.read(self)

    @property
    def port(self) -> PortRef:
        """The port that it is at."""
        return self.links[0].receivers_port

    def __str__(self) -> str:
        return name_of(self.links)


@dataclass
class _Placed:
    """A bottleneck, and its place at the port."""

    shaped: Shaped
    minor: int
    """Of its class; the filters of its links have numbers from this on."""
    filters: list[qdisc.Filter]
    senders: dict[LinkRef, int]
    """The links whose senders run, and the ifindex of each sender's own port."""
    before: QueueCounts
    """Counted before the test."""

    @property
    def needs(self) -> list[int]:
        """The interfaces that its filters are about."""
        return sorted(set(self.senders.values()))


class Shaper:
    """The bottlenecks of a lab's ports."""

    def __init__(self, ports: Ports, ledger: Ledger, carriage: Carriage, backend: Backend) -> None:
        self._ports = ports
        self._ledger = ledger
        self._carriage = carriage
        self._backend = backend
        self._places: dict[PortRef, list[_Placed]] = {}
        self._suspended: dict[PortRef, list[_Placed]] = {}
        self.running: Callable[[str], bool] = lambda _host: True
        """Whether a host runs."""
        self.moving: Callable[[PortRef], AbstractContextManager[None]] = lambda _port: nullcontext()
        """Wraps the move of a port's senders to another device."""
        ports.tenants.append(self)

    # --- as asked --------------------------------------------------------------------------------

    def shape(
        self, refs: Iterable[LinkRef], bottleneck: Bottleneck, *, profile: str = "", with_links: bool = False
    ) -> list[Shaped]:
        """Give each port at which these links end a bottleneck that they share, or none; each is read back.

        It replaces one of the same links, which stays if this fails. Raises InvalidValueError if some of them share
        another already, ImpairmentNotAppliedError, EnvironmentUnfitError. ``profile``, ``with_links``: see `Shaped`.
        """
        ports = by_port(refs)
        former = [placed for port, links in ports.items() if (placed := self._former(port, links)) is not None]
        for placed in former:
            self._ledger.over.append(self._look_at(placed.shaped.port, placed))
            self._remove(placed)
        done: list[_Placed] = []
        try:
            for links in ports.values():
                placed = self._put_or_renew(links, bottleneck)
                placed.shaped = replace(placed.shaped, profile=profile, with_links=with_links)
                done.append(placed)
        except BaseException:
            for placed in done:
                self._remove(placed)
            self._put_again(former)
            raise
        self._ledger.shaped += [f"{placed.shaped}: {bottleneck.describe()}" for placed in done]
        return [placed.shaped for placed in done]

    def forget(self, refs: Collection[LinkRef]) -> None:
        """Remove bottlenecks that came with the impairment of these links, which are about to get another."""
        for placed in [placed for places in self._places.values() for placed in places]:
            if placed.shaped.with_links and set(placed.shaped.links) <= set(refs):
                self._ledger.over.append(self._look_at(placed.shaped.port, placed))
                self._remove(placed)

    def remove(self, shaped: Shaped) -> None:
        """Remove a bottleneck, if it is there."""
        for placed in [placed for placed in self._places.get(shaped.port, ()) if placed.shaped == shaped]:
            self._remove(placed)

    def _former(self, port: PortRef, links: Sequence[LinkRef]) -> _Placed | None:
        """The bottleneck of the same links at a port. Raises InvalidValueError if there is one of some of them."""
        for placed in self._places.get(port, ()):
            if set(placed.shaped.links) == set(links):
                return placed
            if both := set(placed.shaped.links) & set(links):
                raise InvalidValueError(
                    f"{several(sorted(map(str, both)))}: shaped with others, as {placed.shaped}: lab.heal() first"
                )
        return None

    def clear(self) -> None:
        """Remove every bottleneck. Their links must have no impairment and no cut any more. Raises LabError."""
        self._suspended.clear()
        for ref in list(self._places):
            port = self._ports.at(ref.host, ref.network)
            if port is not None:
                self._unstage(port)
            del self._places[ref]

    @property
    def links(self) -> list[LinkRef]:
        """Every link that has a bottleneck."""
        return [ref for places in self._places.values() for placed in places for ref in placed.shaped.links]

    # --- as it is --------------------------------------------------------------------------------

    def begin(self) -> None:
        """Before a test's body: what was counted so far does not belong to it."""
        for ref, places in self._places.items():
            for placed in places:
                with suppress(AgentError):  # the port is gone: `look` tells of it
                    placed.before = self._counts(ref, placed)

    def counters(self, shaped: Shaped) -> QueueCounts:
        """See `Shaped.counters`."""
        places = self._places.get(shaped.port, ())
        placed = next((placed for placed in places if placed.shaped.links == shaped.links), None)
        if placed is None:
            raise LabError(f"{shaped} has no such bottleneck any more")
        return self._counts(shaped.port, placed) - placed.before

    def _counts(self, ref: PortRef, placed: _Placed) -> QueueCounts:
        counts = shaping.counts(placed.minor, self._read(ref, placed)[1])
        return NOTHING if counts is None else counts

    def now(self) -> list[tuple[Shaped, QueueCounts | None]]:
        """Each bottleneck, and what its queue has counted; None if it is not there. For those who watch a test run."""
        seen: list[tuple[Shaped, QueueCounts | None]] = []
        for ref, places in list(self._places.items()):
            for placed in list(places):
                counts = None
                with suppress(AgentError):  # it goes at this moment
                    counts = shaping.counts(placed.minor, self._read(ref, placed)[1])
                seen.append((placed.shaped, None if counts is None else counts - placed.before))
        return seen

    def look(self) -> list[tuple[LinkEvidence, list[ImpairmentNotAppliedError]]]:
        """The evidence of each bottleneck, and the errors of those that are not in force."""
        return [self._look_at(ref, placed) for ref, places in self._places.items() for placed in places]

    def _look_at(self, ref: PortRef, placed: _Placed) -> tuple[LinkEvidence, list[ImpairmentNotAppliedError]]:
        shaped = placed.shaped
        evidence = LinkEvidence(
            link=str(shaped),
            network=ref.network,
            asked=shaped.bottleneck.words(),
            command=shaped.command,
            profile=shaped.profile,
        )
        try:
            filters, qdiscs = self._read(ref, placed)
        except AgentError as error:
            lost = replace(evidence, read_back=Verdict.FAILS, counters=Verdict.UNKNOWN)
            return lost, [self._not_applied(shaped, str(error), HELD)]
        differences = self._differences(ref, placed, filters, qdiscs)
        counts = shaping.counts(placed.minor, qdiscs)
        since = None if counts is None else counts - placed.before
        arrived = 0 if since is None else since.arrived_packets
        evidence = replace(
            evidence,
            checks=list(_rows(shaped.bottleneck, since, differences)),
            read_back=Verdict.FAILS if differences else Verdict.HOLDS,
            counters=Verdict.HOLDS if arrived else Verdict.SHOWN,
            queue=since,
            met_packets=None if since is None else arrived,
            warnings=[] if arrived else ["no packet crossed it"],
        )
        late: list[str] = []
        if (port := self._ports.at(ref.host, ref.network)) is not None:
            evidence, late = self._carriage.timed(evidence, shaped.links[0], port, None)
        wrong = [self._not_applied(shaped, *map(str, differences), HELD)] if differences else []
        return evidence, [*wrong, *(self._not_applied(shaped, text) for text in late)]

    def _read(self, ref: PortRef, placed: _Placed) -> tuple[list[Any], list[Any]]:
        """The filters and qdiscs of a port's last device. Raises AgentError."""
        port = self._ports.at(ref.host, ref.network)
        if port is None or port.last is None:
            raise AgentError(f"the port of {ref.host} on {ref.network} began anew without it")
        lines = [qdisc.show_filters(port.last), qdisc.show(port.last)]
        answer = port.channel.call("tc", port=port.name, lines=lines, needs=placed.needs)
        if len(answer["shown"]) != len(lines):
            raise AgentError(f"cannot be read back: {answer['complaints']}")
        return answer["shown"][0], answer["shown"][1]

    def _differences(
        self, ref: PortRef, placed: _Placed, filters: Sequence[Any], qdiscs: Sequence[Any]
    ) -> list[readback.Difference]:
        port = self._ports.at(ref.host, ref.network)
        mtu = 0 if port is None else port.mtu
        differing = shaping.differences(placed.shaped.bottleneck, placed.minor, qdiscs, mtu=mtu)
        return differing + readback.filter_differences(filters, placed.filters)

    # --- hosts that stop, ports that begin anew: `ports.Tenant` -----------------------------------

    def suspend(self, host: str) -> None:
        """Keep the bottlenecks at the ports of a host that is about to stop. The evidence has what placed until now."""
        for ref in [ref for ref in self._places if ref.host == host]:
            self._ledger.over += [self._look_at(ref, placed) for placed in self._places[ref]]
            self._suspended[ref] = self._places.pop(ref)

    def resume(self) -> None:
        """Make bottlenecks again at hosts that were started, and for senders that were."""
        for ref in [ref for ref in self._suspended if self.running(ref.host)]:
            self._put_again(self._suspended.pop(ref))
        for ref in list(self._places):
            for link, ifindex in [pair for placed in self._places[ref] for pair in self._senders(placed)]:
                if self._backend.port_of_sender(link.src, link.network) != ifindex:
                    self._ports.renew(link)
                    break

    def _senders(self, placed: _Placed) -> list[tuple[LinkRef, int | None]]:
        """The links of a bottleneck whose senders run, and the ifindex that it knows of each."""
        return [(ref, placed.senders.get(ref)) for ref in placed.shaped.links if self.running(ref.src)]

    def evict(self, port: Port) -> None:
        """The port is about to go: note what its bottlenecks counted."""
        if port.ref in self._places:
            self._ledger.over += [
                (evidence, []) for evidence, _ in (self._look_at(port.ref, placed) for placed in self._places[port.ref])
            ]

    def move_in(self, port: Port, *, but: LinkRef | None) -> None:
        """Make the bottlenecks of a port on the new one in its place; ``but`` has its own filters elsewhere."""
        del but
        self._put_again(self._places.pop(port.ref, []))

    def _put_again(self, places: Iterable[_Placed]) -> None:
        for placed in places:
            again = self._put(placed.shaped.links, placed.shaped.bottleneck)
            again.shaped = replace(again.shaped, profile=placed.shaped.profile, with_links=placed.shaped.with_links)

    # --- how it gets there -----------------------------------------------------------------------

    def _put_or_renew(self, refs: tuple[LinkRef, ...], bottleneck: Bottleneck) -> _Placed:
        try:
            return self._put(refs, bottleneck)
        except AgentError as error:
            if error.kind != "gone":
                raise
            self._ports.renew(refs[0])
            return self._put(refs, bottleneck)

    def _put(self, refs: tuple[LinkRef, ...], bottleneck: Bottleneck) -> _Placed:
        started = time.perf_counter()
        port = self._ports.attached(refs[0].dst, refs[0].network)
        sources = {ref: self._ports.ready(ref).sources[ref] for ref in refs if self.running(ref.src)}
        last = self._stage(port)
        root: list[str] = []
        if port.ref not in self._places:
            self._ports.tc(port, [f"qdisc delete dev {last} root"])  # the port may have begun anew with the old one
            root = qdisc.root(last)
        places = self._places.setdefault(port.ref, [])
        minor = max((placed.minor + len(placed.shaped.links) for placed in places), default=qdisc.FIRST_MINOR)
        filters = [
            flower
            for number, (ref, source) in enumerate(sources.items())
            for flower in shaping.filters(
                minor, minor + number - qdisc.FIRST_MINOR, source.addresses, ref.traffic, part=source.part
            )
        ]
        made = shaping.lines(last, minor, bottleneck, mtu=port.mtu)
        shaped = Shaped(refs, bottleneck, f"tc {made[-1]}", time.perf_counter() - started, self.counters)
        senders = {ref: source.ifindex for ref, source in sources.items()}
        placed = _Placed(shaped, minor, filters, senders, NOTHING)
        lines = [*root, *made, *(flower.put(last) for flower in filters)]
        answer = port.channel.call("tc", port=port.name, lines=lines, needs=placed.needs)
        complaints = [f"{qdisc.describe(complaint['line'])}: {complaint['text']}" for complaint in answer["complaints"]]
        if any(complaint["line"] in made for complaint in answer["complaints"]):
            self._remove_from(port, placed)
            self._refuse_unknown(port, bottleneck)
        places.append(placed)
        differences = [] if complaints else self._differences(port.ref, placed, *self._read(port.ref, placed))
        if complaints or differences:
            self._remove(placed)
            raise self._not_applied(shaped, *map(str, differences), *complaints, f"Command: {shaped.command}")
        return placed

    def _stage(self, port: Port) -> str:
        """Give a port its last device, if it has none; the name of that."""
        if port.last is None:
            with self.moving(port.ref):
                try:
                    answer = port.channel.call("stage", port=port.name, staged=True)
                except AgentError as error:
                    if error.kind == "gone":
                        raise
                    raise EnvironmentUnfitError(
                        f"port of `{port.ref.host}` on `{port.ref.network}`: a bottleneck needs an ifb device: {error}"
                    ) from None
                port.restage(answer)
        assert port.last is not None  # noqa: S101  # the agent has just made it
        return port.last

    def _unstage(self, port: Port) -> None:
        if port.last is None:
            return
        try:
            port.restage(port.channel.call("stage", port=port.name, staged=False))
            port.refused = 0
        except AgentError as error:
            if error.kind != "gone":
                raise

    def _remove(self, placed: _Placed) -> None:
        """Remove one bottleneck; its port keeps its stage, until all are healed."""
        ref = placed.shaped.port
        places = self._places.get(ref, [])
        if placed in places:
            places.remove(placed)
        port = self._ports.at(ref.host, ref.network)
        if port is not None:
            self._remove_from(port, placed)

    def _remove_from(self, port: Port, placed: _Placed) -> None:
        if port.last is not None:
            self._ports.tc(port, shaping.remove(port.last, placed.minor, placed.filters))

    def _refuse_unknown(self, port: Port, bottleneck: Bottleneck) -> None:
        """Refuse a queue discipline that the port's kernel does not have, if that is the reason."""
        known = [name for name in MARKS if name == "fifo" or self._has(port, name)]
        if bottleneck.qdisc not in known:
            whose = "the carried kernel" if port.kernel else "this machine's kernel"
            raise EnvironmentUnfitError(
                f"qdisc={bottleneck.qdisc!r}: {whose} has no sch_{bottleneck.qdisc}; it has {', '.join(known)}. "
                f"Use one of these, load it (modprobe sch_{bottleneck.qdisc}), or use --netem carried"
            )

    def _has(self, port: Port, kind: str) -> bool:
        """Whether a port's kernel has a qdisc, by trying it on a class of the last device."""
        last, minor = port.last, qdisc.LAST_MINOR
        assert last is not None  # noqa: S101  # the caller has staged it
        attempt = shaping.lines(last, minor, Bottleneck(rate_bps=1e9, qdisc=kind), mtu=port.mtu)
        complaints = self._ports.tc(port, attempt)["complaints"]
        self._ports.tc(port, shaping.remove(last, minor, ()))
        return not complaints

    def _not_applied(self, shaped: Shaped, *all_reasons: str) -> ImpairmentNotAppliedError:
        reasons = [*all_reasons[:_MOST_REASONS]]
        if more := all_reasons[_MOST_REASONS:]:
            reasons.append(f"And {len(more)} more; the last: {more[-1]}")
        return ImpairmentNotAppliedError(
            f"port of `{shaped.port.host}` on `{shaped.port.network}` ({shaped}, shaped), engine "
            f"{self._backend.netem_engine}: {'. '.join(reasons)}"
        )


NOTHING = QueueCounts(sent_packets=0, sent_bytes=0, dropped_packets=0, marked_packets=0, waiting_packets=0)


def _rows(
    bottleneck: Bottleneck, counts: QueueCounts | None, differences: Collection[readback.Difference]
) -> Iterator[Check]:
    """The table of a bottleneck: what was asked, what the kernel places, and what its queue counted."""
    wrong = {difference.word: difference for difference in differences}
    seen = {"rate": "not measured", "qdisc": "unknown", "ecn": "unknown"}
    if counts is not None:
        seen["rate"] = f"{units.format_size(counts.sent_bytes)} in {counts.sent_packets} packets"
        seen["qdisc"] = f"{counts.dropped_packets} dropped of {counts.arrived_packets}"
        seen["ecn"] = f"{counts.marked_packets} marked"
    for word, value in {"ecn": bottleneck.marks, **bottleneck.words()}.items():
        difference = wrong.pop(word, None)
        yield Check(
            field=word,
            asked=in_words(value),
            kernel="as asked" if difference is None else difference.reported,
            seen=seen.get(word, "—"),
            verdict=Verdict.SHOWN if difference is None else Verdict.FAILS,
        )
    for difference in wrong.values():
        yield Check(
            field=difference.field, asked=difference.requested, kernel=difference.reported, verdict=Verdict.FAILS
        )
