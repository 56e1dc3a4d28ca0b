"""Metrics that a test adds to its result."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from testbed.evidence.metric import RECORDED, TIMED, recorded
from testbed.lab.ledger import Ledger


class Recording:
    """The part of a lab that records a test's own metrics."""

    ledger: Ledger

    def record(
        self, name: str, value: float | Iterable[float], *, unit: str, better: str, least_effect: str = "5%"
    ) -> None:
        """Add a metric to the test's result: one value or several, the samples; another call adds samples.

        ``better`` is ``lower`` or ``higher``; ``least_effect`` is the smallest relative change that matters, for
        `testbed compare`. Raises InvalidValueError with every problem; infinity and NaN are refused.
        """
        metric = recorded(name, value, unit=unit, better=better, least_effect=least_effect, group=RECORDED)
        self.ledger.record(metric)

    @contextmanager
    def timed(self, name: str, *, least_effect: str = "5%") -> Iterator[None]:
        """Record how long a block takes, in seconds; lower is better. A block that raises is not recorded.

        ::

            with lab.timed("upload"):
                lab.host("client").run(["python3", "upload.py", "server"])

        Raises InvalidValueError before the block, with every problem.
        """
        self.ledger.check(recorded(name, 0.0, unit="s", better="lower", least_effect=least_effect, group=TIMED))
        began = time.perf_counter()
        yield
        took_s = time.perf_counter() - began
        self.ledger.record(recorded(name, took_s, unit="s", better="lower", least_effect=least_effect, group=TIMED))
