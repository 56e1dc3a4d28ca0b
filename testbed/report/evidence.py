"""Asked, kernel, seen: side by side, as plain lines and as HTML. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from testbed.evidence.proof import Check, LinkEvidence
from testbed.evidence.verdict import Verdict

_HEADINGS = ("field", "asked", "kernel", "seen", "verdict")


def lines(evidence: LinkEvidence, *, explained: bool = False) -> list[str]:
    """One link: a heading, a table, the tests of what failed (``explained``: of everything), warnings."""
    levels = f"read-back {evidence.read_back}, counters {evidence.counters}, probe {evidence.probe}"
    said = [f"{evidence.link} on {evidence.network}: {levels}"]
    rows = [_HEADINGS, *(_row(check) for check in evidence.checks)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    said += ["    " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
             for row in rows]  # fmt: skip
    said += [f"    {check.field}: {check.how}{'; ' if check.cause else ''}{check.cause}"
             for check in evidence.checks if check.how and (explained or check.verdict is Verdict.FAILS)]  # fmt: skip
    said += [f"    invalid: {problem}" for problem in evidence.problems]
    return [*said, *(f"    warning: {warning}" for warning in evidence.warnings)]


def _row(check: Check) -> tuple[str, str, str, str, str]:
    verdict = check.verdict.upper() if check.verdict is Verdict.FAILS else check.verdict
    return check.field, check.asked, check.kernel, check.seen, verdict


def html_table(links: Iterable[tuple[str, Sequence[Check]]]) -> str:
    """Several links as one table; the first of each pair is what stands above its rows."""
    head = "".join(f"<th>{name}</th>" for name in (*_HEADINGS, "how"))
    body = []
    for title, checks in links:
        body.append(f'<tr><td colspan="{len(_HEADINGS) + 1}"><b>{escape(title)}</b></td></tr>')
        for check in checks:
            cells = "".join(f"<td>{escape(cell)}</td>" for cell in (*_row(check), check.how))
            body.append(f'<tr class="bad">{cells}</tr>' if check.verdict is Verdict.FAILS else f"<tr>{cells}</tr>")
    return f'<table class="proof"><tr>{head}</tr>{"".join(body)}</table>'
