"""What a judge says."""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    """Four values; of several findings the gravest counts."""

    PASS = "PASS"  # noqa: S105  # no password
    FAIL = "FAIL"
    INVALID = "INVALID"
    """The conditions were not met, or the sums do not balance: the result says nothing about the program."""
    INCONCLUSIVE = "INCONCLUSIVE"
    """The evidence does not decide."""


_GRAVITY = (Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.INVALID)


def gravest(*verdicts: Verdict) -> Verdict:
    """The verdict on the whole: INVALID before INCONCLUSIVE before FAIL before PASS; PASS of none."""
    return max(verdicts, key=_GRAVITY.index, default=Verdict.PASS)
