"""C7: it works without delays."""

from __future__ import annotations

from testbed.drive.messages import messages
from testbed.judge.claims import Finding, Outcome, Plot, Row
from testbed.paper.context import BOTH, THERE, Context


def no_delays(context: Context) -> Outcome:
    """C7: works without delays."""
    rows, series = [], {}
    grid = [("0ms", None), ("50ms", None), ("50ms", "2%"), ("50ms", "10%")]
    for number, (delay, loss) in enumerate(grid):
        words: dict[str, object] = {"delay": delay, "seed": number + 1} if delay != "0ms" else {"delay": "1us"}
        if loss:
            words["loss"] = loss
        context.impair(BOTH, None, **words)
        run = messages(context.lab, THERE, structure="threads", count=150, size_bytes=200, rate_per_s=100, deadline_s=8)
        there = run.judge().direction("client", "server")
        context.heal()
        half, worst = there.delay_quantile(0.5), there.delay_quantile(0.99)
        name = f"{delay} each way" + (f", {loss} lost" if loss else "")
        waited = there.head_of_line.max_s or 0.0
        delay_s = 0.05 if delay != "0ms" else 0.0
        held = half is not None and half.value <= delay_s + 0.02 and (not loss or (worst or half).value <= 2 * delay_s)
        rows.append(Row(
            condition=name, held=held,
            values={"delivered": f"{there.delivered + there.late} of {there.sent}",
                    "median": f"{half.value * 1e3:.1f} ms" if half else "—",
                    "99 %": f"{worst.value * 1e3:.0f} ms" if worst else "—",
                    "waited for the one before": f"up to {waited * 1e3:.0f} ms"},
        ))  # fmt: skip
        points = [(q * 100, seen.value * 1e3) for q in (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
                  if (seen := there.delay_quantile(q)) is not None]  # fmt: skip
        series[name] = points
    return Outcome(
        finding=Finding.BREAKS if not all(row.held for row in rows) else Finding.HOLDS,
        sentence="TCP adds no delay of its own while nothing is lost; with each loss, every message behind it waits "
        "for the retransmission (head-of-line blocking), many times the link's delay.",
        rows=rows, mechanism={"worst_ms": max(y for points in series.values() for _, y in points)},
        plots=[Plot(title="Delivery time by quantile", x="share of messages, %", y="delivery time, ms", series=series,
                  logarithmic=True)],
    )  # fmt: skip
