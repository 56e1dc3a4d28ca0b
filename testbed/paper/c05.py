"""C5: segments are tracked and acknowledged."""

from __future__ import annotations

from typing import Any

from testbed.evidence.verdict import Verdict
from testbed.observe.observation import Observation
from testbed.observe.series import TimedValues, at, outstanding, running_count, sendings, stairs
from testbed.observe.tcp_info import TcpSocket
from testbed.observe.wire import Flow, segment
from testbed.paper.context import BACK, THERE, ExperimentContext, NotAsMeantError, printed_json
from testbed.paper.outcomes import ClaimOutcome, Condition, Plot, finding_of, unless

_PORT = 9540
_DELAY_MS = 10
_NEAR_NS = 5_000_000
_SYN = 1  # which tcpi_bytes_acked counts
_AGREE = 0.9
"""Least ratio of samples in which kernel and wire agree: on a busy machine some samples come too late."""


def acknowledgement(context: ExperimentContext) -> ClaimOutcome:
    """1 MB over a link that loses 2 % of the packets, captured at both ends, with TCP_INFO every 10 ms.

    Held if every byte was acknowledged at the end, each segment that was lost was sent again, the receiver reported
    gaps (SACK, RFC 2018), and what the sender's kernel holds unacknowledged is what the capture says.
    """
    count = 1_000_000
    rows: list[Condition] = []
    plots: list[Plot] = []
    facts: dict[str, float] = {}
    conditions = (
        (("2 % loss", "2%", 5),)
        if context.quick
        else (("no loss", None, 5), ("2 % loss", "2%", 5), ("5 % loss", "5%", 6))
    )
    for number, (name, loss, seed) in enumerate(conditions):
        context.say(f"C5: {name}")
        port = _PORT + number
        words: dict[str, Any] = {"loss": loss, "seed": seed} if loss else {}
        context.impair(THERE, delay=f"{_DELAY_MS}ms", **words)
        context.impair(BACK, delay=f"{_DELAY_MS}ms")
        with context.lab.observe(captures=[THERE, BACK]) as seen:
            sink = context.serve("sink", port, count)
            context.call("send", port, count, timeout="120s")
            received = printed_json(sink)
        dropped = context.lab.link(THERE).counters().dropped_packets
        context.heal()
        row, figures = _examine(seen, port, name, arrived=received["count"] == count, count=count, dropped=dropped)
        rows.append(row)
        if loss == "2%":
            facts = figures
            plots = _plots(seen, port)
            context.keep_capture("C5.pcapng", seen.capture("server"))
            context.keep_flows("C5.txt", [_flow(seen, port)])
    proven = facts["dropped"] > 0 and facts["with_sack"] > 0
    return ClaimOutcome(
        finding=finding_of(rows) if proven else Verdict.INVALID,
        sentence=unless(
            rows,
            f"Every byte was tracked and acknowledged. {facts['lost_segments']:.0f} segments were lost, the receiver "
            f"reported the gaps in {facts['with_sack']:.0f} acknowledgements (SACK), each was sent again, and at the "
            "end nothing was left unacknowledged.",
        ),
        rows=rows,
        mechanism=facts,
        plots=plots,
    )


def _flow(seen: Observation, port: int, host: str = "server", side: str = "before") -> Flow:
    """The connection at the begin of the link to the server, or at another capture point."""
    flows = [flow for flow in seen.flows(host, side) if flow.server.src.port == port]
    if len(flows) != 1:
        raise NotAsMeantError(f"{len(flows)} connections to port {port} were captured, one was made")
    return flows[0]


def _examine(
    seen: Observation, port: int, name: str, *, arrived: bool, count: int, dropped: int
) -> tuple[Condition, dict[str, float]]:
    connection = seen.host("client").connection(remote_port=port)
    flow = _flow(seen, port)
    lost = _lost_positions(seen, flow)
    unrepaired = [position for position in lost if len(sendings(flow.client, position)) < 2]
    agreement = _agreement(connection, outstanding(_flow(seen, port, "client", "after")))
    # In bytes, as the end that follows counts as a segment (RFC 9293, 3.3.2) and is acknowledged last, if it is seen.
    unacked = max(0, _SYN + count - connection.final.bytes_acked)
    facts = {
        "dropped": dropped,
        "lost_segments": len(lost),
        "with_sack": len(flow.server.with_sack),
        "duplicate_acks": len(flow.server.duplicate_acks),
        "agreement": agreement,
        "unacked_at_end": unacked,
        "sent_again": len(flow.client.retransmissions),
    }
    held = (
        arrived and not unrepaired and not unacked and agreement >= _AGREE and bool(lost) == bool(flow.server.with_sack)
    )
    return Condition(
        name=f"{name}, round trip 20 ms",
        held=held,
        values={
            "segments lost": str(len(lost)),
            "of these sent again": str(len(lost) - len(unrepaired)),
            "sent again in all": str(len(flow.client.retransmissions)),
            "duplicate acknowledgements": str(len(flow.server.duplicate_acks)),
            "with SACK": str(len(flow.server.with_sack)),
            "kernel and wire agree": f"{100 * agreement:.0f} % of {len(connection.states)} looks",
            "unacknowledged at most": str(max(state.unacked_segments for state in connection.states)),
            "at the end": f"{unacked} bytes",
        },
    ), facts


def _lost_positions(seen: Observation, flow: Flow) -> list[int]:
    """The positions of segments that were lost on the link."""
    lost = (segment(passage.before) for passage in seen.passages("server") if passage.lost)
    return [flow.client.position(part.seq) for part in lost if part and part.src == flow.client.src and part.payload]


def _agreement(connection: TcpSocket, wire: TimedValues) -> float:
    """Ratio of samples in which the kernel's count of unacknowledged bytes equals the wire's, to the segment.

    To a few milliseconds: a segment that the kernel has sent waits for a processor before it is captured.
    """
    looks = [state for state in connection.states if wire and wire[0][0] <= state.time_ns <= wire[-1][0]]
    agreed = 0
    for state in looks:
        near = [value for moment, value in wire if abs(moment - state.time_ns) <= _NEAR_NS]
        near += [value for value in (at(wire, state.time_ns - _NEAR_NS),) if value is not None]
        held = state.unacked_segments * state.mss_bytes
        agreed += min(near) - state.mss_bytes <= held <= max(near) + state.mss_bytes
    return agreed / len(looks) if looks else 0.0


def _plots(seen: Observation, port: int) -> list[Plot]:
    connection = seen.host("client").connection(remote_port=port)
    flow = _flow(seen, port)
    begin = flow.segments[0].time_ns
    mss = max(state.mss_bytes for state in connection.states)

    def timed(series: TimedValues, unit: float = 1.0) -> list[tuple[float, float]]:
        return [((moment - begin) / 1e9, value / unit) for moment, value in series]

    unacked = [
        ((moment - begin) / 1e9, value)
        for moment, value in connection.values(lambda state: state.unacked_segments)
        if moment >= begin
    ]
    wire = outstanding(_flow(seen, port, "client", "after"))
    lost = [passage.before.time_ns for passage in seen.passages("server") if passage.lost]
    return [
        Plot(
            title="Sent and not yet acknowledged",
            x="time, s",
            y="segments",
            series={"kernel (TCP_INFO)": unacked, "wire (capture)": stairs(timed(wire, mss))},
        ),
        Plot(
            title="Losses, and what the receiver says of them",
            x="time, s",
            y="count, so far",
            logarithmic=True,
            series={
                "segments lost": [((moment - begin) / 1e9, number) for number, moment in enumerate(lost, 1)],
                "duplicate ACKs": timed(running_count(flow.server.duplicate_acks)),
                "ACKs with SACK": timed(running_count(flow.server.with_sack)),
                "sent again": timed(running_count(flow.client.retransmissions)),
            },
        ),
    ]
