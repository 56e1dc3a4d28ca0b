"""What became of a cell from base to head. Pure values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from testbed.judge.cells import Cell


class Change(StrEnum):
    """What became of a cell from base to head; worst first."""

    REGRESSED = "regressed"
    UNDECIDED = "undecided"
    IMPROVED = "improved"
    SAME = "same"


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """Of a cell in virtual time: under how many seeds head is what."""

    of: int
    identical: int
    worse: int
    """Than base, by more than the least effect."""
    better: int


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A cell and its verdict. Effects are shares of base (0.05: 5 % more); of counts and shares, plain differences."""

    cell: Cell
    change: Change
    effect: float
    """The median of the differences, head to base; of counts and shares the mean."""
    low: float
    high: float
    """Between which the effect lies, but for the false-alarm rate; infinite where so few runs bound that side at no
    confidence."""
    findable: float | None = None
    """The smallest effect for the worse that these runs would have told; None if none would have been."""
    more: int | None = None
    """Of an undecided one: how many more pairs it takes, if they are as these were; None if no number would do."""
    seeds: Seeds | None = None
    """In virtual time: the seeds; ``low`` and ``high`` are then the least and the most under any of them."""
