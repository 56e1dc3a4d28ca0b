"""Asked, kernel, seen: side by side, as plain lines. Pure."""

from __future__ import annotations

from testbed.evidence.proof import Check, LinkEvidence
from testbed.evidence.verdict import Verdict
from testbed.text import shortened

_HEADINGS = ("field", "asked", "kernel", "seen", "verdict")
_CELL_CHARACTERS = 80
"""The most of a cell on a terminal; a list of packet numbers may be far longer."""


def lines(evidence: LinkEvidence, *, explained: bool = False) -> list[str]:
    """One link: a heading, a table, the tests of failed checks (``explained``: of all), problems, warnings."""
    levels = f"read-back {evidence.read_back}, counters {evidence.counters}, probe {evidence.probe}"
    rows = [_HEADINGS, *(tuple(shortened(cell, _CELL_CHARACTERS) for cell in _row(check)) for check in evidence.checks)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    tests = (
        f"{check.field}: {check.how}{'; ' if check.cause else ''}{check.cause}"
        for check in evidence.checks
        if check.how and (explained or check.verdict is Verdict.FAILS)
    )
    problems = (f"invalid: {problem}" for problem in evidence.problems)
    warnings = (f"warning: {warning}" for warning in evidence.warnings)
    return [
        f"{evidence.link} on {evidence.network}: {levels}",
        *(f"    {line}" for line in (*table, *tests, *problems, *warnings)),
    ]


def _row(check: Check) -> tuple[str, ...]:
    verdict = check.verdict.upper() if check.verdict is Verdict.FAILS else check.verdict
    return check.field, check.asked, check.kernel, check.seen, verdict
