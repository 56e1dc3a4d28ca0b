"""Links that do not hold their impairment: the error of one, and the text of several."""

from __future__ import annotations

from collections.abc import Sequence

from testbed.errors import ImpairmentNotAppliedError
from testbed.spec.links import LinkRef
from testbed.text import several


class LinkNotAppliedError(ImpairmentNotAppliedError):
    """The same of one link."""

    def __init__(self, ref: LinkRef, engine: str, *reasons: str) -> None:
        super().__init__(f"port of `{ref.dst}` on `{ref.network}` ({ref}), engine {engine}: {'. '.join(reasons)}")
        self.ref = ref
        self.engine = engine
        self.reasons = reasons


def together(errors: Sequence[ImpairmentNotAppliedError]) -> str:
    """The text of several errors; a reason that links share, such as their kernel's, is given once."""
    of_links = [error for error in errors if isinstance(error, LinkNotAppliedError)]
    whose: dict[str, list[LinkRef]] = {}
    for error in of_links:
        for reason in error.reasons:
            whose.setdefault(reason, []).append(error.ref)
    lines = [str(error) for error in errors if not isinstance(error, LinkNotAppliedError)]
    lines += [
        str(LinkNotAppliedError(error.ref, error.engine, *own))
        for error in of_links
        if (own := [reason for reason in error.reasons if len(whose[reason]) == 1])
    ]
    for reason, sharing in whose.items():
        if len(sharing) > 1:
            lines.append(f"{several([f'{ref} on `{ref.network}`' for ref in sharing])}: {reason}")
    return "\n".join(lines)
