"""Servers of different blocking structures in the same situation: which is preferable. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from testbed.judge.metrics import Quantile, quantile

AS_GOOD = 2.0
"""Waits within this factor of the shortest count as equal: what two runs on a busy machine may differ by."""
NOTICED_S = 0.05
"""So do waits that are longer by less than this, which nobody notices."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """What one structure made of a situation."""

    structure: str
    clients: int
    """Who came at once."""
    waits_s: tuple[float, ...]
    """Of those who were answered: from the moment when all came; seconds."""
    overflows: int = 0
    """How often a connection or its completion found the listener's queue full: ListenOverflows."""
    drops: int = 0
    """SYNs and completing ACKs that the listener dropped, for any reason: ListenDrops."""
    cpu_s: float | None = None
    """What the server took of the processor meanwhile, all its threads and children together; None: not measured."""

    @property
    def answer_cpu_s(self) -> float | None:
        """What one answer cost of the processor; None if nobody was answered or it was not measured."""
        return self.cpu_s / len(self.waits_s) if self.cpu_s is not None and self.waits_s else None

    @property
    def all_answered(self) -> bool:
        """Whether everybody was."""
        return len(self.waits_s) == self.clients

    @property
    def last_s(self) -> float | None:
        """How long the last of those answered waited; None if nobody was."""
        return max(self.waits_s, default=None)

    def wait(self, q: float) -> Quantile | None:
        """A quantile of the waiting time; who was not answered waited for ever. None if nobody came."""
        return quantile(self.waits_s, q, lost=self.clients - len(self.waits_s)) if self.clients else None

    def __str__(self) -> str:
        if self.last_s is None:
            return "none"
        return f"{'all' if self.all_answered else len(self.waits_s)} in {self.last_s:.2f} s"


def preferable(served: Sequence[Served]) -> tuple[str, ...]:
    """The structures that answered the most, and of these those whose last client waited about the least."""
    most = max((len(candidate.waits_s) for candidate in served), default=0)
    best = [candidate for candidate in served if most and len(candidate.waits_s) == most]
    shortest = min((candidate.last_s for candidate in best if candidate.last_s is not None), default=0.0)
    return tuple(
        candidate.structure
        for candidate in best
        if (candidate.last_s or 0.0) <= max(AS_GOOD * shortest, shortest + NOTICED_S)
    )
