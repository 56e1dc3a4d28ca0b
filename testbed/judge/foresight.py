"""What so many pairs will find, from what pairs of a version against itself were like. Pure."""

from __future__ import annotations

import math
import random

from testbed.judge import betting
from testbed.judge.cells import Cell

_POWER = 0.9
_TRIALS = 60
_LEAST_PAIRS = 3
_HALVINGS = 8
_SEED = 1


def findable(cell: Cell, pairs: int, *, alpha: float, cells: int) -> float | None:
    """The smallest effect for the worse that ``pairs`` pairs find in nine of ten comparisons; as `Cell.as_effect`.

    By drawing pairs from the cell's own, centred, and shifting them; None where no effect is found with so few pairs,
    or where there are too few to draw from.
    """
    log_threshold = math.log(cells / alpha)
    differences = cell.differences
    if len(differences) < _LEAST_PAIRS or pairs < betting.least_pairs(log_threshold):
        return None
    # A pair's difference has the other sign as likely as not: the coin.
    draw = random.Random(_SEED)  # noqa: S311  # a simulation, the same each time
    trials = [[draw.choice(differences) * draw.choice((-1, 1)) for _ in range(pairs)] for _ in range(_TRIALS)]

    def power(shift: float) -> float:
        hits = sum(
            betting.evidence([difference + shift for difference in trial], cell.margin).highest_above >= log_threshold
            for trial in trials
        )
        return hits / _TRIALS

    largest = max(map(abs, differences))
    low, high = cell.margin, cell.margin + 4 * largest + 1e-9
    while power(high) < _POWER:
        low, high = high, 2 * high
        if high > 1e6 * (cell.margin + largest + 1e-9):
            return None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= _POWER else (middle, high)
    return cell.as_effect(high)
