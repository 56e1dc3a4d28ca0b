"""The demonstration as one self-contained page: a table, and every message a point. Pure: values in, text out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape

from testbed.paper.demo import DemoRun, ProfileRun, median
from testbed.paper.demotable import demo_row, milliseconds
from testbed.report import evidence

_WIDTH, _HEIGHT = 1000, 520
_LEFT, _RIGHT, _TOP, _BOTTOM = 104, 18, 34, 64
_LOST_BAND = 26
_PALETTE = ("#2f7d5d", "#2b6cb0", "#6b46c1", "#b7791f", "#c05621", "#c53030")

_Scale = Callable[[float], float]

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --faint: #6e7781; --line: #d8dee4; --paper: #fff; --band: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --faint: #9198a1; --line: #30363d; --paper: #0d1117; --band: #161b22; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 1040px; margin: 2.2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .3rem 0 .8rem; max-width: 46rem; } .faint { color: var(--faint); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { color: var(--faint); font-weight: 500; } th:first-child, td:first-child { text-align: left; }
td:first-child small { display: block; color: var(--faint); } .bad { color: #cf222e; font-weight: 600; }
td { white-space: nowrap; } td:first-child, td:first-child small { white-space: normal; }
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: var(--faint); }
svg .name { font-weight: 600; fill: var(--ink); font-size: 13px; } svg .grid { stroke: var(--line); }
svg .asked { stroke: var(--ink); stroke-dasharray: 5 4; opacity: .55; } svg .median { stroke-width: 3; }
svg .lostband { fill: var(--band); } svg .lost { stroke: #cf222e; stroke-width: 2.5; }
svg .later { fill: none; stroke: #9a6700; stroke-width: 2; }
table.proof td, table.proof th { text-align: left; font-size: 13px; white-space: normal; }
pre { background: var(--band); padding: .8rem; overflow-x: auto; font-size: 12.5px; border-radius: 6px; }
"""


def demo_page(run: DemoRun) -> str:
    """The whole page."""
    sent = sum(len(profile.messages) for profile in run.profiles)
    delivered = sum(profile.delivered for profile in run.profiles)
    verdict = f"All {sent} messages were delivered."
    if delivered < sent:
        verdict = f"{delivered} of {sent} messages were delivered. {_undelivered(run)}"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>testbed demo: the paper's client and server on bad links</title><style>{STYLE}</style></head><body>
<h1>The paper's client and server, on bad links</h1>
<p>{verdict} Each was sent by the client of “The development of the TCP protocol in Python” (G. Zholdangarova, 2020)
from one container to its server in another. Both directions of the link were impaired by real kernel netem
(the {escape(run.engine)} engine), read back from the kernel before and after each profile.</p>
<p class="faint">{escape(run.started)}</p>
<h2>Delivery time, every message a point</h2>
<p class="faint">From the client's <code>send</code> to the server's printed line. Bar: the median. Dashed: the one-way
delay asked (its mean, where there is jitter). The scale is logarithmic.</p>
{delivery_plot(run.profiles)}
<h2>Figures</h2>
{_table(run.profiles)}
<h2>What was in force</h2>
<pre>{escape(_commands(run.profiles))}</pre>
<h2>Asked, kernel, seen</h2>
<p class="faint">Before the messages, probes went over each link: numbered, time-stamped datagrams, judged by exact
tests that fail a link that is as asked once in a million proofs.</p>
{evidence.html_table((f"{run.profile}: {link}", checks) for run in run.profiles for link, checks in run.proof)}
<h2>The server's own output</h2>
<pre>{escape(run.server_output.strip())}</pre>
</body></html>
"""


def _undelivered(run: DemoRun) -> str:
    parts = [f"{run.under_way} were still under way at the end"] * bool(run.under_way)
    parts += [f"{run.lost} were lost"] * bool(run.lost)
    return f"Of the others, {' and '.join(parts)}."


def delivery_plot(profiles: Sequence[ProfileRun]) -> str:
    """A strip plot in SVG: a column per profile, a point per message, time on a logarithmic axis."""
    times = [time for run in profiles for time in run.delivery_times_s]
    low, high = _decades(times)
    bottom, top = _HEIGHT - _BOTTOM, _TOP + _LOST_BAND
    step = (_WIDTH - _LEFT - _RIGHT) / max(len(profiles), 1)

    def y(seconds: float) -> float:
        return bottom - (math.log10(max(seconds, 10.0**low)) - low) / (high - low) * (bottom - top)

    wide = _WIDTH - _LEFT - _RIGHT
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Delivery time of every message, by profile">',
        f'<rect class="lostband" x="{_LEFT}" y="{_TOP}" width="{wide}" height="{_LOST_BAND - 6}"/>',
        f'<text x="{_LEFT - 8}" y="{_TOP + 14}" text-anchor="end">○ later   × lost</text>',
    ]
    parts += _grid(low, high, y)
    for index, run in enumerate(profiles):
        left = _LEFT + index * step
        parts += _column(run, left, step, _PALETTE[index % len(_PALETTE)], y, bottom)
    return "\n".join([*parts, "</svg>"])


def _decades(times: Iterable[float]) -> tuple[int, int]:
    """Exponents of the powers of ten that enclose the times."""
    known = list(times) or [1e-3, 1.0]
    low = math.floor(math.log10(max(min(known), 1e-5)))
    return low, max(math.ceil(math.log10(max(known))), low + 1)


def _grid(low: int, high: int, y: _Scale) -> list[str]:
    lines = []
    for exponent in range(low, high + 1):
        for digit in (1, 2, 5):
            value = digit * 10.0**exponent
            if digit != 1 and (exponent == high or high - low > 3):
                continue
            place = y(value)
            lines.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>')
            label = f"{value:g} s" if value >= 1 else f"{value * 1e3:g} ms"
            lines.append(f'<text x="{_LEFT - 8}" y="{place + 4:.1f}" text-anchor="end">{label}</text>')
    return lines


def _column(run: ProfileRun, left: float, width: float, colour: str, y: _Scale, bottom: float) -> list[str]:
    middle, half = left + width / 2, width * 0.34
    delivered = f"{run.delivered}/{len(run.messages)} delivered"
    parts = [
        f'<text class="name" x="{middle:.1f}" y="{bottom + 24}" text-anchor="middle">{escape(run.profile)}</text>',
        f'<text x="{middle:.1f}" y="{bottom + 42}" text-anchor="middle">{delivered}</text>',
    ]
    if run.delay_s:
        place = y(run.delay_s)
        parts.append(
            f'<line class="asked" x1="{middle - half:.1f}" x2="{middle + half:.1f}" y1="{place:.1f}" y2="{place:.1f}">'
            f"<title>asked: {milliseconds(run.delay_s)} one way</title></line>"
        )
    count = len(run.messages)
    for number, message in enumerate(run.messages):
        x = middle + half * (2 * (number + 0.5) / count - 1) * 0.86
        fate = message.under_way or message.error or milliseconds(message.delivery_s)
        title = f"<title>{escape(message.text)}: {escape(fate)}</title>"
        if message.under_way is not None:
            parts.append(f'<circle class="later" cx="{x:.1f}" cy="{_TOP + 10}" r="4.5">{title}</circle>')
            continue
        if message.delivery_s is None:
            y1, y2 = _TOP + 5, _TOP + 15
            cross = f"M{x - 5:.1f} {y1}L{x + 5:.1f} {y2}M{x + 5:.1f} {y1}L{x - 5:.1f} {y2}"
            parts.append(f'<path class="lost" d="{cross}">{title}</path>')
            continue
        place = y(message.delivery_s)
        parts.append(
            f'<circle cx="{x:.1f}" cy="{place:.1f}" r="4.5" fill="{colour}" fill-opacity=".62">{title}</circle>'
        )
    middle_time = median(run.delivery_times_s)
    if middle_time is not None:
        place = y(middle_time)
        parts.append(
            f'<line class="median" stroke="{colour}" x1="{middle - half:.1f}" x2="{middle + half:.1f}" '
            f'y1="{place:.1f}" y2="{place:.1f}"><title>median: {milliseconds(middle_time)}</title></line>'
        )
    return parts


def _table(profiles: Sequence[ProfileRun]) -> str:
    rows = []
    for run in profiles:
        bad = "" if run.delivered == len(run.messages) else ' class="bad"'
        impairment = run.forward if run.forward == run.reverse else f"{run.forward} / back {run.reverse}"
        profile, delivered, *cells = demo_row(run)
        rows.append(
            f"<tr><td>{escape(profile)}<small>{escape(impairment)}</small></td><td{bad}>{delivered}</td>"
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + "</tr>"
        )
    return (
        "<table><thead><tr><th>profile</th><th>delivered</th><th>connect, median</th><th>worst</th>"
        "<th>delivery, median</th><th>worst</th><th>segments retransmitted</th><th>packets dropped by netem</th></tr>"
        "</thead><tbody>" + "".join(rows) + "</tbody></table>"
    )


def _commands(profiles: Sequence[ProfileRun]) -> str:
    return "\n".join(f"{run.profile:<14} {command}" for run in profiles for command in run.commands)
