"""C7: it works without delays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from testbed.drive.messages import PORTS, messages
from testbed.evidence.journal import Journal, ReceivedRow
from testbed.evidence.verdict import Verdict
from testbed.judge.metrics import Distribution, Quantile
from testbed.observe.wire import segment
from testbed.paper.context import BACK, THERE, ExperimentContext, NotAsMeantError
from testbed.paper.outcomes import ClaimOutcome, Condition, Plot, finding_of

_RATE_PER_S = 100
"""So ten go, as many as an initial window holds, in a round trip of 100 ms: the delays keep away from that."""
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
_WIRE = "its packets on the wire"


@dataclass(frozen=True, kw_only=True)
class GridLink:
    """One cell of the grid: a delay each way, and the share of packets that is lost each way."""

    delay_ms: float
    loss: str = ""

    def __str__(self) -> str:
        return f"{self.delay_ms:g} ms each way" + (f", {self.loss} lost" if self.loss else "")


_SHOWN = GridLink(delay_ms=150, loss="5%")
"""Its journals are kept as evidence."""
_QUICK = (GridLink(delay_ms=0), GridLink(delay_ms=150), _SHOWN)
_GRID = (
    *(
        GridLink(delay_ms=delay_ms, loss=loss)
        for loss in ("", "1%", "2%", "5%", "10%")
        for delay_ms in (0, 10, 40, 150)
    ),
)


@dataclass(frozen=True, kw_only=True)
class MessageStream:
    """A stream of messages over one link."""

    link: GridLink
    sent: int
    application: Distribution
    """From the sender's program to the receiver's."""
    wire: Distribution
    """Of their packets that crossed the link, from one side of its impairment to the other."""
    head_of_line: Distribution
    """How long messages waited for the ones before them."""
    late: tuple[int, ...]
    """The numbers, from 0, of messages that took longer than `late_s`."""
    dropped: int
    """Packets that the link lost, both ways."""
    resent: int
    """Segments that the sender's kernel sent again."""
    initial_window: int
    """Segments sent before the first acknowledgement at most (RFC 6928)."""
    window_full: int
    """How many of a hundred samples per second found the window full and more to send."""

    @property
    def late_s(self) -> float:
        """Twice the link's delay and the time to the next message: a delivery that takes longer waited for something.

        TCP waits a round trip at least: for an acknowledgement that opens the window, or until what was lost is sent
        again, which the acknowledgement of the next message calls for at the earliest.
        """
        return late_after_s(self.link)

    @property
    def missing(self) -> int:
        """Messages that did not arrive."""
        return self.sent - self.application.count

    @property
    def delayed_by_tcp(self) -> bool:
        """Whether messages were late and the kernel shows why: losses, or a full window.

        A busy machine causes neither.
        """
        return bool(self.missing or (self.late and (self.dropped or self.window_full)))

    def quantile(self, q: float) -> Quantile | None:
        """Of the delivery time; what did not arrive is infinitely late (RFC 7679, 5.1)."""
        return self.application.quantile(q, lost=self.missing)


def late_after_s(link: GridLink) -> float:
    """See `MessageStream.late_s`."""
    return 2 * link.delay_ms / 1e3 + 1 / _RATE_PER_S


def no_delays(context: ExperimentContext) -> ClaimOutcome:
    """A stream of messages, a hundred a second over one connection, over links of growing delay and loss.

    Each message is timed from program to program, and each packet across the link. What the program waits beyond the
    packet's time is TCP's: at the sender, until an acknowledgement opens the window; at the receiver, until a message
    before it has been sent again (head-of-line blocking).
    """
    seen = []
    for number, link in enumerate(_QUICK if context.quick else _GRID):
        context.say(f"C7: {link}")
        seen.append(_deliver(context, link, 70 if context.quick else 200, seed=number + 1))
    context.keep_json(
        "C7.json",
        [
            {
                "link": str(stream.link),
                "sent": stream.sent,
                "late": stream.late,
                "late_after_s": stream.late_s,
                "dropped": stream.dropped,
                "resent": stream.resent,
                "initial_window": stream.initial_window,
                "window_full": stream.window_full,
                "application_ms": _points(stream.application),
                "wire_ms": _points(stream.wire),
                "head_of_line_ms": _points(stream.head_of_line),
            }
            for stream in seen
        ],
    )
    return judge(seen)


# --- judging ---------------------------------------------------------------------------------------


def judge(seen: Sequence[MessageStream]) -> ClaimOutcome:
    """The claim's outcome; a lossy link that lost nothing, or a delay that was not kept, makes it INVALID."""
    for stream in seen:
        least_s = stream.application.min_s
        if stream.link.loss and not stream.dropped:
            return _invalid(stream, "was to lose packets and lost none")
        if least_s is None or least_s < stream.link.delay_ms / 1e3:
            return _invalid(stream, f"was passed in {least_s} s")
    rows = [_row(stream) for stream in seen]
    return ClaimOutcome(
        finding=finding_of(rows), sentence=_sentence(seen), rows=rows, mechanism=_facts(seen), plots=_plots(seen)
    )


def _sentence(seen: Sequence[MessageStream]) -> str:
    clean = [stream for stream in seen if not stream.link.loss]
    prompt = [stream for stream in clean if not stream.delayed_by_tcp]
    narrow = max(
        (stream for stream in clean if stream.delayed_by_tcp), key=lambda stream: stream.link.delay_ms, default=None
    )
    worst = max(
        (stream for stream in seen if stream.dropped and stream.late), key=lambda stream: len(stream.late), default=None
    )
    sentences = []
    if prompt:
        added = max(_median(stream.application) - _median(stream.wire) for stream in prompt)
        links = ", ".join(str(stream.link) for stream in prompt)
        sentences.append(
            f"Over a short link that loses nothing, it does: with {links} the median message comes {added * 1e3:.1f} "
            "ms after its packet."
        )
    if narrow is not None:
        sentences.append(
            f"A connection begins slowly: with {narrow.link}, {narrow.initial_window} segments may go before the first "
            f"acknowledgement (RFC 6928), and message {narrow.late[0] + 1} waits for it; the longest takes "
            f"{(narrow.application.max_s or 0.0) * 1e3:.0f} ms."
        )
    if worst is not None:
        sentences.append(
            f"A lost packet delays all behind it until it is sent again (head-of-line blocking): with {worst.link}, "
            f"{len(worst.late)} of {worst.sent} messages took more than {worst.late_s * 1e3:.0f} ms, the longest "
            f"{worst.application.max_s or 0.0:.2f} s, while no packet took more than "
            f"{(worst.wire.max_s or 0.0) * 1e3:.0f} ms to cross."
        )
    return " ".join(sentences) or "No delay beyond the link's own was seen."


def _facts(seen: Sequence[MessageStream]) -> dict[str, float]:
    lossy = [stream for stream in seen if stream.dropped]
    clean = [stream for stream in seen if not stream.link.loss]
    narrow = [stream for stream in clean if stream.delayed_by_tcp]
    return {
        "clean_late": sum(len(stream.late) for stream in clean),
        "clean_messages": sum(stream.sent for stream in clean),
        "late_for_the_window": narrow[0].late[0] + 1 if narrow else 0,
        "initial_window": narrow[0].initial_window if narrow else 0,
        "lossy_late": sum(len(stream.late) for stream in lossy),
        "lossy_messages": sum(stream.sent for stream in lossy),
        "lossy_longest_s": max((stream.application.max_s or 0.0 for stream in lossy), default=0.0),
        "lossy_longest_on_the_wire_s": max((stream.wire.max_s or 0.0 for stream in lossy), default=0.0),
        "dropped": sum(stream.dropped for stream in lossy),
        "sent_again": sum(stream.resent for stream in lossy),
    }


def _invalid(stream: MessageStream, what: str) -> ClaimOutcome:
    return ClaimOutcome(
        finding=Verdict.INVALID, sentence=f"The conditions were not met: the link of {stream.link} {what}."
    )


def _median(times: Distribution) -> float:
    half = times.quantile(0.5)
    return half.value if half is not None else float("inf")


def _row(stream: MessageStream) -> Condition:
    return Condition(
        name=str(stream.link),
        held=not stream.delayed_by_tcp,
        values={
            "delivered": f"{stream.application.count} of {stream.sent}",
            "median": _interval(stream.quantile(0.5)),
            "90 %": _interval(stream.quantile(0.9)),
            "99 %": _interval(stream.quantile(0.99)),
            "longest": f"{(stream.application.max_s or 0.0) * 1e3:.0f} ms",
            "on the wire, median": _interval(stream.wire.quantile(0.5)),
            "on the wire, longest": f"{(stream.wire.max_s or 0.0) * 1e3:.1f} ms",
            "late": f"{len(stream.late)}, over {stream.late_s * 1e3:.0f} ms",
            "waited for the one before": f"up to {(stream.head_of_line.max_s or 0.0) * 1e3:.0f} ms",
            "why": ", ".join(
                [f"{stream.dropped} packets lost, {stream.resent} segments sent again"] * bool(stream.dropped)
                + [f"window of {stream.initial_window} full at first"] * bool(stream.window_full)
            )
            or "nothing lost, window never full",
        },
    )


def _interval(quantile: Quantile | None) -> str:
    """A quantile with its interval, in milliseconds."""
    if quantile is None:
        return "—"
    value, low, high = (
        f"{bound * 1e3:.1f}" if abs(bound) != float("inf") else "∞"
        for bound in (quantile.value, max(quantile.low, 0.0), quantile.high)
    )
    return f"{value} ms ({low} to {high})"


def _points(times: Distribution) -> list[tuple[float, float]]:
    quantiles = ((100 * q, times.quantile(q)) for q in _QUANTILES)
    return [
        (share, quantile.value * 1e3)
        for share, quantile in quantiles
        if quantile is not None and quantile.value != float("inf")
    ]


def _plots(seen: Sequence[MessageStream]) -> list[Plot]:
    plots = []
    for delay_ms in dict.fromkeys(stream.link.delay_ms for stream in seen):
        chosen = [stream for stream in seen if stream.link.delay_ms == delay_ms]
        series = {
            stream.link.loss + " lost" if stream.link.loss else "nothing lost": _points(stream.application)
            for stream in chosen
        }
        if any(stream.link.loss for stream in chosen):
            worst = max(chosen, key=lambda stream: stream.dropped)
            series[_WIRE] = _points(worst.wire)
        plots.append(
            Plot(
                title=f"Delivery time by quantile, {delay_ms:g} ms each way",
                x="share of messages, %",
                y="delivery time, ms",
                series=series,
                logarithmic=True,
                dashed=frozenset({_WIRE} & set(series)),
            )
        )
    return plots


# --- measuring -------------------------------------------------------------------------------------


def _deliver(context: ExperimentContext, link: GridLink, count: int, *, seed: int) -> MessageStream:
    words: dict[str, object] = {"delay": f"{link.delay_ms:g}ms"} if link.delay_ms else {}
    if link.loss:
        words |= {"loss": link.loss}
    for way, offset in ((THERE, 0), (BACK, 100)):
        if words:
            context.impair(way, None, **words, **({"seed": seed + offset} if link.loss else {}))
        else:
            context.impair(way, "clean")
    with context.lab.observe(captures=[THERE]) as observed:
        run = messages(
            context.lab, THERE, structure="threads", count=count, size_bytes=200, rate_per_s=_RATE_PER_S, deadline_s=30
        )
    dropped = sum(context.lab.link(way).counters().dropped_packets for way in (THERE, BACK)) if words else 0
    context.heal()
    if link == _SHOWN:
        context.keep_journals("C7-150ms-5-percent-lost", run.journals)
    context.await_closed(PORTS["tcp"])  # what goes on must not be taken for the next one's
    direction = run.judge().direction("client", "server")
    crossed_s = [
        passage.delay_s
        for passage in observed.passages("server")
        if passage.delay_s is not None and (part := segment(passage.before)) is not None and part.payload_bytes
    ]
    rows = Journal.of(run.journals["server"], name="server").rows("received")
    received = [ReceivedRow._make(row) for row in rows]
    established = [
        [state for state in connection.states if state.state == "ESTABLISHED"]
        for connection in observed.host("client").connections
        if connection.remote.port == PORTS["tcp"]
    ]
    states = max(established, key=len, default=[])
    if not states:
        raise NotAsMeantError(f"{link}: the sender's connection was not seen")
    return MessageStream(
        link=link,
        sent=direction.sent,
        application=direction.delay,
        wire=Distribution(round(delay_s * 1e9) for delay_s in crossed_s),
        head_of_line=direction.head_of_line,
        dropped=dropped,
        late=tuple(
            sorted(
                message.sequence
                for message in received
                if message.sequence is not None
                and message.sent_ns is not None
                and message.time_ns - message.sent_ns > late_after_s(link) * 1e9
            )
        ),
        resent=observed.host("client").counters.retransmitted_segments,
        initial_window=states[0].cwnd_segments,
        window_full=sum(state.unsent_bytes > 0 and state.unacked_segments >= state.cwnd_segments for state in states),
    )
