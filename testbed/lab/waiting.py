"""Waiting for conditions, never for time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

Seen = TypeVar("Seen")


class NotSeenError(TimeoutError):
    """The condition did not come true before the deadline; ``last`` is what was seen last."""

    def __init__(self, last: object) -> None:
        super().__init__(f"last seen: {last}")
        self.last = last


def await_condition(
    look: Callable[[], Seen], until: Callable[[Seen], bool], *, deadline_s: float, every_s: float = 0.05
) -> Seen:
    """Look again and again until what is seen satisfies; returns it. Raises NotSeenError at the deadline."""
    waiting = Retrying(
        stop=stop_after_delay(deadline_s),
        wait=wait_fixed(every_s),
        retry=retry_if_result(lambda seen: not until(seen)),
    )
    try:
        return waiting(look)
    except RetryError as error:
        raise NotSeenError(error.last_attempt.result()) from None
