"""C4: lost data is sent again after a waiting time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from testbed.lab.waiting import await_condition
from testbed.observe.counters import Counters
from testbed.observe.series import sendings
from testbed.observe.wire import Flow
from testbed.paper.context import BACK, PAPER_PORT, THERE, ExperimentContext, NotAsMeantError, printed_json
from testbed.paper.outcomes import ClaimOutcome, Condition, Plot, finding_of, unless
from testbed.paper.recovery import MIN_RTO_S, doubles, first_rto_s, probe_timeout_s

_FIRST_DATA = 3
"""Number of the client's first packet with data, after a SYN and an ACK."""
_FLIGHT = 10
"""The initial window, in segments (RFC 6928)."""
_SEGMENT_BYTES = 1448
"""Payload of a full segment: 1500, less 20 of IPv4 and 32 of TCP with time stamps."""
_EARLY = 0.98
"""A kernel's timer is never early; this is the tolerance of the measured round trip."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A planned loss: the segments of the message, and the packets of the connection that are lost."""

    name: str
    segments: int
    packets: tuple[int, ...]
    position: int
    """Position of the first lost byte."""
    resends: int
    """Least number of retransmissions."""


@dataclass(frozen=True, kw_only=True)
class LossObservation:
    """One loss and its repair."""

    loss: Loss
    round_trip_s: float
    waits_s: tuple[float, ...]
    """Times between the sendings of the first lost byte."""
    dropped: int
    counters: Counters
    """The sender's counters."""

    @property
    def by(self) -> str:
        """The mechanism that sent it again, by the sender's counters."""
        said_of = (
            (self.counters.loss_probes, "loss probe"),
            (self.counters.timeouts, "time-out"),
            (self.counters.fast_retransmissions, "fast retransmission"),
        )
        return ", ".join(f"{count} {name}{'s' * (count > 1)}" for count, name in said_of if count) or "—"


def retransmission(context: ExperimentContext) -> ClaimOutcome:
    """Lose exactly the k-th segment of ten, for each k; then a lone segment, its probe too, and a whole flight.

    The time between the two sendings is read from the capture ahead of the loss, and held against what the mechanism
    may take at the least: a round trip until later segments are reported (RFC 5681, 8985; longer where the kernel
    remembers that this destination's packets are reordered), a probe's time-out (RFC 8985), a time-out (RFC 6298).
    Last an outage, in which the time-out doubles (RFC 6298 5.5).
    """
    rows: list[Condition] = []
    by_place: dict[str, list[tuple[float, float]]] = {}
    observations: list[LossObservation] = []
    for delay_ms in (20,) if context.quick else (20, 50):
        for loss in _losses(context.quick):
            context.say(f"C4: {loss.name}, round trip {2 * delay_ms} ms")
            seen = _lose(context, loss, delay_ms, _PORTS + len(observations))
            observations.append(seen)
            rows.append(_row(seen))
            if loss.segments == _FLIGHT:
                place = loss.packets[0] - _FIRST_DATA + 1
                by_place.setdefault(f"round trip {2 * delay_ms} ms", []).append((place, seen.waits_s[0] * 1e3))
        by_place[f"one round trip of {2 * delay_ms} ms"] = [(1, 2 * delay_ms), (_FLIGHT, 2 * delay_ms)]
    context.say("C4: an outage")
    outage_s = 4.0 if context.quick else 12.0  # three time-outs, each twice the last, also of a busy machine
    waits_s, rto_s = _backoff(context, outage_s)
    rows.append(
        Condition(
            name=f"an outage of {outage_s:g} s",
            held=doubles(waits_s, rto_s),
            values={
                "sent again after": ", ".join(f"{wait_s:.2f} s" for wait_s in waits_s),
                "at the least": f"{rto_s:.2f} s, then twice the one before",
                "by": f"{len(waits_s)} time-outs",
            },
        )
    )
    context.keep_json(
        "C4.json",
        [
            {"lost": seen.loss.name, "round_trip_s": seen.round_trip_s, "waits_s": seen.waits_s, "by": seen.by}
            for seen in observations
        ],
    )
    fast = [seen for seen in observations if not seen.counters.timeouts and not seen.counters.loss_probes]
    theory = [(float(number + 1), rto_s * 2.0**number) for number in range(len(waits_s))]
    return ClaimOutcome(
        finding=finding_of(rows),
        sentence=unless(
            rows,
            "Lost data is always sent again, and how long that takes depends on what follows it. It is about one round "
            "trip if later segments arrive and report the gap, a probe's time-out at the end of a message, "
            f"{MIN_RTO_S:g} s or more where the probe is lost too, and in an outage a time that doubles.",
        ),
        rows=rows,
        mechanism={
            "losses": len(observations),
            "fast": len(fast),
            "backoffs": len(waits_s),
            "timeouts": sum(seen.counters.timeouts for seen in observations),
        },
        plots=[
            Plot(
                title="Waiting for the k-th of ten segments, lost",
                x="k",
                y="sent again after, ms",
                series=by_place,
                dashed=frozenset(name for name in by_place if name.startswith("one")),
            ),
            Plot(
                title="The time-out doubles in an outage",
                x="time-out",
                y="waited, s",
                logarithmic=True,
                series={
                    "seen": [(float(number), wait_s) for number, wait_s in enumerate(waits_s, 1)],
                    "doubling": theory,
                },
                dashed=frozenset({"doubling"}),
            ),
        ],
    )


_PORTS = 9510


def _losses(quick: bool) -> Iterator[Loss]:
    for place in (1, 9, 10) if quick else range(1, _FLIGHT + 1):
        yield Loss(
            name=f"segment {place} of {_FLIGHT}",
            segments=_FLIGHT,
            packets=(_FIRST_DATA + place - 1,),
            position=(place - 1) * _SEGMENT_BYTES,
            resends=1,
        )
    yield Loss(name="the only segment", segments=1, packets=(_FIRST_DATA,), position=0, resends=1)
    yield Loss(name="both of two segments", segments=2, packets=(_FIRST_DATA, _FIRST_DATA + 1), position=0, resends=1)
    yield Loss(
        name="the only segment, and its probe",
        segments=1,
        packets=(_FIRST_DATA, _FIRST_DATA + 1),
        position=0,
        resends=2,
    )


def _lose(context: ExperimentContext, loss: Loss, delay_ms: int, port: int) -> LossObservation:
    link = f"{THERE} tcp/{port}"
    count = loss.segments * _SEGMENT_BYTES
    context.impair(BACK, delay=f"{delay_ms}ms")
    context.impair(link, delay=f"{delay_ms}ms", drop_packets=list(loss.packets))
    with context.lab.observe(captures=[THERE]) as seen:
        sink = context.serve("sink", port, count)
        # Without pacing, so that the ten leave together.
        context.call("send", port, count, "--congestion", "reno")
        received = printed_json(sink)
    dropped = context.lab.link(link).dropped_by_number()
    context.heal()
    if received["count"] != count:
        raise NotAsMeantError(f"{loss.name}: {received['count']} of {count} bytes arrived")
    flow = _flow(seen.flows("server"), port)
    context.keep_flows(f"C4-{loss.name.replace(' ', '-').replace(',', '')}-{2 * delay_ms}ms.txt", [flow])
    times = sendings(flow.client, loss.position)
    return LossObservation(
        loss=loss,
        round_trip_s=2 * delay_ms / 1e3,
        dropped=dropped,
        counters=seen.host("client").counters,
        waits_s=tuple((later - earlier) / 1e9 for earlier, later in pairwise(times)),
    )


def _row(seen: LossObservation) -> Condition:
    least = _least_s(seen.loss, seen.round_trip_s)
    waits = seen.waits_s
    held = bool(
        seen.dropped == len(seen.loss.packets)
        and len(waits) >= seen.loss.resends
        and all(wait >= bound * _EARLY for wait, bound in zip(waits, least, strict=False))
        and (seen.counters.timeouts or seen.loss.resends == 1)
    )
    return Condition(
        name=f"{seen.loss.name}, round trip {seen.round_trip_s * 1e3:g} ms",
        held=held,
        values={
            "sent again after": ", ".join(f"{wait_s * 1e3:.0f} ms" for wait_s in waits),
            "at the least": ", ".join(f"{wait_s * 1e3:.0f} ms" for wait_s in least),
            "by": seen.by,
        },
    )


def _least_s(loss: Loss, round_trip_s: float) -> list[float]:
    """The least time between the sendings of a lost segment, by the mechanism that repairs it."""
    rto_s = first_rto_s(round_trip_s)
    last = loss.packets[-1] == _FIRST_DATA + loss.segments - 1 and loss.segments > 1
    if loss.resends > 1:
        probe_s = probe_timeout_s(srtt_s=round_trip_s, rto_s=rto_s, segments_in_flight=1)
        return [probe_s, rto_s]
    if loss.segments == len(loss.packets):
        return [probe_timeout_s(srtt_s=round_trip_s, rto_s=rto_s, segments_in_flight=loss.segments)]
    if last:
        # The acknowledgment of the others comes after a round trip, and the probe's time begins anew.
        return [round_trip_s + probe_timeout_s(srtt_s=round_trip_s, rto_s=rto_s, segments_in_flight=1)]
    return [round_trip_s]  # a later one must arrive first, and be reported


def _flow(flows: list[Flow], port: int) -> Flow:
    ours = [flow for flow in flows if flow.server.src.port == port]
    if len(ours) != 1:
        raise NotAsMeantError(f"{len(ours)} connections to port {port} were captured, one was made")
    return ours[0]


def _backoff(context: ExperimentContext, outage_s: float) -> tuple[list[float], float]:
    """Seconds between the time-outs of one segment while the link is cut, and the sender's first time-out."""
    port = PAPER_PORT + 1
    flag = context.flag("client")
    context.impair(THERE, delay="10ms")
    with context.lab.observe(captures=[THERE]) as seen:
        sink = context.serve("sink", port, 2)
        program = context.begin("trickle", port, flag, ready="connected")
        context.lab.cut(THERE)
        before = context.lab.link(THERE).lost_in_cut()
        flag.raise_()
        await_condition(lambda: context.lab.link(THERE).lost_in_cut() - before, bool, deadline_s=30)
        time.sleep(outage_s)  # not readiness: an outage of that length is the condition
        context.lab.verifier.verify()
        context.lab.mend()
        program.wait("60s")
        printed_json(sink)
    context.keep_capture("C4-outage.pcapng", seen.capture("server"))
    context.heal()
    flow = _flow(seen.flows("server"), port)
    times = sendings(flow.client, 1)
    waits_s = [(later - earlier) / 1e9 for earlier, later in pairwise(times)]
    if len(times) < 3:
        raise NotAsMeantError(f"in an outage of {outage_s:g} s a segment was sent {len(times)} times")
    sender = seen.host("client")
    # Every state in the outage tells it: a look that comes late on a busy machine is as good.
    first_rtos_s = {
        state.rto_s / 2**state.backoff for state in sender.connection(remote_port=port).states if state.backoff
    }
    if not first_rtos_s:
        raise NotAsMeantError("the sender's time-out was not seen in the outage")
    # A loss probe is no time-out, and none is doubled for it (RFC 8985, 7.3).
    return waits_s[sender.counters.loss_probes :], max(first_rtos_s)
