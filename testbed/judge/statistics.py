"""Exact tests and intervals. Pure, and without tables: any false-alarm rate can be asked for.

The false-alarm rate ``alpha`` of a test is how often it may condemn an honest link. A proof makes several tests;
`share` divides its alpha among them (Bonferroni), so that it holds for all of them together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType

ALPHA = 1e-6
"""The false-alarm rate of one proof, unless another is asked for."""

POWER = 0.9
"""How surely a test finds what it is said to find."""


def share(alpha: float, tests: int) -> float:
    """The false-alarm rate of each of so many tests, for ``alpha`` over all of them (Bonferroni's inequality)."""
    return alpha / max(tests, 1)


# --- the binomial distribution ---------------------------------------------------------------------


def at_most(k: int, n: int, p: float) -> float:
    """P(X ≤ k) of X ~ Binomial(n, p), by the incomplete beta function (NIST DLMF 8.17.5)."""
    _check_share(p)
    if k < 0:
        return 0.0
    if k >= n or p == 0:
        return 1.0
    if p == 1:
        return 0.0
    return float(_special().betaincc(k + 1, n - k, p))


def at_least(k: int, n: int, p: float) -> float:
    """P(X ≥ k) of X ~ Binomial(n, p)."""
    _check_share(p)
    if k <= 0:
        return 1.0
    if k > n or p == 0:
        return 0.0
    if p == 1:
        return 1.0
    return float(_special().betainc(k, n - k + 1, p))


def interval(k: int, n: int, alpha: float = ALPHA) -> tuple[float, float]:
    """The Clopper-Pearson interval of a probability from k in n: it misses the true one at most alpha of the time.

    Clopper and Pearson, "The use of confidence or fiducial limits", Biometrika 26 (1934). Of 0 in 0: (0, 1).
    """
    if not 0 <= k <= n:
        raise ValueError(f"{k} of {n}: a part of the whole is needed")
    low = 0.0 if k == 0 else float(_special().betaincinv(k, n - k + 1, alpha / 2))
    high = 1.0 if k == n else float(_special().betainccinv(k + 1, n - k, alpha / 2))
    return low, high


def accepted(n: int, p: float, alpha: float = ALPHA) -> tuple[int, int]:
    """The counts in n whose smaller tail at probability p is more than alpha/2: from the first to the last."""
    return (
        first_count(lambda k: at_most(k, n, p) > alpha / 2, n),
        first_count(lambda k: at_least(k + 1, n, p) <= alpha / 2, n),
    )


def sample_size(
    p: float, low: float, high: float, alpha: float = ALPHA, *, power: float = POWER, most: int = 1_000_000
) -> int:
    """How many draws find, with probability ``power``, that a true share of ``low`` or ``high`` is not ``p``.

    Exact: of each of the two, the chance to lie outside of the `accepted` counts of ``p``. One that is not below, or
    not above, ``p`` is left out. Never more than ``most``.
    """
    _check_share(p)

    def enough(n: int) -> bool:
        first, last = accepted(n, p, alpha)
        found_low = low >= p or (first > 0 and at_most(first - 1, n, low) >= power)
        found_high = high <= p or (last < n and at_least(last + 1, n, high) >= power)
        return found_low and found_high

    least, enoughs = 0, 64
    while enoughs < most and not enough(enoughs):
        least, enoughs = enoughs, enoughs * 2
    enoughs = min(enoughs, most)
    while enoughs - least > 1:
        middle = (least + enoughs) // 2
        least, enoughs = (least, middle) if enough(middle) else (middle, enoughs)
    return enoughs


def found_shares(first: int, last: int, n: int, power: float = POWER) -> tuple[float, float]:
    """The nearest true shares that n draws find with probability ``power``, where counts from first to last pass.

    The one below is 0, the one above 1, where none is found.
    """
    low = 0.0 if first <= 0 else float(_special().betainccinv(first, n - first + 1, power))
    high = 1.0 if last >= n else float(_special().betaincinv(last + 1, n - last, power))
    return low, high


# --- bursts ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Transitions:
    """How a row of packets went from delivered to lost and back, each step between neighbours counted once."""

    from_good: int
    to_bad: int
    """Of ``from_good`` steps that begin at a delivered packet, how many end at a lost one."""
    from_bad: int
    to_good: int
    """Of ``from_bad`` steps that begin at a lost packet, how many end at a delivered one."""


def transitions(lost: Sequence[bool]) -> Transitions:
    """Count them. In Gilbert's model each step is a draw of its own: ``to_bad`` of p, ``to_good`` of r."""
    steps = list(pairwise(lost))
    return Transitions(
        from_good=sum(not before for before, _ in steps),
        to_bad=sum(not before and after for before, after in steps),
        from_bad=sum(before for before, _ in steps),
        to_good=sum(before and not after for before, after in steps),
    )


def bursts(lost: Sequence[bool]) -> list[int]:
    """The lengths of the runs of lost packets."""
    lengths: list[int] = []
    before = False
    for is_lost in lost:
        if is_lost and before:
            lengths[-1] += 1
        elif is_lost:
            lengths.append(1)
        before = is_lost
    return lengths


# --- how -----------------------------------------------------------------------------------------------


def _special() -> ModuleType:
    """Scipy's special functions, imported where a number is needed first: they take 0.1 s, of use to few commands."""
    from scipy import special

    module: ModuleType = special
    return module


def _check_share(p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"{p!r}: a probability lies between 0 and 1")


def first_count(holds: Callable[[int], bool], n: int) -> int:
    """The least k from 0 to n for which it ``holds``, as it then does for every greater one; n if there is none."""
    low, high = 0, n
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
