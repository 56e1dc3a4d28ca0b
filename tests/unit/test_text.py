"""Quoted values are short and visible; no value breaks the message that quotes it."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import InvalidValueError, LabError, ServiceFailedError
from testbed.text import shortened, shown, visible


class Raises:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class Sly(str):
    __slots__ = ()

    def __repr__(self) -> str:
        raise RuntimeError("no")


def shared(depth: int) -> list[Any]:
    """A list that would be ten to the power of its depth long."""
    inner: list[Any] = ["x"] * 10
    for _ in range(depth):
        inner = [inner] * 10
    return inner


RECURSIVE: list[Any] = []
RECURSIVE.append(RECURSIVE)


@pytest.mark.parametrize(
    "value",
    [
        shared(9),
        RECURSIVE,
        "9" * 10**6,
        b"x" * 10**6,
        10**5000,
        -(10**5000),
        Raises(),
        [Raises()],
        Sly("a"),
        {1: shared(9)},
        list(range(10**6)),
        {str(number) for number in range(10**4)},
        "\x1b[2J" * 1000,
        object(),
        {"a": {}},
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_of_any_kind_is_quoted_in_few_characters_and_soon(value: object) -> None:
    begun = time.process_time()
    text = shown(value)
    assert time.process_time() - begun < 0.5
    assert 0 < len(text) <= 200
    assert "\x1b" not in text


@given(
    st.recursive(
        st.none() | st.integers() | st.text() | st.binary() | st.floats() | st.booleans(),
        lambda inner: (
            st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner) | st.frozensets(st.integers())
        ),
        max_leaves=5,
    )
)
def test_what_is_short_is_written_as_python_writes_it(value: object) -> None:
    assert shown(value, 10**6) == repr(value) or len(repr(value)) > 200 or "\\u" in shown(value)


def test_what_is_cut_ends_with_an_ellipsis() -> None:
    assert shown("x" * 300) == "'" + "x" * 198 + "…"
    assert shortened("abc", 3) == "abc"
    assert shortened("abcd", 3) == "ab…"


def test_no_character_acts_on_a_terminal() -> None:
    assert visible("a\x1b]0;title\x07\x9b2J\rb\u202ec\r\nd\te\udcff") == (
        "a\\x1b]0;title\\x07\\x9b2J\\rb\\u202ec\nd\te\\udcff"
    )
    assert visible("größer, 日本, ✓") == "größer, 日本, ✓"


def test_no_error_of_ours_acts_on_a_terminal_or_has_no_end() -> None:
    assert str(ServiceFailedError("said:\n    \x1b[2J")) == "said:\n    \\x1b[2J"
    assert len(str(LabError("x" * 10**7))) <= 40_000
    many = InvalidValueError(f"problem {number}" for number in range(100_000))
    assert str(many).splitlines()[-1] == "… and 99900 more"
    assert len(InvalidValueError("x" * 10**6).problems[0]) == 2_000
