"""One processor for a kernel and its programs.

A User-Mode Linux and its programs run in turns. On two processors, each turn begins by waking the other one, which
takes a virtual machine longer than the turn itself, unless other work keeps that processor awake.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from testbed.kernel.progress import Usage, family, usages

_ENOUGH = 0.7
"""Share of a processor that shows that a kernel has it for itself. One that waits uses less, and may move in vain."""
_started = itertools.count()


def quietest(allowed: Sequence[int], others: Mapping[int, Usage], turn: int) -> int:
    """The processor on which fewest other processes run; of equal ones the ``turn``-th."""
    running = Counter(usage.processor for usage in others.values() if usage.running)
    first = turn % len(allowed)
    return min((*allowed[first:], *allowed[:first]), key=lambda processor: running[processor])


class OneProcessor:
    """Keeps a process and all below it on one processor; on another one if others take it from them."""

    def __init__(self, parent: int) -> None:
        self._parent = parent
        self._allowed = sorted(os.sched_getaffinity(parent))
        self._since, self._used_s = time.monotonic(), 0.0
        self.processor = quietest(self._allowed, usages(), next(_started))
        _place((parent,), self.processor)

    def check(self, everyone: Mapping[int, Usage]) -> None:
        """Choose again, if they had less than they could use since the last look.

        ``everyone``: all processes, as they are now.
        """
        own = family(self._parent, everyone)
        now, used_s = time.monotonic(), sum(usage.processor_s + usage.ended_s for usage in own.values())
        share = (used_s - self._used_s) / (now - self._since)
        self._since, self._used_s = now, used_s
        if share >= _ENOUGH:
            return
        others = {pid: usage for pid, usage in everyone.items() if pid not in own}
        best = quietest(self._allowed, others, self._allowed.index(self.processor))
        if best != self.processor:
            self.processor = best
            _place(own, best)


def _place(pids: Iterable[int], processor: int) -> None:
    for pid in pids:
        with suppress(OSError):  # it has ended
            os.sched_setaffinity(pid, {processor})
