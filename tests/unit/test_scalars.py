"""Durations and signals, in the forms that Compose files and images have them."""

from __future__ import annotations

import pytest

from testbed.compose import scalars


@pytest.mark.parametrize(
    ("text", "duration_s"), [("0", 0), ("1s", 1), ("1m30s", 90), ("500ms", 0.5), ("1.5h", 5400), ("2us", 2e-6)]
)
def test_a_duration_is_read_as_go_writes_it(text: str, duration_s: float) -> None:
    assert scalars.duration_s(text) == pytest.approx(duration_s)


@pytest.mark.parametrize("text", ["", "1", "s", "1 s", "1d", "-1s", "1s2"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        scalars.duration_s(text)


def test_a_signal_has_one_name() -> None:
    assert {scalars.signal_name(text) for text in ("SIGTERM", "term", "15")} == {"SIGTERM"}
    for text in ("99", "SIGFOO", ""):
        with pytest.raises(ValueError, match="is no signal"):
            scalars.signal_name(text)
