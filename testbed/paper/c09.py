"""C9: the server may use one or another blocking structure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from testbed.drive.messages import STRUCTURES
from testbed.observe.counters import Counters
from testbed.paper.context import BOTH, PAPER_PORT, THERE, Context
from testbed.paper.outcomes import Outcome, Plot, Row, finding_of
from testbed.paper.structures import Served, preferable

_PAPERS = "iterative"
_LISTEN_5, _LISTEN_1024 = 5, 1024
_STORM = 12
_STORM_DEADLINE_S, _DEADLINE_S = 2.5, 12.0  # beyond 1 s: who is refused at first tries again after that (RFC 6298, 2.1)
_QUICK_DEADLINE_S = 1.5
_QUICK_BESIDE = 5
"""As many as the queue has room for: nobody has to try again."""
_CONNECTED = 100
_FIRST_PORT = 9600
_DELAYS_MS = (0, 100)
_QUICK_CROWDED = (_PAPERS, "selectors")
"""The paper's, and one that shows how it could be."""
_HOLDING = tuple(each for each in STRUCTURES if each != _PAPERS)
"""Those that hold more than one client at a time."""


@dataclass(frozen=True, kw_only=True)
class Storm:
    """Twelve clients at the paper's own server, while it waits in ``recv`` for another that says nothing."""

    clients: int
    believed: int
    """Whose ``send`` returned without an error."""
    printed_beside: int
    """Messages that the server had printed when the last of them had given up."""
    printed: int
    """Once the silent client had gone."""
    overflows: int
    """ListenOverflows at the server meanwhile."""
    drops: int
    """ListenDrops likewise."""
    resets: int
    """RST segments that the server's kernel sent meanwhile."""

    @property
    def lost(self) -> int:
        """Messages that never came to the server's program although their client was told of no error."""
        return self.believed - self.printed


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """The five structures before the same crowd of clients."""

    situation: str
    delay_ms: int
    served: tuple[Served, ...]

    @property
    def clients(self) -> int:
        """How many came."""
        return self.served[0].clients

    @property
    def papers(self) -> Served | None:
        """What the paper's structure made of it; None if it was spared it, as a smaller crowd was too much for it."""
        return next((each for each in self.served if each.structure == _PAPERS), None)

    @property
    def held(self) -> bool:
        """Whether the paper's structure answered everybody."""
        return self.papers is not None and self.papers.all_answered

    @property
    def queueing(self) -> float:
        """The last client's wait at the paper's structure, over that at the best of the others that answer all.

        One after the other, each client costs the server two transits: its end has to come before the next is served.
        """
        papers = self.papers and self.papers.last_s
        others = [each.last_s for each in self.served if each.structure != _PAPERS and each.all_answered]
        best = min((each for each in others if each), default=None)
        return papers / best if papers and best else float("inf")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a structure takes of memory for clients that stay connected."""

    structure: str
    delay_ms: int
    connected: int
    """Clients that were connected and had been answered when it was read."""
    client_bytes: float
    """What each of these added."""


def structures(context: Context) -> Outcome:
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
                memory += [_memory(context, structure, delay_ms) for structure in
                           (_HOLDING[:2] if context.quick else _HOLDING)]  # fmt: skip
    context.keep_json("C9.json", {
        "storms": {f"{delay_ms} ms": vars(storm) for delay_ms, storm in storms.items()},
        "crowds": [{**vars(each), "served": [vars(one) for one in each.served]} for each in crowds],
        "memory": [vars(each) for each in memory],
    })  # fmt: skip
    return judge(storms, crowds, memory)


# --- judging ---------------------------------------------------------------------------------------


def judge(storms: Mapping[int, Storm], crowds: Sequence[Crowd], memory: Sequence[Memory]) -> Outcome:
    """The claim's outcome out of what was measured. A row holds where the paper's structure answered everybody."""
    rows = [_storm_row(delay_ms, storm) for delay_ms, storm in storms.items()]
    rows += [_crowd_row(each) for each in crowds]
    rows += [*_cpu_rows(crowds), *_memory_rows(memory)]
    near, far = storms[min(storms)], storms[max(storms)]
    silent = next(each for each in crowds if each.situation == SILENT and not each.delay_ms)
    answered = [each.structure for each in silent.served if each.all_answered]
    queueing = [each for each in crowds if each.situation == AT_ONCE and each.delay_ms and each.held]
    longest = max(queueing, key=lambda each: each.clients, default=None)
    near_memory = [each for each in memory if each.delay_ms == min(storms)]
    most, least = (end(near_memory, key=lambda each: each.client_bytes) for end in (max, min))
    facts = {f"{each.structure}_answered": float(len(each.waits_s)) for each in silent.served}
    facts |= {f"{each.structure}_client_bytes": each.client_bytes for each in near_memory}
    facts |= {f"storm_{name}": float(getattr(near, name)) for name in _STORM_FACTS}
    facts |= {f"far_storm_{name}": float(getattr(far, name)) for name in _STORM_FACTS}
    facts["queueing"] = longest.queueing if longest else 0.0
    sentence = [
        "It matters which: the paper's serves clients that all speak at once and are near, but one that says nothing "
        f"stops it for all. Of {near.clients} messages sent meanwhile it printed {near.printed_beside} before that one "
        f"had gone, and {near.printed} then; its listener's queue of {_LISTEN_5} had overflowed {near.overflows} times"
        f"{_untold(near)}."
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
    delays_ms = sorted({each.delay_ms for each in crowds})
    return Outcome(
        finding=finding_of(rows), sentence=" ".join(sentence), rows=rows, mechanism=facts,
        plots=[*_growing(draw(crowds, delay_ms) for draw in (_waits, _cpu) for delay_ms in delays_ms),
               _memory_plot(memory)],
    )  # fmt: skip


def _kib(memory: Memory) -> str:
    """To the KiB: what is less is chance, and what the kernel takes for the socket is in no process."""
    size = round(memory.client_bytes / 1024)
    return f"{size:,} KiB" if size else "less than 1 KiB"


def _untold(storm: Storm) -> str:
    refused = storm.clients - storm.believed
    return (f", {refused} clients timed out" * bool(refused)
            + f", {storm.lost} messages were lost without an error" * bool(storm.lost))  # fmt: skip


_STORM_FACTS = ("believed", "printed_beside", "printed", "lost", "overflows", "drops", "resets")


def _far(delay_ms: int) -> str:
    return f"{delay_ms} ms each way" if delay_ms else "no latency"


def _storm_row(delay_ms: int, storm: Storm) -> Row:
    return Row(
        condition=f"the paper's own server: {storm.clients} at once beside a silent one, {_far(delay_ms)}",
        held=storm.printed == storm.clients,
        values={
            _PAPERS: f"printed {storm.printed_beside} of {storm.clients} beside it, {storm.printed} once it had gone; "
            f"{storm.believed} clients believed to have sent, {storm.clients - storm.believed} timed out",
            "listener's queue": f"ListenOverflows {storm.overflows}, ListenDrops {storm.drops}, resets {storm.resets}",
        },
    )


def _crowd_row(crowd: Crowd) -> Row:
    full = {each.structure: each.overflows for each in crowd.served if each.overflows}
    values = {each.structure: str(each) for each in crowd.served}
    values["listener's queue"] = "ListenOverflows: " + ", ".join(f"{count} {name}" for name, count in full.items())
    if not full:
        values["listener's queue"] = "never full"
    best = preferable(crowd.served)
    values["preferable"] = "any" if len(best) == len(crowd.served) else ", ".join(best) or "none"
    return Row(
        condition=f"{crowd.clients} {crowd.situation}, {_far(crowd.delay_ms)}", held=crowd.held,
        values=values,
    )  # fmt: skip


def _crowded(crowds: Sequence[Crowd], delay_ms: int) -> dict[str, list[Served]]:
    """What each structure made of clients at once, where all were answered and the processor was looked at."""
    found: dict[str, list[Served]] = {}
    for crowd in crowds:
        for each in crowd.served if crowd.situation == AT_ONCE and crowd.delay_ms == delay_ms else ():
            if each.all_answered and each.answer_cpu_s is not None:
                found.setdefault(each.structure, []).append(each)
    return found


def _cpu_rows(crowds: Sequence[Crowd]) -> list[Row]:
    rows = []
    for delay_ms in sorted({each.delay_ms for each in crowds}):
        largest = [max(each, key=lambda one: one.clients) for each in _crowded(crowds, delay_ms).values()]
        costs = {each.structure: each.answer_cpu_s or 0.0 for each in largest}
        if costs:
            rows.append(Row(
                condition=f"CPU of an answer, in the largest crowd that was answered, {_far(delay_ms)}", held=None,
                values={**{each.structure: f"{costs[each.structure] * 1e3:.2f} ms, of {each.clients:,}"
                           for each in largest}, "preferable": min(costs, key=lambda name: costs[name])},
            ))  # fmt: skip
    return rows


def _memory_rows(memory: Sequence[Memory]) -> list[Row]:
    rows = []
    for delay_ms in sorted({each.delay_ms for each in memory}):
        chosen = [each for each in memory if each.delay_ms == delay_ms]
        least = min(chosen, key=lambda each: each.client_bytes)
        rows.append(Row(
            condition=f"memory that each of {least.connected} connected clients adds, {_far(delay_ms)}", held=None,
            values={_PAPERS: "holds one at a time",
                    **{each.structure: _kib(each) for each in chosen},
                    "preferable": least.structure},
        ))  # fmt: skip
    return rows


def _growing(plots: Iterable[Plot]) -> Iterator[Plot]:
    """Those of more than one size of crowd."""
    return (each for each in plots if any(len(line) > 1 for line in each.series.values()))


def _waits(crowds: Sequence[Crowd], delay_ms: int) -> Plot:
    series: dict[str, list[tuple[float, float]]] = {}
    for crowd in crowds:
        for each in crowd.served if crowd.situation == AT_ONCE and crowd.delay_ms == delay_ms else ():
            if each.all_answered and each.last_s is not None:
                series.setdefault(each.structure, []).append((float(each.clients), each.last_s))
    return Plot(
        title=f"The last of all clients at once is answered after, {_far(delay_ms)}", x="clients at once",
        y="waiting time, s", series=series, logarithmic=True, logarithmic_x=True,
    )  # fmt: skip


def _cpu(crowds: Sequence[Crowd], delay_ms: int) -> Plot:
    series = {name: [(float(one.clients), (one.answer_cpu_s or 0.0) * 1e3) for one in each]
              for name, each in _crowded(crowds, delay_ms).items()}  # fmt: skip
    return Plot(
        title=f"What an answer costs the server, {_far(delay_ms)}", x="clients at once", y="CPU time an answer, ms",
        series=series, logarithmic=True, logarithmic_x=True,
    )  # fmt: skip


def _memory_plot(memory: Sequence[Memory]) -> Plot:
    names = tuple(dict.fromkeys(each.structure for each in memory))
    series = {
        _far(delay_ms): [(float(names.index(each.structure)), each.client_bytes / 1024)
                         for each in memory if each.delay_ms == delay_ms]
        for delay_ms in sorted({each.delay_ms for each in memory})
    }  # fmt: skip
    return Plot(
        title="Memory that a connected client adds", x="structure", y="memory, KiB", series=series, categories=names
    )


# --- measuring -------------------------------------------------------------------------------------

SILENT = "at once beside a silent one, listen(5)"
STORMING = "at once over listen(5)"
AT_ONCE = "at once over listen(1024)"


@contextmanager
def _delayed(context: Context, delay_ms: int) -> Iterator[None]:
    if delay_ms:
        context.impair(BOTH, delay=f"{delay_ms}ms")
    yield
    context.heal()


@contextmanager
def _serving(context: Context, structure: str, backlog: int) -> Iterator[int]:
    """A server of a structure; the port that it listens on."""
    port = _FIRST_PORT + STRUCTURES.index(structure)
    argv = ["python3", "server.py", "--structure", structure, "--port", str(port), "--backlog", str(backlog)]
    server = context.lab.host("server").start(argv, ready=port)
    try:
        yield port
    finally:
        server.stop("SIGKILL")


def _storm_deadline_s(context: Context) -> float:
    return _QUICK_DEADLINE_S if context.quick else _STORM_DEADLINE_S


def _storm(context: Context) -> Storm:
    host = context.lab.host("server")

    def printed() -> int:
        return sum(line.startswith("Message storm") for line in context.printed()) - earlier

    earlier = 0
    earlier = printed()
    before = host.counters()
    silent = context.begin("stall", PAPER_PORT, ready="connected")
    try:
        told = json.loads(context.call("many", PAPER_PORT, _STORM, _storm_deadline_s(context), "say").stdout)
        beside = printed()
    finally:
        silent.stop("SIGKILL")
    believed = len(told["done_s"])
    context.await_closed(PAPER_PORT)  # from now on nothing more can come
    counters = Counters.between(before, host.counters())
    return Storm(
        clients=_STORM, believed=believed, printed_beside=beside, printed=printed(),
        overflows=counters.listen_overflows, drops=counters.listen_drops,
        resets=counters.resets_sent,
    )  # fmt: skip


def _crowds(context: Context, delay_ms: int) -> list[Crowd]:
    """The structures before each crowd; a larger one only where the one before was answered in full."""
    beside = _QUICK_BESIDE if context.quick else _STORM
    if context.quick:
        which = STRUCTURES if not delay_ms else _QUICK_CROWDED
        counts: tuple[int, ...] = (50,) if not delay_ms else (10,)
        situations = [] if delay_ms else [(SILENT, beside)]
    else:
        which, counts = STRUCTURES, (1, 10, 100, 1000)
        situations = [(SILENT, beside), (STORMING, 100)]
    found: dict[tuple[str, int], list[Served]] = {each: [] for each in [*situations, *((AT_ONCE, n) for n in counts)]}
    for structure in sorted(which, key=_PAPERS.__eq__):  # the paper's comes last
        context.say(f"C9: {structure}, {delay_ms} ms each way")
        if situations:
            with _serving(context, structure, _LISTEN_5) as port:
                silent = context.begin("stall", port, ready="connected")
                deadline_s = _DEADLINE_S
                if structure == _PAPERS:  # it gets as long as all of the others needed, and then some
                    longest_s = max((each.last_s or _DEADLINE_S for each in found[SILENT, beside]), default=_DEADLINE_S)
                    deadline_s = max(_storm_deadline_s(context), 2 * longest_s)
                found[SILENT, beside].append(_ask(context, structure, port, beside, deadline_s))
                silent.stop("SIGKILL")
                if (STORMING, 100) in found:
                    found[STORMING, 100].append(_ask(context, structure, port, 100, _DEADLINE_S))
        if context.quick and structure not in _QUICK_CROWDED:
            continue
        with _serving(context, structure, _LISTEN_1024) as port:
            spent_s = _upkeep(context, port)["cpu_s"]
            for count in counts:
                served = _ask(context, structure, port, count, _DEADLINE_S)
                before_s, spent_s = spent_s, _upkeep(context, port)["cpu_s"]
                found[AT_ONCE, count].append(replace(served, cpu_s=spent_s - before_s))
                if not served.all_answered:
                    break
    return [
        Crowd(situation=name, delay_ms=delay_ms, served=tuple(sorted(each, key=_rank)))
        for (name, _), each in found.items() if each
    ]  # fmt: skip


def _rank(served: Served) -> int:
    """Of a structure in tables: the paper's first."""
    return STRUCTURES.index(served.structure)


def _ask(context: Context, structure: str, port: int, count: int, deadline_s: float) -> Served:
    """So many clients at once with a request each."""
    host = context.lab.host("server")
    before = host.counters()
    told = json.loads(context.call("many", port, count, deadline_s, "ask", timeout=f"{deadline_s + 30:g}s").stdout)
    counters = Counters.between(before, host.counters())
    return Served(
        structure=structure, clients=count, waits_s=tuple(told["done_s"]),
        overflows=counters.listen_overflows, drops=counters.listen_drops,
    )  # fmt: skip


def _upkeep(context: Context, port: int) -> dict[str, float]:
    """What the server on a port takes: see the program."""
    told: dict[str, float] = json.loads(context.measure("server", "upkeep", port).stdout)
    return told


def _memory(context: Context, structure: str, delay_ms: int) -> Memory:
    """Clients that stay connected once they are answered, and what they add."""
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
