"""C11: figure 4, the message is printed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from testbed.errors import CommandTimeoutError
from testbed.evidence.verdict import Verdict
from testbed.lab.waiting import NotSeenError, await_condition
from testbed.paper.context import BOTH, PAPER_PORT, THERE, ExperimentContext, argv_of
from testbed.paper.outcomes import ClaimOutcome, Condition, Plot

MESSAGE = "Test message"
FIGURE_4 = f"Message {MESSAGE}\n"
"""The server's output in the paper's figure 4."""
_QUICK = ("clean", "lossy", "satellite-geo", "duplicating", "blackhole")
_PASSES_NOTHING = "blackhole"
_PATIENCE_S = 150.0
_OTHERS_PER_S = 100


def figure_4(context: ExperimentContext) -> ClaimOutcome:
    """The paper's client sends its message to the paper's server over every profile, and once more with another text.

    Held if the server then has printed figure 4's line, byte for byte, the other one after it, and nothing else. Over
    a link that passes nothing the client is ended after a second, and nothing may be printed. Where losses come in
    bursts, other packets go beside the message, as on a link that is shared.
    """
    context.await_closed(PAPER_PORT, _PATIENCE_S)  # nothing of an earlier experiment may be printed
    names = _QUICK if context.quick else sorted(context.lab.profiles)
    rows: list[Condition] = []
    times: dict[str, float] = {}
    for name in names:
        context.say(f"C11: {name}")
        row, took_s = _over(context, name)
        rows.append(row)
        if row.held:
            times[name] = took_s
        elif name != _PASSES_NOTHING:
            break  # the server still waits for that client, and would not print the next message either
    printed = sum(bool(row.held) for row in rows)
    failed = [row.name for row in rows if not row.held]
    within = failed == [_PASSES_NOTHING]
    return ClaimOutcome(
        finding=Verdict.HOLDS_WITHIN if within else Verdict.HOLDS if not failed else Verdict.FAILS,
        sentence=f"Figure 4's line, “{FIGURE_4.strip()}”, was printed byte for byte and exactly once over {printed} of "
        f"{len(rows)} profiles: " + (f"all but {', '.join(failed)}." if failed else "all of them."),
        rows=rows,
        mechanism={"profiles": len(rows), "printed": printed},
        plots=[
            Plot(
                title="Until both messages were printed, by profile",
                x="profile",
                y="time, s",
                logarithmic=True,
                series={"two messages": [(float(at), took_s) for at, took_s in enumerate(times.values())]},
                categories=tuple(times),
            )
        ],
    )


def _over(context: ExperimentContext, name: str) -> tuple[Condition, float]:
    server = context.lab.host("server")
    before = server.logs()
    second = f"after {name} {len(before)}"
    wanted = f"{FIGURE_4}Message {second}\n"
    context.impair(BOTH, name)
    if name == _PASSES_NOTHING:
        return _over_nothing(context, name, before)
    with _other_traffic(context):
        began = time.monotonic()
        context.paper_client(MESSAGE, timeout=f"{_PATIENCE_S:g}s")
        context.paper_client(second, timeout=f"{_PATIENCE_S:g}s")
        try:
            await_condition(server.logs, lambda text: text.endswith(f"Message {second}\n"), deadline_s=_PATIENCE_S)
        except NotSeenError:
            context.say(f"C11: {name}: not printed within {_PATIENCE_S:g} s")
        took_s = time.monotonic() - began
    printed = server.logs().removeprefix(before)
    context.heal()
    return Condition(
        name=name,
        held=printed == wanted,
        values={
            "printed": "byte for byte" if printed == wanted else repr(printed),
            "two messages took": f"{took_s:.2f} s",
        },
    ), took_s


@contextmanager
def _other_traffic(context: ExperimentContext) -> Iterator[None]:
    """Send other packets as well where losses come in bursts.

    A burst of netem lasts for a number of packets, not for a time. A lone message would be retransmitted once per lost
    packet, after twice the time each time.
    """
    lab = context.lab
    bursty = any(impairment.bursty for impairment in lab.impairer.impairments().values())
    addresses = {name: lab.host(name).addresses("lan")[0] for name in ("client", "server")}
    beside = [
        lab.host(src).start(argv_of("hum", addresses[dst], _OTHERS_PER_S), ready="ready")
        for src, dst in (("client", "server"), ("server", "client"))
        if bursty
    ]
    try:
        yield
    finally:
        for program in beside:
            program.stop("SIGKILL")


def _over_nothing(context: ExperimentContext, name: str, before: str) -> tuple[Condition, float]:
    try:
        times = context.paper_client(MESSAGE, timeout="1s")
        outcome = f"client: {times.get('error', 'nothing')}"
    except CommandTimeoutError:
        outcome = "client: still connecting after 1 s"
    printed = context.lab.host("server").logs().removeprefix(before)
    context.heal(met=THERE)  # nothing arrives, so there are no answers
    return Condition(
        name=name, held=printed == FIGURE_4, values={"printed": repr(printed), "two messages took": outcome}
    ), 0.0
