"""The outcome of a claim, as values. Pure.

Vocabulary: an *experiment* tests one claim under several *conditions*. Its *outcome* is a verdict, a true sentence
with the boundary, and the numbers behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from testbed.evidence.verdict import Verdict, words


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One condition of an experiment: a row of its table."""

    name: str
    held: bool | None
    """Whether the claim held; None: this row only informs."""
    values: Mapping[str, str]
    """Cells of the table by column, units included."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Figures that other experiments and plots use, by name."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """The data of a plot: lines or points over two axes."""

    title: str
    x: str
    """Title of the axis, its unit included."""
    y: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    logarithmic: bool = False
    """Whether the y axis is."""
    logarithmic_x: bool = False
    dashed: frozenset[str] = frozenset()
    """Series that are theory or asked, not measured."""
    categories: Sequence[str] = ()
    """Names for x = 0, 1, … where x is no quantity: drawn as bars."""


@dataclass(frozen=True, kw_only=True)
class FramePart:
    """A header, or the message, as it lies in the frame."""

    name: str
    size_bytes: int
    tcp_ip: str
    """The layer of TCP/IP that it is of."""
    osi: Sequence[str]
    """The layers of OSI."""
    text: str
    """What it holds."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A frame, by layer."""

    title: str
    parts: Sequence[FramePart]
    """In the order of the frame, the outermost header first."""


@dataclass(frozen=True, kw_only=True)
class ClaimOutcome:
    """The outcome of an experiment."""

    finding: Verdict
    sentence: str
    """A true one, with the boundary and the mechanism."""
    rows: Sequence[Condition] = ()
    plots: Sequence[Plot] = ()
    frame: Frame | None = None
    mechanism: Mapping[str, float] = field(default_factory=dict)
    """Numbers that show why, by name."""
    evidence: Sequence[str] = ()
    """Files beside the report."""
    conditions: Sequence[str] = ()
    """The impairments of the links, each read back."""
    took_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """As in claims.json."""
        plots = [{**asdict(plot), "dashed": sorted(plot.dashed)} for plot in self.plots]
        return {**asdict(self), "finding": self.finding.of("claim"), "plots": plots}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> ClaimOutcome:
        """The outcome of `as_json`. Raises KeyError, TypeError or ValueError for anything else."""
        parsed = {
            "finding": words("claim")[body["finding"]],
            "rows": [Condition(**row) for row in body["rows"]],
            "plots": [_plot(plot) for plot in body["plots"]],
            "frame": _frame(body.get("frame")),
            "evidence": tuple(body["evidence"]),
            "conditions": tuple(body["conditions"]),
        }
        return cls(**{**body, **parsed})


def _plot(body: Mapping[str, Any]) -> Plot:
    series = {name: [(x, y) for x, y in points] for name, points in body["series"].items()}
    return Plot(**{**body, "dashed": frozenset(body["dashed"]), "series": series})


def _frame(body: Mapping[str, Any] | None) -> Frame | None:
    return None if body is None else Frame(**{**body, "parts": [FramePart(**part) for part in body["parts"]]})


def invalid(reason: str) -> ClaimOutcome:
    """The outcome of an experiment whose conditions were not met."""
    return ClaimOutcome(finding=Verdict.INVALID, sentence=reason)


def unless(rows: Iterable[Condition], sentence: str) -> str:
    """A sentence that is true if the claim held under all of these conditions; else the conditions where it failed."""
    failed = [row.name for row in rows if row.held is False]
    return f"It did not hold under: {'; '.join(failed)}." if failed else sentence


def finding_of(rows: Iterable[Condition]) -> Verdict:
    """HOLDS if it held under all conditions, FAILS under none, HOLDS_WITHIN under some; INVALID without conditions."""
    held = [row.held for row in rows if row.held is not None]
    if not held:
        return Verdict.INVALID
    return Verdict.HOLDS if all(held) else Verdict.HOLDS_WITHIN if any(held) else Verdict.FAILS
