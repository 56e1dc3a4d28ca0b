"""A share of a session: what one of several kernels with a simulated clock runs of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pytest

VARIABLE = "TESTBED_SHARE"
"""The variable that holds a share, as JSON."""
ALONE = "master"
"""The worker's name where tests must not know that there are others; pytest-xdist's of a session without workers."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one of several kernels runs of a session."""

    worker: str
    """The worker's name, as pytest-xdist's fixture ``worker_id`` gives it."""
    number: int
    """From 0."""
    count: int
    """Number of kernels."""
    done: int = 0
    """Number of its runs that earlier kernels of this share have done; a run is one test under one seed."""
    dist: str = "load"
    """Which tests stay together, as ``--dist`` of pytest-xdist says."""

    @property
    def _is_named(self) -> bool:
        """Whether tests may know which worker runs them."""
        return self.worker != ALONE

    def seed(self, seed: int) -> int:
        """The seed of the kernel's random numbers."""
        return seed + (self.number << 64) if self._is_named else seed

    def variables(self, seed: int) -> dict[str, str]:
        """Environment variables of its session; the same as a worker of pytest-xdist has."""
        words = {"": self.worker, "_COUNT": str(self.count)}
        named = {f"PYTEST_XDIST_WORKER{word}": value for word, value in words.items()}
        named["PYTEST_XDIST_TESTRUNUID"] = run_id(seed)
        return {VARIABLE: json.dumps(asdict(self)), **(named if self._is_named else {})}

    def of_seeds(self, seeds: range) -> range:
        """Every so many seeds, so that the kernels end at about the same time."""
        return seeds[self.number :: self.count]

    def of_tests(self, items: Sequence[pytest.Item]) -> list[pytest.Item]:
        """Neighbours share fixtures: a contiguous part, of groups that stay together."""
        groups: dict[str, list[pytest.Item]] = {}
        for item in items:
            groups.setdefault(group(item, self.dist), []).append(item)
        parts = [*groups.values()]
        first, end = (len(parts) * part // self.count for part in (self.number, self.number + 1))
        return [item for part in parts[first:end] for item in part][self.done :]


def group(item: pytest.Item, dist: str) -> str:
    """What stays together with a test. pytest-xdist names it so, too."""
    match dist:
        case "loadfile":
            return item.nodeid.partition("::")[0]
        case "loadscope":
            return item.nodeid.rpartition("::")[0]
        case "loadgroup":
            marks = [*item.iter_markers("xdist_group")]
            names = sorted({str(mark.args[0] if mark.args else mark.kwargs.get("name", "default")) for mark in marks})
            return f"@{'_'.join(names)}" if names else item.nodeid
    return item.nodeid


def run_id(seed: int) -> str:
    """What pytest-xdist's fixture ``testrun_uid`` gives."""
    return f"{seed & (1 << 128) - 1:032x}"
