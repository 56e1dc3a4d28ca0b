"""The distribution of delays that an impairment gives. Pure.

netem adds jitter × t to the delay, with t drawn from a table (sch_netem.c, tabledist). iproute2's sources say what its
tables hold (netem/normal.c, pareto.c, paretonormal.c), so the shapes are computed here and not read from files. A
table's 4096 entries, rounded to 1/8192, differ from them by less than can be measured. Correlation and the keeping of
packet order are ignored: both narrow the spread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist

from testbed.spec.impairment import Impairment

# The largest entry, 32767, in units of NETEM_DIST_SCALE (8192).
_REACH = 32767 / 8192
_NORMAL = NormalDist()
# A table's entries are the middles of 4096 equal shares.
_SMALLEST_SHARE = 0.5 / 4096


def _normal(share: float) -> float:
    return min(max(_NORMAL.inv_cdf(share), -_REACH), _REACH)


def _pareto(share: float) -> float:
    # Pareto with shape 3, minus its mean of 1.5, scaled by 4/3.
    return min((4 / 3) * (math.pow(1 - share, -1 / 3) - 1.5), _REACH)


_SHAPES: dict[str, Callable[[float], float]] = {
    "uniform": lambda share: 2 * share - 1,
    "normal": _normal,
    "pareto": _pareto,
    "paretonormal": lambda share: min(0.25 * _normal(share) + 0.75 * _pareto(share), _REACH),
}


def is_known(impairment: Impairment) -> bool:
    """Whether the shape of its jitter is known here; that of a user's own table is not."""
    return impairment.distribution in _SHAPES


def quantile_s(impairment: Impairment, share: float) -> float:
    """The delay in seconds that this share of packets does not exceed; 0 < ``share`` < 1.

    A negative delay counts as 0: netem sends at once. Raises KeyError for a user's own table: see `is_known`.
    """
    delay_s, jitter_s = impairment.delay_s or 0.0, impairment.jitter_s or 0.0
    if not jitter_s:
        return delay_s
    drawn = _SHAPES[impairment.distribution](min(max(share, _SMALLEST_SHARE), 1 - _SMALLEST_SHARE))
    return max(delay_s + jitter_s * drawn, 0.0)


@dataclass(frozen=True)
class Bin:
    """A range of delays and the share of packets in it."""

    from_s: float
    to_s: float
    share: float


def histogram(impairment: Impairment, bins: int = 12, draws: int = 20_000) -> list[Bin]:
    """Shares of packets by delay, in bins of equal width from the smallest delay to the 99.9 % quantile.

    A single bin if the delay does not vary. The shares add up to 1; the last bin includes all larger delays.
    """
    lowest_s, highest_s = quantile_s(impairment, 0.0), quantile_s(impairment, 0.999)
    if highest_s <= lowest_s:
        return [Bin(lowest_s, highest_s, 1.0)]
    edges = [lowest_s + (highest_s - lowest_s) * number / bins for number in range(bins + 1)]
    counts = [0] * bins
    for number in range(draws):
        value_s = quantile_s(impairment, (number + 0.5) / draws)
        counts[min(int((value_s - lowest_s) / (highest_s - lowest_s) * bins), bins - 1)] += 1
    return [Bin(a, b, count / draws) for (a, b), count in zip(pairwise(edges), counts, strict=True)]


def quantiles_s(impairment: Impairment, shares: Sequence[float] = (0.01, 0.5, 0.95, 0.99, 0.999)) -> dict[float, float]:
    """Several quantiles, by share."""
    return {share: quantile_s(impairment, share) for share in shares}
