"""C3: data is delivered in the order of sending, over routes of different rate."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from testbed.evidence.verdict import Verdict
from testbed.judge.metrics import Reordering
from testbed.observe.capture import Capture
from testbed.observe.wire import Direction, flows
from testbed.paper.context import BACK, THERE, ExperimentContext, NotAsMeantError, printed_json
from testbed.paper.outcomes import ClaimOutcome, Condition, Plot, finding_of, unless

_PORT = 9500
_SHOWN = 200
_CONDITIONS: tuple[tuple[str, dict[str, object]], ...] = (
    ("two routes: every fifth packet takes one that is 8 ms shorter", {"delay": "8ms", "reorder": "20%"}),
    ("jitter that reorders, 8 ms ± 4 ms", {"delay": "8ms", "jitter": "4ms", "reorder_by_jitter": True}),
    ("a tenth of the packets twice", {"delay": "4ms", "duplicate": "10%"}),
)


@dataclass(frozen=True, kw_only=True)
class _Wire:
    """A transfer's segments in the order in which they left the impairment, numbered in the order of sending."""

    numbers: list[int]
    reordering: Reordering


def order(context: ExperimentContext) -> ClaimOutcome:
    """10 MB of random bytes cross a link that reorders, or doubles, packets; captured behind it.

    Held if the receiving program's SHA-256 is that of what was sent. The order on the wire (RFC 4737) is told beside
    it: where nothing was out of order there, the experiment is INVALID.
    """
    count = 1_000_000 if context.quick else 10_000_000
    wanted = hashlib.sha256(random.Random(7).randbytes(count)).hexdigest()  # noqa: S311  # the same bytes at both ends
    rows: list[Condition] = []
    series: dict[str, list[tuple[float, float]]] = {}
    late = doubled = 0
    for number, (name, words) in enumerate(_CONDITIONS):
        context.say(f"C3: {count:,} bytes over {name}")
        port = _PORT + number
        context.impair(THERE, None, seed=number + 1, **words)
        context.impair(BACK, delay="4ms")
        with context.lab.observe(captures=[THERE], snap_bytes=96) as seen:
            sink = context.serve("sink", port, count)
            context.call("send", port, count, timeout="120s")
            received = printed_json(sink)
        context.heal()
        wire = _order_of(seen.capture("server"), port)
        server, client = seen.host("server").counters, seen.host("client").counters
        same = received["digest"] == wanted
        late += wire.reordering.reordered
        doubled += wire.reordering.duplicates
        if number == 0:
            first = wire.numbers[:_SHOWN]
            series = {
                "on the wire": [(float(at), float(segment)) for at, segment in enumerate(first)],
                "to the program": [(float(at), float(at)) for at in range(len(first))],
            }
            context.keep_capture("C3.pcapng", seen.capture("server"))
        rows.append(
            Condition(
                name=name,
                held=same and received["count"] == count,
                values={
                    "bytes": f"{received['count']:,}",
                    "segments behind the link": f"{wire.reordering.arrived:,}",
                    "out of order there": _share(wire.reordering),
                    "farthest, in segments": str(max(wire.reordering.extents, default=0)),
                    "twice there": str(wire.reordering.duplicates),
                    "kept for later by the receiver's kernel": str(server.out_of_order_segments),
                    "sent again": str(client.retransmitted_segments),
                    "SHA-256": "the same" if same else "another",
                },
            )
        )
    return ClaimOutcome(
        finding=finding_of(rows) if late and doubled else Verdict.INVALID,
        sentence=unless(
            rows,
            f"The program got every byte once and in order, although {late:,} segments came out of order on the wire "
            f"and {doubled:,} came twice. The receiver's kernel keeps what is early and throws away what it has.",
        ),
        rows=rows,
        mechanism={"out_of_order": late, "twice": doubled},
        plots=[
            Plot(
                title="The order of arrival, on the wire and to the program (the first packets)",
                x="arrival",
                y="segment's number in the order of sending",
                series=series,
            )
        ],
    )


def _order_of(capture: Capture, port: int) -> _Wire:
    """The order behind the impairment, numbered by position in the stream."""
    connections = [connection for connection in flows(capture.at("after")) if connection.server.src.port == port]
    if len(connections) != 1:
        raise NotAsMeantError(
            f"{len(connections)} connections to port {port} were captured behind the link, one was made"
        )
    positions = _positions(connections[0].client)
    numbers = {position: number for number, position in enumerate(sorted(set(positions)))}
    reordering = Reordering()
    for position in positions:
        reordering.arrive(numbers[position])
    return _Wire(numbers=[numbers[position] for position in positions], reordering=reordering)


def _positions(direction: Direction) -> list[int]:
    return [position for position, _ in direction.wire_order]


def _share(reordering: Reordering) -> str:
    return f"{reordering.reordered:,} ({100 * (reordering.ratio or 0):.1f} %)"
