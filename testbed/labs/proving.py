"""Prove a link by probes: send them from host to host, have them judged, and leave the link as it was.

The probes draw from the netem's random numbers. So the netem is put there afresh afterwards, with its seed: what a
test sends is lost as if there had been no proof.
"""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, TypedDict

from testbed.errors import AgentError, ImpairmentNotAppliedError, LabError
from testbed.judge import counting, probes
from testbed.judge import statistics as exact
from testbed.labs import strangers
from testbed.links import fragments, proof, qdisc, watching
from testbed.links.profiles import find_table, table_numbers
from testbed.model.evidence import FAILS, HOLDS, SHOWN, Check, LinkEvidence, Tally
from testbed.model.impairment import CLEAN, Impairment, is_table
from testbed.model.topology import LinkRef
from testbed.observe.connections import Crossed

if TYPE_CHECKING:
    from testbed.labs.lab import Lab, Port, Source

_CLEAN_PROBES = 100
_CLEAN_PACE_S = 0.001
# What is late or slow the machine may have done: it condemns a link only if it is so each time.
_LOOKS = 3
_CLOCK_PROBES = 5
_CLOCK_DELAY_S = 0.01


def unfit(ref: LinkRef, *, timeline: bool) -> str | None:
    """Why a link cannot be probed, if it cannot."""
    if timeline:
        return f"{ref}: a timeline cannot be probed: the probes would take longer than its steps"
    if ref.traffic.protocol not in ("", "udp"):
        return f"{ref}: cannot be probed: probes are UDP datagrams, and {ref.traffic} is impaired alone"
    return None


def planned(
    asked: Impairment, *, alpha: float = exact.ALPHA, most_s: float = probes.MOST_S, tolerance: float | None = None
) -> probes.Plan:
    """How a link with this impairment is probed: see `Lab.prove`. Raises InvalidValueError."""
    limit_packets = qdisc.sized_limit(asked)
    return probes.plan(asked, limit_packets=limit_packets, alpha=alpha, most_s=most_s, tolerance=tolerance)


def probe(lab: Lab, ref: LinkRef, asked: Impairment, plan: probes.Plan, *, alpha: float = exact.ALPHA) -> list[Check]:
    """Probe a link whose impairment is in force, and judge it; its netem is put there afresh before and after.

    Raises AgentError, ImpairmentNotAppliedError.
    """
    table = _table(lab, ref, asked)
    checks: list[Check] = []
    for _look in range(_LOOKS):
        checks = _probe_once(lab, ref, asked, plan, table, alpha)
        if not probes.perhaps_busy(checks):
            break
    return checks


def _probe_once(
    lab: Lab, ref: LinkRef, asked: Impairment, plan: probes.Plan, table: Sequence[int], alpha: float
) -> list[Check]:
    def paced(count: int, pace_s: float) -> probes.Flight:
        return fly(
            lab, ref, count=count, pace_s=pace_s, size_bytes=plan.size_bytes, quiet_s=plan.quiet_s,
            checksum=plan.checksum,
        )  # fmt: skip

    def row(count: int, pace_s: float) -> probes.Flight | None:
        if not count:
            return None
        return fly(
            lab, ref, count=count, pace_s=pace_s, size_bytes=plan.train_bytes, quiet_s=plan.quiet_s, rush=True
        )  # fmt: skip

    ends = [f"{host}@{ref.network}" for host in (ref.src, ref.dst)]
    with lab.taps.leaving_out([port for port in lab.ports if port.name in ends]):
        try:
            lab.put_afresh(ref, CLEAN)
            clean, clean_train = paced(_CLEAN_PROBES, _CLEAN_PACE_S), row(plan.clean_train, 0.0)
            lab.put_afresh(ref, asked)
            flight = paced(plan.count, plan.pace_s)
            spread = paced(plan.spread, plan.spread_pace_s) if plan.spread else None
            lab.put_afresh(ref, asked)
            train = row(plan.train, plan.train_pace_s)
        finally:
            lab.put_afresh(ref, asked)
    return probes.judge(
        asked, flight, clean=clean, spread=spread, train=train, clean_train=clean_train, table=table, alpha=alpha
    )


def prove_clock(lab: Lab, ref: LinkRef) -> None:
    """Once for each carried kernel of a lab: have its netem keep one delay, and measure it.

    tc reads from /proc/net/psched in which unit its kernel counts time; where it cannot, it sets 1/15.6 of every delay
    and reads back the asked one. Raises ImpairmentNotAppliedError. Says nothing where no probe arrives.
    """
    if lab.netem_engine != "carried" or unfit(ref, timeline=False) or lab.cut_for_probes(ref):
        return
    asked = Impairment(delay_s=_CLOCK_DELAY_S)
    try:
        kernel = lab.kernel_of(ref)
        if kernel in lab.clocks_proven:
            return
        lab.put_afresh(ref, asked)
    except AgentError as error:
        if error.kind != "gone":
            raise
        return  # the port begins anew; the next one shows it
    lab.clocks_proven.add(kernel)
    try:
        flight = fly(lab, ref, count=_CLOCK_PROBES, pace_s=0.001, size_bytes=64, quiet_s=_CLOCK_DELAY_S * 10)
    finally:
        lab.clear(ref)
    if early := [each for each in flight.delays_s.values() if each < _CLOCK_DELAY_S]:
        seen = statistics.median(early)
        raise ImpairmentNotAppliedError(
            f"{ref}: the clock of the carried kernel's netem is wrong: a delay of {_CLOCK_DELAY_S * 1e3:g} ms took "
            f"{seen * 1e3:.3g} ms. Its tc could not read /proc/net/psched: is /proc mounted where it runs?"
        )


def fly(
    lab: Lab, ref: LinkRef, *, count: int, pace_s: float, size_bytes: int, quiet_s: float, checksum: bool = True,
    rush: bool = False,
) -> probes.Flight:  # fmt: skip
    """Send one flight of probes over a link as it is, and collect it.

    ``rush``: what was sent too late is made up for.
    """
    src, dst = lab.hosts[ref.src], lab.hosts[ref.dst]
    source, address = _addresses(src.addresses(ref.network), dst.addresses(ref.network))
    number = secrets.randbits(63)
    hold = count if rush or not pace_s else 0
    heard = dst.inside().call("probe_listen", address=address, flight=number, hold=hold, size_bytes=size_bytes)
    lasts_s = count * max(pace_s, 0.001) * 2 + 10
    try:
        sent: dict[str, Any] = src.inside().call(
            "probe_send", source=source, address=address, port=heard["port"], flight=number, count=count, pace_s=pace_s,
            size_bytes=size_bytes, checksum=checksum, source_port=ref.traffic.port, rush=rush,
            answer_within_s=lasts_s + 20,
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
    raise LabError(f"no address family in common: {', '.join(sources)} and {', '.join(targets)}")


def _table(lab: Lab, ref: LinkRef, asked: Impairment) -> list[int]:
    if not asked.jitter_s or asked.distribution == "uniform":
        return []
    if is_table(asked.distribution):
        return table_numbers(find_table(lab.tables, asked.distribution))
    table: list[int] = lab.hosts[ref.dst].inside().call("delay_table", name=asked.distribution)
    return table


# --- what a link did during a test -----------------------------------------------------------------


@dataclass
class Watched:
    """Another way from one host to another than an impaired link: a network that they share, too."""

    port: Port
    minor: int
    before: dict[LinkRef, int] = field(default_factory=dict)
    """Packets that had gone this way when a link was impaired or cut, for each of which it is another way."""


@dataclass(frozen=True)
class Held:
    """One impaired link as the kernel has it at one moment."""

    asked: Impairment
    netem: Mapping[str, Any] | None
    """The kernel's own account; None if there is none."""
    found: Sequence[proof.Difference]
    """Every way in which this is not what was asked."""


@dataclass(frozen=True)
class Examined:
    """One impaired link after a test."""

    evidence: LinkEvidence
    differences: Sequence[proof.Difference] = ()
    problems: Sequence[str] = field(default_factory=tuple)
    """Why the test's result must not count."""


def begin(lab: Lab) -> None:
    """Before a test: what the ports had refused so far is none of its doing."""
    lab.evidence.clear()
    lab.taps.begin(lab.ports)
    for port in lab.ports:
        for source in port.sources.values():
            source.met_cut, source.since_s = False, time.monotonic()
        try:
            port.refused = refused(port) or 0
            _begin_counting_others(port)
        except AgentError:  # it is gone; a new one begins at 0
            port.refused = 0


def _begin_counting_others(port: Port) -> None:
    counting = [source for ref, source in port.sources.items() if ref.traffic.protocol and (source.led or source.cut)]
    if counting:
        answer = port.channel.call("tc", port=port.name, lines=[qdisc.show_filters(port.device)])
        for source in counting:
            source.others_before = fragments.counted(answer["shown"][-1] if answer["shown"] else (), source.minor) or 0


def others(source: Source, filters: Sequence[Mapping[str, Any]]) -> int | None:
    """Fragmented datagrams of other traffic that went a narrowed link's way in this test; None: nothing counts."""
    counted = fragments.counted(filters, source.minor)
    return None if counted is None else counted - source.others_before


def refused(port: Port) -> int | None:
    """How many packets the redirect into a port could not hand over; None where nothing counts them."""
    return counting.overflows(entry(port))


def entry(port: Port) -> Sequence[Mapping[str, Any]]:
    """The redirect that feeds a port, if something does."""
    if port.entry is None:
        return ()
    answer = port.channel.call("tc", port=port.name, lines=[_show_entry(port)])
    return answer["shown"][-1] if answer["shown"] else ()


def _show_entry(port: Port) -> str:
    return f"filter show dev {port.entry} parent ffff:"


def begin_counting_copies(port: Port, source: Source) -> None:
    """Note what the port's root saw beyond what was brought to it: what is more, from now on, are second copies."""
    if port.entry is None:
        return
    lines = [_show_entry(port), qdisc.show(port.device)]
    answer = port.channel.call("tc", port=port.name, lines=lines)
    if len(answer["shown"]) == len(lines):
        source.beyond_before = _difference(*answer["shown"])


def _difference(entry: Sequence[Mapping[str, Any]], qdiscs: Sequence[Mapping[str, Any]]) -> int | None:
    brought, came = counting.redirected(entry), counting.root_packets(qdiscs)
    return None if brought is None or came is None else came - brought


def _beyond(port: Port, source: Source, reading: Reading) -> int | None:
    """Second copies that a link's netem has made, where it is the only one at its port that makes any."""
    doubling = [each for each in port.sources.values() if each.impairment and each.impairment.duplicate_ratio]
    if source.beyond_before is None or len(doubling) != 1 or doubling[0] is not source:
        return None
    now = _difference(reading.entry, reading.qdiscs)
    return None if now is None else now - source.beyond_before


@dataclass(frozen=True)
class Reading:
    """A port as tc reports it now."""

    filters: Sequence[Mapping[str, Any]]
    qdiscs: Sequence[Mapping[str, Any]]
    entry: Sequence[Mapping[str, Any]]
    """The redirect that feeds it; empty where there is none."""
    at_gate: Sequence[Mapping[str, Any]] = ()
    """The filters at its gate, if some link rejects there."""

    @property
    def refused(self) -> int | None:
        """Packets that its redirect could not hand over; None where nothing counts them."""
        return counting.overflows(self.entry)


def examine(lab: Lab, ref: LinkRef, port: Port, reading: Reading) -> Examined:
    """Levels 1 and 2 of a link's proof."""
    source, grown = port.sources[ref], reading.refused
    netem = proof.find_netem(reading.qdiscs, source.minor)
    held = lab.held(ref, port, reading)
    asked = held.asked
    problems: list[str] = []
    warnings: list[str] = []
    tally = None
    warnings += asked.realised
    if netem is not None:
        limit = qdisc.sized_limit(asked)
        counted = {
            **netem, "packets": netem["packets"] - source.sent_before, "drops": netem["drops"] - source.dropped_before
        }  # fmt: skip
        tally = counting.tally(
            asked, counted, limit_packets=limit, refused=None if grown is None else grown - port.refused,
            changing=source.running is not None, beyond=_beyond(port, source, reading),
        )  # fmt: skip
        problems += [each for each in (counting.overflow_problem(asked, tally, limit_packets=limit),) if each]
        went = elsewhere(lab, ref)
        ways = ", ".join(f"{packets} packets took `{network}`" for network, packets in went.items())
        if went and not tally.arrived_packets and not source.cut and not source.met_cut:
            problems.append(f"no packet crossed it, but {ways}: {another_path(lab, ref)}")
        elif went:
            warnings.append(f"{ways}, unimpaired by this link")
        elif not tally.arrived_packets:
            warnings.append("no packet crossed it")
    at_taps = lab.taps.refused(ref)
    warnings += [each for each in (counting.tap_warning(at_taps),) if each]
    problems += [each for each in (counting.tap_problem(at_taps),) if each]
    probed = lab.probed.get(ref, [])
    beside = others(source, reading.filters)
    problems += [each for each in (fragments.problem(ref.traffic, beside), strangers.problem(lab, ref, port)) if each]
    narrowed = [fragments.check(ref.traffic, beside)] if ref.traffic.protocol else []
    earlier = lab.connections.crossed(lab, ref)
    evidence = LinkEvidence(
        link=str(ref),
        network=ref.network,
        asked=asked.words(),
        **_put(lab, ref),
        checks=[*rows(held, tally, probed, _by_number(source, reading)), *narrowed, *_earlier(earlier)],
        earlier_packets=None if earlier is None else earlier.packets,
        read_back=FAILS if held.found else HOLDS,
        counters=FAILS if problems else HOLDS if tally is not None and tally.arrived_packets else SHOWN,
        probe="not asked" if not probed else FAILS if any(each.verdict == FAILS for each in probed) else HOLDS,
        tally=tally,
        at_taps=at_taps,
        problems=problems,
        met_packets=None if tally is None else tally.arrived_packets + (_by_number(source, reading) or 0),
        warnings=warnings,
        steps=[step for step in lab.stepped.get(ref, ()) if step.cut is None],
    )
    return Examined(evidence, held.found, problems)


def another_path(lab: Lab, ref: LinkRef) -> str:
    """What to do where packets took another network."""
    return (
        f"the traffic took another path. Which address of `{ref.dst}` does the program use? On `{ref.network}` it has "
        f"{', '.join(lab.hosts[ref.dst].addresses(ref.network))}"
    )


def _earlier(crossed: Crossed | None) -> list[Check]:
    """What connections that began before the test sent on a link: its sequence has them, too."""
    return [] if crossed is None else [Check(field="earlier connections", seen=str(crossed), verdict=SHOWN)]


def _put(lab: Lab, ref: LinkRef) -> _Put:
    """What a link's evidence says of how it was impaired last."""
    applied = next((each for each in reversed(lab.history) if each.link == ref), None)
    return _Put(command=applied.command, profile=applied.profile) if applied else _Put(command="", profile="")


class _Put(TypedDict):
    command: str
    profile: str


def _packets(count: int) -> str:
    return f"{count} packet{'' if count == 1 else 's'}"


def proven(lab: Lab, ref: LinkRef) -> LinkEvidence:
    """What is known of a link by read-back, and by probes if it was just probed; the counters were reset by them."""
    held = lab.held_now(ref) or Held(CLEAN, None, ())
    asked, found = held.asked, held.found
    checks = lab.probed.get(ref, [])
    unprobed = _unprobed(held, None, checks)
    table = [*checks, *(each for each in unprobed if not checks or each.field == "seed")]
    return LinkEvidence(
        link=str(ref), network=ref.network, asked=asked.words(),
        **_put(lab, ref),
        checks=_contradicted(table, found),
        read_back=FAILS if found else HOLDS, counters="not asked",
        probe="not asked" if not checks else FAILS if any(each.verdict == FAILS for each in checks) else HOLDS,
        warnings=[*(str(each) for each in found), *asked.realised],
    )  # fmt: skip


def lost(lab: Lab, ref: LinkRef, asked: Impairment) -> LinkEvidence:
    """The evidence of a link whose port is gone."""
    return LinkEvidence(
        link=str(ref), network=ref.network, asked=asked.words(),
        **_put(lab, ref),
        read_back=FAILS, counters="unknown", probe=HOLDS if ref in lab.probed else "not asked",
    )  # fmt: skip


_ROWS = {"gemodel": "loss", "loss_state": "loss", "burst": "loss", "jitter": "delay", "distribution": "delay"}
"""Words that are told in the row of another; of what tc tells (`proof.Difference`), the first of its words."""


def rows(held: Held, tally: Tally | None, probed: Sequence[Check] = (), by_number: int | None = None) -> list[Check]:
    """A link's table: what probes saw, then what was asked and nothing probed."""
    return _contradicted([*probed, *_unprobed(held, tally, probed, by_number)], held.found)


def _contradicted(checks: Sequence[Check], found: Sequence[proof.Difference]) -> list[Check]:
    """The rows, those failing in whose fields the kernel holds something else: one reading gives both verdicts."""
    table = {check.field: check for check in checks}
    for each in found:
        first = each.field.split()[0]
        name = next((word for word in (each.field, first, _ROWS.get(first, "")) if word in table), None)
        if name is None:
            table[each.field] = Check(field=each.field, asked=each.asked, kernel=each.found, verdict=FAILS)
            continue
        row, said = table[name], "; ".join(text for text in (table[name].how, str(each)) if text)
        table[name] = replace(row, kernel=each.found if name == each.field else row.kernel, verdict=FAILS, how=said)
    return list(table.values())


def _unprobed(held: Held, tally: Tally | None, probed: Sequence[Check], by_number: int | None = None) -> list[Check]:
    """Each word that was asked and that no probe looked at, as the kernel holds it and as its counters saw it."""
    asked, netem = held.asked, held.netem
    kernel = probes.kernel_words((netem or {}).get("options", {}))
    kernel["limit"] = str((netem or {}).get("options", {}).get("limit", "—"))
    kernel["seed"] = str((netem or {}).get("options", {}).get("seed", "none"))
    done = {check.field for check in probed}
    checks = []
    for word, value in {"limit": "sized", **asked.words()}.items():
        name = _ROWS.get(word, word)
        if name in done:
            continue
        done.add(name)
        in_kernel = "none" if netem is None else kernel.get(name, "as asked")
        seen = "not measured"
        if name == "limit":
            sized = f"{qdisc.sized_limit(asked)} (sized)"
            seen, value = _overflowed(tally), sized if asked.limit_packets is None else value
        elif name == "loss" and tally is not None and tally.arrived_packets:
            share = tally.dropped_packets / tally.arrived_packets
            seen = f"{share * 100:.3g}% ({tally.dropped_packets} dropped of {tally.arrived_packets})"
        elif name in ("duplicate", "reorder", "corrupt"):
            seen = _befell(tally, name)
        elif name in ("drop_packets", "drop_every") and by_number is not None:
            both = " by either" if asked.drop_packets and asked.drop_every else ""
            seen = f"{_packets(by_number)} lost{both}"
        elif name in ("seed", "ecn", "gap", "overhead", "reorder_by_jitter", "correlation"):
            seen = "—"
        said = " ".join(str(text) for key, text in asked.words().items() if _ROWS.get(key, key) == name and key != word)
        verdict = FAILS if netem is None and held.found else SHOWN
        checks.append(Check(field=name, asked=f"{value} {said}".strip(), kernel=in_kernel, seen=seen, verdict=verdict))
    return checks


def _by_number(source: Source, reading: Reading) -> int | None:
    """How many packets of a source were lost for their number, where they are counted."""
    if not source.counted:
        return None
    return proof.dropped_by_number([each for each in reading.filters if each.get("chain", 0) == source.minor])


def _befell(tally: Tally | None, name: str) -> str:
    if tally is None or not tally.arrived_packets:
        return "not measured"
    span = {"duplicate": tally.duplicated, "reorder": tally.reordered, "corrupt": tally.corrupted}[name]
    return f"{span} of {tally.arrived_packets} ({span.how})"


def _overflowed(tally: Tally | None) -> str:
    if tally is None:
        return "unknown"
    low, high = tally.tail_drops
    return f"{low if low == high else f'{low} to {high}'} overflowed ({tally.tail_drops_from})"


# --- other paths -----------------------------------------------------------------------------------------


def watch(lab: Lab, ref: LinkRef) -> None:
    """Count what goes from one end of an impaired or cut link to the other over another network that they share."""
    ends = [lab.topology.service_of(host) for host in (ref.src, ref.dst)]
    shared = [
        n for n in (ends[0].networks if ends[0] else ()) if ends[1] and n in ends[1].networks and n != ref.network
    ]
    for network in shared:
        key = replace(ref, network=network)
        try:
            if key not in lab.watched or _went(lab.watched[key]) is None:
                lab.watched.pop(key, None)
                watched = _begin_watching(lab, ref, network)
                if watched is None:
                    continue
                # What it counts, the counts of a whole of which it is a part miss from now on.
                wholes = {whole for each in lab.watched.values() for whole in each.before if _is_way(key, whole)}
                watched.before.update(dict.fromkeys(wholes, 0))
                lab.watched[key] = watched
            for other, each in lab.watched.items():
                if other.network == network and _is_way(other, ref):
                    each.before[ref] = _went(each) or 0
        except AgentError as error:
            if error.kind != "gone":
                raise
            lab.watched.pop(key, None)  # a host was started again: begun anew the next time


def _is_way(other: LinkRef, ref: LinkRef) -> bool:
    """Whether packets of the one are packets of the other on another network."""
    return other.network != ref.network and ref.covers(replace(other, network=ref.network))


def _begin_watching(lab: Lab, ref: LinkRef, network: str) -> Watched | None:
    """None where the kernel cannot count: the other path then goes unseen."""
    port = lab.watching(ref.dst, network)
    if port is None:
        return None
    minor = watching.FIRST_MINOR + sum(each.port is port for each in lab.watched.values())
    root = qdisc.root(port.device) if lab.netem_engine == "host" else [watching.root(port.device)]
    lines = [] if port.rooted else root
    lines += watching.source(port.device, minor, lab.source_addresses(ref.src, network), ref.traffic)
    complaints = port.channel.call("tc", port=port.name, lines=lines, resume=port.released)["complaints"]
    port.released = False
    if complaints:
        return None
    port.rooted = True
    return Watched(port=port, minor=minor)


def elsewhere(lab: Lab, ref: LinkRef) -> dict[str, int]:
    """How many packets took each other network since the link was impaired."""
    went: dict[str, int] = {}
    for other, watched in lab.watched.items():
        if ref in watched.before:
            try:
                now = _went(watched)
                if now is not None:
                    went[other.network] = went.get(other.network, 0) + now - watched.before[ref]
            except AgentError as error:
                if error.kind != "gone":
                    raise
    return {network: packets for network, packets in went.items() if packets}


def _went(watched: Watched) -> int | None:
    """The packets counted so far; None if the class is gone."""
    port = watched.port
    answer = port.channel.call("tc", port=port.name, lines=[f"class show dev {port.device}"])
    return counting.class_packets(answer["shown"][-1], watched.minor) if answer["shown"] else None
