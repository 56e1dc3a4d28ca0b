"""The versions of a campaign, and when it is no use to go on with them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from testbed.errors import EnvironmentUnfitError
from testbed.judge import betting
from testbed.versions.arm import Arm, BudgetSpentError

_FIRST_WITHIN_S = 1800.0
"""A version's first run, in which images are built and the stack starts; the budget begins after these."""
_MOST_IN_A_ROW = 5
"""Runs that do not count, one after the other."""


def seed_of(text: str) -> int:
    """The seed of a run, from the campaign's seed and the run's number."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])


class Arms:
    """The versions by name: ``base``, ``head``."""

    def __init__(self, arms: Mapping[str, Arm]) -> None:
        betting.prepare()  # what a campaign finds is told after an interrupt, too
        self.by_name = arms
        self._in_a_row = 0

    def separate(self, say: Callable[[str], None]) -> None:
        """Have a new stack for each run where two cannot be up at once: of what the tests need, a machine has one."""
        arms = self.by_name.values()
        once = dict.fromkeys(thing for arm in arms for thing in arm.once)
        if once and len(arms) > 1 and not all(arm.fresh for arm in arms):
            say(f"a new stack for each run, as with --fresh, because a machine has once: {'; '.join(once)}")
            for arm in arms:
                arm.fresh = True
        for arm in arms:
            if arm.fresh:
                arm.close()

    @contextmanager
    def first_run(self, name: str) -> Iterator[float]:
        """When a version's first run must be over (time.monotonic()). Raises EnvironmentUnfitError if it is not."""
        arm = self.by_name[name]
        try:
            yield time.monotonic() + _FIRST_WITHIN_S
        except BudgetSpentError:
            arm.close()
            raise EnvironmentUnfitError(
                f"{arm.name}: its tests are not over after {_FIRST_WITHIN_S:g} s; name fewer of them"
            ) from None

    def take(self, reason: str | None, what: str) -> None:
        """Take a run: why it does not count, None if it does. Raises EnvironmentUnfitError if too many do not."""
        self._in_a_row = 0 if reason is None else self._in_a_row + 1
        if self._in_a_row >= _MOST_IN_A_ROW:
            raise EnvironmentUnfitError(f"none of {self._in_a_row} {what} counts: {reason}")

    def close(self) -> None:
        """End their processes, also in the middle of their tests; their stacks go down."""
        for arm in self.by_name.values():
            arm.close()
