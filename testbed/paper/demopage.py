"""The demonstration as a page: every message a point, its figures, and what was in force. Pure: values in, text out."""

from __future__ import annotations

from collections.abc import Iterator

from testbed.paper.demo import DemoRun, ProfileRun
from testbed.paper.demotable import demo_row
from testbed.report.page import Charts, MatrixCell, Page, Part, Points, Table, Text, render
from testbed.report.run import check_rows

_HEADS = (
    "profile",
    "delivered",
    "connect, median",
    "worst",
    "delivery, median",
    "worst",
    "segments sent again",
    "packets dropped by netem",
)


def demo_page(run: DemoRun) -> str:
    """The whole page."""
    sent = sum(len(profile.messages) for profile in run.profiles)
    delivered = sum(profile.delivered for profile in run.profiles)
    lead = (
        f"All {sent} messages were delivered."
        if delivered == sent
        else (f"{delivered} of {sent} messages were delivered. {_undelivered(run)}")
    )
    times = Points(
        title="From the client's send to the server's printed line; the line is the median, the dashed one the one-way "
        "delay that was asked",
        unit="s",
        logarithmic=True,
        groups={profile.profile: profile.delivery_times_s for profile in run.profiles},
        marked={profile.profile: profile.delay_s for profile in run.profiles if profile.delay_s},
    )
    return render(
        Page(
            title="The paper's client and server, on bad links",
            lead=lead,
            rows="impairment",
            facts=[("started", run.started), ("netem", f"executed by the {run.engine} engine")],
            notes=[
                "Each message was sent by the client of “The development of the TCP protocol in Python” (G. "
                "Zholdangarova, 2020) to its server on another host. Both directions of the link were impaired by real "
                "kernel netem, read back from the kernel before and after each profile."
            ],
            before=[
                Charts(title="Delivery time, every message a point", charts=[times]),
                Table(
                    title="Figures", heads=_HEADS, rows=[demo_row(profile) for profile in run.profiles], numeric_from=1
                ),
            ],
            cells=[_cell(profile) for profile in run.profiles],
            parts=[Text(title="The server's own output", text=run.server_output.strip())],
        )
    )


def _undelivered(run: DemoRun) -> str:
    parts = [f"{run.under_way} were still under way at the end"] * bool(run.under_way)
    parts += [f"{run.lost} were lost"] * bool(run.lost)
    return f"Of the others, {' and '.join(parts)}."


def _cell(run: ProfileRun) -> MatrixCell:
    """One profile: what was asked, held and seen, and each message that was not delivered."""
    tone = "bad" if any(message.lost for message in run.messages) else "mild" if run.under_way else "good"
    impairment = run.forward if run.forward == run.reverse else f"{run.forward}; back {run.reverse}"
    return MatrixCell(
        row=impairment,
        column=run.profile,
        word=f"{run.delivered}/{len(run.messages)}",
        tone=tone,
        brief=run.description,
        parts=[*_parts(run)],
    )


def _parts(run: ProfileRun) -> Iterator[Part]:
    left = [message for message in run.messages if message.delivery_s is None]
    if left:
        fates = [(message.text, message.under_way or message.error or "lost") for message in left]
        yield Table(
            title="Not delivered",
            heads=("message", "what is known of it"),
            rows=fates,
            tones=["bad" if message.lost else "mild" for message in left],
        )
    for link, checks in run.proof:
        rows, tones = check_rows([check.as_json() for check in checks])
        yield Table(
            title=f"{link}, probed first",
            heads=("field", "asked", "kernel", "seen", "how", "verdict"),
            rows=rows,
            tones=tones,
        )
    yield Text(title="What was in force", text="\n".join(run.commands))
