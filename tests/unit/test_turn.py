"""Whose turn it is at a stack that stays."""

from __future__ import annotations

import pytest

from testbed.backends.docker import turn
from testbed.errors import UserError


@pytest.mark.parametrize("stack", ["/home/me/shop/compose.yaml", ":".join(f"/{letter * 200}.yaml" for letter in "ab")])
def test_one_at_a_time_however_long_its_name(stack: str) -> None:
    lines: list[str] = []
    busy = r"another testbed command still uses this stack after 0\.1 s"
    with (
        turn.take(stack, say=lines.append),
        turn.take(f"{stack}2", say=lines.append),
        pytest.raises(UserError, match=busy),
    ):
        turn.take(stack, say=lines.append, deadline_s=0.1)
    turn.take(stack, say=lines.append).close()
    assert lines == []
