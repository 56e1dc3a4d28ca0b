"""Problems are collected, and reported together."""

from __future__ import annotations

import pytest

from testbed.errors import EnvironmentUnfitError, InvalidValueError, Problems


def test_problems_of_several_blocks_are_told_at_once_and_each_once() -> None:
    problems = Problems(["first"])
    with problems.gathered():
        raise InvalidValueError(["second", "third"])
    with problems.gathered():
        raise InvalidValueError("second")
    with pytest.raises(InvalidValueError) as refused:
        problems.tell()
    assert refused.value.problems == ("first", "second", "third")


def test_without_problems_nothing_is_told_and_what_is_no_users_mistake_is_not_gathered() -> None:
    problems = Problems()
    with pytest.raises(EnvironmentUnfitError), problems.gathered():
        raise EnvironmentUnfitError("no engine")
    problems.tell()
