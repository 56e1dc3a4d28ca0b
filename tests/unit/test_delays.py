"""The shapes of netem's tables and their drawing; expectations by hand from the definitions."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from testbed.netem.delays import histogram, is_known, quantile_s, quantiles_s
from testbed.netem.profiles import parse_profile
from testbed.report.profile import bar, print_profile, profile_json
from testbed.spec.impairment import Impairment
from tests.unit.strategies import impairments


def shaped(distribution: str) -> Impairment:
    return Impairment(delay_s=0.1, jitter_s=0.01, distribution=distribution)


def test_a_uniform_delay_lies_within_its_jitter() -> None:
    assert quantile_s(shaped("uniform"), 0.25) == pytest.approx(0.095)
    assert quantile_s(shaped("uniform"), 0.999) == pytest.approx(0.10998)


def test_a_normal_delay_has_its_jitter_as_standard_deviation() -> None:
    assert quantile_s(shaped("normal"), 0.5) == pytest.approx(0.1)
    assert quantile_s(shaped("normal"), 0.841345) == pytest.approx(0.11, abs=1e-6)
    assert quantile_s(shaped("normal"), 0.15865525) == pytest.approx(0.09, abs=1e-6)


def test_a_pareto_delay_is_mostly_below_its_mean_and_now_and_then_four_jitters_above() -> None:
    # At half: (4/3) (2^(1/3) - 1.5) = -0.32012; at 7/8: (4/3) (2 - 1.5) = 2/3; the smallest: (4/3) (1 - 1.5) = -2/3.
    assert quantile_s(shaped("pareto"), 0.5) == pytest.approx(0.1 - 0.0032012, abs=1e-6)
    assert quantile_s(shaped("pareto"), 0.875) == pytest.approx(0.1 + 0.01 * 2 / 3)
    assert quantile_s(shaped("pareto"), 0.0) == pytest.approx(0.1 - 0.01 * 2 / 3, abs=1e-5)
    assert quantile_s(shaped("pareto"), 0.9999) == pytest.approx(0.14, abs=1e-5)


def test_paretonormal_is_a_quarter_normal_and_three_quarters_pareto() -> None:
    parts = [quantile_s(shaped(shape), 0.7) - 0.1 for shape in ("normal", "pareto", "paretonormal")]
    assert parts[2] == pytest.approx(0.25 * parts[0] + 0.75 * parts[1])


def test_nothing_arrives_before_it_was_sent() -> None:
    assert quantile_s(Impairment(delay_s=0.001, jitter_s=0.1), 0.1) == 0


def test_without_jitter_all_packets_are_in_one_range() -> None:
    (only,) = histogram(Impairment(delay_s=0.04))
    assert (only.from_s, only.to_s, only.share) == (0.04, 0.04, 1)


@given(impairments().filter(is_known))
def test_quantiles_grow_and_shares_add_up(impairment: Impairment) -> None:
    values = list(quantiles_s(impairment).values())
    assert values == sorted(values)
    assert min(values) >= 0
    assert sum(bar.share for bar in histogram(impairment, draws=500)) == pytest.approx(1)


@given(st.floats(min_value=0, max_value=1))
def test_a_bar_is_as_long_as_its_share_and_what_is_there_can_be_seen(share: float) -> None:
    drawn = bar(share, 10)
    assert len(drawn) == 10
    assert (share > 0) == bool(drawn.strip())
    assert abs(drawn.count("█") - share * 10) <= 1


def drawn(text: str) -> str:
    out = io.StringIO()
    print_profile(Console(file=out, width=120, highlight=False), parse_profile("x", text))
    return out.getvalue()


def test_a_timeline_is_drawn_where_it_changes() -> None:
    lines = drawn(
        "forward:\n- {delay: 10ms, rate: 1mbit}\n- {at: 30s, delay: 80ms}\n- {at: 45s, outage: 5s}\n- repeat: 60s\n"
    ).splitlines()
    (delay,) = [line for line in lines if line.startswith("  delay ")]
    assert delay == "  delay " + "▂" * 30 + "█" * 15 + "╳" * 5 + "█" * 10 + "  10ms … 80ms"
    assert not [line for line in lines if line.startswith(("  rate ", "  loss "))], "what stays is not drawn"
    assert "  at 45s: outage of 5s" in lines


def test_a_distribution_is_drawn_and_said_to_be_worked_out() -> None:
    text = drawn("both: {delay: 100ms, jitter: 10ms, distribution: normal}")
    assert "computed from netem's normal table" in text
    assert "50% 100ms" in text
    assert text.count("█") > 50


def test_a_table_of_ones_own_is_not_drawn_and_that_is_said() -> None:
    text = "both: {delay: 100ms, jitter: 10ms, distribution: mine.dist}"
    assert "your own table mine.dist, which is not drawn" in drawn(text)
    assert profile_json(parse_profile("x", text))["forward"]["delay_quantiles_s"] is None


def test_json_has_every_moment_in_the_users_words_and_tcs() -> None:
    document = json.loads(json.dumps(profile_json(parse_profile("x", "forward: [{delay: 1ms}, {at: 1s, outage: 1s}]"))))
    assert [moment["at_s"] for moment in document["forward"]["moments"]] == [0, 1, 2]
    assert document["forward"]["moments"][1]["words"]["loss"] == "100%"
    assert "loss 100%" in document["forward"]["moments"][1]["netem"]
    assert document["reverse"]["words"] == {}
    assert document["reverse"]["delay_quantiles_s"]["0.5"] == 0
