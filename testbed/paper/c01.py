"""C1: TCP establishes a session before data, and ends it."""

from __future__ import annotations

from statistics import linear_regression

from testbed.lab.waiting import await_condition
from testbed.observe.wire import Flow
from testbed.paper.context import BOTH, PAPER_PORT, THERE, ExperimentContext, NotAsMeantError
from testbed.paper.outcomes import ClaimOutcome, Condition, Plot, finding_of, unless
from testbed.paper.recovery import INITIAL_RTO_S

_DELAYS_MS, _QUICK_DELAYS_MS = (5, 10, 40, 100, 200), (5, 10, 20, 40, 80)
_TRIES = 3
_EARLY = 0.98
_SLOPE = 0.15
"""Largest deviation of the slope from one round trip; a second round trip would be 1."""


def session(context: ExperimentContext) -> ClaimOutcome:
    """The paper's client connects at five delays, three times each, captured at the server's port.

    Held if one SYN, SYN-ACK and ACK precede the first byte, both sides end with FIN, and the fastest connects grow with
    the round trip as one of it does, by least squares. Then exactly the first SYN is lost, and the first two.
    """
    rows: list[Condition] = []
    points: list[tuple[float, float]] = []
    for delay_ms in _QUICK_DELAYS_MS if context.quick else _DELAYS_MS:
        context.say(f"C1: connecting over {delay_ms} ms each way")
        row, connect_s = _connect(context, delay_ms)
        rows.append(row)
        points.append((2.0 * delay_ms, connect_s * 1e3))
    slope = linear_regression(*zip(*points, strict=True)).slope
    rows.append(
        Condition(
            name="all five delays",
            held=abs(slope - 1) <= _SLOPE,
            values={"round trips": f"{slope:.3f} for each one asked"},
        )
    )
    lost = {count: _lose_syns(context, count) for count in ((1,) if context.quick else (1, 2))}
    rows += [row for row, _ in lost.values()]
    costs = " and ".join(f"{took_s:.2f} s" for _, took_s in lost.values())
    return ClaimOutcome(
        finding=finding_of(rows),
        sentence=unless(
            rows,
            "A session is established before the first byte, in one round trip, and ended by a FIN of each side. "
            f"A lost SYN costs the kernel's SYN time-out: connecting took {costs} (RFC 6298: 1 s, and more).",
        ),
        rows=rows,
        mechanism={"syns_dropped": sum(lost), "connect_after_lost_syn_s": lost[1][1], "round_trips": slope},
        plots=[
            Plot(
                title="Connecting takes one round trip",
                x="round trip asked, ms",
                y="fastest connect, ms",
                series={"seen": points, "one round trip": [(x, x) for x, _ in points]},
                dashed=frozenset({"one round trip"}),
            )
        ],
    )


def _connect(context: ExperimentContext, delay_ms: int) -> tuple[Condition, float]:
    context.impair(BOTH, delay=f"{delay_ms}ms")
    with context.lab.capture(THERE) as capture:
        times = context.paper_clients([f"session {delay_ms} {number}" for number in range(_TRIES)])
        context.await_closed(PAPER_PORT)
    context.heal()
    flows = [flow for flow in capture.flows() if flow.server.src.port == PAPER_PORT and flow.client.initial_seq]
    if len(flows) != _TRIES:
        raise NotAsMeantError(f"{_TRIES} connections were made, {len(flows)} captured")
    context.keep_capture(f"C1-{delay_ms}ms.pcapng", capture.capture)
    context.keep_flows(f"C1-{delay_ms}ms.txt", flows)
    connect_s = min(client["connected_ns"] - client["connect_start_ns"] for client in times) / 1e9
    round_trips = connect_s / (2 * delay_ms / 1e3)
    before, ended = all(map(_established_first, flows)), all(map(_ended, flows))
    sound = before and ended and all(flow.handshake.syns == 1 and flow.handshake.syn_acks == 1 for flow in flows)
    return Condition(
        name=f"{delay_ms} ms each way, {_TRIES} sessions",
        held=sound and round_trips >= _EARLY,
        values={
            "fastest connect": f"{connect_s * 1e3:.1f} ms",
            "round trips": f"{round_trips:.2f}",
            "SYN, SYN-ACK, ACK before data": _yes(before),
            "FIN of both sides": _yes(ended),
        },
    ), connect_s


def _established_first(flow: Flow) -> bool:
    """Whether the handshake's three segments came before the first byte of payload."""
    first = next((segment.time_ns for segment in flow.segments if segment.payload_bytes), None)
    done = flow.handshake.ack_ns
    return flow.handshake.complete and first is not None and done is not None and done <= first


def _ended(flow: Flow) -> bool:
    return bool(flow.client.fins) and bool(flow.server.fins) and not flow.client.resets and not flow.server.resets


def _lose_syns(context: ExperimentContext, count: int) -> tuple[Condition, float]:
    link = f"{THERE} tcp/{PAPER_PORT}"
    message = f"session after {count} lost"
    context.impair(link, drop_packets=list(range(1, count + 1)))
    with context.lab.capture(THERE) as capture:
        times = context.paper_client(message)
        await_condition(lambda: f"Message {message}" in context.printed(), bool, deadline_s=30)
    dropped = context.lab.link(link).dropped_by_number()
    context.heal()
    (flow,) = (flow for flow in capture.flows() if flow.server.src.port == PAPER_PORT)
    context.keep_flows(f"C1-syn-lost-{count}.txt", [flow])
    took_s = (times["connected_ns"] - times["connect_start_ns"]) / 1e9
    syns = flow.handshake.syns
    return Condition(
        name="the first SYN lost" if count == 1 else f"the first {count} SYNs lost",
        # Each time-out is at least the first one (RFC 6298 5.5); Linux 6.5 and later waits as long for the next ones.
        held=dropped == count and syns == count + 1 and took_s >= count * INITIAL_RTO_S,
        values={"fastest connect": f"{took_s * 1e3:.0f} ms", "SYNs": f"{syns}, {dropped} of them lost"},
    ), took_s


def _yes(whether: bool) -> str:
    return "yes" if whether else "no"
