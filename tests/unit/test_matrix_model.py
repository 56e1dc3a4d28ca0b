"""The model of a matrix on many engines, on cells whose times are easy to add."""

from __future__ import annotations

import pytest

from benchmarks.matrix import simulate


@pytest.mark.parametrize(
    ("engines", "workers", "image_s", "wall_s", "limit"),
    [
        (1, 1, 0.0, 12.0, "work"),  # up 1, ten cells of 1 s, down 1
        (2, 1, 0.0, 7.0, "work"),
        (1, 5, 0.0, 4.0, "work"),
        (2, 1, 20.0, 12.0, "images"),  # the first engine has done all before the second has its images
        (20, 1, 0.0, 3.0, "longest cell"),
    ],
)
def test_the_time_is_what_one_adds_by_hand(
    engines: int, workers: int, image_s: float, wall_s: float, limit: str
) -> None:
    row = simulate(
        [1.0] * 10, stack_s=2.0, engines=engines, workers=workers, image_s=image_s, first_s=0.0, engine_s=0.0
    )
    assert row.wall_s == pytest.approx(wall_s)
    assert row.limit == limit
    assert row.machines_s == pytest.approx(engines * wall_s)


def test_an_engine_that_is_busy_for_each_cell_is_a_limit() -> None:
    row = simulate([1.0] * 10, stack_s=0.0, engines=1, workers=10, image_s=0.0, first_s=0.0, engine_s=0.5)
    assert (row.wall_s, row.limit) == (5.0, "engine")
