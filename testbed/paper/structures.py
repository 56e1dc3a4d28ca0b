"""Servers of different blocking structures in the same situation, and which is preferable. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from testbed.judge.metrics import Quantile, quantile

AS_GOOD = 2.0
"""Waits within this factor of the shortest are equal: two runs on a busy machine may differ by it."""
NOTICED_S = 0.05
"""Waits longer by less than this are equal, too: nobody notices."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """One structure in a situation."""

    structure: str
    clients: int
    """Number of clients at once."""
    waits_s: tuple[float, ...]
    """Waits of answered clients, from the common begin."""
    overflows: int = 0
    """Connections, or their completion, that met a full listener queue: ListenOverflows."""
    drops: int = 0
    """SYNs and completing ACKs that the listener dropped, for any reason: ListenDrops."""
    cpu_s: float | None = None
    """CPU time of the server meanwhile, threads and children included; None: not measured."""

    @property
    def answer_cpu_s(self) -> float | None:
        """CPU time per answer; None if there was none, or it was not measured."""
        return self.cpu_s / len(self.waits_s) if self.cpu_s is not None and self.waits_s else None

    @property
    def all_answered(self) -> bool:
        """Whether all clients were answered."""
        return len(self.waits_s) == self.clients

    @property
    def last_s(self) -> float | None:
        """The longest wait of an answered client; None if none was answered."""
        return max(self.waits_s, default=None)

    def wait(self, q: float) -> Quantile | None:
        """A quantile of the waits; clients without an answer waited for ever. None without clients."""
        return quantile(self.waits_s, q, lost=self.clients - len(self.waits_s)) if self.clients else None

    def __str__(self) -> str:
        if self.last_s is None:
            return "none"
        return f"{'all' if self.all_answered else len(self.waits_s)} in {self.last_s:.2f} s"


def preferable(served: Sequence[Served]) -> tuple[str, ...]:
    """The structures with the most answers; of these, the ones with about the shortest longest wait."""
    most = max((len(candidate.waits_s) for candidate in served), default=0)
    best = [candidate for candidate in served if most and len(candidate.waits_s) == most]
    shortest = min((candidate.last_s for candidate in best if candidate.last_s is not None), default=0.0)
    return tuple(
        candidate.structure
        for candidate in best
        if (candidate.last_s or 0.0) <= max(AS_GOOD * shortest, shortest + NOTICED_S)
    )
