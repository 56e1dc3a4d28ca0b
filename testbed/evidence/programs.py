"""How the programs ended that a test started in hosts. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MOST_OUTPUT = 4000
"""So many characters of a program's output are kept, the last ones."""


@dataclass(frozen=True, kw_only=True)
class ProgramRun:
    """A program that a test started in a host."""

    host: str
    argv: tuple[str, ...]
    exit_code: int | None
    """None if it ran on, or nobody waited for its end."""
    duration_s: float | None
    """From the request to start it to the end of its output."""
    cpu_s: float | None
    """Processor time of it and of what it waited for; None where that is not known."""
    stopped: bool
    """Whether the test stopped it."""
    output: str
    """What it printed last, stdout and stderr in order of arrival."""
    output_left_out: int
    """How many characters it had printed before that."""
    began_s: float | None = None
    """When it was requested, by the lab's own clock; not in the results file."""

    def as_json(self) -> dict[str, Any]:
        """As the results file has it."""
        kept = {name: value for name, value in vars(self).items() if name != "began_s"}
        return {**kept, "argv": list(self.argv)}
