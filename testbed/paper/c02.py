"""C2: every segment is delivered, without exception; C8: no losses were detected."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace

from testbed.drive.messages import PORTS, exchange
from testbed.evidence.verdict import Verdict
from testbed.lab.host import Program
from testbed.lab.waiting import NotSeenError, await_condition
from testbed.observe.wire import Flow
from testbed.paper.context import BOTH, PAPER_PORT, THERE, ExperimentContext, NotAsMeantError, printed_json
from testbed.paper.outcomes import ClaimOutcome, Condition, Plot, finding_of, unless

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
_NOT_INFORMED = "nothing"

Numbers = dict[str, float]


def delivery(context: ExperimentContext) -> ClaimOutcome:
    """Our framed messages and the paper's cross links that lose, corrupt and fail for a while; then five ways to lose.

    Held if each message arrives whole. The oracle accounts for ours one by one; of the paper's the server's printed
    line counts. The ways to lose: a message longer than ``recv(1024)``, one in three pieces, a peer that closes with
    unread data, more clients than ``listen(5)`` has room for, and an outage longer than the sender's patience.
    """
    rows: list[Condition] = []
    facts: Numbers = {}
    for name, words in _LINKS[_QUICK_LINKS] if context.quick else _LINKS:
        context.say(f"C2: {name}")
        rows.append(_over_links(context, name, words))
    links = len(rows)
    context.await_closed(PAPER_PORT)
    for breaking in (_edge, _pieces, _unread, _backlog, _outages):
        context.say(f"C2: {(breaking.__doc__ or '').splitlines()[0]}")
        conditions, numbers = breaking(context)
        rows += conditions
        facts.update(numbers)
    context.keep_json("C2.json", {"rows": [{"condition": row.name, **row.values} for row in rows], "numbers": facts})
    delivered = [(float(at), 100 * row.numbers["delivered_ratio"]) for at, row in enumerate(rows)]
    return ClaimOutcome(
        finding=finding_of(rows),
        sentence=unless(
            rows[:links],
            "Between the kernels it holds over every link that passes packets at last; at the ends it does not. "
            "What was lost or corrupted on the way was sent again.",
        )
        + f" But {_sentence(facts)}.",
        rows=rows,
        mechanism=facts,
        plots=[
            Plot(
                title="Share of the bytes sent that the receiving program got",
                x="condition",
                y="delivered, %",
                series={"delivered": delivered},
                categories=tuple(row.name for row in rows),
            )
        ],
    )


def _sentence(facts: Mapping[str, float]) -> str:
    return (
        f"of {_RECV_BYTES + 1:,} bytes to the paper's server {facts['arrived_of_1025']:,.0f} arrive and the client is "
        f"{'not ' if not facts['informed_of_1025'] else ''}informed; of three small pieces one arrives, and the first "
        f"error comes with piece {facts['first_error_at_piece']:.0f}; of {_STORM} clients at once "
        f"{facts['storm_delivered']:.0f} get through listen({_BACKLOG}); and what an outage keeps longer than the "
        "connection's time-out is lost"
    )


# --- over links --------------------------------------------------------------------------------------


def _over_links(context: ExperimentContext, name: str, words: dict[str, object]) -> Condition:
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
            context.client_times(paper)
        else:
            context.paper_client(text)
        run = running.finish()
    account = run.judge()
    direction = account.direction("client", "server")
    printed = _await_line(context, f"Message {text}")
    context.heal()
    context.await_closed(PORTS["tcp"])
    if cut:
        context.keep_journals("C2-outage", run.journals)
    arrived, sent = direction.arrived, direction.sent
    kernels = run.evidence.kernel.values()
    lost = sum(link.dropped_packets for link in run.evidence.links.values())
    corrupt = sum(counters["Tcp"]["InCsumErrors"] + counters["Ip"]["InHdrErrors"] for counters in kernels)
    again = sum(counters["Tcp"]["RetransSegs"] for counters in kernels)
    if not again:
        raise NotAsMeantError(f"{name}: nothing had to be sent again, of {lost} packets lost and {corrupt} corrupt")
    return Condition(
        name=name,
        held=arrived == sent and printed and account.passed,
        values={
            "delivered": f"{100 * arrived / sent:.0f} %",
            "what": f"{arrived} of {sent} of ours, the paper's {'' if printed else 'not '}printed",
            "client informed of": "—",
            "mechanism": f"{lost} packets lost, {corrupt} refused as corrupt, {again} sent again",
        },
        numbers={"delivered_ratio": arrived / sent},
    )


@contextmanager
def _outage(context: ExperimentContext, least_s: float) -> Iterator[None]:
    """Cut the link both ways for as long as the block takes, and ``least_s`` more."""
    before = context.lab.link(THERE).lost_in_cut()
    context.lab.cut(BOTH)
    await_condition(lambda: context.lab.link(THERE).lost_in_cut() - before, bool, deadline_s=30)
    yield
    time.sleep(least_s)  # not readiness: an outage of that length is the condition
    context.lab.verifier.verify()
    context.lab.mend()


def _connecting(context: ExperimentContext) -> bool:
    """Whether the paper's client waits for the answer to a SYN."""
    connections = context.lab.host("client").connections()
    return any((end["remote_port"], end["state"]) == (PAPER_PORT, "SYN-SENT") for end in connections)


def _await_line(context: ExperimentContext, line: str, deadline_s: float = 60.0) -> bool:
    try:
        await_condition(context.printed, lambda lines: line in lines, deadline_s=deadline_s)
    except NotSeenError:
        return False
    return True


def _next_lines(context: ExperimentContext, before: int, count: int = 1, *, deadline_s: float = 60.0) -> list[str]:
    """The paper's server's lines after the first ``before``. Raises NotSeenError if there are less than ``count``."""
    return await_condition(lambda: context.printed()[before:], lambda lines: len(lines) >= count, deadline_s=deadline_s)


# --- at the ends -------------------------------------------------------------------------------------


def _at_end(name: str, *, ratio: float, what: str, informed: str, mechanism: str, silent: bool = False) -> Condition:
    """A condition that loses data at an end; ``silent``: without an error for the client."""
    return Condition(
        name=name,
        held=ratio == 1,
        values={
            "delivered": f"{round(100 * ratio, 1):g} %",
            "what": what,
            "client informed of": informed,
            "mechanism": mechanism,
        },
        numbers={"delivered_ratio": ratio, "at_an_end": 1.0, "silent": float(silent)},
    )


def _edge(context: ExperimentContext) -> tuple[list[Condition], Numbers]:
    """The paper's ``recv(1024)``: a byte more is lost, and the client is not informed."""
    rows: list[Condition] = []
    numbers: Numbers = {}
    for size in (_RECV_BYTES, _RECV_BYTES + 1):
        before = len(context.printed())
        with context.lab.observe(captures=[THERE]) as seen:
            times = context.paper_client("x" * size)
            (line,) = _next_lines(context, before)
            context.await_closed(PAPER_PORT)
        arrived = len(line.removeprefix("Message "))
        resets = _resets(seen.flows("server"))
        error = times.get("error")
        aborts = seen.host("server").counters.aborts_on_close
        numbers |= {f"arrived_of_{size}": arrived, f"informed_of_{size}": float(error is not None)}
        numbers[f"aborts_on_close_of_{size}"] = aborts
        if size > _RECV_BYTES:
            context.keep_flows("C2-1025-bytes.txt", _to_paper(seen.flows("server")))
            context.keep_capture("C2-1025-bytes.pcapng", seen.capture("server"))
        rows.append(
            _at_end(
                f"a message of {size:,} bytes to the paper's server",
                ratio=arrived / size,
                what=f"{arrived:,} of {size:,} bytes",
                informed=str(error or _NOT_INFORMED),
                mechanism=f"recv({_RECV_BYTES}) and close with {size - arrived} unread: {resets} RST"
                if aborts
                else "read in one go",
                silent=error is None,
            )
        )
    return rows, numbers


def _pieces(context: ExperimentContext) -> tuple[list[Condition], Numbers]:
    """Three small pieces: the server reads one and closes; the error comes with the third."""
    pieces = ("one", "two", "three")
    before = len(context.printed())
    with context.lab.observe(captures=[THERE]) as seen:
        results = json.loads(context.call("pieces", PAPER_PORT, *pieces).stdout)
        lines = _next_lines(context, before)
    context.keep_flows("C2-three-pieces.txt", _to_paper(seen.flows("server")))
    resets = _resets(seen.flows("server"))
    arrived = len("".join(line.removeprefix("Message ") for line in lines))
    whole = len("".join(pieces))
    error = next((number for number, result in enumerate(results, 1) if isinstance(result, str)), 0)
    condition = _at_end(
        "a message in three small pieces to the paper's server",
        ratio=arrived / whole,
        what=f"{arrived} of {whole} bytes: {', '.join(lines)}",
        informed=f"send: {', '.join(map(str, results))}",
        mechanism=f"closed after the first; the second is answered with {resets} RST",
    )
    return [condition], {"first_error_at_piece": error, "arrived_of_pieces": arrived, "resets_of_pieces": resets}


def _unread(context: ExperimentContext) -> tuple[list[Condition], Numbers]:
    """A peer that closes with unread data resets the connection; a client that reads learns of it."""
    size = 3 * _RECV_BYTES
    before = len(context.printed())
    with context.lab.observe(captures=[THERE]) as seen:
        result = json.loads(context.call("listening_client", PAPER_PORT, size).stdout)
        (line,) = _next_lines(context, before)
    arrived = len(line.removeprefix("Message "))
    context.keep_flows("C2-unread-data.txt", _to_paper(seen.flows("server")))
    condition = _at_end(
        f"{size:,} bytes from a client that reads until the end",
        ratio=arrived / size,
        what=f"{arrived:,} of {size:,} bytes",
        informed=f"send: {result['taken']:,}; recv: {result['received']}",
        mechanism=f"close with unread data: {_resets(seen.flows('server'))} RST (RFC 2525 2.17)",
    )
    reset = result["received"] == "ConnectionResetError"
    return [condition], {"arrived_of_3072": arrived, "reset_heard": float(reset)}


def _backlog(context: ExperimentContext) -> tuple[list[Condition], Numbers]:
    """Twelve clients at once, while the iterative server waits in ``recv`` for a silent one."""
    before = len(context.printed())
    patience_s = _QUICK_PATIENCE_S if context.quick else _STORM_PATIENCE_S
    stalled = context.begin("stall", PAPER_PORT, ready="connected")
    with context.lab.observe(hosts=["server"], captures=[]) as seen:
        clients = json.loads(context.call("many", PAPER_PORT, _STORM, patience_s, "say").stdout)
        stalled.stop("SIGKILL")
        sent = len(clients["done_s"])
        # The queue is accepted now, the stalled client's empty message first. A message that a client sent need not
        # arrive: the kernel may have dropped a connection that it had no room for.
        context.await_closed(PAPER_PORT, 120)
        with suppress(NotSeenError):
            _next_lines(context, before, sent + 1, deadline_s=5)
        lines = context.printed()[before:]
    counters = seen.host("server").counters
    printed = sum(line.startswith("Message storm") for line in lines)
    refused = ", ".join(f"{count} {fate}" for fate, count in clients["failed"].items())
    condition = _at_end(
        f"{_STORM} clients at once while the paper's server waits for another",
        ratio=printed / _STORM,
        what=f"{printed} of {_STORM} messages",
        informed=f"{sent} sent, {refused or 'none refused'} after {patience_s:g} s",
        mechanism=f"listen({_BACKLOG}) holds {_BACKLOG + 1}; {counters.listen_overflows} overflows",
    )
    return [condition], {
        "storm_delivered": printed,
        "storm_sent": sent,
        "listen_overflows": counters.listen_overflows,
    }


def _outages(context: ExperimentContext) -> tuple[list[Condition], Numbers]:
    """One outage, shorter than one connection's patience and longer than another's (TCP_USER_TIMEOUT)."""
    outage_s, short_ms = (1.2, 500) if context.quick else (8.0, 3000)
    flag = context.flag("client")
    servers: dict[str, Program] = {}
    clients: dict[str, Program] = {}
    for number, (which, timeout_ms) in enumerate((("shorter", 0), ("longer", short_ms))):
        port = 8890 + number  # two servers: one that waits for ever must not delay the other
        servers[which] = context.lab.host("server").start(["python3", "paper_server.py", "", str(port)], ready=port)
        clients[which] = context.begin("patience", port, timeout_ms, flag, ready="connected")
    context.lab.cut(BOTH)
    before = context.lab.link(THERE).lost_in_cut()
    flag.raise_()
    await_condition(lambda: context.lab.link(THERE).lost_in_cut() - before, lambda lost: lost >= 2, deadline_s=30)
    time.sleep(outage_s)  # not readiness: an outage of that length is the condition
    context.lab.verifier.verify()
    lost = context.lab.link(THERE).lost_in_cut() - before
    context.lab.mend()
    rows: list[Condition] = []
    numbers: Numbers = {"lost_in_outage": lost}
    for which, client in clients.items():
        result = printed_json(client)
        if not result["error"]:
            _await_output(servers[which], "Message late")
        elif any(end["remote_port"] == 8891 for end in context.lab.host("client").connections()):
            raise NotAsMeantError("the client got an error, but its kernel still has the connection")
        arrived = "Message late" in servers[which].output
        ends = context.lab.host("server").connections()
        waits = not arrived and any((end["local_port"], end["state"]) == (8891, "ESTABLISHED") for end in ends)
        patience = "the kernel's own patience" if which == "shorter" else f"a time-out of {short_ms / 1000:g} s"
        numbers[f"arrived_outage_{which}"] = float(arrived)
        rows.append(
            _at_end(
                f"an outage of {outage_s:g} s, {which} than the connection's time-out",
                ratio=float(arrived),
                what=f"{int(arrived)} of 1 message",
                informed=f"send: {result['taken']}; then {result['error'] or 'end of file'}",
                mechanism=patience + ("; the server waits in recv for ever" if waits else ""),
            )
        )
    for server in servers.values():
        server.stop("SIGKILL")
    return rows, numbers


def _await_output(program: Program, text: str) -> None:
    await_condition(lambda: program.output, lambda output: text in output, deadline_s=60)


def _to_paper(flows: list[Flow]) -> list[Flow]:
    return [flow for flow in flows if flow.server.src.port == PAPER_PORT]


def _resets(flows: list[Flow]) -> int:
    return sum(len(flow.server.resets) for flow in _to_paper(flows))


# --- C8 ----------------------------------------------------------------------------------------------


def no_losses(context: ExperimentContext) -> ClaimOutcome:
    """C2's experiment again: who detected the losses."""
    whole = context.earlier.get("C2") or delivery(context)
    if whole.finding is Verdict.INVALID:
        raise NotAsMeantError(f"it rests on C2, which is INVALID: {whole.sentence}")
    losing = [row for row in whole.rows if row.held is False]
    between = [row for row in losing if not row.numbers.get("at_an_end")]
    silent = [row for row in losing if row.numbers.get("silent")]
    return ClaimOutcome(
        finding=finding_of(whole.rows),
        sentence=f"“No losses were detected” because nobody looked: of {len(whole.rows)} conditions "
        f"{len(losing) - len(between)} lost data at the ends, {len(silent)} of them without a word to the client, and "
        f"{len(between) or 'none'} between the kernels.",
        rows=[
            replace(
                row,
                values={
                    "lost": "nothing" if row.held else "data",
                    "client informed of": row.values["client informed of"],
                },
            )
            for row in whole.rows
        ],
        mechanism={"conditions": len(whole.rows), "losing": len(losing), "unheard": len(silent)},
        plots=whole.plots,
    )
