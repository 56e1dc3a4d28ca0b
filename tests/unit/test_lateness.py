"""Whether a carrier was in time, computed from the times of frames."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.evidence.proof import Check, LinkEvidence
from testbed.evidence.verdict import Verdict
from testbed.judge import lateness
from testbed.judge import statistics as exact
from testbed.report.evidence import lines
from testbed.spec.impairment import CLEAN, Impairment

DUE_S = 0.001
KERNEL = "carried kernel tb1"
TIMES = st.lists(st.floats(0.001, 5.0), max_size=300)


def seen(*late_s: float, on_time: int = 0, missing_s: tuple[float, ...] = ()) -> lateness.Lateness:
    """Frames that were late so, and others that were 0.1 ms late."""
    took = [DUE_S + lateness_s for lateness_s in (*late_s, *[0.0001] * on_time)]
    return lateness.lateness(took, carrier=KERNEL, missing_s=missing_s, due_s=DUE_S, tolerance_s=0.005)


@pytest.mark.parametrize(
    ("impairment", "tolerance_s"),
    [(None, 0.005), (CLEAN, 0.005), (Impairment(delay_s=0.04), 0.005), (Impairment(delay_s=0.2), 0.02)],
)
def test_a_tenth_of_the_delay_is_tolerated_and_at_least_5_ms(impairment: Impairment | None, tolerance_s: float) -> None:
    assert lateness.tolerance_s(impairment) == tolerance_s


def test_median_worst_and_share_are_of_the_time_beyond_the_due_one() -> None:
    measured = seen(0.002, 0.004, 0.006)
    assert (measured.frames, measured.late) == (3, 1)
    assert measured.late_ratio == pytest.approx(1 / 3)
    assert measured.median_s == pytest.approx(0.004)
    assert measured.worst_s == pytest.approx(0.006)


def test_one_frame_100_ms_late_among_10000_condemns() -> None:
    measured = seen(0.101, on_time=9_999)
    assert measured.problem is not None
    assert measured.problem == f"{KERNEL} was 101ms late, more than the allowed 100ms"
    assert measured.warning is None


def test_a_frame_that_has_not_come_back_is_as_late_as_it_is_old() -> None:
    assert seen(on_time=50, missing_s=(0.5, 0.48)).problem is not None
    young = seen(on_time=50, missing_s=(0.002,))
    assert (young.frames, young.late) == (50, 0), "it may be on time still"


def test_a_carrier_on_time_costs_no_import_of_numbers() -> None:
    program = (
        "import sys; from testbed.judge.lateness import lateness; "
        "on_time = lateness([0.03] * 100, carrier='k', due_s=0.03, tolerance_s=0.005); "
        "print(on_time.problem, on_time.warning, {'numpy', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["None", "None", "set()"], done.stderr


def test_of_few_frames_a_single_late_one_is_a_warning_and_many_condemn() -> None:
    one = seen(0.02, on_time=49)
    assert one.problem is None
    assert one.warning is not None
    assert one.warning == f"{KERNEL} was more than 5ms late 1 of 50 times, at worst 20ms"
    many = seen(*[0.02] * 20, on_time=30).problem
    assert many is not None
    assert many.startswith(f"{KERNEL} was more than 5ms late 20 of 50 times")


def test_the_remedy_names_the_option_that_accepts_it_unless_the_carrier_stood_still() -> None:
    assert seen(0.5).remedy.endswith("or accept it: --testbed-lateness=warn")
    assert "--testbed-lateness" not in seen(1.1).remedy
    assert "fewer tests at once" in seen(1.1).remedy


def test_within_a_longer_tolerance_100_ms_at_once_are_none() -> None:
    impairment = Impairment(delay_s=5.0)
    measured = lateness.lateness(
        [DUE_S + 0.3], carrier=KERNEL, due_s=DUE_S, tolerance_s=lateness.tolerance_s(impairment)
    )
    assert (measured.problem, measured.warning) == (None, None)


def test_the_row_says_fails_only_where_it_counts() -> None:
    late = seen(0.5)
    assert lateness.check(late).verdict == Verdict.FAILS
    assert lateness.check(late, counts=False).verdict == Verdict.SHOWN
    assert lateness.check(seen(on_time=9)).verdict == Verdict.HOLDS


@pytest.mark.parametrize(
    "row",
    [
        lateness.check(seen()),
        lateness.check(seen(missing_s=(0.002,))),
        lateness.not_measured(carrier=KERNEL, tolerance_s=0.005, why="the agent is gone"),
    ],
)
def test_what_was_not_measured_is_unknown_and_never_shown(row: Check) -> None:
    assert (row.verdict, row.kernel, row.asked) == (Verdict.UNKNOWN, KERNEL, "≤ 5ms for 99%")
    assert row.how, "it says why"
    (printed,) = (
        line
        for line in lines(LinkEvidence(link="a -> b", network="lan", asked={}, command="", checks=[row]))
        if "lateness" in line
    )
    assert printed.split()[-3:] == ["not", "measured", "unknown"]


@given(took=TIMES, missing=TIMES, tolerance_s=st.floats(0.005, 1.0))
def test_the_counts_hold_together(took: list[float], missing: list[float], tolerance_s: float) -> None:
    measured = lateness.lateness(took, carrier=KERNEL, missing_s=missing, due_s=DUE_S, tolerance_s=tolerance_s)
    assert len(took) <= measured.frames <= len(took) + len(missing)
    assert 0 <= measured.late <= measured.frames
    assert measured.median_s <= measured.worst_s or not measured.frames
    assert (measured.worst_s > tolerance_s) == (measured.late > 0)
    assert measured.problem is None or measured.warning is None
    assert measured.problem is not None or measured.worst_s <= max(lateness.AT_ONCE_S, tolerance_s)
    assert measured.late == 0 or measured.problem or measured.warning, "what is beyond the tolerance is always told"


@given(frames=st.integers(1, 5000))
def test_a_share_of_one_in_a_hundred_itself_is_never_condemned(frames: int) -> None:
    measured = seen(*[0.02] * (frames // 100), on_time=frames - frames // 100)
    assert measured.problem is None


@given(frames=st.integers(100, 5000), share=st.floats(0.1, 1.0))
def test_a_tenth_late_is_always_condemned_beyond_what_chance_allows(frames: int, share: float) -> None:
    late = round(frames * share)
    measured = seen(*[0.02] * late, on_time=frames - late)
    assert (measured.problem is not None) == (late > exact.accepted(frames, lateness.LATE_RATIO)[1])


@pytest.mark.parametrize(
    ("late_s", "message"),
    [([], ""), ([0.001, 0.005], ""), ([0.001, 0.0051, 0.012], "2 of 3 frames more than 5ms, the longest 12ms")],
)
def test_packets_that_waited_before_a_carried_kernel_for_longer_than_the_tolerance_are_told(
    late_s: list[float], message: str
) -> None:
    text = lateness.queue_warning(late_s, tolerance_s=0.005)
    assert (text or "").endswith(message)
    assert bool(text) == bool(message)
