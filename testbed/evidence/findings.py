"""The capabilities of a machine, as values."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One capability of the machine."""

    name: str
    state: str
    """``ok``; ``limited``: there is another way; ``missing``: a lab cannot run without it."""
    found: str
    """What the machine has."""
    costs: str = ""
    """What does not work, or works worse, without it."""
    remedy: str = ""
    """How to get it."""

    def as_json(self) -> dict[str, str]:
        """As `testbed doctor --json` prints it."""
        return asdict(self)
