"""The clocks of two machines: how far one is ahead of the other, and how well that is known."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from testbed.lab.channel import Channel

_LOOKS = 8


@dataclass(frozen=True, kw_only=True)
class ClockOffset:
    """How far a clock is ahead of another."""

    ns: int = 0
    error_ns: int = 0
    """The true offset differs from ``ns`` by no more."""


SAME = ClockOffset()


def ahead_of_us(look: Callable[[], int], *, clock: Callable[[], int] = time.time_ns) -> ClockOffset:
    """How far a clock is ahead of this process's, both in nanoseconds since the epoch.

    ``look`` asks for its time. The time of the answer lies between question and answer, so half of a round trip bounds
    the error, and the shortest of several round trips counts (RFC 5905, 10: the minimum filter).
    """

    def once() -> ClockOffset:
        before = clock()
        there = look()
        after = clock()
        return ClockOffset(ns=there - (before + after) // 2, error_ns=(after - before + 1) // 2)

    return min((once() for _ in range(_LOOKS)), key=lambda offset: offset.error_ns)


def between(sender: Channel, receiver: Channel) -> ClockOffset:
    """How far a receiver's clock is ahead of a sender's, by their agents. Raises AgentError."""
    mine, theirs = (ahead_of_us(partial(agent.call, "probe_clock")) for agent in (sender, receiver))
    return ClockOffset(ns=theirs.ns - mine.ns, error_ns=theirs.error_ns + mine.error_ns)
