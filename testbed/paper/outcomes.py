"""What became of a claim: verdicts and findings, as values. Pure.

Vocabulary: an *experiment* puts one claim to the test under several *conditions*, a row each; its *outcome* is a
verdict, one true sentence with the boundary in it, and the numbers behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from testbed.evidence.verdict import Verdict, words


@dataclass(frozen=True, kw_only=True)
class Row:
    """One condition of an experiment."""

    condition: str
    held: bool | None
    """Whether the claim held here; None: this row is context."""
    values: Mapping[str, str]
    """What was seen, by the name of the column; units are in the text."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A picture's data: lines or points over two axes."""

    title: str
    x: str
    """Of the axis, its unit included."""
    y: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    logarithmic: bool = False
    """The y axis."""
    logarithmic_x: bool = False
    dashed: frozenset[str] = frozenset()
    """Series that are theory, or what was asked, and not seen."""
    categories: Sequence[str] = ()
    """Names for x = 0, 1, …, where it is no quantity: drawn as bars."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an experiment found."""

    finding: Verdict
    sentence: str
    """One that is true, with the boundary and the mechanism."""
    rows: Sequence[Row] = ()
    plots: Sequence[Plot] = ()
    mechanism: Mapping[str, float] = field(default_factory=dict)
    """The numbers that show why, by name."""
    evidence: Sequence[str] = ()
    """Files beside the report."""
    conditions: Sequence[str] = ()
    """What was put on the links, as the kernel was told it and read back."""
    took_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """As claims.json has it."""
        plots = [{**asdict(each), "dashed": sorted(each.dashed)} for each in self.plots]
        return {**asdict(self), "finding": self.finding.of("claim"), "plots": plots}

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Outcome:
        """The same back. Raises KeyError, TypeError or ValueError if it is none."""
        plots = [
            Plot(**{
                **each, "dashed": frozenset(each["dashed"]),
                "series": {name: [(x, y) for x, y in points] for name, points in each["series"].items()},
            })
            for each in said["plots"]
        ]  # fmt: skip
        rows = [Row(**row) for row in said["rows"]]
        return cls(**{
            **said, "finding": words("claim")[said["finding"]], "rows": rows, "plots": plots,
            "evidence": tuple(said["evidence"]), "conditions": tuple(said["conditions"]),
        })  # fmt: skip


def invalid(reason: str) -> Outcome:
    """Of an experiment that could not be carried out as it was meant to be."""
    return Outcome(finding=Verdict.INVALID, sentence=reason)


def unless(rows: Iterable[Row], sentence: str) -> str:
    """A sentence that is true if the claim held under each of these conditions; else, those under which it did not."""
    failed = [row.condition for row in rows if row.held is False]
    return f"It did not hold under: {'; '.join(failed)}." if failed else sentence


def finding_of(rows: Iterable[Row]) -> Verdict:
    """HOLDS if it held under each condition, FAILS if under none, else HOLDS_WITHIN; INVALID of no condition."""
    held = [row.held for row in rows if row.held is not None]
    if not held:
        return Verdict.INVALID
    return Verdict.HOLDS if all(held) else Verdict.HOLDS_WITHIN if any(held) else Verdict.FAILS
