"""Verdicts on links, tests, accounts of messages and claims: one type, one order, and each subject's words. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

Subject = Literal["test", "account", "claim"]
"""Subjects with their own words: pytest's tests, the oracle's accounts of messages, the paper's claims."""


class Verdict(StrEnum):
    """From best to worst; of several, the worst counts (`worst`). The values are the words for links."""

    NOT_ASKED = "not asked"
    """No verdict was requested."""
    SHOWN = "shown"
    """No exact test exists: the figures are shown for the reader to judge."""
    HOLDS = "holds"
    """As asked, promised or claimed; a claim: under every condition that was tried."""
    HOLDS_WITHIN = "holds within"
    """Up to a named boundary."""
    SKIPPED = "skipped"
    """Not run."""
    FAILS = "fails"
    """Not as asked, promised or claimed."""
    UNKNOWN = "unknown"
    """Not measured, or the evidence does not decide."""
    INVALID = "invalid"
    """The conditions were not met, or the counts do not balance: the result says nothing about the program."""

    def of(self, subject: Subject) -> str:
        """The word for this subject. Raises KeyError if the subject has no such verdict."""
        return _WORDS[subject][self]


_WORDS: dict[Subject, dict[Verdict, str]] = {
    "test": {
        Verdict.HOLDS: "passed",
        Verdict.SKIPPED: "skipped",
        Verdict.FAILS: "failed",
        Verdict.INVALID: "invalid",
    },
    "account": {
        Verdict.HOLDS: "PASS",
        Verdict.FAILS: "FAIL",
        Verdict.UNKNOWN: "INCONCLUSIVE",
        Verdict.INVALID: "INVALID",
    },
    "claim": {
        Verdict.HOLDS: "HOLDS",
        Verdict.HOLDS_WITHIN: "HOLDS WITHIN",
        Verdict.FAILS: "BREAKS",
        Verdict.INVALID: "INVALID",
    },
}


def words(subject: Subject) -> dict[str, Verdict]:
    """The verdicts that a subject can have, best first, by their words."""
    return {word: verdict for verdict, word in _WORDS[subject].items()}


def worst(*verdicts: Verdict, none: Verdict = Verdict.HOLDS) -> Verdict:
    """The worst of several verdicts; ``none`` if there are none."""
    return max(verdicts, key=list(Verdict).index, default=none)
