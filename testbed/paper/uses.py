"""Claims about uses and layers: games over UDP and TCP, one message taken apart."""

from __future__ import annotations

from testbed.drive.messages import game
from testbed.judge.claims import Finding, Outcome, Plot, Row
from testbed.observe.wire import layers
from testbed.paper.context import BOTH, THERE, Context

_FREEZE_S = 0.1
_OSI = {
    "Ethernet": ("link", "1-2 physical, data link"),
    "IPv4": ("internet", "3 network"),
    "IPv6": ("internet", "3 network"),
    "TCP": ("transport", "4 transport, part of 5 session"),
    "payload": ("application", "5-7 session, presentation, application"),
}
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
        plot=Plot(title="Longest freeze, by link", x=", ".join(names), y="freeze, ms", series=series, logarithmic=True),
    )  # fmt: skip


def stack(context: Context) -> Outcome:
    """C12: the TCP/IP stack maps onto OSI."""
    with context.lab.capture(THERE) as capture:
        context.impair(THERE, delay="1ms")
        context.paper_client("Test message")
        context.heal()
    context.keep_capture("C12.pcapng", capture.capture)
    message = next(each for each in capture.packets if each.data.endswith(b"Test message"))
    parts = layers(message)
    whole = len(message.data)
    rows = [
        Row(condition=each.name, held=each.name in _OSI,
            values={"bytes": str(len(each.data)), "share": f"{100 * len(each.data) / whole:.0f} %",
                    **dict(zip(("TCP/IP layer", "OSI layers"), _OSI.get(each.name, ("?", "?")), strict=True)),
                    "fields": ", ".join(f"{name} {value}" for name, value in each.fields[:6])})
        for each in parts
    ]  # fmt: skip
    context.keep("C12-message.txt", "\n".join(f"{each.name}: {each.data.hex(' ')}" for each in parts) + "\n")
    payload = len(parts[-1].data)
    return Outcome(
        finding=Finding.HOLDS if [each.name for each in parts] == ["Ethernet", "IPv4", "TCP", "payload"]
        else Finding.BREAKS,
        sentence=f"One message of {payload} bytes goes as {whole} bytes: three headers of "
        f"{', '.join(str(len(each.data)) for each in parts[:-1])} bytes, each a layer of TCP/IP; OSI's three upper "
        "layers have no header of their own here, the application is all of them.",
        rows=rows, mechanism={"bytes": whole, "payload": payload},
    )  # fmt: skip
