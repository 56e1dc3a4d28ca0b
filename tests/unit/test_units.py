"""Quantities in words: which are read or refused, and that reading undoes writing."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import InvalidValueError
from testbed.units import format_rate, format_ratio, format_time, parse_rate, parse_ratio, parse_time


def refusal_of_time(text: object) -> str:
    with pytest.raises(InvalidValueError) as refused:
        parse_time(text, name="delay")
    assert len(refused.value.problems) == 1
    return str(refused.value)


def refusal_of_rate(text: object) -> str:
    with pytest.raises(InvalidValueError) as refused:
        parse_rate(text)
    return str(refused.value)


def refusal_of_ratio(text: object) -> str:
    with pytest.raises(InvalidValueError) as refused:
        parse_ratio(text, name="loss")
    return str(refused.value)


# --- durations -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("40ms", 0.04),
        ("0.1ms", 0.0001),
        ("1.5s", 1.5),
        ("250us", 0.00025),
        ("250µs", 0.00025),
        ("250\N{GREEK SMALL LETTER MU}s", 0.00025),
        ("64ns", 64e-9),
        ("2min", 120.0),
        (" 40 ms ", 0.04),
        ("+40ms", 0.04),
        (".5s", 0.5),
        ("5.s", 5.0),
        ("1e3ms", 1.0),
        ("1E-3s", 0.001),
        ("40MS", 0.04),
        ("0ms", 0.0),
        ("-0ms", 0.0),
    ],
)
def test_a_duration_is_read_in_seconds(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["5", " 5 ", "5.0", "5e0", 5])
def test_a_duration_without_a_unit_is_refused_with_both_likely_meanings(text: object) -> None:
    assert refusal_of_time(text) == f'delay={text}: a duration needs a unit; write delay="{text}ms" or "{text}s"'


def test_a_duration_cannot_be_negative() -> None:
    assert refusal_of_time("-1ms") == "delay='-1ms': a duration cannot be negative"


@pytest.mark.parametrize("unit", ["m", "h", "sec", "msec", "ms/s", "s/s", "%", "mbit", "µ"])
def test_an_unknown_unit_of_time_is_refused_with_the_known_ones(unit: str) -> None:
    assert refusal_of_time(f"4{unit}") == (f"delay='4{unit}': unknown unit {unit!r}; known: ns, us, µs, ms, s, min")


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "ms",
        "fast",
        "4 0ms",
        "40ms 5ms",
        "1,5s",
        "nan s",
        "infs",
        "--4ms",
        "0x10ms",
        None,
        True,
        b"40ms",
        ["40ms"],
    ],
)
def test_what_is_no_duration_is_refused_with_an_example(text: object) -> None:
    assert refusal_of_time(text) == f'delay={text!r}: not a duration; write for example delay="40ms"'


@pytest.mark.parametrize("text", ["1e101s", "1e-101s", "1e9999999ms", "1e-9999999ms", "1e99999999999999999999ms"])
def test_an_absurd_power_of_ten_is_refused_not_crashed_on(text: str) -> None:
    assert "not a duration" in refusal_of_time(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (0.04, "40ms"),
        (0.0405, "40.5ms"),
        (1.0, "1s"),
        (1.5, "1.5s"),
        (60.0, "60s"),
        (3600.0, "3600s"),
        (0.00025, "250us"),
        (0.0000015, "1.5us"),
        (0.000000064, "64ns"),
        (1e-9, "1ns"),
        (1.0000005, "1000.0005ms"),
        (1 / 3, "333333333ns"),
    ],
)
def test_a_duration_is_written_in_the_largest_unit_that_is_exact(seconds: float, text: str) -> None:
    assert format_time(seconds) == text


@given(st.floats(min_value=0, max_value=3600))
def test_a_duration_survives_writing_and_reading_to_the_nanosecond(seconds: float) -> None:
    # Half a nanosecond of rounding, and what a float of this size can hold.
    assert math.isclose(parse_time(format_time(seconds)), seconds, rel_tol=1e-15, abs_tol=0.5001e-9)


@given(st.integers(min_value=0, max_value=3600 * 10**9))
def test_a_whole_number_of_nanoseconds_survives_exactly(nanoseconds: int) -> None:
    assert round(parse_time(format_time(nanoseconds / 1e9)) * 1e9) == nanoseconds


# --- rates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "bits_per_second"),
    [
        ("8bit", 8.0),
        ("64kbit", 64e3),
        ("10mbit", 10e6),
        ("10Mbit", 10e6),
        ("10Mbit/s", 10e6),
        ("1.5gbit", 1.5e9),
        ("2tbit", 2e12),
        ("512kibit", 512 * 1024.0),
        ("1mibit", 1048576.0),
        ("1gibit", 1073741824.0),
        ("1tibit", 1099511627776.0),
        ("0.5bit", 0.5),
        (" 10 mbit ", 10e6),
    ],
)
def test_a_rate_is_read_in_bits_a_second(text: str, bits_per_second: float) -> None:
    assert parse_rate(text) == bits_per_second


@pytest.mark.parametrize("text", ["8bps", "8mbps", "8 Mbps", "8gbps", "8kibps", "1.5MBPS"])
def test_bps_is_refused_for_it_means_two_things(text: str) -> None:
    assert refusal_of_rate(text) == (
        f'rate={text!r}: "bps" means bytes per second to tc and bits per second to most others; '
        f'write bits: "8mbit" is one megabyte per second'
    )


@pytest.mark.parametrize("text", ["10", 10, 10.5])
def test_a_rate_without_a_unit_is_refused(text: object) -> None:
    assert refusal_of_rate(text) == f'rate={text}: a rate needs a unit; write rate="{text}mbit" or "{text}kbit"'


@pytest.mark.parametrize("text", ["0mbit", "0bit", "-1mbit"])
def test_a_rate_must_be_above_0_and_the_way_to_pass_nothing_is_named(text: str) -> None:
    assert refusal_of_rate(text) == f'rate={text!r}: a rate must be above 0; to let nothing through, write loss="100%"'


@pytest.mark.parametrize("unit", ["mb", "mb/s", "mbit/h", "ms", "pbit", "bit/s/s", "mbits"])
def test_an_unknown_unit_of_rate_is_refused_with_the_known_ones(unit: str) -> None:
    assert refusal_of_rate(f"4{unit}") == (
        f"rate='4{unit}': unknown unit {unit!r}; known: bit, kbit, mbit, gbit, tbit, kibit, mibit, gibit, tibit"
    )


@pytest.mark.parametrize("text", ["", "fast", "10mbit 5mbit", "10mbit /s", None, False, [], "1e400mbit"])
def test_what_is_no_rate_is_refused_with_an_example(text: object) -> None:
    assert refusal_of_rate(text) == f'rate={text!r}: not a rate; write for example rate="10mbit"'


@pytest.mark.parametrize(
    ("bits_per_second", "text"),
    [
        (8.0, "8bit"),
        (1000.0, "1kbit"),
        (1001.0, "1.001kbit"),
        (1000.4, "1000bit"),
        (64e3, "64kbit"),
        (10e6, "10mbit"),
        (1.5e9, "1.5gbit"),
        (1e12, "1000gbit"),
        (524288.0, "524.288kbit"),
        (1048576.0, "1048.576kbit"),
        (1073741824.0, "1073741.824kbit"),
    ],
)
def test_a_rate_is_written_in_the_largest_unit_that_is_exact(bits_per_second: float, text: str) -> None:
    assert format_rate(bits_per_second) == text


@given(st.floats(min_value=8, max_value=1e15))
def test_a_rate_survives_writing_and_reading_to_the_bit(bits_per_second: float) -> None:
    assert math.isclose(parse_rate(format_rate(bits_per_second)), bits_per_second, rel_tol=1e-15, abs_tol=0.5)


# --- shares ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ratio"),
    [("0%", 0.0), ("2%", 0.02), ("0.1%", 0.001), ("100%", 1.0), ("1e-3%", 1e-5), (" 2 % ", 0.02), ("33.3%", 0.333)],
)
def test_a_percentage_is_read_as_a_share_of_1(text: str, ratio: float) -> None:
    assert parse_ratio(text) == ratio


def test_a_percentage_without_its_sign_is_refused() -> None:
    assert refusal_of_ratio(2) == 'loss=2: a percentage needs its sign; write loss="2%"'


@pytest.mark.parametrize("text", ["0.02", 0.02])
def test_what_may_be_meant_as_a_share_is_answered_with_both(text: object) -> None:
    message = 'loss=0.02: a percentage needs its sign; write loss="0.02%" or, if that is a share of 1, "2%"'
    assert refusal_of_ratio(text) == message


@pytest.mark.parametrize("text", ["-1%", "-0.0001%", "100.0001%", "120%"])
def test_a_percentage_outside_0_to_100_is_refused(text: str) -> None:
    assert refusal_of_ratio(text) == f"loss={text!r}: a percentage lies between 0% and 100%"


@pytest.mark.parametrize("text", ["2%/s", "2pct"])
def test_the_only_unit_of_a_percentage_is_its_sign(text: str) -> None:
    assert "unknown unit" in refusal_of_ratio(text)


@pytest.mark.parametrize("text", ["%", "some", None, True])
def test_what_is_no_percentage_is_refused_with_an_example(text: object) -> None:
    assert refusal_of_ratio(text) == f'loss={text!r}: not a percentage; write for example loss="2%"'


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(0.0, "0%"), (0.02, "2%"), (0.07, "7%"), (0.29, "29%"), (0.001, "0.1%"), (1.0, "100%"), (1e-10, "0.00000001%")],
)
def test_a_share_is_written_as_a_percentage_without_float_noise(ratio: float, text: str) -> None:
    assert format_ratio(ratio) == text


@given(st.floats(min_value=0, max_value=1))
def test_a_share_survives_writing_and_reading(ratio: float) -> None:
    assert math.isclose(parse_ratio(format_ratio(ratio)), ratio, abs_tol=1e-12)


@given(st.one_of(st.text(), st.from_regex(r"[-+]?[0-9.e]{1,9} ?[a-zµ%/]{0,5}", fullmatch=True), st.none(), st.floats()))
def test_whatever_is_said_is_read_or_refused_with_its_name(value: object) -> None:
    for parse in (parse_time, parse_rate, parse_ratio):
        try:
            outcome = str(parse(value, name="word"))
        except InvalidValueError as error:
            outcome = str(error)
        assert outcome.startswith("word=") or float(outcome) >= 0
