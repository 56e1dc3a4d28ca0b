"""C6: a busy receiver slows the sender; nothing is overrun or sent again for it."""

from __future__ import annotations

import hashlib
import random
import time
from dataclasses import dataclass

from testbed.evidence.verdict import Verdict
from testbed.lab.waiting import await_condition
from testbed.observe.observation import Observation
from testbed.observe.series import TimedValues, outstanding, stairs, windows
from testbed.observe.wire import Flow
from testbed.paper.context import BACK, BOTH, THERE, ExperimentContext, NotAsMeantError, printed_json
from testbed.paper.outcomes import ClaimOutcome, Condition, Plot, finding_of, unless

_COUNT = 500_000
_BUFFER_BYTES = 65_536
"""Buffer of each side. The kernel doubles it, and then does not tune it from its memory of the destination."""
_FAR_MS, _NEAR_MS = 60, 5
"""One-way delays. A receiver may delay an acknowledgment by up to 200 ms (TCP_DELACK_MAX, include/net/tcp.h), and the
sender's loss probe is due after two round trips: of 120 ms it can never be sent for a delayed acknowledgment alone, of
10 ms it can."""


@dataclass(frozen=True, kw_only=True)
class _Transfer:
    """One transfer to a reader that is busy at first."""

    name: str
    port: int
    delay_ms: int
    seen: Observation
    flow: Flow
    arrived: bool
    blocked_s: float
    lost_updates: int

    def row(self) -> Condition:
        """Its condition, and whether the claim held."""
        client, server = self.seen.host("client").counters, self.seen.host("server").counters
        again = len(self.flow.client.retransmissions)
        overrun = server.receive_queue_drops + server.pruned
        slowed = self.arrived and bool(self.flow.server.zero_windows) and self.stood_still
        unharmed = not self.timeouts and not overrun and again <= client.loss_probes
        held: bool | None = slowed and unharmed and not again
        if self.delay_ms == _NEAR_MS:
            # Whether the probe comes before the delayed acknowledgment is chance.
            held = None if slowed and unharmed else False
        return Condition(
            name=self.name,
            held=held,
            values={
                "arrived": "all, unchanged" if self.arrived else "not all",
                "send() blocked": f"{self.blocked_s:.2f} s",
                "zero windows": str(len(self.flow.server.zero_windows)),
                "probes of the window": str(len(self.flow.client.window_probes)),
                "window updates lost": str(self.lost_updates),
                "segments sent again": str(again),
                "of these loss probes": str(client.loss_probes if again else 0),
                "time-outs": str(self.timeouts),
                "overrun at the receiver": str(overrun),
            },
        )

    @property
    def timeouts(self) -> int:
        """The sender's time-outs for data: of the connection where the kernel counts them, else of the host."""
        own = self.seen.host("client").connection(remote_port=self.port).final.timeouts
        return self.seen.host("client").counters.timeouts if own is None else own

    @property
    def stood_still(self) -> bool:
        """Whether the sender's kernel saw a zero window while it had unsent data."""
        states = self.seen.host("client").connection(remote_port=self.port).states
        return any(state.send_window_bytes == 0 and state.unsent_bytes for state in states)


def flow_control(context: ExperimentContext) -> ClaimOutcome:
    """A server with a buffer of 64 kB reads nothing for a while, then all of 500 kB; captured at its port.

    Held if it announced a window of zero, the sender stood still with data in hand, and everything arrived with
    nothing sent again, no time-out and nothing thrown away by the receiver. Then once more, and the news that the
    window is open again is lost: only the sender's probes can find out (RFC 9293 3.8.6.1). Both over 120 ms; over a
    round trip of 10 ms a loss probe of the last segment (RFC 8985) is told, and is no breach.
    """
    busy_s = 0.5 if context.quick else 3.0
    runs = []
    conditions = (
        ((_FAR_MS, False), (_FAR_MS, True)) if context.quick else ((_FAR_MS, False), (_FAR_MS, True), (_NEAR_MS, False))
    )
    for number, (delay_ms, lose) in enumerate(conditions):
        name = f"a reader busy for {busy_s:g} s, round trip {2 * delay_ms} ms"
        name += ", the window's opening lost" if lose else ""
        context.say(f"C6: {name}")
        runs.append(_transfer(context, name, 9560 + number, delay_ms, busy_s, lose=lose))
    rows = [run.row() for run in runs]
    first, second, *near = runs
    probes = sum(len(run.flow.client.retransmissions) for run in near)
    extra = ""
    if probes:
        extra = (
            f" Over a round trip of {2 * _NEAR_MS} ms {probes} segment{'s' * (probes > 1)} went twice: the kernel's "
            "loss probe does not await an acknowledgment that the receiver delays."
        )
    zero = sum(len(run.flow.server.zero_windows) for run in runs)
    meant = second.lost_updates > 0 and first.blocked_s >= busy_s
    context.keep_capture("C6.pcapng", first.seen.capture("server"))
    context.keep_flows("C6-window-update-lost.txt", [second.flow])
    return ClaimOutcome(
        finding=finding_of(rows) if meant else Verdict.INVALID,
        sentence=unless(
            rows,
            "A busy receiver announced a window of zero and the sender stood still. Its send() blocked for "
            f"{first.blocked_s:.1f} s, nothing was overrun, nothing sent again, and everything arrived. When the news "
            f"of the opening was lost, the sender's probes found out ({len(second.flow.client.window_probes)} of "
            "them)." + extra,
        ),
        rows=rows,
        mechanism={
            "zero_windows": zero,
            "lost_updates": second.lost_updates,
            "window_probes": len(second.flow.client.window_probes),
            "sent_again": sum(len(run.flow.client.retransmissions) for run in (first, second)),
            "loss_probes_at_a_short_round_trip": probes,
            "timeouts": sum(run.timeouts for run in runs),
        },
        plots=[_plot(first), _plot(second)],
    )


def _transfer(
    context: ExperimentContext, name: str, port: int, delay_ms: int, busy_s: float, *, lose: bool
) -> _Transfer:
    wanted = hashlib.sha256(random.Random(7).randbytes(_COUNT)).hexdigest()  # noqa: S311  # the same bytes at both ends
    flag, lost_updates = context.flag("server"), 0
    context.impair(BOTH, delay=f"{delay_ms}ms")
    with context.lab.observe(captures=[THERE]) as seen:
        sink = context.serve("busy", port, _COUNT, _BUFFER_BYTES, flag)
        before = _zero_windows(context)
        sender = context.begin("send", port, _COUNT, "--buffer", _BUFFER_BYTES)
        await_condition(lambda: _zero_windows(context) - before, bool, deadline_s=30)
        time.sleep(busy_s)  # not readiness: a reader that is busy for that long is the condition
        if lose:
            context.lab.cut(BACK)
        earlier = context.lab.link(BACK).lost_in_cut() if lose else 0
        flag.raise_()
        if lose:
            # The reader empties its buffer and says so; probes and their answers are lost with it, until this ends.
            await_condition(lambda: context.lab.link(BACK).lost_in_cut() - earlier, bool, deadline_s=30)
            await_condition(lambda: _unread(context, port), lambda unread: not unread, deadline_s=30)
            lost_updates = context.lab.link(BACK).lost_in_cut() - earlier
            context.lab.verifier.verify()
            context.lab.mend()
        received, times = printed_json(sink), printed_json(sender)
    context.heal()
    flows = [flow for flow in seen.flows("server") if flow.server.src.port == port]
    if len(flows) != 1:
        raise NotAsMeantError(f"{len(flows)} connections to port {port} were captured, one was made")
    return _Transfer(
        name=name,
        port=port,
        delay_ms=delay_ms,
        seen=seen,
        flow=flows[0],
        arrived=received == {"count": _COUNT, "digest": wanted},
        blocked_s=(int(str(times["taken_ns"])) - int(str(times["began_ns"]))) / 1e9,
        lost_updates=lost_updates,
    )


def _zero_windows(context: ExperimentContext) -> int:
    return context.lab.host("server").counters()["TcpExt"]["TCPToZeroWindowAdv"]


def _unread(context: ExperimentContext, port: int) -> int:
    """Bytes in the receive buffers of the port's connections."""
    ours = (connection for connection in context.lab.host("server").connections() if connection["local_port"] == port)
    return sum(int(connection["receive_queue_bytes"]) for connection in ours)


def _plot(run: _Transfer) -> Plot:
    begin = run.flow.segments[0].time_ns

    def timed(series: TimedValues) -> list[tuple[float, float]]:
        return stairs([((moment - begin) / 1e9, value / 1e3) for moment, value in series])

    later = run.delay_ms * 1_000_000
    return Plot(
        title=run.name[0].upper() + run.name[1:],
        x="time, s",
        y="kB",
        series={
            "window announced": timed(windows(run.flow.server)),
            "sent and not acknowledged": timed(outstanding(run.flow, acks_later_ns=later)),
        },
    )
