"""Claims about TCP itself: session, order, retransmission, acknowledgement, flow control, delay."""

from __future__ import annotations

import hashlib
import json
import random
import time
from itertools import pairwise

from testbed.drive.messages import messages
from testbed.judge.claims import Finding, Outcome, Plot, Row, finding_of
from testbed.labs.waiting import await_condition
from testbed.paper.context import BACK, BOTH, THERE, Context

_OUTAGE_S = 8.0

SYN_TIMEOUT_S = 1.0
"""RFC 6298, section 2.1: the first time-out of a SYN."""

_SINK = """
import hashlib, json, socket, sys, time
heard = socket.create_server(("", int(sys.argv[1]))); print("ready", flush=True)
taken, _ = heard.accept(); digest = hashlib.sha256(); count = 0; first = 0.0
while data := taken.recv(65536):
    first = first or time.monotonic(); count += len(data); digest.update(data)
print(json.dumps({"count": count, "digest": digest.hexdigest(), "first_s": first, "last_s": time.monotonic()}))
"""
_SEND = """
import json, random, socket, sys, time
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
if len(sys.argv) > 4: s.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, sys.argv[4].encode())
data = random.Random(7).randbytes(int(sys.argv[3])); began = time.monotonic()
s.sendall(data); sent = time.monotonic(); s.shutdown(socket.SHUT_WR); s.recv(1); s.close()
print(json.dumps({"began_s": began, "sent_s": sent}))
"""


def _transfer(context: Context, port: int, count: int) -> dict[str, object]:
    """Random bytes from the client to the server over one connection; what the server has to say of them."""
    sink = context.serve(_SINK, port)
    sent = context.call(_SEND, port, count, timeout="120s")
    heard = sink.wait("30s").stdout.splitlines()
    return {**json.loads(heard[1]), **json.loads(sent.stdout)}


def session(context: Context) -> Outcome:
    """C1: a session is established before data, and ended."""
    rows, points = [], []
    for delay_ms in (0, 20, 100) if context.quick else (0, 10, 40, 100, 200):
        if delay_ms:
            context.impair(BOTH, delay=f"{delay_ms}ms")
        with context.lab.observe(captures=[THERE], snap_bytes=None) as seen:
            told = context.paper_client("session")
            _await_printed(context, "Message session", delay_ms)
        connect_s = (told["connected_ns"] - told["connect_start_ns"]) / 1e9
        flow = next(each for each in seen.flows("server") if each.handshake.complete)
        if delay_ms:
            context.keep_capture(f"C1-{delay_ms}ms.pcapng", seen.capture("server"))
            context.heal()
        rtt_s, order = 2 * delay_ms / 1e3, [each.length > 0 for each in flow.client.segments if not each.syn]
        first_data = next((each.time_ns for each in flow.client.segments if each.payload_bytes), None)
        ack_ns = flow.handshake.ack_ns
        in_order = first_data is not None and ack_ns is not None and ack_ns <= first_data and bool(order)
        ended = bool(flow.client.fins) and bool(flow.server.fins or flow.server.resets)
        took_one = rtt_s <= connect_s < (2 * rtt_s if rtt_s >= 0.04 else rtt_s + 0.05)
        rows.append(Row(
            condition=f"{delay_ms} ms each way", held=in_order and ended and took_one,
            values={"connect": f"{connect_s * 1e3:.1f} ms", "round trip": f"{rtt_s * 1e3:g} ms",
                    "SYN, SYN-ACK, ACK before data": str(in_order), "both sides closed": str(ended)},
        ))  # fmt: skip
        points.append((2.0 * delay_ms, connect_s * 1e3))
    context.impair(f"{THERE} tcp/8888", drop_packets="1")
    told = context.paper_client("syn lost")
    lost_s = (told["connected_ns"] - told["connect_start_ns"]) / 1e9
    dropped = context.lab.link(f"{THERE} tcp/8888").dropped_by_number()
    context.heal()
    rows.append(Row(
        condition="the first SYN lost", held=lost_s >= SYN_TIMEOUT_S and dropped == 1,
        values={"connect": f"{lost_s * 1e3:.0f} ms", "round trip": "0 ms"},
    ))  # fmt: skip
    return Outcome(
        finding=finding_of(rows),
        sentence="A session is established before any data, in one round trip, and ended by both sides; a lost SYN "
        f"costs the kernel's SYN time-out, {lost_s:.2f} s here (RFC 6298: 1 s).",
        rows=rows, mechanism={"connect_after_lost_syn_s": lost_s, "syns_dropped": dropped},
        plot=Plot(title="Connecting takes one round trip", x="round trip asked, ms", y="connect, ms",
                  series={"seen": points, "one round trip": [(x, x) for x, _ in points]}),
    )  # fmt: skip


def _await_printed(context: Context, line: str, delay_ms: int) -> None:
    """Wait until the server has printed it, and its FIN has come back."""
    await_condition(lambda: line in context.lab.host("server").logs(), bool, deadline_s=30)
    await_condition(
        lambda: [each for each in context.lab.host("server").connections() if each["local_port"] == 8888
                 and each["state"] not in ("FIN-WAIT-2", "SYN-RECEIVED")] if delay_ms else [],
        lambda left: not left, deadline_s=30,
    )  # fmt: skip


def order(context: Context) -> Outcome:
    """C3: delivery in the order of sending."""
    count = 1_000_000 if context.quick else 10_000_000
    wanted = hashlib.sha256(random.Random(7).randbytes(count)).hexdigest()  # noqa: S311  # the same bytes at both ends
    rows, overtaken_all = [], 0
    conditions: list[tuple[str, dict[str, object]]] = [
        ("reorder 20 %", {"delay": "8ms", "reorder": "20%"}),
        ("jitter that reorders", {"delay": "8ms", "jitter": "4ms", "reorder_by_jitter": True}),
        ("duplicate 10 %", {"delay": "4ms", "duplicate": "10%"}),
    ]
    for number, (name, words) in enumerate(conditions):
        context.impair(THERE, None, seed=number + 1, **words)
        with context.lab.observe(captures=[THERE]) as seen:
            told = _transfer(context, 9500 + number, count)
        context.heal()
        counters = seen.host("server").counters
        overtaken = counters.out_of_order_segments
        overtaken_all += overtaken
        same = told["digest"] == wanted
        rows.append(Row(
            condition=name, held=same,
            values={"bytes": f"{told['count']:,}", "segments out of order at the receiver's kernel": str(overtaken),
                    "sent again": str(seen.host('client').counters.retransmitted_segments),
                    "digest": "the same" if same else "another"},
        ))  # fmt: skip
    return Outcome(
        finding=finding_of(rows) if overtaken_all else Finding.INVALID,
        sentence=f"The application got every byte in order although {overtaken_all} segments arrived out of order; "
        "the price is that segments are sent again that were only overtaken.",
        rows=rows, mechanism={"out_of_order_segments": overtaken_all},
    )  # fmt: skip


def retransmission(context: Context) -> Outcome:
    """C4: lost data is sent again after a waiting time."""
    rows = []
    rtt_s = 0.04
    context.impair(BACK, delay="20ms")
    context.impair(f"{THERE} tcp/9510", delay="20ms", drop_packets="3")
    with context.lab.observe() as seen:
        told = _transfer(context, 9510, 500)
    single_s = float(str(told["first_s"])) - float(str(told["began_s"]))
    counters = seen.host("client").counters
    context.heal()
    rows.append(Row(
        condition="the only data segment lost (round trip 40 ms)",
        held=counters.retransmitted_segments >= 1 and single_s >= rtt_s / 2 + rtt_s,
        values={"arrived after": f"{single_s * 1e3:.0f} ms", "by": _by(counters.loss_probes, counters.timeouts, 0)},
    ))  # fmt: skip
    context.impair(BACK, delay="20ms")
    context.impair(f"{THERE} tcp/9511", delay="20ms", drop_packets="12")
    with context.lab.observe() as seen:
        _transfer(context, 9511, 300_000)
    counters = seen.host("client").counters
    context.heal()
    rows.append(Row(
        condition="the 12th packet of 300 kB lost", held=counters.retransmitted_segments >= 1 and not counters.timeouts,
        values={"arrived after": "—",
                "by": _by(counters.loss_probes, counters.timeouts, counters.fast_retransmissions)},
    ))  # fmt: skip
    intervals = _backoff(context)
    ratios = [later / earlier for earlier, later in pairwise(intervals)]
    doubling = len(ratios) >= 2 and all(1.6 <= ratio <= 2.6 for ratio in ratios)
    rows.append(Row(
        condition="an outage of 8 s", held=doubling,
        values={"arrived after": "the outage",
                "by": f"time-outs of {', '.join(f'{value:.2f}' for value in intervals)} s"},
    ))  # fmt: skip
    points = [(float(number + 1), value) for number, value in enumerate(intervals)]
    return Outcome(
        finding=finding_of(rows),
        sentence="Lost data is sent again: a lost segment in a stream after about one round trip, by what later "
        "segments report; a last one by a probe or the time-out; in an outage after a waiting time that doubles.",
        rows=rows, mechanism={"backoffs": len(intervals), "fast_retransmissions": counters.fast_retransmissions},
        plot=Plot(title="The waiting time doubles in an outage", x="time-out", y="waited, s",
                  series={"between retransmissions": points}, logarithmic=True),
    )  # fmt: skip


def _by(probes: int, timeouts: int, fast: int) -> str:
    said = [(probes, "loss probe"), (timeouts, "time-out"), (fast, "fast retransmission")]
    return ", ".join(f"{count} {name}{'s' * (count > 1)}" for count, name in said if count) or "—"


_TRICKLE = """
import os, socket, sys, time
s = socket.create_connection((sys.argv[1], int(sys.argv[2]))); s.send(b"a"); print("connected", flush=True)
while not os.path.exists("/tmp/go"): time.sleep(0.01)
s.send(b"b"); s.shutdown(socket.SHUT_WR); s.recv(1)
"""


def _backoff(context: Context) -> list[float]:
    """Seconds between the retransmissions of one segment while the link is cut."""
    context.lab.host("client").run(["rm", "-f", "/tmp/go"])  # noqa: S108  # in a container
    context.impair(THERE, delay="10ms")
    with context.lab.observe(captures=[THERE]) as seen:
        sink = context.serve(_SINK, 9512)
        program = context.begin(_TRICKLE, 9512, ready="connected")
        context.lab.cut(THERE)
        context.lab.host("client").run(["touch", "/tmp/go"])  # noqa: S108  # in a container
        time.sleep(_OUTAGE_S)  # not readiness: an outage of that length is what is watched
        context.lab.mend()
        program.wait("60s")
        sink.wait("60s")
    context.keep_capture("C4-outage.pcapng", seen.capture("server"))
    context.heal()
    flow = next(each for each in seen.flows("server") if each.server.src.port == 9512)
    (data,) = [each for each in flow.client.originals if each.payload_bytes and each.payload[:1] == b"b"][:1]
    times = sorted({
        each.time_ns for each in (data, *flow.client.retransmissions)
        if each.payload_bytes and each.seq == data.seq
    })  # fmt: skip
    gaps = [(later - earlier) / 1e9 for earlier, later in pairwise(times)]
    return gaps[1:] if gaps and gaps[0] < 0.15 else gaps  # the first may be a loss probe, which comes sooner


def acknowledgement(context: Context) -> Outcome:
    """C5: segments are tracked and acknowledged."""
    count = 1_000_000
    context.impair(THERE, delay="10ms", loss="2%", seed=5)
    context.impair(BACK, delay="10ms")
    with context.lab.observe(captures=[THERE], snap_bytes=None) as seen:
        told = _transfer(context, 9520, count)
    dropped = context.lab.link(THERE).counters().dropped_packets
    context.keep_capture("C5.pcapng", seen.capture("server"))
    context.heal()
    connection = seen.host("client").connection(remote_port=9520)
    flow = next(each for each in seen.flows("server", "before") if each.server.src.port == 9520)
    unacked = connection.values(lambda state: state.unacked_segments)
    begin = unacked[0][0] if unacked else 0
    final = connection.final
    rows = [
        Row(condition="2 % loss, round trip 20 ms", held=told["count"] == count and final.unacked_segments == 0,
            values={"packets dropped": str(dropped), "duplicate acknowledgements": str(len(flow.server.duplicate_acks)),
                    "with SACK": str(len(flow.server.with_sack)),
                    "unacknowledged at most": str(max((value for _, value in unacked), default=0)),
                    "at the end": str(final.unacked_segments)}),
    ]  # fmt: skip
    tracked = dropped > 0 and bool(flow.server.with_sack)
    return Outcome(
        finding=finding_of(rows) if tracked else Finding.INVALID,
        sentence=f"Every byte was acknowledged: {dropped} packets were dropped, the receiver reported the gaps in "
        f"{len(flow.server.with_sack)} acknowledgements (SACK), and nothing was left unacknowledged.",
        rows=rows, mechanism={"dropped": dropped, "with_sack": len(flow.server.with_sack)},
        plot=Plot(title="Segments sent and not yet acknowledged", x="time, s", y="segments",
                  series={"unacknowledged": [((at - begin) / 1e9, float(value or 0)) for at, value in unacked]}),
    )  # fmt: skip


_SLOW = """
import json, socket, sys, time
heard = socket.socket(); heard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
heard.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384); heard.bind(("", int(sys.argv[1]))); heard.listen()
print("ready", flush=True); taken, _ = heard.accept()
time.sleep(float(sys.argv[2]))  # busy: this is the experiment
count = 0
while data := taken.recv(4096): count += len(data)
print(json.dumps({"count": count}))
"""


def flow_control(context: Context) -> Outcome:
    """C6: a busy receiver slows the sender; nothing is overrun, and nothing is sent again for it."""
    busy_s, count = 2.0, 4_000_000
    context.impair(BOTH, delay="5ms")
    with context.lab.observe(captures=[THERE]) as seen:
        sink = context.serve(_SLOW, 9530, busy_s)
        told = json.loads(context.call(_SEND, 9530, count, timeout="60s").stdout)
        heard = json.loads(sink.wait("60s").stdout.splitlines()[1])
    context.heal()
    client, server = seen.host("client").counters, seen.host("server").counters
    blocked_s = told["sent_s"] - told["began_s"]
    complete = heard["count"] == count
    rows = [
        Row(condition=f"a reader that is busy for {busy_s:g} s, buffer of 16 kB",
            held=complete and server.zero_windows_announced > 0 and blocked_s >= busy_s * 0.9 and not client.timeouts,
            values={"arrived": f"{heard['count']:,} of {count:,} bytes", "sender blocked": f"{blocked_s:.2f} s",
                    "zero windows": str(server.zero_windows_announced), "time-outs": str(client.timeouts),
                    "sent again": f"{client.retransmitted_segments} ({client.loss_probes} loss probes)"}),
    ]  # fmt: skip
    probes = client.retransmitted_segments
    extra = f"; {probes} segment{'s' * (probes != 1)} went twice, as a probe and not as a loss" if probes else ""
    return Outcome(
        finding=finding_of(rows) if not probes else Finding.HOLDS_WITHIN if rows[0].held else Finding.BREAKS,
        sentence=f"The receiver announced a zero window {server.zero_windows_announced} times, the sender stood still "
        f"for {blocked_s:.1f} s, and every byte arrived; no time-out was caused by it{extra}.",
        rows=rows, mechanism={"zero_windows": server.zero_windows_announced, "timeouts": client.timeouts,
                              "blocked_s": blocked_s},
    )  # fmt: skip


def no_delays(context: Context) -> Outcome:
    """C7: works without delays."""
    rows, series = [], {}
    grid = [("0ms", None), ("50ms", None), ("50ms", "2%"), ("50ms", "10%")]
    for number, (delay, loss) in enumerate(grid):
        words: dict[str, object] = {"delay": delay, "seed": number + 1} if delay != "0ms" else {"delay": "1us"}
        if loss:
            words["loss"] = loss
        context.impair(BOTH, None, **words)
        run = messages(context.lab, THERE, structure="threads", count=150, size_bytes=200, rate_per_s=100, deadline_s=8)
        there = run.judge().direction("client", "server")
        context.heal()
        half, worst = there.delay_quantile(0.5), there.delay_quantile(0.99)
        name = f"{delay} each way" + (f", {loss} lost" if loss else "")
        waited = there.head_of_line.max_s or 0.0
        delay_s = 0.05 if delay != "0ms" else 0.0
        held = half is not None and half.value <= delay_s + 0.02 and (not loss or (worst or half).value <= 2 * delay_s)
        rows.append(Row(
            condition=name, held=held,
            values={"delivered": f"{there.delivered + there.late} of {there.sent}",
                    "median": f"{half.value * 1e3:.1f} ms" if half else "—",
                    "99 %": f"{worst.value * 1e3:.0f} ms" if worst else "—",
                    "waited for the one before": f"up to {waited * 1e3:.0f} ms"},
        ))  # fmt: skip
        points = [(q * 100, seen.value * 1e3) for q in (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
                  if (seen := there.delay_quantile(q)) is not None]  # fmt: skip
        series[name] = points
    return Outcome(
        finding=Finding.BREAKS if not all(row.held for row in rows) else Finding.HOLDS,
        sentence="TCP adds no delay of its own while nothing is lost; with each loss, every message behind it waits "
        "for the retransmission (head-of-line blocking), many times the link's delay.",
        rows=rows, mechanism={"worst_ms": max(y for points in series.values() for _, y in points)},
        plot=Plot(title="Delivery time by quantile", x="share of messages, %", y="delivery time, ms", series=series,
                  logarithmic=True),
    )  # fmt: skip
