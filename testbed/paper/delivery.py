"""Claims about delivery: everything arrives, nothing is lost, figure 4 is printed, one structure is preferable."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from testbed.drive.messages import STRUCTURES, messages
from testbed.judge.claims import Finding, Outcome, Plot, Row, finding_of
from testbed.labs.waiting import NotSeenError, await_condition
from testbed.paper.context import BOTH, PAPER_PORT, THERE, Context

FIGURE_4 = "Message Test message"
_RECV_BYTES = 1024
_BACKLOG = 5

_STALL = """
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2]))); print("connected", flush=True)
s.recv(1)
"""
_PIECES = """
import json, socket, sys, time
s = socket.create_connection((sys.argv[1], int(sys.argv[2]))); told = []
for piece in (b"one", b"two", b"three"):
    try: told.append(s.send(piece))
    except OSError as error: told.append(type(error).__name__)
    time.sleep(0.4)
print(json.dumps(told))
"""
_STORM = """
import json, socket, sys, threading, time
count, told = int(sys.argv[3]), []
def one(number):
    began = time.monotonic()
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[4])) as s:
            s.send(b"storm %02d" % number); told.append(["sent", time.monotonic() - began])
    except OSError as error: told.append([type(error).__name__, time.monotonic() - began])
threads = [threading.Thread(target=one, args=(n,)) for n in range(count)]
[t.start() for t in threads]; [t.join() for t in threads]
print(json.dumps(told))
"""
_PATIENCE = """
import json, os, socket, sys, time
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
s.setsockopt(socket.IPPROTO_TCP, 18, int(sys.argv[3]))  # TCP_USER_TIMEOUT
print("connected", flush=True)
while not os.path.exists("/tmp/go"): time.sleep(0.01)
told = s.send(b"late"); error = ""
try: s.recv(1)
except OSError as caught: error = type(caught).__name__
print(json.dumps({"sent": told, "error": error}))
"""


def _printed(context: Context) -> list[str]:
    return context.lab.host("server").logs().splitlines()


def _await_line(context: Context, line: str, deadline_s: float = 60.0) -> bool:
    return _await(lambda: line in _printed(context), deadline_s)


def _await(look: Callable[[], bool], deadline_s: float) -> bool:
    """Whether it came to be in time."""
    try:
        await_condition(look, bool, deadline_s=deadline_s)
    except NotSeenError:
        return False
    return True


def delivery(context: Context) -> Outcome:
    """C2: every segment is delivered, without exception."""
    rows = [_over_links(context, name, words) for name, words in _LINKS]
    facts: dict[str, float] = {}
    for breaking in (_edge, _pieces, _backlog, _outage):
        found, numbers = breaking(context)
        rows += found
        facts.update(numbers)
    broken = [row.condition for row in rows if row.held is False]
    return Outcome(
        finding=finding_of(rows),
        sentence="Over every link that passes packets at last, TCP delivered all that the kernel took. What is lost is "
        f"lost at the ends, and mostly in silence: {'; '.join(broken)}.",
        rows=rows, mechanism=facts,
    )  # fmt: skip


_LINKS: tuple[tuple[str, dict[str, object]], ...] = (
    ("5 % loss", {"delay": "10ms", "loss": "5%", "seed": 1}),
    ("bursts of 3 at 5 %", {"delay": "10ms", "loss": "5%", "burst": 3, "seed": 2}),
    ("2 % corrupt", {"delay": "10ms", "corrupt": "2%", "seed": 3}),
)


def _over_links(context: Context, name: str, words: dict[str, object]) -> Row:
    context.impair(BOTH, None, **words)
    run = messages(context.lab, THERE, structure="threads", count=100, size_bytes=300, rate_per_s=200, replies=True)
    account = run.judge()
    there = account.direction("client", "server")
    text = f"delivery over {name}"
    context.paper_client(text)
    paper = _await_line(context, f"Message {text}")
    context.heal()
    return Row(
        condition=name, held=there.delivered + there.late == there.sent and paper,
        values={"messages": f"{there.delivered + there.late} of {there.sent}", "the paper's message": str(paper),
                "told": "—"},
    )  # fmt: skip


def _edge(context: Context) -> tuple[list[Row], dict[str, float]]:
    """The paper's ``recv(1024)``: a byte more is lost, and the client is told nothing."""
    rows: list[Row] = []
    numbers: dict[str, float] = {}
    for size in (_RECV_BYTES, _RECV_BYTES + 1):
        before = len(_printed(context))
        message = "x" * size
        told = context.paper_client(message)
        await_condition(lambda before=before: len(_printed(context)) > before, bool, deadline_s=30)  # type: ignore[misc]  # of this turn
        arrived = len(_printed(context)[before].removeprefix("Message "))
        numbers[f"arrived_of_{size}"] = arrived
        rows.append(Row(
            condition=f"a message of {size:,} bytes to the paper's server", held=arrived == size,
            values={"messages": f"{arrived:,} of {size:,} bytes", "the paper's message": str(arrived == size),
                    "told": f"client: {told.get('error', 'nothing')}"},
        ))  # fmt: skip
    return rows, numbers


def _pieces(context: Context) -> tuple[list[Row], dict[str, float]]:
    """Three small pieces: the server reads one and closes; the error comes with the third."""
    before = len(_printed(context))
    told = json.loads(context.call(_PIECES, PAPER_PORT).stdout)
    lines = _printed(context)[before:]
    return [Row(
        condition="a message in three small pieces to the paper's server", held="Message onetwothree" in lines,
        values={"messages": f"server printed {lines}", "the paper's message": "False",
                "told": f"client: send returned {told}"},
    )], {"first_error_at_piece": next((n for n, each in enumerate(told, 1) if isinstance(each, str)), 0)}  # fmt: skip


def _backlog(context: Context) -> tuple[list[Row], dict[str, float]]:
    """Twelve clients at once, while the iterative server sits in ``recv`` for one that says nothing."""
    before = len(_printed(context))
    stalled = context.begin(_STALL, PAPER_PORT, ready="connected")
    with context.lab.observe() as seen:
        told = json.loads(context.call(_STORM, PAPER_PORT, 12, 3.0).stdout)
        stalled.stop("SIGKILL")
        sent = sum(what == "sent" for what, _took in told)
        # What was accepted comes now; who gave up will not.
        await_condition(lambda: len(_printed(context)) - before, lambda count: count >= sent + 1, deadline_s=30)
    counters = seen.host("server").counters
    printed = sum(line.startswith("Message storm") for line in _printed(context)[before:])
    return [Row(
        condition="twelve clients at once while the paper's server waits for another", held=printed == 12,
        values={"messages": f"{printed} of 12", "the paper's message": "—",
                "told": f"{sent} sent, {12 - sent} timed out; the listener's queue overflowed "
                        f"{counters.listen_overflows} times"},
    )], {"storm_delivered": printed, "listen_overflows": counters.listen_overflows}  # fmt: skip


_OUTAGE_S, _USER_TIMEOUT_MS, _HEARD_S = 5.0, 2000, 20.0


def _outage(context: Context) -> tuple[list[Row], dict[str, float]]:
    """An outage shorter and longer than the connection's patience, each with a server of its own: it may hang."""
    rows: list[Row] = []
    numbers: dict[str, float] = {}
    for number, patience_ms in enumerate((60_000, _USER_TIMEOUT_MS)):
        port = 8890 + number
        server = context.lab.host("server").start(["python3", "paper_server.py", "", str(port)], ready=port)
        context.lab.host("client").run(["rm", "-f", "/tmp/go"])  # noqa: S108  # in a container
        program = context.begin(_PATIENCE, port, patience_ms, ready="connected")
        context.lab.cut(BOTH)
        context.lab.host("client").run(["touch", "/tmp/go"])  # noqa: S108  # in a container
        time.sleep(_OUTAGE_S)  # not readiness: an outage of that length is the condition
        context.lab.verify()
        context.lab.mend()
        told = json.loads(program.wait("60s").stdout.splitlines()[-1])
        arrived = _await(lambda server=server: "Message late" in server.output, _HEARD_S)  # type: ignore[misc]  # of this turn
        waits = any(
            each["local_port"] == port and each["state"] == "ESTABLISHED"
            for each in context.lab.host("server").connections()
        )
        server.stop("SIGKILL")
        which = "shorter" if patience_ms > _OUTAGE_S * 1000 else "longer"
        numbers[f"arrived_outage_{which}"] = float(arrived)
        hangs = "; the server waits in recv for ever" if waits and not arrived else ""
        rows.append(Row(
            condition=f"an outage of {_OUTAGE_S:g} s, {which} than the connection's time-out", held=arrived,
            values={"messages": f"{int(arrived)} of 1", "the paper's message": "—",
                    "told": f"client: {told['error'] or 'nothing'}{hangs}"},
        ))  # fmt: skip
    return rows, numbers


def no_losses(context: Context) -> Outcome:
    """C8: "no losses were detected"."""
    whole = delivery(context)
    lost = [row for row in whole.rows if row.held is False]
    unheard = [row for row in lost if row.values.get("told", "").endswith("nothing")]
    return Outcome(
        finding=whole.finding,
        sentence=f"No losses were detected because nobody looked: of {len(whole.rows)} conditions {len(lost)} lose "
        f"data, {len(unheard)} of them without a word to the client; between the kernels nothing was lost.",
        rows=whole.rows, mechanism={"conditions": len(whole.rows), "losing": len(lost), "unheard": len(unheard)},
    )  # fmt: skip


def figure_4(context: Context) -> Outcome:
    """C11: the message is printed, byte for byte, over every profile."""
    every = sorted(name for name, profile in context.lab.profiles.items() if name != "blackhole" and name != "awful")
    names = ["clean", "lossy", "satellite-geo", "duplicating"] if context.quick else every
    rows = []
    for name in names:
        before = _printed(context).count(FIGURE_4)
        context.impair(BOTH, name)
        began = time.monotonic()
        context.paper_client("Test message", timeout="120s")
        sentinel = f"after {name} {before}"
        context.paper_client(sentinel, timeout="120s")
        heard = _await_line(context, f"Message {sentinel}", 120.0)
        took_s = time.monotonic() - began
        context.heal()
        printed = _printed(context).count(FIGURE_4) - before
        rows.append(Row(
            condition=name, held=heard and printed == 1,
            values={"printed": f"{printed} time{'s' * (printed != 1)}", "both messages took": f"{took_s:.2f} s"},
        ))  # fmt: skip
    return Outcome(
        finding=finding_of(rows),
        sentence=f"Figure 4's line, {FIGURE_4!r}, was printed byte for byte and exactly once over "
        f"{sum(bool(row.held) for row in rows)} of {len(rows)} profiles.",
        rows=rows, mechanism={"profiles": len(rows)},
    )  # fmt: skip


def structures(context: Context) -> Outcome:
    """C9: one or another blocking structure is preferable."""
    rows, bars = [], {}
    counts = (1, 10) if context.quick else (1, 10, 100, 300)
    for structure in STRUCTURES:
        port = 9600 + STRUCTURES.index(structure)
        server = context.lab.host("server").start(
            ["python3", "server.py", "--structure", structure, "--port", str(port)], ready=port
        )
        try:
            stalled = context.begin(_STALL, port, ready="connected")
            delivered, waited_s = _clients(context, port, 10, deadline_s=4)
            stalled.stop("SIGKILL")
            series = []
            for count in counts:
                done, took_s = _clients(context, port, count, deadline_s=20)
                series.append((float(count), took_s))
                if done < count:
                    break
            memory_kb, cpu_s = _cost(context, structure)
        finally:
            server.stop("SIGKILL")
        bars[structure] = series
        rows.append(Row(
            condition=structure, held=delivered == 10,
            values={"of 10 beside a stalled client": f"{delivered} answered", "waited": f"{waited_s:.2f} s",
                    "clients at once, most tried": f"{int(series[-1][0])} in {series[-1][1]:.2f} s",
                    "memory": f"{memory_kb / 1024:.1f} MiB", "CPU": f"{cpu_s:.2f} s"},
        ))  # fmt: skip
    held = {row.condition for row in rows if row.held}
    right = "iterative" not in held and held == set(STRUCTURES) - {"iterative"}
    return Outcome(
        finding=Finding.HOLDS_WITHIN if right else finding_of(rows),
        sentence="It matters: one client that says nothing stops the paper's iterative server for all others; threads, "
        "processes, selectors and asyncio answer everybody. Where every client speaks at once, all five deliver.",
        rows=rows, mechanism={f"{row.condition}_answered": float(row.values["of 10 beside a stalled client"].split()[0])
                              for row in rows},
        plot=Plot(title="All clients answered", x="clients at once", y="time, s", series=bars, logarithmic=True),
    )  # fmt: skip


_ASK = """
import json, socket, struct, sys, threading, time
sys.path.insert(0, "/app")
import wire
count, deadline, done, began = int(sys.argv[3]), float(sys.argv[4]), [], time.monotonic()
def one(number):
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=deadline) as s:
            s.settimeout(deadline); s.sendall(wire.frame(wire.REQUEST, number, 0, time.monotonic_ns(), 100))
            got = b""
            while len(got) < wire.HEADER_BYTES:
                data = s.recv(4096)
                if not data: return
                got += data
            done.append(time.monotonic() - began)
    except OSError: pass
threads = [threading.Thread(target=one, args=(n,)) for n in range(count)]
[t.start() for t in threads]; [t.join() for t in threads]
print(json.dumps(done))
"""


def _clients(context: Context, port: int, count: int, *, deadline_s: float) -> tuple[int, float]:
    """So many clients at once with a request each: how many were answered, and when the last was."""
    done = json.loads(context.call(_ASK, port, count, deadline_s, timeout=f"{deadline_s * 3 + 20:g}s").stdout)
    return len(done), max(done, default=deadline_s)


_COST = """
import os, sys
total, ticks = 0, 0
for pid in filter(str.isdecimal, os.listdir("/proc")):
    try:
        words = open(f"/proc/{pid}/cmdline").read().split("\\0")
        if "server.py" in words and sys.argv[1] in words:
            total += int(open(f"/proc/{pid}/statm").read().split()[1]) * 4
            fields = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    except OSError: pass
print(total, ticks / os.sysconf("SC_CLK_TCK"))
"""


def _cost(context: Context, structure: str) -> tuple[int, float]:
    """Resident memory in KiB and CPU seconds of a server and its children."""
    told = context.lab.host("server").run(["python3", "-c", _COST, structure]).stdout.split()
    return int(told[0]), float(told[1])
