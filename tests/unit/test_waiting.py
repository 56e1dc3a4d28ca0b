"""Waiting for a condition: it is checked until it holds; a time-out says what was seen last."""

from __future__ import annotations

import itertools

import pytest

from testbed.lab.waiting import NotSeenError, await_condition


def test_what_satisfies_at_once_is_looked_at_once() -> None:
    looks = itertools.count()
    assert await_condition(lambda: next(looks), lambda _seen: True, deadline_s=0) == 0
    assert next(looks) == 1


def test_it_looks_again_until_it_is_satisfied_and_returns_what_it_saw() -> None:
    looks = itertools.count()
    assert await_condition(lambda: next(looks), lambda seen: seen == 3, deadline_s=60, every_s=0) == 3
    assert next(looks) == 4


def test_at_the_deadline_the_last_sight_is_reported() -> None:
    looks = itertools.count()
    with pytest.raises(NotSeenError) as missed:
        await_condition(lambda: f"look {next(looks)}", lambda _seen: False, deadline_s=0)
    assert missed.value.last == "look 0"
    assert str(missed.value) == "last seen: look 0"
    assert isinstance(missed.value, TimeoutError)


def test_nothing_seen_is_a_sight_too() -> None:
    with pytest.raises(NotSeenError) as missed:
        await_condition(lambda: None, lambda seen: seen is not None, deadline_s=0)
    assert missed.value.last is None


def test_a_look_that_fails_is_not_repeated() -> None:
    looks = itertools.count()

    def look() -> int:
        next(looks)
        raise ConnectionError("the engine is gone")

    with pytest.raises(ConnectionError, match="the engine is gone"):
        await_condition(look, lambda _seen: True, deadline_s=60)
    assert next(looks) == 1


def test_a_condition_that_fails_is_not_repeated() -> None:
    with pytest.raises(KeyError):
        await_condition(lambda: {"a": 1}, lambda seen: bool(seen["missing"]), deadline_s=60)
