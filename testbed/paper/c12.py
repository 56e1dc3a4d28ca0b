"""C12: the TCP/IP stack maps onto OSI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from testbed.evidence.verdict import Verdict
from testbed.observe.capture import Capture
from testbed.observe.packet import Layer, layers
from testbed.observe.wire import Flow
from testbed.paper.context import BOTH, PAPER_PORT, THERE, ExperimentContext, NotAsMeantError
from testbed.paper.outcomes import ClaimOutcome, Condition, Frame, FramePart, Plot

_MESSAGE = "Test message"
_SIZES = (1, 12, 100, 500, 1024)
_UNSEEN_BYTES = 24
"""Bytes of Ethernet that no capture shows: preamble 8, frame check sequence 4, gap 12 (IEEE 802.3)."""
_TCP_IP = {"Ethernet": "link", "IPv4": "internet", "IPv6": "internet", "TCP": "transport", "payload": "application"}
"""RFC 1122, 1.1.3."""
_OSI = {
    "Ethernet": ("2 data link",),
    "IPv4": ("3 network",),
    "IPv6": ("3 network",),
    "TCP": ("4 transport",),
    "payload": ("7 application", "6 presentation", "5 session"),
}
"""ISO/IEC 7498-1, 6.2. Above TCP there is one body of bytes: no header separates its three layers."""
_WHOLE = (("Ethernet", "IPv4", "TCP", "payload"), ("Ethernet", "IPv6", "TCP", "payload"))
_WHAT = {
    "Ethernet": "from one adapter to the next",
    "IPv4": "from host to host",
    "IPv6": "from host to host",
    "TCP": "from program to program, in order and whole; its handshake opens a session",
    "payload": "what the programs say; encoded as UTF-8 by themselves",
}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The bytes on the wire for a message of a size, with its whole connection."""

    message_bytes: int
    frame_bytes: int
    """The frame that carries it."""
    session_bytes: int
    """All frames of the connection, both ways: handshake, acknowledgements and end included."""
    frames: int


def stack(context: ExperimentContext) -> ClaimOutcome:
    """The paper's message, captured on the wire and parsed by layer.

    Each header is read by the length that it states itself, and its neighbours must agree; what is left over must be
    the message. Then messages of other sizes, for what the headers cost, and the connection around them.
    """
    context.impair(BOTH, delay="5ms")
    parts, flow, capture = _catch(context, _MESSAGE)
    costs = []
    for size in _SIZES:
        around, connection, _ = _catch(context, "x" * size)
        costs.append(
            Cost(
                message_bytes=size,
                frame_bytes=sum(len(layer.data) for layer in around),
                frames=len(connection.segments),
                session_bytes=sum(segment.packet.length_bytes for segment in connection.segments),
            )
        )
    context.heal()
    context.keep_capture("C12.pcapng", capture)
    context.keep_flows("C12-connection.txt", [flow])
    context.keep(
        "C12-message.txt",
        "".join(
            f"{layer.name}, {len(layer.data)} bytes: {layer.data.hex(' ')}\n"
            + "".join(f"    {name}: {value}\n" for name, value in layer.fields)
            for layer in parts
        ),
    )
    context.keep_json("C12.json", [vars(cost) for cost in costs])
    return judge(parts, costs)


# --- judging ---------------------------------------------------------------------------------------


def agrees(parts: Sequence[Layer]) -> bool:
    """Whether the headers state the actual lengths."""
    if tuple(layer.name for layer in parts) not in _WHOLE:
        return False
    _, internet, transport, payload = parts
    stated, above = dict(internet.fields), len(transport.data) + len(payload.data)
    if internet.name == "IPv4":
        within = int(stated["total length"]) - len(internet.data)
    else:
        within = int(stated["payload length"])
    return within == above and int(dict(transport.fields)["data offset"]) == len(transport.data)


def judge(parts: Sequence[Layer], costs: Sequence[Cost]) -> ClaimOutcome:
    """The claim's outcome: HOLDS if each header is of one layer of OSI, and each layer of OSI has a header.

    HOLDS WITHIN if there are layers left that have none, BREAKS if there is a header of no layer.
    """
    whole = sum(len(layer.data) for layer in parts)
    message = len(parts[-1].data)
    sizes = [len(layer.data) for layer in parts[:-1]]
    mapped = agrees(parts)
    bare = [name for layer in parts for name in _OSI.get(layer.name, ())[1:]]
    small, large = (end(costs, key=lambda cost: cost.message_bytes) for end in (min, max))
    sentence = (
        f"The frame of {whole} bytes is {' + '.join(map(str, sizes))} bytes of header and {message} of message: each "
        f"header belongs to one layer of TCP/IP, and to one of OSI. OSI's {' and '.join(sorted(bare))} have no header "
        "of their own: they are left to the program, but for the session that TCP's handshake opens. A message of "
        f"{small.message_bytes} byte takes {small.session_bytes} bytes on the wire, its connection included, one of "
        f"{large.message_bytes:,} takes {large.session_bytes:,}."
        if mapped
        else "The headers do not state what was found: "
        + ", ".join(f"{layer.name} of {len(layer.data)} bytes" for layer in parts)
        + "."
    )
    return ClaimOutcome(
        finding=Verdict.HOLDS_WITHIN if mapped and bare else Verdict.HOLDS if mapped else Verdict.FAILS,
        sentence=sentence,
        rows=[*(_row(layer, whole) for layer in parts), *(_cost_row(cost) for cost in costs)],
        plots=[_overhead(costs)],
        frame=Frame(title="The message, as each layer hands it to the next", parts=[_part(layer) for layer in parts]),
        mechanism={
            "frame_bytes": whole,
            "message_bytes": message,
            "header_bytes": sum(sizes),
            **{f"{layer.name}_bytes": len(layer.data) for layer in parts[:-1]},
            "lengths_agree": float(mapped),
        },
    )


def _row(part: Layer, whole: int) -> Condition:
    contents = [f"{name} {value}" for name, value in part.fields]
    if part.name == "payload":
        contents = [repr(part.data.decode("utf-8", "replace"))]
    return Condition(
        name=part.name if part.name != "payload" else "the message",
        held=part.name in _OSI,
        values={
            "bytes": str(len(part.data)),
            "share of the frame": f"{100 * len(part.data) / whole:.0f} %",
            "TCP/IP (RFC 1122)": _TCP_IP.get(part.name, "none"),
            "OSI (ISO/IEC 7498-1)": ", ".join(_OSI.get(part.name, ())),
            "carries it": _WHAT.get(part.name, ""),
            "what it holds": "; ".join(contents),
        },
    )


def _cost_row(cost: Cost) -> Condition:
    return Condition(
        name=f"a message of {cost.message_bytes:,} byte{'s' * (cost.message_bytes > 1)}",
        held=None,
        values={
            "bytes": str(cost.message_bytes),
            "share of the frame": f"{100 * cost.message_bytes / cost.frame_bytes:.0f} %",
            "what it holds": f"a frame of {cost.frame_bytes:,} bytes, and {_UNSEEN_BYTES} that no capture shows; its "
            f"connection takes {cost.frames} frames of {cost.session_bytes:,} bytes",
        },
    )


def _overhead(costs: Sequence[Cost]) -> Plot:
    lines = {
        "of the frame that carries it": [
            (float(cost.message_bytes), 100 * cost.message_bytes / cost.frame_bytes) for cost in costs
        ],
        "of all frames of its connection": [
            (float(cost.message_bytes), 100 * cost.message_bytes / cost.session_bytes) for cost in costs
        ],
    }
    return Plot(
        title="How much of what goes over the wire is message",
        x="message, bytes",
        y="share of the bytes, %",
        series=lines,
    )


def _part(layer: Layer) -> FramePart:
    return FramePart(
        name=layer.name if layer.name != "payload" else "message",
        size_bytes=len(layer.data),
        tcp_ip=_TCP_IP.get(layer.name, ""),
        osi=_OSI.get(layer.name, ()),
        text=layer.data.decode("utf-8", "replace") if layer.name == "payload" else layer.data.hex(" "),
    )


# --- measuring -------------------------------------------------------------------------------------


def _catch(context: ExperimentContext, message: str) -> tuple[tuple[Layer, ...], Flow, Capture]:
    """Have the paper's client send a message; its frame by layer, its connection, and the capture."""
    with context.lab.capture(THERE) as caught:
        context.paper_client(message)
        context.await_closed(PAPER_PORT)
    (flow,) = [flow for flow in caught.flows() if flow.handshake.complete and flow.server.src.port == PAPER_PORT]
    carriers = [segment for segment in flow.client.originals if segment.payload == message.encode()]
    if len(carriers) != 1:
        raise NotAsMeantError(
            f"a message of {len(message)} bytes went in {len(carriers)} frames of its own, not in one"
        )
    return layers(carriers[0].packet), flow, caught.capture
