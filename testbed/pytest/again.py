"""What runs of the same tests in one session share: nothing of an earlier run is on a test, and all is torn down."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from testbed.pytest import running


class After(pytest.Item):
    """What comes after the last test of a run: it needs nothing but the session, so that all else is torn down."""

    def runtest(self) -> None:
        """It is never run."""


def afresh(session: pytest.Session) -> Iterator[tuple[pytest.Item, pytest.Item]]:
    """Each test as if it had not run yet, and what comes after it."""
    for item, following in zip(
        session.items, [*session.items[1:], After.from_parent(session, name="after")], strict=True
    ):
        forget(item)
        yield item, following


def forget(item: pytest.Item) -> None:
    """As if the test had not run yet."""
    if running.RESULT in item.stash:
        del item.stash[running.RESULT]
