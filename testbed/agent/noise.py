"""The noise of a machine: the lateness of its timers, the time of an idle round trip, the share of stolen time."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

_SLEEPS, _SLEEP_S = 300, 0.001
_ROUND_TRIPS = 300
_STAT = Path("/proc/stat")


def noise() -> dict[str, Any]:
    """Measure for about half a second; returns samples in seconds, and shares of CPU time by /proc/stat."""
    before = _processor_time()
    overshoots = []
    for _ in range(_SLEEPS):
        began = time.monotonic()
        time.sleep(_SLEEP_S)
        overshoots.append(time.monotonic() - began - _SLEEP_S)
    round_trips = _round_trips()
    spent = [after - earlier for earlier, after in zip(before, _processor_time(), strict=True)]
    total = sum(spent) or 1
    # proc(5): user, nice, system, idle, iowait, irq, softirq, steal
    return {
        "overshoots_s": overshoots,
        "round_trips_s": round_trips,
        "steal_ratio": spent[7] / total,
        "idle_ratio": (spent[3] + spent[4]) / total,
    }


def _processor_time() -> list[int]:
    return [int(word) for word in _STAT.read_text().splitlines()[0].split()[1:9]]


def _round_trips() -> list[float]:
    """The times of datagrams to another thread and back, over loopback; seconds."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there,
    ):
        for end in (here, there):
            end.bind(("127.0.0.1", 0))
            end.settimeout(1.0)

        def echo() -> None:
            for _ in range(_ROUND_TRIPS):
                data, peer = there.recvfrom(16)
                there.sendto(data, peer)

        thread = threading.Thread(target=echo, name="echo", daemon=True)
        thread.start()
        times = []
        for number in range(_ROUND_TRIPS):
            began = time.perf_counter()
            here.sendto(b"%d" % number, there.getsockname())
            here.recv(16)
            times.append(time.perf_counter() - began)
        thread.join()
        return times
