"""The paper's claims as one self-contained page: verdicts first, then each claim with its numbers. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from testbed.judge.claims import Outcome, Plot
from testbed.report.html import STYLE

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 900, 340, 80, 52, 30, 20
_PALETTE = ("#2b6cb0", "#c05621", "#2f7d5d", "#6b46c1", "#b7791f")
_COLOURS = {"HOLDS": "#2f7d5d", "HOLDS WITHIN": "#b7791f", "BREAKS": "#c53030", "INVALID": "#6e7781"}

Page = tuple[str, str, str, str, str, Outcome]
"""Id, name, claim, section, experiment, outcome."""


def claims_page(claims: Sequence[Page]) -> str:
    """The whole page."""
    summary = "".join(
        f'<tr><td><a href="#{id_}">{id_} {escape(name)}</a><small>{escape(text)}</small></td><td>{_badge(outcome)}</td>'
        f'<td style="text-align:left;white-space:normal">{escape(outcome.sentence)}</td></tr>'
        for id_, name, text, _section, _how, outcome in claims
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>The paper's claims, put to the test</title><style>{STYLE}</style></head><body>
<h1>The paper's claims, put to the test</h1>
<p>“The development of the TCP protocol in Python” (G. Zholdangarova, 2020) rests on one message on loopback. Here each
of its claims met two hosts and links that were impaired by real kernel netem, read back before and after.</p>
<table><thead><tr><th>claim</th><th>finding</th><th style="text-align:left">what is true</th></tr></thead>
<tbody>{summary}</tbody></table>
{"".join(_section(each) for each in claims)}
</body></html>
"""


def _badge(outcome: Outcome) -> str:
    return f'<b style="color:{_COLOURS[str(outcome.finding)]}">{outcome.finding}</b>'


def _section(page: Page) -> str:
    id_, name, text, section, how, outcome = page
    columns = list(dict.fromkeys(column for row in outcome.rows for column in row.values))
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    marks = {True: "✓", False: "✗", None: ""}
    body = "".join(
        f"<tr><td>{marks[row.held]} {escape(row.condition)}</td>"
        + "".join(f'<td style="white-space:normal">{escape(row.values.get(column, ""))}</td>' for column in columns)
        + "</tr>"
        for row in outcome.rows
    )
    links = ", ".join(f'<a href="{escape(file)}">{escape(file)}</a>' for file in outcome.evidence)
    table = f"<table><thead><tr><th>condition</th>{head}</tr></thead><tbody>{body}</tbody></table>" if body else ""
    return (
        f'<h2 id="{id_}">{id_} {escape(name)}: {_badge(outcome)}</h2>'
        f'<p><i>{escape(text)}</i> <span class="faint">({escape(section)})</span></p>'
        f'<p>{escape(outcome.sentence)}</p><p class="faint">{escape(how)}</p>'
        f"{plot(outcome.plot) if outcome.plot else ''}{table}"
        + (f'<p class="faint">Evidence: {links}</p>' if links else "")
    )


def plot(picture: Plot) -> str:
    """Lines over two axes, in SVG."""
    points = [point for line in picture.series.values() for point in line]
    if not points:
        return ""
    floor = min((y for _, y in points if y > 0), default=1.0)
    low, high = (floor if picture.logarithmic else 0.0), max(max(y for _, y in points), floor)
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    high, last = (high if high > low else low * 2 + 1), (last if last > first else first + 1)

    def x_at(x: float) -> float:
        return _LEFT + (x - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)

    def y_at(y: float) -> float:
        share = (y - low) / (high - low)
        if picture.logarithmic:
            share = math.log(max(y, low) / low) / math.log(high / low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(picture.title)}">']
    for step in range(5):
        y = low * (high / low) ** (step / 4) if picture.logarithmic else low + (high - low) * step / 4
        x = first + (last - first) * step / 4
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y_at(y):.1f}" y2="{y_at(y):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y_at(y) + 4:.1f}" text-anchor="end">{y:.3g}</text>')
        parts.append(f'<text x="{x_at(x):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{x:.3g}</text>')
    for number, (name, line) in enumerate(picture.series.items()):
        colour = _PALETTE[number % len(_PALETTE)]
        path = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(line) <= 60:
            parts += [f'<circle cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="3.5" fill="{colour}"/>' for x, y in line]
        parts.append(
            f'<text x="{_LEFT + 12 + 170 * number}" y="{_TOP - 12}" style="fill:{colour}">{escape(name)}</text>'
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 12}" text-anchor="middle">{escape(picture.x)}</text>')
    parts.append(f'<text x="14" y="{_HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 14 {_HEIGHT / 2})">'
                 f"{escape(picture.y)}</text>")  # fmt: skip
    return "\n".join([*parts, "</svg>"])
