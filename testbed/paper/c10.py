"""C10: games freeze with UDP, and TCP solves it."""

from __future__ import annotations

from testbed.drive.messages import game
from testbed.judge.claims import Finding, Outcome, Plot, Row
from testbed.paper.context import BOTH, THERE, Context

_FREEZE_S = 0.1
_PROFILES = (
    "clean",
    "lan",
    "wifi",
    "wifi-congested",
    "lossy-1",
    "lossy-5",
    "bursty",
    "4g",
    "transatlantic",
    "reordering",
)


def games(context: Context) -> Outcome:
    """C10: games freeze with UDP; TCP solves it."""
    rows, series = [], {"UDP": list[tuple[float, float]](), "TCP": list[tuple[float, float]]()}
    better = {"UDP": 0, "TCP": 0}
    names = ("clean", "lossy-5", "bursty") if context.quick else _PROFILES
    for number, name in enumerate(names):
        seen = {}
        for transport in ("udp", "tcp"):
            context.lab.seeds_from = f"C10 {name} {transport}"
            context.impair(BOTH, name)
            run = game(context.lab, THERE, transport=transport, updates=180 if context.quick else 300)
            seen[transport] = run.judge(stall_s=_FREEZE_S).direction("server", "client")
            context.heal()
            series[transport.upper()].append((float(number), seen[transport].longest_pause_s * 1e3))
        udp, tcp = seen["udp"], seen["tcp"]
        better["UDP" if udp.longest_pause_s < tcp.longest_pause_s else "TCP"] += 1
        delays = {each: direction.delay.quantile(0.99) for each, direction in seen.items()}
        rows.append(Row(
            condition=name, held=tcp.stalls <= udp.stalls and tcp.longest_pause_s <= udp.longest_pause_s * 1.2 + 0.02,
            values={"UDP complete": f"{udp.delivered + udp.late} of {udp.sent}",
                    "TCP complete": f"{tcp.delivered + tcp.late} of {tcp.sent}",
                    "UDP freezes": f"{udp.stalls}, at most {udp.longest_pause_s * 1e3:.0f} ms",
                    "TCP freezes": f"{tcp.stalls}, at most {tcp.longest_pause_s * 1e3:.0f} ms",
                    "staleness 99 %": " / ".join(f"{each.value * 1e3:.0f} ms" if each else "—"
                                                 for each in (delays["udp"], delays["tcp"]))},
        ))  # fmt: skip
    complete = all(row.values["TCP complete"].split()[0] == row.values["TCP complete"].split()[-1] for row in rows)
    lossy = [row for row in rows if row.held is False]
    return Outcome(
        finding=Finding.BREAKS if lossy else Finding.HOLDS_WITHIN,
        sentence="It is the other way round: over lossy links UDP leaves out single updates and goes on, and TCP, "
        "which delivers every one, stands still for each loss until it is repaired.",
        rows=rows, mechanism={"tcp_complete": float(complete), "worse_with_tcp": len(lossy)},
        plots=[Plot(title="Longest freeze, by link", x="link", y="freeze, ms", series=series, logarithmic=True,
                    categories=names)],
    )  # fmt: skip
