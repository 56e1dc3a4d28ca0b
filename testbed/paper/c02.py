"""C2: every segment is delivered, without exception; C8: no losses were detected."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from testbed.drive.messages import PORTS, exchange
from testbed.evidence.verdict import Verdict
from testbed.lab.host import Program
from testbed.lab.waiting import NotSeenError, await_condition
from testbed.observe.wire import Flow
from testbed.paper.context import BOTH, PAPER_PORT, THERE, Context, NotAsMeantError, said
from testbed.paper.outcomes import Outcome, Plot, Row, finding_of, unless

_RECV_BYTES = 1024
"""Of the paper's ``recv(1024)``."""
_BACKLOG = 5
"""Of the paper's ``listen(5)``."""
_STORM = 12
_STORM_PATIENCE_S, _QUICK_PATIENCE_S = 3.0, 1.5  # over 1 s: who is refused at first tries again then (RFC 6298, 2.1)
_OUTAGE_S = 1.0
_LINKS: tuple[tuple[str, dict[str, object]], ...] = (
    ("5 % loss", {"delay": "10ms", "loss": "5%", "seed": 1}),
    ("bursts of 3 at 5 %", {"delay": "10ms", "loss": "5%", "burst": 3, "seed": 2}),
    ("2 % corrupt", {"delay": "10ms", "corrupt": "2%", "seed": 3}),
    ("an outage of 1 s", {"delay": "10ms"}),
    ("20 % loss", {"delay": "10ms", "loss": "20%", "seed": 4}),
    ("bursts of 5 at 10 %", {"delay": "10ms", "loss": "10%", "burst": 5, "seed": 5}),
    ("10 % corrupt", {"delay": "10ms", "corrupt": "10%", "seed": 6}),
)
_QUICK_LINKS = slice(1, 4)
_SILENT, _UNASKED = "nothing", "—"

Numbers = dict[str, float]


def delivery(context: Context) -> Outcome:
    """Our framed messages and the paper's cross links that lose, corrupt and fail for a while; then five ways to lose.

    Held if each message arrives whole. The oracle accounts for ours one by one; of the paper's the server's printed
    line counts. The ways to lose: a message longer than ``recv(1024)``, one in three pieces, a peer that closes with
    unread data, more clients than ``listen(5)`` has room for, and an outage longer than the sender's patience.
    """
    rows: list[Row] = []
    facts: Numbers = {}
    for name, words in _LINKS[_QUICK_LINKS] if context.quick else _LINKS:
        context.say(f"C2: {name}")
        rows.append(_over_links(context, name, words))
    links = len(rows)
    context.await_closed(PAPER_PORT)
    for breaking in (_edge, _pieces, _unread, _backlog, _outages):
        context.say(f"C2: {(breaking.__doc__ or '').splitlines()[0]}")
        found, numbers = breaking(context)
        rows += found
        facts.update(numbers)
    context.keep_json(
        "C2.json", {"rows": [{"condition": row.condition, **row.values} for row in rows], "numbers": facts}
    )
    delivered = [(float(at), float(row.values["delivered"].rstrip(" %"))) for at, row in enumerate(rows)]
    return Outcome(
        finding=finding_of(rows),
        sentence=unless(
            rows[:links],
            "Between the kernels it holds over every link that passes packets at last; at the ends it does not. "
            "What was lost or corrupted on the way was sent again.",
        ) + f" But {_sentence(facts)}.",
        rows=rows, mechanism=facts,
        plots=[Plot(title="Share of the bytes sent that the receiving program got", x="condition", y="delivered, %",
                    series={"delivered": delivered}, categories=tuple(row.condition for row in rows))],
    )  # fmt: skip


def _sentence(facts: Mapping[str, float]) -> str:
    return (
        f"of {_RECV_BYTES + 1:,} bytes to the paper's server {facts['arrived_of_1025']:,.0f} arrive and the client is "
        f"told {'nothing' if not facts['told_of_1025'] else 'of it'}; of three small pieces one arrives, and the first "
        f"error comes with piece {facts['first_error_at_piece']:.0f}; of {_STORM} clients at once "
        f"{facts['storm_delivered']:.0f} get through listen({_BACKLOG}); and what an outage keeps longer than the "
        "connection's time-out is lost"
    )


# --- over links --------------------------------------------------------------------------------------


def _over_links(context: Context, name: str, words: dict[str, object]) -> Row:
    text = f"delivery over {name}"
    context.impair(BOTH, None, **words)
    cut = "outage" in name
    with exchange(
        context.lab, THERE, structure="threads", count=100, size_bytes=300, rate_per_s=100 if cut else 200, replies=True
    ) as running:
        if cut:
            running.await_server_busy(10)
            with _outage(context, _OUTAGE_S):
                paper = context.begin_paper_client(text)
                await_condition(lambda: _connecting(context), bool, deadline_s=10)
            context.told(paper)
        else:
            context.paper_client(text)
        run = running.finish()
    account = run.judge()
    there = account.direction("client", "server")
    printed = _await_line(context, f"Message {text}")
    context.heal()
    context.await_closed(PORTS["tcp"])
    if cut:
        context.keep_journals("C2-outage", run.journals)
    arrived = there.delivered + there.late
    kernels = run.evidence.kernel.values()
    lost = sum(each.dropped_packets for each in run.evidence.links.values())
    corrupt = sum(each["Tcp"]["InCsumErrors"] + each["Ip"]["InHdrErrors"] for each in kernels)
    again = sum(each["Tcp"]["RetransSegs"] for each in kernels)
    if not again:
        raise NotAsMeantError(f"{name}: nothing had to be sent again, of {lost} packets lost and {corrupt} corrupt")
    return Row(
        condition=name, held=arrived == there.sent and printed and account.passed,
        values={"delivered": f"{100 * arrived / there.sent:.0f} %",
                "what": f"{arrived} of {there.sent} of ours, the paper's {'' if printed else 'not '}printed",
                "client told": _UNASKED,
                "mechanism": f"{lost} packets lost, {corrupt} refused as corrupt, {again} sent again"},
    )  # fmt: skip


@contextmanager
def _outage(context: Context, least_s: float) -> Iterator[None]:
    """Cut the link both ways for as long as the block takes, and for so long after a packet was lost in it."""
    before = context.lab.link(THERE).lost_in_cut()
    context.lab.cut(BOTH)
    await_condition(lambda: context.lab.link(THERE).lost_in_cut() - before, bool, deadline_s=30)
    yield
    time.sleep(least_s)  # not readiness: an outage of that length is the condition
    context.lab.verify()
    context.lab.mend()


def _connecting(context: Context) -> bool:
    """Whether the paper's client has sent a SYN that is not answered."""
    return any(each["remote_port"] == PAPER_PORT and each["state"] == "SYN-SENT"
               for each in context.lab.host("client").connections())  # fmt: skip


def _await_line(context: Context, line: str, deadline_s: float = 60.0) -> bool:
    try:
        await_condition(context.printed, lambda lines: line in lines, deadline_s=deadline_s)
    except NotSeenError:
        return False
    return True


def _next_lines(context: Context, before: int, count: int = 1, *, deadline_s: float = 60.0) -> list[str]:
    """What the paper's server prints after so many lines. Raises NotSeenError if it is less than ``count``."""
    return await_condition(lambda: context.printed()[before:], lambda lines: len(lines) >= count, deadline_s=deadline_s)


# --- at the ends -------------------------------------------------------------------------------------


def _edge(context: Context) -> tuple[list[Row], Numbers]:
    """The paper's ``recv(1024)``: a byte more is lost, and the client is told nothing."""
    rows: list[Row] = []
    numbers: Numbers = {}
    for size in (_RECV_BYTES, _RECV_BYTES + 1):
        before = len(context.printed())
        with context.lab.observe(captures=[THERE]) as seen:
            told = context.paper_client("x" * size)
            (line,) = _next_lines(context, before)
            context.await_closed(PAPER_PORT)
        arrived = len(line.removeprefix("Message "))
        resets = _resets(seen.flows("server"))
        error = told.get("error")
        aborts = seen.host("server").counters.aborts_on_close
        numbers |= {f"arrived_of_{size}": arrived, f"told_of_{size}": float(error is not None),
                    f"aborts_on_close_of_{size}": aborts}  # fmt: skip
        if size > _RECV_BYTES:
            context.keep_flows("C2-1025-bytes.txt", _to_paper(seen.flows("server")))
            context.keep_capture("C2-1025-bytes.pcapng", seen.capture("server"))
        rows.append(Row(
            condition=f"a message of {size:,} bytes to the paper's server", held=arrived == size,
            values={"delivered": f"{100 * arrived / size:.1f} %", "what": f"{arrived:,} of {size:,} bytes",
                    "client told": str(error or _SILENT),
                    "mechanism": f"recv({_RECV_BYTES}) and close with {size - arrived} unread: {resets} RST" if aborts
                    else "read in one go"},
        ))  # fmt: skip
    return rows, numbers


def _pieces(context: Context) -> tuple[list[Row], Numbers]:
    """Three small pieces: the server reads one and closes; the error comes with the third."""
    pieces = ("one", "two", "three")
    before = len(context.printed())
    with context.lab.observe(captures=[THERE]) as seen:
        told = json.loads(context.call("pieces", PAPER_PORT, *pieces).stdout)
        lines = _next_lines(context, before)
    context.keep_flows("C2-three-pieces.txt", _to_paper(seen.flows("server")))
    resets = _resets(seen.flows("server"))
    arrived = len("".join(line.removeprefix("Message ") for line in lines))
    whole = len("".join(pieces))
    error = next((number for number, each in enumerate(told, 1) if isinstance(each, str)), 0)
    return [Row(
        condition="a message in three small pieces to the paper's server", held=arrived == whole,
        values={"delivered": f"{100 * arrived / whole:.0f} %",
                "what": f"{arrived} of {whole} bytes: {', '.join(lines)}",
                "client told": f"send: {', '.join(map(str, told))}",
                "mechanism": f"closed after the first; the second is answered with {resets} RST"},
    )], {"first_error_at_piece": error, "arrived_of_pieces": arrived, "resets_of_pieces": resets}  # fmt: skip


def _unread(context: Context) -> tuple[list[Row], Numbers]:
    """A peer that closes with unread data resets the connection; a client that listens hears of it."""
    size = 3 * _RECV_BYTES
    before = len(context.printed())
    with context.lab.observe(captures=[THERE]) as seen:
        told = json.loads(context.call("listening_client", PAPER_PORT, size).stdout)
        (line,) = _next_lines(context, before)
    arrived = len(line.removeprefix("Message "))
    context.keep_flows("C2-unread-data.txt", _to_paper(seen.flows("server")))
    return [Row(
        condition=f"{size:,} bytes from a client that listens for the end", held=arrived == size,
        values={"delivered": f"{100 * arrived / size:.0f} %", "what": f"{arrived:,} of {size:,} bytes",
                "client told": f"send: {told['taken']:,}; recv: {told['heard']}",
                "mechanism": f"close with unread data: {_resets(seen.flows('server'))} RST (RFC 2525 2.17)"},
    )], {"arrived_of_3072": arrived, "reset_heard": float(told["heard"] == "ConnectionResetError")}  # fmt: skip


def _backlog(context: Context) -> tuple[list[Row], Numbers]:
    """Twelve clients at once, while the iterative server sits in ``recv`` for one that says nothing."""
    before = len(context.printed())
    patience_s = _QUICK_PATIENCE_S if context.quick else _STORM_PATIENCE_S
    stalled = context.begin("stall", PAPER_PORT, ready="connected")
    with context.lab.observe(hosts=["server"], captures=[]) as seen:
        told = json.loads(context.call("storm", PAPER_PORT, _STORM, patience_s).stdout)
        stalled.stop("SIGKILL")
        sent = sum(what == "sent" for what, _took in told)
        # The queue is accepted now, the stalled client's empty message first. Not every message that a client sent
        # need come: the kernel may have forgotten a connection that it had no room for.
        context.await_closed(PAPER_PORT, 120)
        with suppress(NotSeenError):
            _next_lines(context, before, sent + 1, deadline_s=5)
        lines = context.printed()[before:]
    counters = seen.host("server").counters
    printed = sum(line.startswith("Message storm") for line in lines)
    others: dict[str, int] = {}
    for what, _took in told:
        if what != "sent":
            others[what] = others.get(what, 0) + 1
    refused = ", ".join(f"{count} {what}" for what, count in others.items())
    return [Row(
        condition=f"{_STORM} clients at once while the paper's server waits for another", held=printed == _STORM,
        values={"delivered": f"{100 * printed / _STORM:.0f} %", "what": f"{printed} of {_STORM} messages",
                "client told": f"{sent} sent, {refused or 'none refused'} after {patience_s:g} s",
                "mechanism": f"listen({_BACKLOG}) holds {_BACKLOG + 1}; {counters.listen_overflows} overflows"},
    )], {"storm_delivered": printed, "storm_sent": sent, "listen_overflows": counters.listen_overflows}  # fmt: skip


def _outages(context: Context) -> tuple[list[Row], Numbers]:
    """One outage, shorter than one connection's patience and longer than another's (TCP_USER_TIMEOUT)."""
    outage_s, short_ms = (1.2, 500) if context.quick else (8.0, 3000)
    flag = context.flag("client")
    servers: dict[str, Program] = {}
    clients: dict[str, Program] = {}
    for number, (which, timeout_ms) in enumerate((("shorter", 0), ("longer", short_ms))):
        port = 8890 + number  # a server each: one that waits for ever must not hold up the other's
        servers[which] = context.lab.host("server").start(["python3", "paper_server.py", "", str(port)], ready=port)
        clients[which] = context.begin("patience", port, timeout_ms, flag, ready="connected")
    context.lab.cut(BOTH)
    before = context.lab.link(THERE).lost_in_cut()
    flag.raise_()
    await_condition(lambda: context.lab.link(THERE).lost_in_cut() - before, lambda lost: lost >= 2, deadline_s=30)
    time.sleep(outage_s)  # not readiness: an outage of that length is the condition
    context.lab.verify()
    lost = context.lab.link(THERE).lost_in_cut() - before
    context.lab.mend()
    rows: list[Row] = []
    numbers: Numbers = {"lost_in_outage": lost}
    for which, client in clients.items():
        told = said(client)
        if not told["error"]:
            _await_output(servers[which], "Message late")
        elif any(each["remote_port"] == 8891 for each in context.lab.host("client").connections()):
            raise NotAsMeantError("the client was told of an error, and its kernel still works on the connection")
        arrived = "Message late" in servers[which].output
        waits = any(each["local_port"] == 8891 and each["state"] == "ESTABLISHED"
                    for each in context.lab.host("server").connections()) and not arrived  # fmt: skip
        patience = "the kernel's own patience" if which == "shorter" else f"a time-out of {short_ms / 1000:g} s"
        numbers[f"arrived_outage_{which}"] = float(arrived)
        rows.append(Row(
            condition=f"an outage of {outage_s:g} s, {which} than the connection's time-out", held=arrived,
            values={"delivered": "100 %" if arrived else "0 %", "what": f"{int(arrived)} of 1 message",
                    "client told": f"send: {told['taken']}; then {told['error'] or 'end of file'}",
                    "mechanism": patience + ("; the server waits in recv for ever" if waits else "")},
        ))  # fmt: skip
    for server in servers.values():
        server.stop("SIGKILL")
    return rows, numbers


def _await_output(program: Program, text: str) -> None:
    await_condition(lambda: program.output, lambda output: text in output, deadline_s=60)


def _to_paper(found: list[Flow]) -> list[Flow]:
    return [each for each in found if each.server.src.port == PAPER_PORT]


def _resets(found: list[Flow]) -> int:
    return sum(len(each.server.resets) for each in _to_paper(found))


# --- C8 ----------------------------------------------------------------------------------------------


def no_losses(context: Context) -> Outcome:
    """C2's experiment again, read for one thing: who detected what."""
    whole = context.earlier.get("C2") or delivery(context)
    if whole.finding is Verdict.INVALID:
        raise NotAsMeantError(f"it rests on C2, which is INVALID: {whole.sentence}")
    losing = [row for row in whole.rows if row.held is False]
    between = [row for row in losing if row.values["client told"] == _UNASKED]
    silent = [row for row in losing if row.values["client told"] == _SILENT]
    return Outcome(
        finding=finding_of(whole.rows),
        sentence=f"“No losses were detected” because nobody looked: of {len(whole.rows)} conditions "
        f"{len(losing) - len(between)} lost data at the ends, {len(silent)} of them without a word to the client, and "
        f"{len(between) or 'none'} between the kernels.",
        rows=[Row(condition=row.condition, held=row.held,
                  values={"lost": "nothing" if row.held else "data", "client told": row.values["client told"]})
              for row in whole.rows],
        mechanism={"conditions": len(whole.rows), "losing": len(losing), "unheard": len(silent)},
        plots=whole.plots,
    )  # fmt: skip
