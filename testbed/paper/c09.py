"""C9: the server may use one or another blocking structure."""

from __future__ import annotations

import json

from testbed.drive.messages import STRUCTURES
from testbed.judge.claims import Finding, Outcome, Plot, Row, finding_of
from testbed.paper.context import Context


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
            stalled = context.begin("stall", port, ready="connected")
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
        plots=[Plot(title="All clients answered", x="clients at once", y="time, s", series=bars, logarithmic=True)],
    )  # fmt: skip


def _clients(context: Context, port: int, count: int, *, deadline_s: float) -> tuple[int, float]:
    """So many clients at once with a request each: how many were answered, and when the last was."""
    done = json.loads(context.call("ask", port, count, deadline_s, timeout=f"{deadline_s * 3 + 20:g}s").stdout)
    return len(done), max(done, default=deadline_s)


def _cost(context: Context, structure: str) -> tuple[int, float]:
    """Resident memory in KiB and CPU seconds of a server and its children."""
    told = context.measure("server", "cost", structure).stdout.split()
    return int(told[0]), float(told[1])
