"""Bets on the sign of paired differences: evidence that may be watched after every pair. Pure.

A bettor starts with 1 and stakes part of what he has on the sign of each difference. If the coin that ordered the two
runs of a pair is all that tells them apart, no way to stake makes more of it on average, so that by Ville's inequality
he ever holds 1/α with probability α at most: whenever one looks, and whatever the distribution is (Waudby-Smith and
Ramdas, "Estimating means of bounded random variables by betting", 2023). What he holds is an *e-value*.

With x the differences less the place θ₀ that is tested, and S the running median of |x| without its zeros::

    E_n(θ₀) = ¼ Σ over λ in 0.05, 0.15, 0.5, 1.5 of  Π [1 ± sign(x_i) · tanh(min(λ |x_i| / S_i, 1))]

At θ₀ = 0 the coin alone makes it a test martingale. Elsewhere it needs differences that lie symmetrically about θ₀;
`signs_alone` needs only that θ₀ is their median. All logarithms are natural.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LAMBDAS = (0.05, 0.15, 0.5, 1.5)
_LARGEST_STAKE = 1.0
"""Of tanh's argument: a single difference, however large, moves the e-value by a factor of 1.76 at most."""
_HALVINGS = 16
"""Of the range of the differences, in search of a bound: to 1/65,536 of it."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The logarithms of the e-values after each pair."""

    above: NDArray[np.float64]
    """That the differences lie above θ₀."""
    below: NDArray[np.float64]
    """That they lie below."""

    @property
    def highest_above(self) -> float:
        """At its highest: what Ville's inequality speaks of. Minus infinity without a pair."""
        return float(self.above.max(initial=-math.inf))


def prepare() -> None:
    """Import what numbers need. An import of numpy that Ctrl-C interrupts cannot be repeated in the same process."""
    import numpy as np

    np.zeros(0)


def evidence(
    differences: Sequence[float] | NDArray[np.float64],
    place: float | NDArray[np.float64] = 0.0,
    *,
    signs_alone: bool = False,
) -> Evidence:
    """The e-values for ``differences`` above and below ``place`` (θ₀), after each of them.

    Of an array, the last axis is that of the pairs, and the others are comparisons of their own.
    """
    import numpy as np

    stakes, signs = _stakes(differences, place, signs_alone=signs_alone)
    gains, losses = np.log1p(stakes), np.log1p(-stakes)
    return Evidence(
        above=_mean_of_products(np.where(signs > 0, gains, losses)),
        below=_mean_of_products(np.where(signs < 0, gains, losses)),
    )


def growth(differences: Sequence[float], place: float = 0.0, *, signs_alone: bool = False) -> tuple[float, float]:
    """By how much the logarithms of the e-values rise a pair, above and below, if more pairs are as these were.

    Each of the best of the bettors, staking as he does now; 0 where none of them rises.
    """
    import numpy as np

    if not differences:
        return 0.0, 0.0
    stakes, signs = _stakes(differences, place, signs_alone=signs_alone, last_scale=True)
    gains, losses = np.log1p(stakes), np.log1p(-stakes)
    above = np.where(signs > 0, gains, losses).mean(axis=-1).max()
    below = np.where(signs < 0, gains, losses).mean(axis=-1).max()
    return max(float(above), 0.0), max(float(below), 0.0)


def bounds(differences: Sequence[float], log_threshold: float, *, signs_alone: bool = False) -> tuple[float, float]:
    """The places that are not refused: those outside have seen an e-value of the threshold. Infinite where none is."""
    low = _bound(differences, log_threshold, signs_alone=signs_alone)
    high = -_bound([-value for value in differences], log_threshold, signs_alone=signs_alone)
    return low, high


def least_pairs(log_threshold: float) -> int:
    """How many pairs an e-value needs to come to the threshold, where all differences are alike."""
    pairs, logs = 0, [0.0] * len(LAMBDAS)
    steps = [math.log1p(math.tanh(min(value, _LARGEST_STAKE))) for value in LAMBDAS]
    while math.log(math.fsum(map(math.exp, logs)) / len(logs)) < log_threshold:
        pairs, logs = pairs + 1, [log + step for log, step in zip(logs, steps, strict=True)]
    return pairs


def _bound(differences: Sequence[float], log_threshold: float, *, signs_alone: bool) -> float:
    """The largest place that the differences are found to lie above."""
    if not differences:
        return -math.inf
    low, high = min(differences), max(differences)
    low -= max(high - low, abs(low), abs(high), 1e-12)

    def refused(place: float) -> bool:
        return evidence(differences, place, signs_alone=signs_alone).highest_above >= log_threshold

    if not refused(low):
        return -math.inf
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if refused(middle) else (low, middle)
    return low


def _stakes(
    differences: Sequence[float] | NDArray[np.float64],
    place: float | NDArray[np.float64],
    *,
    signs_alone: bool,
    last_scale: bool = False,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What each bettor (the first axis) stakes on each difference, as part of what he has; and the signs."""
    import numpy as np

    x = np.asarray(differences, dtype=np.float64) - place
    sizes, signs = np.abs(x), np.sign(x)
    if signs_alone:
        relative = np.abs(signs)
    else:
        scale = np.apply_along_axis(lambda row: _running_medians(row.tolist()), -1, sizes)
        if last_scale:
            scale = scale[..., -1:]
        relative = np.divide(sizes, scale, out=np.zeros_like(sizes), where=scale > 0)
    lambdas = np.asarray(LAMBDAS).reshape(-1, *[1] * x.ndim)
    return np.tanh(np.minimum(lambdas * relative, _LARGEST_STAKE)), signs


def _running_medians(sizes: Sequence[float]) -> list[float]:
    """Of all so far that are not 0; 0 before the first."""
    ordered: list[float] = []
    medians: list[float] = []
    for size in sizes:
        if size > 0:
            insort(ordered, size)
        half = len(ordered) // 2
        if not ordered:
            medians.append(0.0)
        elif len(ordered) % 2:
            medians.append(ordered[half])
        else:
            medians.append((ordered[half - 1] + ordered[half]) / 2)
    return medians


def _mean_of_products(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    products = np.cumsum(logs, axis=-1)
    summed: NDArray[np.float64] = np.logaddexp.reduce(products, axis=0)
    return summed - math.log(len(LAMBDAS))
