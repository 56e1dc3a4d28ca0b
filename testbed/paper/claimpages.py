"""The paper's claims as pages: verdicts first, then one page a claim with its plots, numbers and evidence. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from testbed.evidence.verdict import Verdict
from testbed.paper.outcomes import ClaimOutcome, Condition, Frame, Plot
from testbed.report.page import (
    Bars,
    Charts,
    Curves,
    Links,
    Nested,
    NestedLayer,
    Page,
    Part,
    Table,
    Text,
    Tone,
    render,
)
from testbed.text import visible

_TONES: dict[Verdict, Tone] = {
    Verdict.HOLDS: "good",
    Verdict.HOLDS_WITHIN: "mild",
    Verdict.FAILS: "bad",
    Verdict.INVALID: "odd",
}
_LEAD = (
    "“The development of the TCP protocol in Python” (G. Zholdangarova, 2020) says of TCP that it met all "
    "expectations, “without delays and losses”. Its evidence was one message on loopback. Here each of its claims is "
    "tested between two hosts, over a link impaired by real kernel netem and read back before and after."
)
_WORDS = (
    "HOLDS: under every condition tried. HOLDS WITHIN: up to a boundary, which is named. BREAKS: not as stated. "
    "INVALID: the conditions were not met, so there is no verdict."
)


@dataclass(frozen=True, kw_only=True)
class ClaimPage:
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


def index_page(pages: Sequence[ClaimPage], about: Mapping[str, str]) -> str:
    """The verdicts, one claim per line. ``about``: the conditions of the whole run."""
    counts = [
        (finding.of("claim"), sum(page.outcome.finding is finding for page in pages), tone)
        for finding, tone in _TONES.items()
    ]
    table = Table(
        title="",
        heads=("claim", "what the paper says", "what is true", "verdict"),
        links=[page.file for page in pages],
        rows=[
            (f"{page.id} {page.name}", page.text, visible(page.outcome.sentence), page.outcome.finding.of("claim"))
            for page in pages
        ],
        tones=[_TONES[page.outcome.finding] for page in pages],
    )
    return render(
        Page(
            title="The paper's claims, tested",
            lead=_LEAD,
            before=[table],
            counts=[(word, count, tone) for word, count, tone in counts if count],
            notes=[_WORDS],
            facts=list(about.items()),
        )
    )


def claim_page(page: ClaimPage, *, before: ClaimPage | None = None, after: ClaimPage | None = None) -> str:
    """One claim: what it says, what was done, what came of it."""
    outcome = page.outcome
    first, others = _parted(visible(outcome.sentence))
    ways = [("index.html", "All claims")]
    ways += [(before.file, f"Before: {before.id} {before.name}")] if before else []
    ways += [(after.file, f"Next: {after.id} {after.name}")] if after else []
    parts: list[Part] = [Links(title="", files=ways)]
    if outcome.frame is not None:
        parts.append(Charts(title=page.name, charts=[frame_chart(outcome.frame)]))
    if charts := [drawn for plot in outcome.plots if (drawn := chart(plot)) is not None]:
        parts.append(Charts(title="What was measured", charts=charts))
    parts.append(Text(title="The experiment", text=" ".join(page.how.replace("``", "").split())))
    parts += _conditions(outcome.rows)
    if outcome.evidence:
        parts.append(Links(title="Evidence", files=[(file, file) for file in outcome.evidence]))
    if outcome.mechanism:
        rows = [(name.replace("_", " "), _number(value)) for name, value in outcome.mechanism.items()]
        parts.append(Table(title="The numbers behind the verdict", heads=("", "value"), rows=rows, numeric_from=1))
    if outcome.conditions:
        parts.append(Text(title="What was put on the links", text=visible("\n".join(outcome.conditions))))
    return render(Page(
        title=f"{page.id} {page.name}: {outcome.finding.of('claim')}", lead=first, before=parts,
        counts=[(outcome.finding.of("claim"), 1, _TONES[outcome.finding])],
        notes=[*([others] if others else []), f"The paper ({page.section}): {page.text}",
               f"The experiment took {outcome.took_s:.1f} s."],
    ))  # fmt: skip


def _parted(text: str) -> tuple[str, str]:
    """The first sentence, and the others."""
    first, *others = re.split(r"(?<=[.!?]) (?=[A-Z0-9“])", text, maxsplit=1)
    return first, "".join(others)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"


def _conditions(rows: Sequence[Condition]) -> list[Table]:
    if not rows:
        return []
    columns = list(dict.fromkeys(column for row in rows for column in row.values))
    marks = {True: ("✓", "good"), False: ("✗", "bad"), None: ("", "none")}
    return [Table(
        title="Conditions", heads=("condition", *columns, "held"), tones=[marks[row.held][1] for row in rows],
        rows=[(visible(row.name), *(_bound(visible(row.values.get(column, ""))) for column in columns),
               marks[row.held][0]) for row in rows],
    )]  # fmt: skip


def _bound(text: str) -> str:
    """A number and its unit stay on one line."""
    return re.sub(r"(?<=[0-9∞]) (?=(?:s|ms|%|B|kB|KiB|Mbit/s)(?![a-z]))", "\N{NO-BREAK SPACE}", text)


def frame_chart(frame: Frame) -> Nested:
    """Each layer as it hands the frame to the next, from the program down to the wire."""
    total = sum(part.size_bytes for part in frame.parts)
    return Nested(
        title=frame.title,
        layers=[
            NestedLayer(
                name=part.name,
                size_bytes=part.size_bytes,
                text=part.text,
                above=f"{part.tcp_ip or 'no layer'} (OSI: {', '.join(part.osi) or 'none'})",
            )
            for part in frame.parts
        ],
        below=f"wire (OSI: 1 physical): {total:,} bytes, as signals",
    )


def chart(plot: Plot) -> Curves | Bars | None:
    """Lines over two axes, or bars where x has names; None of no points."""
    if not any(plot.series.values()):
        return None
    if not plot.categories:
        return Curves(title=plot.title, x=plot.x, y=plot.y, curves=plot.series, dashed=sorted(plot.dashed),
                      logarithmic_x=plot.logarithmic_x, logarithmic_y=plot.logarithmic)  # fmt: skip
    series = {name: {plot.categories[round(x)]: y for x, y in points} for name, points in plot.series.items()}
    return Bars(title=plot.title, y=plot.y, names=plot.categories, series=series, logarithmic=plot.logarithmic)
