"""Write the traces of this folder. Seeded and deterministic: the same bytes each time, on any machine.

    python netem/traces/generate.py [FOLDER]

These are models, not recordings: each function says what it draws and where its figures come from. Only
``random.Random.random`` and plain arithmetic are used, whose results Python defines exactly.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path


def tunnel() -> str:
    """A drive through a tunnel, 60 s: rate falls and delay rises on the way in, nothing for 6 s, then a restart.

    The shape of a cellular link's loss of signal. Outside: 12 Mbit/s and 40 ms (WebPageTest's "LTE" profile is
    12 Mbit/s and 70 ms round trip). The length of the gap, 6 s, is a 150 m tunnel at 90 km/h. That rate halves each
    second on the way in, and that radio losses reach 8 %, is our choice.
    """
    draw = random.Random(1)  # noqa: S311  # a model, not a secret
    lines = ["# tunnel: see generate.py", "time_s,rate_kbit,delay_ms,loss_%"]
    for half in range(120):
        time_s = half / 2
        spread = 0.85 + 0.3 * draw.random()
        if time_s < 22:
            rate, delay, loss = 12_000.0, 40.0, 0.1
        elif time_s < 28:
            into = time_s - 22
            rate, delay, loss = 12_000 / 2**into, 40 + 25 * into, 0.1 + 1.3 * into
        elif time_s < 34:
            rate, delay, loss = 0.0, 190.0, 8.0
        elif time_s < 38:
            out = time_s - 34
            rate, delay, loss = 750 * 2**out, 190 - 35 * out, 8 - 1.9 * out
        else:
            rate, delay, loss = 12_000.0, 40.0, 0.1
        lines.append(f"{time_s:.1f},{round(rate * spread)},{round(delay * (0.95 + 0.1 * draw.random()))},{loss:.1f}")
    return "\n".join(lines) + "\n"


def handover() -> str:
    """A low-orbit satellite link, 60 s: it is given another satellite every 15 s.

    That Starlink reassigns every 15 s, that delay steps then, and that packets are lost for some tens to hundreds
    of ms around it: Mohan et al., "A Multifaceted Look at Starlink Performance", WWW 2024. Round trips of 30–60 ms
    and 50–200 Mbit/s are in their range; the figure of each slot is drawn, and the break of 120 ms is our choice.
    """
    draw = random.Random(2)  # noqa: S311  # a model, not a secret
    lines = ["# satellite hand-over: see generate.py", "time_ms,rate_mbit,delay_ms,loss_%"]
    for slot in range(4):
        begin_ms = slot * 15_000
        lines.append(f"{begin_ms},{round(50 + 150 * draw.random())},{round(18 + 14 * draw.random())},100")
        rate, delay = round(50 + 150 * draw.random()), round(15 + 15 * draw.random())
        for step in range(15):
            at_ms = begin_ms + (120 if step == 0 else step * 1000)
            loss = 0.1 + 0.5 * draw.random()
            lines.append(f"{at_ms},{rate},{delay + round(3 * draw.random())},{loss:.1f}")
    return "\n".join(lines) + "\n"


def wifi_contention() -> str:
    """A busy Wi-Fi, 20 s, as Mahimahi's packet-delivery trace: opportunities in bunches, with gaps between.

    One station of a few that share the air sends an aggregate (A-MPDU, up to 32 packets here) when it wins, then
    waits while the others do: IEEE 802.11n aggregates of up to 64 packets and a transmit opportunity of up to 4 ms.
    The gaps, 4 to 60 ms, and a burst of interference that stops everything for 300 ms every 5 s, are our choice.
    """
    draw = random.Random(3)  # noqa: S311  # a model, not a secret
    times: list[int] = []
    now_ms = 1
    while now_ms <= 20_000:
        if now_ms % 5000 < 300:
            now_ms += 300 - now_ms % 5000
            continue
        packets = 4 + int(draw.random() * 29)
        times += [now_ms + packet // 8 for packet in range(packets)]
        now_ms = times[-1] + 4 + int(56 * draw.random() ** 3)
    return "".join(f"{time_ms}\n" for time_ms in [*times, max(20_000, times[-1])])


def train() -> str:
    """A train at speed, 120 s: cells come and go, and every 20 to 40 s a hand-over breaks the link for a moment.

    That mobile links on fast trains see frequent hand-overs, round trips that swing between about 50 and several
    hundred ms, and stalls of seconds: Li et al., "A Measurement Study on TCP Behaviors in HSPA+ Networks on
    High-speed Rails", INFOCOM 2015. The figures are drawn from those ranges, not taken from it.
    """
    draw = random.Random(4)  # noqa: S311  # a model, not a secret
    lines = ["# train: see generate.py", "time_s,rate_kbit,delay_ms,loss_%"]
    next_handover = 14 + int(20 * draw.random())
    signal = 0.8
    for second in range(120):
        if second == next_handover:
            next_handover += 20 + int(20 * draw.random())
            signal = 0.3
            lines.append(f"{second},0,250,2")
            gap_ms = 300 + round(700 * draw.random())
            lines.append(f"{second + gap_ms / 1000:.3f},800,220,5")
            continue
        signal = min(1.0, max(0.15, signal + 0.25 * (draw.random() - 0.45)))
        rate = round(500 + 9500 * signal * signal)
        delay = round(45 + 180 * (1 - signal) + 30 * draw.random())
        lines.append(f"{second},{rate},{delay},{3 * (1 - signal) * draw.random():.1f}")
    return "\n".join(lines) + "\n"


TRACES: dict[str, Callable[[], str]] = {
    "tunnel.csv": tunnel,
    "satellite-handover.csv": handover,
    "wifi-contention.mahimahi": wifi_contention,
    "train.csv": train,
}


def main() -> None:
    """Write every trace."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name, make in TRACES.items():
        (folder / name).write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
