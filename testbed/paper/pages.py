"""The paper's claims as pages: verdicts first, then one page a claim with its plots, numbers and evidence. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from textwrap import wrap

from testbed.evidence.verdict import Verdict
from testbed.paper.demopage import STYLE
from testbed.paper.outcomes import ClaimOutcome, Condition, Plot

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 900, 340, 84, 52, 34, 20
_BAR, _NAMES = 28, 330  # of a bar's row, and the room for its name
_NAME_LETTERS = 46  # in one of its two lines
_SERIES = 4
_MOST_DOTS = 60
_MOST_DECADES = 8
_COLOURS = {
    Verdict.HOLDS: "holds",
    Verdict.HOLDS_WITHIN: "within",
    Verdict.FAILS: "breaks",
    Verdict.INVALID: "invalid",
}

_STYLE = """
:root { --s0: #2b6cb0; --s1: #c05621; --s2: #2f7d5d; --s3: #6b46c1; --s4: #b7791f;
        --holds: #2f7d5d; --within: #9a6700; --breaks: #c53030; --invalid: #6e7781; }
@media (prefers-color-scheme: dark) {
  :root { --s0: #63a4e8; --s1: #f0883e; --s2: #56c596; --s3: #b392f0; --s4: #e3b341;
          --holds: #56c596; --within: #e3b341; --breaks: #ff7b72; --invalid: #9198a1; }
}
a { color: var(--s0); text-decoration: none; } a:hover { text-decoration: underline; }
.badge { font-weight: 700; white-space: nowrap; } .holds { color: var(--holds); } .within { color: var(--within); }
.breaks { color: var(--breaks); } .invalid { color: var(--invalid); }
td, th { text-align: left; } td { white-space: normal; } .lead { font-size: 1.12rem; max-width: 52rem; }
blockquote { margin: .6rem 0 1rem; padding: .1rem 1rem; border-left: 3px solid var(--line); font-style: italic; }
nav { display: flex; justify-content: space-between; margin-top: 2rem; } figure { margin: 1.2rem 0; }
figcaption { font-weight: 600; margin-bottom: .2rem; } .key { font-size: 13px; margin-right: 1.2rem; }
.wide { overflow-x: auto; } .wide table { font-size: 14px; } summary { cursor: pointer; }
.s0 { stroke: var(--s0); fill: var(--s0); } .s1 { stroke: var(--s1); fill: var(--s1); }
.s2 { stroke: var(--s2); fill: var(--s2); } .s3 { stroke: var(--s3); fill: var(--s3); }
.s4 { stroke: var(--s4); fill: var(--s4); } polyline { fill: none !important; stroke-width: 2; }
.dash { stroke-dasharray: 6 5; opacity: .7; } rect.bar { stroke: none; }
.rest { display: block; color: var(--faint); font-size: 13.5px; } .files { columns: 16rem; } details { margin: 1rem 0; }
td:nth-child(2) { min-width: 11rem; } table.facts { width: auto; } table.facts td { padding-right: 2rem; }
"""


@dataclass(frozen=True, kw_only=True)
class Page:
    """A claim and its outcome."""

    id: str
    name: str
    text: str
    """The claim in one line."""
    section: str
    """Where the paper makes it."""
    how: str
    """What the experiment does."""
    outcome: ClaimOutcome

    @property
    def file(self) -> str:
        """The name of its page."""
        return f"{self.id}.html"


def index_page(pages: Sequence[Page], about: Mapping[str, str]) -> str:
    """The verdicts, one claim per line. ``about``: the conditions of the whole run."""
    counts = {finding: sum(page.outcome.finding is finding for page in pages) for finding in _COLOURS}
    tally = ", ".join(
        f'<span class="badge {_COLOURS[finding]}">{finding.of("claim")} {count}</span>'
        for finding, count in counts.items()
        if count
    )
    lines = "".join(
        f'<tr><td><a href="{page.file}">{page.id} {escape(page.name)}</a><small>{escape(page.text)}</small></td>'
        f"<td>{_badge(page.outcome)}</td><td>{_shown(page.outcome.sentence)}</td></tr>"
        for page in pages
    )
    facts = "; ".join(f"{escape(name)}: {escape(value)}" for name, value in about.items())
    return _html(
        "The paper's claims, tested",
        f"""<h1>The paper's claims, tested</h1>
<p class="lead">“The development of the TCP protocol in Python” (G. Zholdangarova, 2020) says of TCP that it met all
expectations, “without delays and losses”. Its evidence was one message on loopback. Here each of its claims is tested
between two hosts, over a link impaired by real kernel netem and read back before and after.</p>
<p>{tally}</p>
<table><thead><tr><th>claim</th><th>verdict</th><th>what is true</th></tr></thead><tbody>{lines}</tbody></table>
<p class="faint">HOLDS: under every condition tried. HOLDS WITHIN: up to a boundary, which is named. BREAKS: not as
stated. INVALID: the conditions were not met, so there is no verdict.</p>
<p class="faint">{facts}</p>""",
    )


def claim_page(page: Page, *, before: Page | None = None, after: Page | None = None) -> str:
    """One claim: what it says, what was done, what came of it."""
    outcome = page.outcome
    links = "".join(f'<li><a href="{escape(file)}">{escape(file)}</a></li>' for file in outcome.evidence)
    pictures = "".join(
        f'<figure><img src="{escape(file)}" alt="{escape(page.name)}" style="width:100%"></figure>'
        for file in outcome.evidence
        if file.endswith(".svg")
    )
    conditions = "".join(f"<li>{escape(condition)}</li>" for condition in outcome.conditions)
    numbers = "".join(
        f"<tr><td>{escape(name.replace('_', ' '))}</td><td>{_number(value)}</td></tr>"
        for name, value in outcome.mechanism.items()
    )
    first, others = _parted(outcome.sentence)
    earlier = f'<a href="{before.file}">← {before.id} {escape(before.name)}</a>' if before else "<span></span>"
    later = f'<a href="{after.file}">{after.id} {escape(after.name)} →</a>' if after else "<span></span>"
    return _html(
        f"{page.id} {page.name}: {outcome.finding.of('claim')}",
        f"""<p><a href="index.html">All claims</a></p>
<h1>{page.id} {escape(page.name)}: {_badge(outcome)}</h1>
<blockquote>{escape(page.text)} <span class="faint">(the paper, {escape(page.section)})</span></blockquote>
<p class="lead">{escape(first)}</p>{f"<p>{escape(others)}</p>" if others else ""}
{pictures}{"".join(plot(condition) for condition in outcome.plots)}
<h2>The experiment</h2><p>{escape(" ".join(page.how.replace("``", "").split()))}</p>
{_table(outcome.rows)}
{f"<h2>Evidence</h2><ul class='files'>{links}</ul>" if links else ""}
{_folded("The numbers behind the verdict", f"<table class='facts'><tbody>{numbers}</tbody></table>" if numbers else "")}
{_folded("What was put on the links", f"<ul>{conditions}</ul>" if conditions else "")}
<p class="faint">It took {outcome.took_s:.1f} s.</p>
<nav>{earlier}{later}</nav>""",
    )


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>{body}</details>" if body else ""


def _parted(text: str) -> tuple[str, str]:
    """The first sentence, and the others."""
    first, *others = re.split(r"(?<=[.!?]) (?=[A-Z0-9“])", text, maxsplit=1)
    return first, "".join(others)


def _shown(text: str) -> str:
    first, others = _parted(text)
    return escape(first) + (f'<span class="rest">{escape(others)}</span>' if others else "")


def _html(title: str, body: str) -> str:
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{STYLE}{_STYLE}</style></head><body>
{body}
</body></html>
"""


def _badge(outcome: ClaimOutcome) -> str:
    return f'<span class="badge {_COLOURS[outcome.finding]}">{outcome.finding.of("claim")}</span>'


def _brief(value: float) -> str:
    """In three digits or so, for the end of a bar."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"


def _table(rows: Sequence[Condition]) -> str:
    if not rows:
        return ""
    columns = list(dict.fromkeys(column for row in rows for column in row.values))
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    marks = {True: ('<span class="badge holds">✓</span>'), False: ('<span class="badge breaks">✗</span>'), None: ""}
    body = "".join(
        f"<tr><td>{marks[row.held]}</td><td>{escape(row.name)}</td>"
        + "".join(f"<td>{_bound(escape(row.values.get(column, '')))}</td>" for column in columns)
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide"><table><thead><tr><th></th><th>condition</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _bound(text: str) -> str:
    """A number and its unit stay on one line."""
    return re.sub(r"(?<=[0-9∞]) (?=(?:s|ms|%|B|kB|KiB|Mbit/s)(?![a-z]))", "\N{NO-BREAK SPACE}", text)


# --- pictures ----------------------------------------------------------------------------------------


def plot(picture: Plot) -> str:
    """Lines over two axes, or bars where x has names; in SVG. Nothing of no points."""
    if not any(picture.series.values()):
        return ""
    keys = "".join(
        f'<span class="key"><svg width="22" height="8" style="width:22px">'
        f'<line class="s{number % (_SERIES + 1)}{_dash(picture, name)}" x1="0" x2="22" y1="4" y2="4" stroke-width="3"/>'
        f"</svg> {escape(name)}</span>"
        for number, name in enumerate(picture.series)
    )
    if len(picture.series) == 1:
        keys = ""  # the title says what it is
    drawn = _bars(picture) if picture.categories else _lines(picture)
    return f"<figure><figcaption>{escape(picture.title)}</figcaption><div>{keys}</div>{drawn}</figure>"


def _dash(picture: Plot, name: str) -> str:
    return " dash" if name in picture.dashed else ""


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """From values to places: linear from 0, or logarithmic between powers of ten."""

    low: float
    high: float
    begin: float
    end: float
    logarithmic: bool

    @classmethod
    def of(cls, values: Sequence[float], begin: float, end: float, *, logarithmic: bool, zero: bool = True) -> _Axis:
        if logarithmic:
            above = [value for value in values if value > 0] or [1.0]
            low, high = 10 ** math.floor(math.log10(min(above))), 10 ** math.ceil(math.log10(max(above)))
            high = high if high > low else low * 10
        else:
            low = 0.0 if zero and min(values) >= 0 else min(values)
            high = max(values) if max(values) > low else low + 1
        return cls(low=low, high=high, begin=begin, end=end, logarithmic=logarithmic)

    def at(self, value: float) -> float:
        """The place of a value; what is below the scale lies at its begin."""
        if self.logarithmic:
            low, high = math.log10(self.low), math.log10(self.high)
            share = (math.log10(max(value, self.low)) - low) / (high - low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.begin + share * (self.end - self.begin)

    @property
    def ticks(self) -> list[float]:
        """Round values from low to high."""
        if self.logarithmic:
            first, last = round(math.log10(self.low)), round(math.log10(self.high))
            return [10.0**power for power in range(first, last + 1, math.ceil((last - first) / _MOST_DECADES))]
        step = _round_step((self.high - self.low) / 5)
        first = math.ceil(self.low / step)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)


def _lines(picture: Plot) -> str:
    points = [point for line in picture.series.values() for point in line]
    across = _Axis.of([x for x, _ in points], _LEFT, _WIDTH - _RIGHT, logarithmic=picture.logarithmic_x, zero=False)
    up = _Axis.of([y for _, y in points], _HEIGHT - _BOTTOM, _TOP, logarithmic=picture.logarithmic)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(picture.title)}">']
    for tick in up.ticks:
        y = up.at(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:,.6g}</text>')
    for tick in across.ticks:
        x = across.at(tick)
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{tick:,.6g}</text>')
    for number, (name, line) in enumerate(picture.series.items()):
        colour, dash = f"s{number % (_SERIES + 1)}", _dash(picture, name)
        path = " ".join(f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in line)
        parts.append(f'<polyline points="{path}" class="{colour}{dash}"/>')
        if len(line) <= _MOST_DOTS and not dash:
            parts += [
                f'<circle cx="{across.at(x):.1f}" cy="{up.at(y):.1f}" r="3.5" class="{colour}"/>' for x, y in line
            ]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 12}" text-anchor="middle">{escape(picture.x)}</text>')
    parts.append(
        f'<text x="16" y="{_HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 16 {_HEIGHT / 2})">'
        f"{escape(picture.y)}</text>"
    )
    return "\n".join([*parts, "</svg>"])


def _bars(picture: Plot) -> str:
    values = [y for line in picture.series.values() for _, y in line]
    along = _Axis.of([*values, 0.0], _NAMES, _WIDTH - 80, logarithmic=picture.logarithmic)
    count, room = len(picture.series), len(picture.series) * 10 + _BAR - 10
    height = room * len(picture.categories) + 60
    parts = [f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(picture.title)}">']
    for tick in along.ticks:
        x = along.at(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height - 46}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 30}" text-anchor="middle">{tick:,.6g}</text>')
    for place, name in enumerate(picture.categories):
        lines = wrap(name, _NAME_LETTERS, max_lines=2, placeholder=" …") or [""]
        y = place * room + room / 2 + 3 - 6 * (len(lines) - 1)
        parts += [
            f'<text x="{_NAMES - 8}" y="{y + 12 * at:.1f}" text-anchor="end">{escape(line)}</text>'
            for at, line in enumerate(lines)
        ]
    thick = (room - 8) / count
    for number, line in enumerate(picture.series.values()):
        for x, y in line:
            top, end = x * room + 4 + number * thick, along.at(y)
            size = f'height="{thick - 1:.1f}" width="{max(end - _NAMES, 1):.1f}"'
            parts.append(f'<rect class="bar s{number % (_SERIES + 1)}" x="{_NAMES}" y="{top:.1f}" {size}/>')
            parts.append(f'<text x="{end + 6:.1f}" y="{top + thick / 2 + 4:.1f}">{_brief(y)}</text>')
    parts.append(f'<text x="{(_NAMES + _WIDTH) / 2}" y="{height - 8}" text-anchor="middle">{escape(picture.y)}</text>')
    return "\n".join([*parts, "</svg>"])
