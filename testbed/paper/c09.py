"""C9: the server may use one or another blocking structure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from testbed.drive.messages import STRUCTURES
from testbed.observe.counters import Counters
from testbed.paper.context import BOTH, PAPER_PORT, THERE, ExperimentContext
from testbed.paper.outcomes import ClaimOutcome, Condition, Plot, finding_of
from testbed.paper.structures import Served, preferable

_PAPERS = "iterative"
_LISTEN_5, _LISTEN_1024 = 5, 1024
_STORM = 12
_STORM_DEADLINE_S, _DEADLINE_S = 2.5, 12.0  # beyond 1 s: who is refused at first tries again after that (RFC 6298, 2.1)
_QUICK_DEADLINE_S = 1.5
_QUICK_BESIDE = 5
"""As many as the queue holds: no client has to try again."""
_CONNECTED = 100
_FIRST_PORT = 9600
_DELAYS_MS = (0, 100)
_QUICK_CROWDED = (_PAPERS, "selectors")
"""The paper's, and one to compare."""
_HOLDING = tuple(name for name in STRUCTURES if name != _PAPERS)
"""Structures that hold more than one client at a time."""


@dataclass(frozen=True, kw_only=True)
class Storm:
    """Twelve clients at the paper's own server, while it waits in ``recv`` for a silent one."""

    clients: int
    believed: int
    """Clients whose ``send`` returned without an error."""
    printed_beside: int
    """Messages printed by the time the last client had given up."""
    printed: int
    """Messages printed once the silent client had gone."""
    overflows: int
    """ListenOverflows of the server meanwhile."""
    drops: int
    """ListenDrops of the server meanwhile."""
    resets: int
    """RST segments that the server's kernel sent meanwhile."""

    @property
    def lost(self) -> int:
        """Messages that the server's program never got, although their clients got no error."""
        return self.believed - self.printed


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """The five structures before the same crowd of clients."""

    situation: str
    delay_ms: int
    served: tuple[Served, ...]

    @property
    def clients(self) -> int:
        """Number of clients."""
        return self.served[0].clients

    @property
    def papers(self) -> Served | None:
        """The paper's structure; None if it did not get this crowd, because a smaller one was too much for it."""
        return next((served for served in self.served if served.structure == _PAPERS), None)

    @property
    def held(self) -> bool:
        """Whether the paper's structure answered all clients."""
        return self.papers is not None and self.papers.all_answered

    @property
    def queueing(self) -> float:
        """The last client's wait at the paper's structure, over that at the best of the others that answer all.

        One after the other, each client costs the server two transits: its end has to come before the next is served.
        """
        papers = self.papers and self.papers.last_s
        others = (served for served in self.served if served.structure != _PAPERS and served.all_answered)
        best = min((served.last_s for served in others if served.last_s), default=None)
        return papers / best if papers and best else float("inf")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The memory that a structure takes for clients that stay connected."""

    structure: str
    delay_ms: int
    connected: int
    """Number of connected clients, all answered, when it was read."""
    client_bytes: float
    """Memory per client."""


def structures(context: ExperimentContext) -> ClaimOutcome:
    """Five servers of one protocol, the paper's iterative structure first, each before the same crowds.

    First the paper's own server: twelve clients at once over its listen(5) while it waits for one that says nothing.
    The same at each structure; then a hundred over that queue, and 1 to 1,000 at once over a longer one; all of it
    without latency and with 100 ms each way. Memory is what each of a hundred clients adds that stay connected, CPU
    what the server's processes took for an answer.
    """
    storms: dict[int, Storm] = {}
    crowds: list[Crowd] = []
    memory: list[Memory] = []
    for delay_ms in _DELAYS_MS:
        with _delayed(context, delay_ms):
            context.say(f"C9: {_STORM} clients at the paper's server, {delay_ms} ms each way")
            with context.lab.capture(THERE) as capture:
                storms[delay_ms] = _storm(context)
            context.keep_capture(f"C9-storm-{delay_ms}ms.pcapng", capture.capture)
            crowds += _crowds(context, delay_ms)
            if not (context.quick and delay_ms):
                memory += [
                    _memory(context, structure, delay_ms) for structure in (_HOLDING[:2] if context.quick else _HOLDING)
                ]
    context.keep_json(
        "C9.json",
        {
            "storms": {f"{delay_ms} ms": vars(storm) for delay_ms, storm in storms.items()},
            "crowds": [{**vars(crowd), "served": [vars(served) for served in crowd.served]} for crowd in crowds],
            "memory": [vars(usage) for usage in memory],
        },
    )
    return judge(storms, crowds, memory)


# --- judging ---------------------------------------------------------------------------------------


def judge(storms: Mapping[int, Storm], crowds: Sequence[Crowd], memory: Sequence[Memory]) -> ClaimOutcome:
    """The claim's outcome. A condition holds where the paper's structure answered all clients."""
    rows = [_storm_row(delay_ms, storm) for delay_ms, storm in storms.items()]
    rows += [_crowd_row(crowd) for crowd in crowds]
    rows += [*_cpu_rows(crowds), *_memory_rows(memory)]
    near, far = storms[min(storms)], storms[max(storms)]
    silent = next(crowd for crowd in crowds if crowd.situation == SILENT and not crowd.delay_ms)
    answered = [served.structure for served in silent.served if served.all_answered]
    queueing = [crowd for crowd in crowds if crowd.situation == AT_ONCE and crowd.delay_ms and crowd.held]
    longest = max(queueing, key=lambda crowd: crowd.clients, default=None)
    near_memory = [usage for usage in memory if usage.delay_ms == min(storms)]
    most, least = (end(near_memory, key=lambda usage: usage.client_bytes) for end in (max, min))
    facts = {f"{served.structure}_answered": float(len(served.waits_s)) for served in silent.served}
    facts |= {f"{usage.structure}_client_bytes": usage.client_bytes for usage in near_memory}
    facts |= {f"storm_{name}": float(getattr(near, name)) for name in _STORM_FACTS}
    facts |= {f"far_storm_{name}": float(getattr(far, name)) for name in _STORM_FACTS}
    facts["queueing"] = longest.queueing if longest else 0.0
    sentence = [
        "It matters which: the paper's serves clients that all speak at once and are near, but one that says nothing "
        f"stops it for all. Of {near.clients} messages sent meanwhile it printed {near.printed_beside} before that one "
        f"had gone, and {near.printed} then; its listener's queue of {_LISTEN_5} had overflowed {near.overflows} times"
        f"{_losses(near)}."
    ]
    if far.lost:
        sentence.append(
            f"With {max(storms)} ms each way the queue is full when the handshakes are completed: {far.believed} "
            f"clients believed to have sent, and {far.lost} messages were lost without an error ({far.resets} resets)."
        )
    sentence.append(f"Beside the silent client everybody was answered by {', '.join(answered) or 'none'}.")
    if longest:
        sentence.append(
            f"Of {longest.clients} clients at once {longest.delay_ms} ms away, the last waits {longest.queueing:.1f} "
            "times as long at the paper's as at the best of the others, as each waits for the end of those before."
        )
    sentence.append(
        f"A connected client takes {_kib(most)} of memory with {most.structure}, {_kib(least)} with {least.structure}."
    )
    delays_ms = sorted({crowd.delay_ms for crowd in crowds})
    return ClaimOutcome(
        finding=finding_of(rows),
        sentence=" ".join(sentence),
        rows=rows,
        mechanism=facts,
        plots=[
            *_growing(draw(crowds, delay_ms) for draw in (_waits, _cpu) for delay_ms in delays_ms),
            _memory_plot(memory),
        ],
    )


def _kib(memory: Memory) -> str:
    """In whole KiB: less is chance. The kernel's memory for the socket is in no process."""
    size = round(memory.client_bytes / 1024)
    return f"{size:,} KiB" if size else "less than 1 KiB"


def _losses(storm: Storm) -> str:
    refused = storm.clients - storm.believed
    return f", {refused} clients timed out" * bool(
        refused
    ) + f", {storm.lost} messages were lost without an error" * bool(storm.lost)


_STORM_FACTS = ("believed", "printed_beside", "printed", "lost", "overflows", "drops", "resets")


def _far(delay_ms: int) -> str:
    return f"{delay_ms} ms each way" if delay_ms else "no latency"


def _storm_row(delay_ms: int, storm: Storm) -> Condition:
    return Condition(
        name=f"the paper's own server: {storm.clients} at once beside a silent one, {_far(delay_ms)}",
        held=storm.printed == storm.clients,
        values={
            _PAPERS: f"printed {storm.printed_beside} of {storm.clients} beside it, {storm.printed} once it had gone; "
            f"{storm.believed} clients believed to have sent, {storm.clients - storm.believed} timed out",
            "listener's queue": f"ListenOverflows {storm.overflows}, ListenDrops {storm.drops}, resets {storm.resets}",
        },
    )


def _crowd_row(crowd: Crowd) -> Condition:
    full = {served.structure: served.overflows for served in crowd.served if served.overflows}
    values = {served.structure: str(served) for served in crowd.served}
    values["listener's queue"] = "ListenOverflows: " + ", ".join(f"{count} {name}" for name, count in full.items())
    if not full:
        values["listener's queue"] = "never full"
    best = preferable(crowd.served)
    values["preferable"] = "any" if len(best) == len(crowd.served) else ", ".join(best) or "none"
    return Condition(
        name=f"{crowd.clients} {crowd.situation}, {_far(crowd.delay_ms)}",
        held=crowd.held,
        values=values,
    )


def _crowded(crowds: Sequence[Crowd], delay_ms: int) -> dict[str, list[Served]]:
    """The crowds at once of each structure that were answered in full, with their CPU time."""
    by_structure: dict[str, list[Served]] = {}
    for crowd in crowds:
        for served in crowd.served if crowd.situation == AT_ONCE and crowd.delay_ms == delay_ms else ():
            if served.all_answered and served.answer_cpu_s is not None:
                by_structure.setdefault(served.structure, []).append(served)
    return by_structure


def _cpu_rows(crowds: Sequence[Crowd]) -> list[Condition]:
    rows = []
    for delay_ms in sorted({crowd.delay_ms for crowd in crowds}):
        largest = [max(group, key=lambda served: served.clients) for group in _crowded(crowds, delay_ms).values()]
        costs = {served.structure: served.answer_cpu_s or 0.0 for served in largest}
        if costs:
            rows.append(
                Condition(
                    name=f"CPU of an answer, in the largest crowd that was answered, {_far(delay_ms)}",
                    held=None,
                    values={
                        **{
                            served.structure: f"{costs[served.structure] * 1e3:.2f} ms, of {served.clients:,}"
                            for served in largest
                        },
                        "preferable": min(costs, key=lambda name: costs[name]),
                    },
                )
            )
    return rows


def _memory_rows(memory: Sequence[Memory]) -> list[Condition]:
    rows = []
    for delay_ms in sorted({usage.delay_ms for usage in memory}):
        chosen = [usage for usage in memory if usage.delay_ms == delay_ms]
        least = min(chosen, key=lambda usage: usage.client_bytes)
        rows.append(
            Condition(
                name=f"memory that each of {least.connected} connected clients adds, {_far(delay_ms)}",
                held=None,
                values={
                    _PAPERS: "holds one at a time",
                    **{usage.structure: _kib(usage) for usage in chosen},
                    "preferable": least.structure,
                },
            )
        )
    return rows


def _growing(plots: Iterable[Plot]) -> Iterator[Plot]:
    """Plots with more than one size of crowd."""
    return (plot for plot in plots if any(len(line) > 1 for line in plot.series.values()))


def _waits(crowds: Sequence[Crowd], delay_ms: int) -> Plot:
    series: dict[str, list[tuple[float, float]]] = {}
    for crowd in crowds:
        for served in crowd.served if crowd.situation == AT_ONCE and crowd.delay_ms == delay_ms else ():
            if served.all_answered and served.last_s is not None:
                series.setdefault(served.structure, []).append((float(served.clients), served.last_s))
    return Plot(
        title=f"The last of all clients at once is answered after, {_far(delay_ms)}",
        x="clients at once",
        y="waiting time, s",
        series=series,
        logarithmic=True,
        logarithmic_x=True,
    )


def _cpu(crowds: Sequence[Crowd], delay_ms: int) -> Plot:
    series = {
        name: [(float(served.clients), (served.answer_cpu_s or 0.0) * 1e3) for served in crowded]
        for name, crowded in _crowded(crowds, delay_ms).items()
    }
    return Plot(
        title=f"What an answer costs the server, {_far(delay_ms)}",
        x="clients at once",
        y="CPU time an answer, ms",
        series=series,
        logarithmic=True,
        logarithmic_x=True,
    )


def _memory_plot(memory: Sequence[Memory]) -> Plot:
    names = tuple(dict.fromkeys(usage.structure for usage in memory))
    series = {
        _far(delay_ms): [
            (float(names.index(usage.structure)), usage.client_bytes / 1024)
            for usage in memory
            if usage.delay_ms == delay_ms
        ]
        for delay_ms in sorted({usage.delay_ms for usage in memory})
    }
    return Plot(
        title="Memory that a connected client adds", x="structure", y="memory, KiB", series=series, categories=names
    )


# --- measuring -------------------------------------------------------------------------------------

SILENT = "at once beside a silent one, listen(5)"
STORMING = "at once over listen(5)"
AT_ONCE = "at once over listen(1024)"


@contextmanager
def _delayed(context: ExperimentContext, delay_ms: int) -> Iterator[None]:
    if delay_ms:
        context.impair(BOTH, delay=f"{delay_ms}ms")
    yield
    context.heal()


@contextmanager
def _serving(context: ExperimentContext, structure: str, backlog: int) -> Iterator[int]:
    """A server of a structure; its TCP port."""
    port = _FIRST_PORT + STRUCTURES.index(structure)
    argv = ["python3", "server.py", "--structure", structure, "--port", str(port), "--backlog", str(backlog)]
    server = context.lab.host("server").start(argv, ready=port)
    try:
        yield port
    finally:
        server.stop("SIGKILL")


def _storm_deadline_s(context: ExperimentContext) -> float:
    return _QUICK_DEADLINE_S if context.quick else _STORM_DEADLINE_S


def _storm(context: ExperimentContext) -> Storm:
    host = context.lab.host("server")

    def printed() -> int:
        return sum(line.startswith("Message storm") for line in context.printed()) - earlier

    earlier = 0
    earlier = printed()
    before = host.counters()
    silent = context.begin("stall", PAPER_PORT, ready="connected")
    try:
        clients = json.loads(context.call("many", PAPER_PORT, _STORM, _storm_deadline_s(context), "say").stdout)
        beside = printed()
    finally:
        silent.stop("SIGKILL")
    believed = len(clients["done_s"])
    context.await_closed(PAPER_PORT)  # from now on nothing more can come
    counters = Counters.between(before, host.counters())
    return Storm(
        clients=_STORM,
        believed=believed,
        printed_beside=beside,
        printed=printed(),
        overflows=counters.listen_overflows,
        drops=counters.listen_drops,
        resets=counters.resets_sent,
    )


def _crowds(context: ExperimentContext, delay_ms: int) -> list[Crowd]:
    """All structures for each crowd; a larger crowd only if the structure answered the one before in full."""
    beside = _QUICK_BESIDE if context.quick else _STORM
    if context.quick:
        which = STRUCTURES if not delay_ms else _QUICK_CROWDED
        counts: tuple[int, ...] = (50,) if not delay_ms else (10,)
        situations = [] if delay_ms else [(SILENT, beside)]
    else:
        which, counts = STRUCTURES, (1, 10, 100, 1000)
        situations = [(SILENT, beside), (STORMING, 100)]
    served_by: dict[tuple[str, int], list[Served]] = {
        situation: [] for situation in [*situations, *((AT_ONCE, count) for count in counts)]
    }
    for structure in sorted(which, key=_PAPERS.__eq__):  # the paper's comes last
        context.say(f"C9: {structure}, {delay_ms} ms each way")
        if situations:
            with _serving(context, structure, _LISTEN_5) as port:
                silent = context.begin("stall", port, ready="connected")
                deadline_s = _DEADLINE_S
                if structure == _PAPERS:  # it gets as long as all of the others needed, and then some
                    longest_s = max(
                        (served.last_s or _DEADLINE_S for served in served_by[SILENT, beside]), default=_DEADLINE_S
                    )
                    deadline_s = max(_storm_deadline_s(context), 2 * longest_s)
                served_by[SILENT, beside].append(_ask(context, structure, port, beside, deadline_s))
                silent.stop("SIGKILL")
                if (STORMING, 100) in served_by:
                    served_by[STORMING, 100].append(_ask(context, structure, port, 100, _DEADLINE_S))
        if context.quick and structure not in _QUICK_CROWDED:
            continue
        with _serving(context, structure, _LISTEN_1024) as port:
            spent_s = _upkeep(context, port)["cpu_s"]
            for count in counts:
                served = _ask(context, structure, port, count, _DEADLINE_S)
                before_s, spent_s = spent_s, _upkeep(context, port)["cpu_s"]
                served_by[AT_ONCE, count].append(replace(served, cpu_s=spent_s - before_s))
                if not served.all_answered:
                    break
    return [
        Crowd(situation=name, delay_ms=delay_ms, served=tuple(sorted(group, key=_rank)))
        for (name, _), group in served_by.items()
        if group
    ]


def _rank(served: Served) -> int:
    """The place of a structure in tables, the paper's first."""
    return STRUCTURES.index(served.structure)


def _ask(context: ExperimentContext, structure: str, port: int, count: int, deadline_s: float) -> Served:
    """A crowd of clients at once, with a request each."""
    host = context.lab.host("server")
    before = host.counters()
    clients = json.loads(context.call("many", port, count, deadline_s, "ask", timeout=f"{deadline_s + 30:g}s").stdout)
    counters = Counters.between(before, host.counters())
    return Served(
        structure=structure,
        clients=count,
        waits_s=tuple(clients["done_s"]),
        overflows=counters.listen_overflows,
        drops=counters.listen_drops,
    )


def _upkeep(context: ExperimentContext, port: int) -> dict[str, float]:
    """The memory and CPU time of the server on a port: see the program."""
    usage: dict[str, float] = json.loads(context.measure("server", "upkeep", port).stdout)
    return usage


def _memory(context: ExperimentContext, structure: str, delay_ms: int) -> Memory:
    """The memory added by clients that stay connected once they are answered."""
    with _serving(context, structure, _LISTEN_1024) as port:
        before = _upkeep(context, port)["memory_bytes"]
        flag = context.flag("client")
        clients = context.begin("many", port, _CONNECTED, _DEADLINE_S, "ask", flag, ready="all")
        added = _upkeep(context, port)["memory_bytes"] - before
        flag.raise_()
        connected = len(json.loads(clients.wait().stdout.splitlines()[-1])["done_s"])
    return Memory(
        structure=structure, delay_ms=delay_ms, connected=connected, client_bytes=max(added, 0) / max(connected, 1)
    )
