"""C7: it works without delays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from testbed.drive.messages import PORTS, messages
from testbed.evidence.journal import Journal
from testbed.evidence.verdict import Verdict
from testbed.judge.metrics import Distribution, Quantile
from testbed.observe.wire import segment
from testbed.paper.context import BACK, THERE, Context, NotAsMeantError
from testbed.paper.outcomes import Outcome, Plot, Row, finding_of

_RATE_PER_S = 100
"""So ten go, as many as an initial window holds, in a round trip of 100 ms: the delays keep away from that."""
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
_WIRE = "its packets on the wire"


@dataclass(frozen=True, kw_only=True)
class Link:
    """One cell of the grid: a delay each way, and the share of packets that is lost each way."""

    delay_ms: float
    loss: str = ""

    def __str__(self) -> str:
        return f"{self.delay_ms:g} ms each way" + (f", {self.loss} lost" if self.loss else "")


_SHOWN = Link(delay_ms=150, loss="5%")
"""Its journals are kept as evidence."""
_QUICK = (Link(delay_ms=0), Link(delay_ms=150), _SHOWN)
_GRID = (
    *(Link(delay_ms=delay_ms, loss=loss) for loss in ("", "1%", "2%", "5%", "10%") for delay_ms in (0, 10, 40, 150)),
)


@dataclass(frozen=True, kw_only=True)
class Deliveries:
    """What one stream of messages went through."""

    link: Link
    sent: int
    application: Distribution
    """From the sender's program to the receiver's."""
    wire: Distribution
    """Of the packets that carried them, from one side of the link's impairment to the other, those that crossed."""
    head_of_line: Distribution
    """What messages waited for the ones before them."""
    late: tuple[int, ...]
    """The numbers, from 0, of messages that took longer than `late_s`."""
    dropped: int
    """Packets that the link lost, both ways."""
    resent: int
    """Segments that the sender's kernel sent again."""
    initial_window: int
    """Segments that it might send before the first acknowledgement (RFC 6928)."""
    window_full: int
    """How often, of a hundred looks a second, it was seen to have as much under way as its window allowed, and more to
    send."""

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
        """Whether messages came late, and the kernel shows why: something was lost, or the window was full.

        Neither is so where a message is late because the machine was busy.
        """
        return bool(self.missing or (self.late and (self.dropped or self.window_full)))

    def quantile(self, q: float) -> Quantile | None:
        """Of the delivery time; what did not arrive is infinitely late (RFC 7679, 5.1)."""
        return self.application.quantile(q, lost=self.missing)


def late_after_s(link: Link) -> float:
    """See `Deliveries.late_s`."""
    return 2 * link.delay_ms / 1e3 + 1 / _RATE_PER_S


def no_delays(context: Context) -> Outcome:
    """A stream of messages, a hundred a second over one connection, over links of growing delay and loss.

    Each message is timed from program to program, and each packet across the link. What the program waits beyond the
    packet's time is TCP's: at the sender, until an acknowledgement opens the window; at the receiver, until a message
    before it has been sent again (head-of-line blocking).
    """
    seen = []
    for number, link in enumerate(_QUICK if context.quick else _GRID):
        context.say(f"C7: {link}")
        seen.append(_deliver(context, link, 70 if context.quick else 200, seed=number + 1))
    context.keep_json("C7.json", [
        {"link": str(each.link), "sent": each.sent, "late": each.late, "late_after_s": each.late_s,
         "dropped": each.dropped, "resent": each.resent, "initial_window": each.initial_window,
         "window_full": each.window_full, "application_ms": _points(each.application), "wire_ms": _points(each.wire),
         "head_of_line_ms": _points(each.head_of_line)}
        for each in seen
    ])  # fmt: skip
    return judge(seen)


# --- judging ---------------------------------------------------------------------------------------


def judge(seen: Sequence[Deliveries]) -> Outcome:
    """The claim's outcome; a lossy link that lost nothing, or a delay that was not kept, makes it INVALID."""
    for each in seen:
        least_s = each.application.min_s
        if each.link.loss and not each.dropped:
            return _invalid(each, "was to lose packets and lost none")
        if least_s is None or least_s < each.link.delay_ms / 1e3:
            return _invalid(each, f"was passed in {least_s} s")
    rows = [_row(each) for each in seen]
    return Outcome(
        finding=finding_of(rows), sentence=_sentence(seen), rows=rows, mechanism=_facts(seen), plots=_plots(seen)
    )


def _sentence(seen: Sequence[Deliveries]) -> str:
    clean = [each for each in seen if not each.link.loss]
    prompt = [each for each in clean if not each.delayed_by_tcp]
    narrow = max((each for each in clean if each.delayed_by_tcp), key=lambda each: each.link.delay_ms, default=None)
    worst = max((each for each in seen if each.dropped and each.late), key=lambda each: len(each.late), default=None)
    said = []
    if prompt:
        added = max(_median(each.application) - _median(each.wire) for each in prompt)
        said.append(
            "Over a short link that loses nothing, it does: with "
            f"{', '.join(str(each.link) for each in prompt)} the median message comes {added * 1e3:.1f} ms after its "
            "packet."
        )
    if narrow is not None:
        said.append(
            f"A connection begins slowly: with {narrow.link}, {narrow.initial_window} segments may go before the first "
            f"acknowledgement (RFC 6928), and message {narrow.late[0] + 1} waits for it; the longest takes "
            f"{(narrow.application.max_s or 0.0) * 1e3:.0f} ms."
        )
    if worst is not None:
        said.append(
            f"A lost packet delays all behind it until it is sent again (head-of-line blocking): with {worst.link}, "
            f"{len(worst.late)} of {worst.sent} messages took more than {worst.late_s * 1e3:.0f} ms, the longest "
            f"{worst.application.max_s or 0.0:.2f} s, while no packet took more than "
            f"{(worst.wire.max_s or 0.0) * 1e3:.0f} ms to cross."
        )
    return " ".join(said) or "No delay beyond the link's own was seen."


def _facts(seen: Sequence[Deliveries]) -> dict[str, float]:
    lossy = [each for each in seen if each.dropped]
    clean = [each for each in seen if not each.link.loss]
    narrow = [each for each in clean if each.delayed_by_tcp]
    return {
        "clean_late": sum(len(each.late) for each in clean), "clean_messages": sum(each.sent for each in clean),
        "late_for_the_window": narrow[0].late[0] + 1 if narrow else 0,
        "initial_window": narrow[0].initial_window if narrow else 0,
        "lossy_late": sum(len(each.late) for each in lossy), "lossy_messages": sum(each.sent for each in lossy),
        "lossy_longest_s": max((each.application.max_s or 0.0 for each in lossy), default=0.0),
        "lossy_longest_on_the_wire_s": max((each.wire.max_s or 0.0 for each in lossy), default=0.0),
        "dropped": sum(each.dropped for each in lossy), "sent_again": sum(each.resent for each in lossy),
    }  # fmt: skip


def _invalid(each: Deliveries, what: str) -> Outcome:
    return Outcome(finding=Verdict.INVALID, sentence=f"The conditions were not met: the link of {each.link} {what}.")


def _median(times: Distribution) -> float:
    half = times.quantile(0.5)
    return half.value if half is not None else float("inf")


def _row(each: Deliveries) -> Row:
    return Row(
        condition=str(each.link), held=not each.delayed_by_tcp,
        values={
            "delivered": f"{each.application.count} of {each.sent}",
            "median": _interval(each.quantile(0.5)), "90 %": _interval(each.quantile(0.9)),
            "99 %": _interval(each.quantile(0.99)),
            "longest": f"{(each.application.max_s or 0.0) * 1e3:.0f} ms",
            "on the wire, median": _interval(each.wire.quantile(0.5)),
            "on the wire, longest": f"{(each.wire.max_s or 0.0) * 1e3:.1f} ms",
            "late": f"{len(each.late)}, over {each.late_s * 1e3:.0f} ms",
            "waited for the one before": f"up to {(each.head_of_line.max_s or 0.0) * 1e3:.0f} ms",
            "why": ", ".join(
                [f"{each.dropped} packets lost, {each.resent} segments sent again"] * bool(each.dropped)
                + [f"window of {each.initial_window} full at first"] * bool(each.window_full)
            ) or "nothing lost, window never full",
        },
    )  # fmt: skip


def _interval(quantile: Quantile | None) -> str:
    """A quantile with its interval, in milliseconds."""
    if quantile is None:
        return "—"
    value, low, high = (f"{each * 1e3:.1f}" if abs(each) != float("inf") else "∞"
                        for each in (quantile.value, max(quantile.low, 0.0), quantile.high))  # fmt: skip
    return f"{value} ms ({low} to {high})"


def _points(times: Distribution) -> list[tuple[float, float]]:
    found = ((100 * q, times.quantile(q)) for q in _QUANTILES)
    return [(share, each.value * 1e3) for share, each in found if each is not None and each.value != float("inf")]


def _plots(seen: Sequence[Deliveries]) -> list[Plot]:
    plots = []
    for delay_ms in dict.fromkeys(each.link.delay_ms for each in seen):
        chosen = [each for each in seen if each.link.delay_ms == delay_ms]
        series = {each.link.loss + " lost" if each.link.loss else "nothing lost": _points(each.application)
                  for each in chosen}  # fmt: skip
        if any(each.link.loss for each in chosen):
            worst = max(chosen, key=lambda each: each.dropped)
            series[_WIRE] = _points(worst.wire)
        plots.append(Plot(
            title=f"Delivery time by quantile, {delay_ms:g} ms each way", x="share of messages, %",
            y="delivery time, ms", series=series, logarithmic=True, dashed=frozenset({_WIRE} & set(series)),
        ))  # fmt: skip
    return plots


# --- measuring -------------------------------------------------------------------------------------


def _deliver(context: Context, link: Link, count: int, *, seed: int) -> Deliveries:
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
    there = run.judge().direction("client", "server")
    crossed = [
        each.delay_s for each in observed.passages("server")
        if each.delay_s is not None and (part := segment(each.before)) is not None and part.payload_bytes
    ]  # fmt: skip
    received = (row for rows in Journal.of(run.journals["server"], name="server").blocks() for row in rows
                if row[0] == "received" and row[4] is not None and row[6] is not None)  # fmt: skip
    established = [
        [state for state in each.states if state.state == "ESTABLISHED"]
        for each in observed.host("client").connections if each.remote.port == PORTS["tcp"]
    ]  # fmt: skip
    states = max(established, key=len, default=[])
    if not states:
        raise NotAsMeantError(f"{link}: the sender's connection was not seen")
    return Deliveries(
        link=link, sent=there.sent, application=there.delay, wire=Distribution(round(each * 1e9) for each in crossed),
        head_of_line=there.head_of_line, dropped=dropped,
        late=tuple(sorted(row[4] for row in received if row[1] - row[6] > late_after_s(link) * 1e9)),
        resent=observed.host("client").counters.retransmitted_segments, initial_window=states[0].cwnd_segments,
        window_full=sum(each.unsent_bytes > 0 and each.unacked_segments >= each.cwnd_segments for each in states),
    )  # fmt: skip
