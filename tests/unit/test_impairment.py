"""The impairment as a value: what it refuses, and how it is written and read."""

from __future__ import annotations

import math
import re
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given

from testbed.errors import InvalidValueError
from testbed.spec.features import WORDS
from testbed.spec.impairment import CLEAN, Impairment
from testbed.spec.profile import Profile
from testbed.spec.words import Slot, unknown
from testbed.text import shown

from .strategies import AT_ODDS, NONSENSE, Nonsense, impairments, nonsense


def problems_of(**fields: Any) -> tuple[str, ...]:
    with pytest.raises(InvalidValueError) as refused:
        Impairment(**fields)
    return refused.value.problems


def problems_in(words: dict[str, object]) -> tuple[str, ...]:
    with pytest.raises(InvalidValueError) as refused:
        Impairment.parse(words)
    return refused.value.problems


# --- the value -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"delay_s": 0},
        {"delay_s": 1e-9},
        {"delay_s": 3600},
        {"delay_s": 0.04, "jitter_s": 2.147483647},
        {"loss_ratio": 0},
        {"loss_ratio": 1},
        {"rate_bps": 8},
        {"rate_bps": 2.0**66},
        {"rate_bps": 1e6, "overhead_bytes": -34},
        {"rate_bps": 1e6, "overhead_bytes": 65_535},
        {"delay_s": 1, "reorder_ratio": 1, "reorder_gap_packets": 2},
        {"delay_s": 1, "reorder_ratio": 1 - 2.0**-31},
        {"loss_state": (1, 1, 0, 0, 0)},
        {"limit_packets": 1},
        {"limit_packets": 2**32 - 1},
        {"seed": 0},
        {"seed": 2**64 - 1},
    ],
)
def test_every_bound_itself_is_valid(fields: dict[str, Any]) -> None:
    impairment = Impairment(**fields)
    assert all(getattr(impairment, name) == value for name, value in fields.items())


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"delay_s": -0.001}, "delay_s=-0.001: must lie between 0 and 3600 seconds"),
        ({"delay_s": 3600.001}, "delay_s=3600.001: must lie between 0 and 3600 seconds"),
        ({"delay_s": math.nan}, "delay_s=nan: must lie between 0 and 3600 seconds"),
        ({"delay_s": math.inf}, "delay_s=inf: must lie between 0 and 3600 seconds"),
        ({"delay_s": 9e-10}, "delay_s=9e-10: shorter than a nanosecond, the shortest time that netem knows"),
        ({"delay_s": 1, "jitter_s": -1}, "jitter_s=-1: must lie between 0 and 2.147484 seconds, netem's widest spread"),
        (
            {"delay_s": 1, "jitter_s": 1e-10},
            "jitter_s=1e-10: shorter than a nanosecond, the shortest time that netem knows",
        ),
        ({"loss_ratio": -0.01}, "loss_ratio=-0.01: must lie between 0 and 1"),
        ({"loss_ratio": 2}, "loss_ratio=2: must lie between 0 and 1"),
        ({"loss_ratio": math.nan}, "loss_ratio=nan: must lie between 0 and 1"),
        ({"rate_bps": 0}, "rate_bps=0: must lie between 8 and 2⁶⁷ bit/s, netem's smallest and largest rate"),
        ({"rate_bps": 7.9}, "rate_bps=7.9: must lie between 8 and 2⁶⁷ bit/s, netem's smallest and largest rate"),
        (
            {"rate_bps": math.inf},
            "rate_bps=inf: must lie between 8 and 2⁶⁷ bit/s, netem's smallest and largest rate",
        ),
        (
            {"limit_packets": 0},
            "limit_packets=0: must lie between 1 and 2³²-1; a queue of 0 passes nothing",
        ),
        (
            {"limit_packets": 2**32},
            "limit_packets=4294967296: must lie between 1 and 2³²-1; a queue of 0 passes nothing",
        ),
        ({"seed": -1}, "seed=-1: must lie between 0 and 2⁶⁴-1"),
        ({"seed": 2**64}, "seed=18446744073709551616: must lie between 0 and 2⁶⁴-1"),
        (
            {"delay_s": 5, "jitter_s": 2.2},
            "jitter_s=2.2: must lie between 0 and 2.147484 seconds, netem's widest spread",
        ),
        ({"jitter_s": 0.005}, "jitter without delay: netem varies a delay; give the mean delay too"),
        ({"delay_s": 0, "jitter_s": 0.005}, "jitter without delay: netem varies a delay; give the mean delay too"),
        (
            {"delay_s": 1, "jitter_s": 1, "distribution": "norml"},
            "distribution='norml': unknown; did you mean 'normal'? Known: uniform, normal, pareto, paretonormal",
        ),
        ({"delay_s": 1, "distribution": "normal"}, "distribution without jitter has no effect"),
        (
            {"delay_s": 1, "jitter_s": 0, "distribution": "pareto"},
            "distribution without jitter has no effect",
        ),
        ({"delay_s": 1, "reorder_by_jitter": True}, "reorder_by_jitter without jitter has no effect"),
        ({"delay_s": 1, "delay_correlation": 0.2}, "correlation without jitter has no effect"),
        ({"duplicate_ratio": 1.01}, "duplicate_ratio=1.01: must lie between 0 and 1"),
        ({"corrupt_ratio": -0.1}, "corrupt_ratio=-0.1: must lie between 0 and 1"),
        ({"loss_ratio": 1e-10}, "loss_ratio=1e-10: smaller than 2⁻³², the smallest share that netem knows"),
        ({"delay_s": 1, "reorder_ratio": 1.5}, "reorder_ratio=1.5: must lie between 0 and 1"),
        ({"reorder_ratio": 0.1}, "reorder without delay: a packet overtakes by skipping the delay; give one"),
        ({"delay_s": 1, "reorder_gap_packets": 5}, "gap without reorder has no effect"),
        (
            {"delay_s": 1, "reorder_ratio": 1},
            "reorder=100%: every packet would skip the delay and none would overtake; give less, or gap=5 to let "
            "every 5th skip it",
        ),
        (
            {"delay_s": 1, "jitter_s": 1, "delay_correlation": 1.0},
            "correlation=100%: every delay would equal the one before, without jitter; give less",
        ),
        (
            {"rate_bps": 1e6, "overhead_bytes": -35},
            "overhead_bytes=-35: must lie between -34 (a packet of negative length never leaves) and 65535, the "
            "longest packet",
        ),
        (
            {"loss_ratio": 0, "loss_burst_packets": 3},
            "burst without loss: give the mean loss too",
        ),
        (
            {"loss_ratio": 1.0, "duplicate_ratio": 0.1},
            "duplicate=10% with loss=100%: netem keeps a packet that it chose for both, so that 10% pass; leave the "
            "duplicate out",
        ),
        (
            {"drop_every": 50, "duplicate_ratio": 0.1},
            "duplicate with drop_packets or drop_every: the second copies would be counted, too, and other packets "
            "be lost; leave one of them out",
        ),
        (
            {"loss_gemodel": (0, 0.3, 1, 0)},
            'gemodel="0% 30% 100% 0%": p=0%, so the bad state is never entered; for losses at random, say loss',
        ),
        (
            {"loss_gemodel": (0.01, 0, 1, 0)},
            'gemodel="1% 0% 100% 0%": r=0%, so the bad state is never left; give an r above 0%',
        ),
        (
            {"loss_gemodel": (0.01, 0.3, 0, 0)},
            'gemodel="1% 30% 0% 0%": 1-h and 1-k are 0%, so nothing is ever lost; leave it out',
        ),
        (
            {"loss_gemodel": (0.01, 0.3, 1, 1)},
            'gemodel="1% 30% 100% 100%": 1-h and 1-k are 100%, so everything is lost; say loss=100%',
        ),
        (
            {"loss_state": (0, 0, 0, 0, 0)},
            'loss_state="0% 0% 0% 0% 0%": p13 and p14 are 0%, so nothing is ever lost; leave it out',
        ),
        (
            {"loss_state": (0.05, 0, 0, 1, 0)},
            'loss_state="5% 0% 0% 100% 0%": p31 and p32 are 0%, so the state that loses everything is never left; give '
            "one of them",
        ),
        (
            {"loss_state": (0.05, 0.1, 0.1, 0, 0)},
            'loss_state="5% 10% 10% 0% 0%": p23=0%, so nothing is ever lost after the first burst; give a p23 above 0%',
        ),
        # Rounded to 2⁻³², each is more than a half: together they begin at 0 again.
        (
            {"loss_state": (0.5, 0.5, 0, 0, 0.5)},
            'loss_state="50% 50% 0% 0% 50%": p13 and p14 are shares of one draw; together they must stay below 100%',
        ),
        ({"overhead_bytes": 24}, "overhead without rate has no effect: it adds to what the rate counts"),
        ({"ecn": True}, "ecn without loss has no effect: it marks packets that would be lost"),
        ({"loss_burst_packets": 3}, "burst without loss: give the mean loss too"),
        (
            {"loss_ratio": 0.1, "loss_burst_packets": 0.5},
            "loss_burst_packets=0.5: must lie between 1 and 1e+06 packets",
        ),
        (
            {"loss_ratio": 0.75, "loss_burst_packets": 2},
            "burst=2 with loss=75%: this loss has a mean burst of at least 3.00 packets; "
            "give a longer burst or less loss",
        ),
        (
            {"loss_ratio": 1, "loss_burst_packets": 2},
            "burst with loss=100%: everything is lost, in one endless burst; leave the burst out",
        ),
        (
            {"loss_ratio": 0.1, "loss_gemodel": (0.1, 0.2, 1, 0)},
            "loss and gemodel: packets are lost by one model; give one of them",
        ),
        ({"loss_state": (0.1, 0.2)}, "loss_state=(0.1, 0.2): must be 5 shares between 0 and 1"),
        ({"loss_gemodel": (0.1, 0.2, 2, 0)}, "loss_gemodel=(0.1, 0.2, 2, 0): must be 4 shares between 0 and 1"),
    ],
)
def test_what_lies_outside_is_refused(fields: dict[str, Any], problem: str) -> None:
    assert problems_of(**fields) == (problem,)


def test_every_problem_is_named_at_once() -> None:
    assert problems_of(delay_s=-1, loss_ratio=2, rate_bps=0, limit_packets=0, seed=-1, reorder_by_jitter=True) == (
        "delay_s=-1: must lie between 0 and 3600 seconds",
        "loss_ratio=2: must lie between 0 and 1",
        "rate_bps=0: must lie between 8 and 2⁶⁷ bit/s, netem's smallest and largest rate",
        "limit_packets=0: must lie between 1 and 2³²-1; a queue of 0 passes nothing",
        "seed=-1: must lie between 0 and 2⁶⁴-1",
        "reorder_by_jitter without jitter has no effect",
    )


@given(nonsense())  # of each word alone, below, all
def test_any_nonsense_is_refused_by_the_name_of_what_is_odd(sample: Nonsense) -> None:
    assert any(sample.odd in problem for problem in problems_in(sample.words))


@pytest.mark.parametrize("word", WORDS)
def test_each_nonsense_of_a_word_is_refused_by_its_name(word: str) -> None:
    for value in NONSENSE[word]:
        assert any(word in problem for problem in problems_in({word: value})), f"{word}={value!r}"


@pytest.mark.parametrize("words", AT_ODDS, ids=str)
def test_words_at_odds_are_refused_by_the_name_of_the_first(words: dict[str, object]) -> None:
    given = {name: value for name, value in words.items() if value is not None}
    assert any(next(iter(words)) in problem for problem in problems_in(given))


@pytest.mark.parametrize(
    ("impairment", "lines"),
    [
        (Impairment(delay_s=1, reorder_ratio=0.5), []),
        (Impairment(duplicate_ratio=0.5, loss_ratio=0), []),
        # 30e6 ns of 2³²: 0.7 % of the draws' range.
        (Impairment(delay_s=0.04, jitter_s=0.015, delay_correlation=0.8),
         ["correlation=80%: netem takes each draw modulo 3e+07, so that a delay resembles the one before it only "
          "above 99.30151%; no seed repeats the delays"]),
        (Impairment(delay_s=0.04, jitter_s=0.015, delay_correlation=0.999),
         ["correlation=99.9%: no seed repeats these delays, as netem draws the first without it"]),
        (Impairment(delay_s=0.04, jitter_s=0.015, distribution="normal", delay_correlation=0.999),
         ["correlation=99.9%: netem takes each draw modulo 4096, so that a delay resembles the one before it only "
          "above 99.9999%; no seed repeats the delays"]),
        (Impairment(loss_ratio=0.3, duplicate_ratio=0.5),
         ["duplicate=50% with losses: netem keeps a packet that it chose for both, so that 15% are lost, not 30%, "
          "about 24.5% arrive twice"]),
        (Impairment(loss_ratio=0.2, loss_burst_packets=4, duplicate_ratio=0.1),
         ["duplicate=10% with losses: netem keeps a packet that it chose for both, so that 18% are lost, not 20%"]),
        (Impairment(loss_state=(0.01, 0.3, 0.2, 0.05, 0.02), duplicate_ratio=0.1),
         ["duplicate=10% with losses: netem keeps a packet that it chose for both, so that fewer are lost than the "
          "states say"]),
        (Impairment(rate_bps=1e6, delay_s=0.02, reorder_ratio=0.5),
         ["reorder=50% with rate=1mbit: packets that skip the delay skip the rate, too, so that up to 2 Mbit/s pass in "
          "all"]),
        # Of five, four wait: 1/(1 - 1/5) of the rate.
        (Impairment(rate_bps=1e6, delay_s=0.02, reorder_ratio=1, reorder_gap_packets=5),
         ["reorder=100% with rate=1mbit: packets that skip the delay skip the rate, too, so that up to 1.25 Mbit/s "
          "pass in all"]),
    ],
)  # fmt: skip
def test_what_netem_makes_of_words_together_is_told(impairment: Impairment, lines: list[str]) -> None:
    assert impairment.realised == lines


def test_netems_correlated_loss_is_refused_with_the_form_that_does_what_was_meant() -> None:
    (problem,) = problems_in({"loss": "10% 25%"})
    assert problem == (
        "loss='10% 25%': netem's correlated loss loses less than written (10% 25% loses about 1.8%). For losses in "
        'bursts, write loss="10%" and burst=3, the mean number of packets lost in a row'
    )


def test_a_mean_loss_and_a_mean_burst_are_a_gilbert_model() -> None:
    # In the bad state for 4 packets on average: r = 1/4. Bad a fifth of the time: p / (p + r) = 1/5, so p = r/4 = 1/16.
    assert Impairment(loss_ratio=0.2, loss_burst_packets=4).gilbert == pytest.approx((1 / 16, 1 / 4, 1, 0))
    assert Impairment(loss_ratio=0.2).gilbert is None


def test_the_last_two_shares_of_gilbert_elliott_are_tcs_defaults() -> None:
    assert Impairment.parse({"gemodel": "1% 25%"}).loss_gemodel == (0.01, 0.25, 1.0, 0.0)
    assert problems_in({"gemodel": "1%"}) == ("gemodel='1%': needs two to four shares, \"p r 1-h 1-k\"",)
    assert problems_in({"loss_state": "1% 2%"}) == ("loss_state='1% 2%': needs five shares, \"p13 p31 p32 p23 p14\"",)
    assert problems_in({"gemodel": "1 25%"}) == ('gemodel=1: a percentage needs its sign; write gemodel="1%"',)


def test_an_impairment_cannot_be_changed() -> None:
    name = "delay_s"
    with pytest.raises(FrozenInstanceError):
        setattr(Impairment(delay_s=0.04), name, 0.05)


def test_equal_impairments_are_one_key() -> None:
    assert {Impairment(delay_s=0.04): "a", Impairment.parse({"delay": "40ms"}): "b"} == {Impairment(delay_s=0.04): "b"}


@pytest.mark.parametrize(
    ("impairment", "clean"),
    [
        (CLEAN, True),
        (Impairment(delay_s=0, loss_ratio=0), True),
        (Impairment(seed=7), True),
        (Impairment(delay_s=0.001), False),
        (Impairment(loss_ratio=0.001), False),
        (Impairment(rate_bps=8), False),
        (Impairment(limit_packets=1000), False),
    ],
)
def test_clean_is_what_does_nothing_to_a_packet(impairment: Impairment, clean: bool) -> None:
    assert impairment.is_clean is clean


# --- its words -------------------------------------------------------------------------------------

ALL_WORDS: dict[str, object] = {
    "delay": "40ms",
    "jitter": "5ms",
    "correlation": "25%",
    "distribution": "normal",
    "reorder_by_jitter": True,
    "loss": "2%",
    "ecn": True,
    "duplicate": "1%",
    "reorder": "10%",
    "gap": 5,
    "corrupt": "0.5%",
    "rate": "10mbit",
    "overhead": -4,
    "limit": 1000,
    "seed": 7,
}
BURSTS: dict[str, object] = {"loss": "2%", "burst": "3.5"}
GILBERT_ELLIOTT: dict[str, object] = {"gemodel": "1% 25% 90% 0.1%"}
FOUR_STATES: dict[str, object] = {"loss_state": "1% 30% 20% 5% 2%"}
BUCKET: dict[str, object] = {"rate": "5mbit", "bucket": "16kB", "queue": "65535B"}
SLOT: dict[str, object] = {"slot": "20ms 25ms", "slot_packets": 5, "slot_bytes": "3kB"}
SLOT_BY_A_TABLE: dict[str, object] = {"slot": "pareto 20ms 5ms"}
OWN_TABLE: dict[str, object] = {"delay": "40ms", "jitter": "5ms", "distribution": "measured.dist"}
BY_NUMBER: dict[str, object] = {"drop_packets": "3, 17-20", "drop_every": 50}
EVERY = (ALL_WORDS, BURSTS, GILBERT_ELLIOTT, FOUR_STATES, BUCKET, SLOT, SLOT_BY_A_TABLE, OWN_TABLE, BY_NUMBER)
ALL = ", ".join(WORDS)


def test_every_word_fills_its_own_field() -> None:
    assert Impairment.parse(ALL_WORDS) == Impairment(
        delay_s=0.04,
        jitter_s=0.005,
        delay_correlation=0.25,
        distribution="normal",
        reorder_by_jitter=True,
        loss_ratio=0.02,
        ecn=True,
        duplicate_ratio=0.01,
        reorder_ratio=0.1,
        reorder_gap_packets=5,
        corrupt_ratio=0.005,
        rate_bps=10e6,
        overhead_bytes=-4,
        limit_packets=1000,
        seed=7,
    )
    assert Impairment.parse(BURSTS) == Impairment(loss_ratio=0.02, loss_burst_packets=3.5)
    assert Impairment.parse(GILBERT_ELLIOTT) == Impairment(loss_gemodel=(0.01, 0.25, 0.9, 0.001))
    assert Impairment.parse(BUCKET) == Impairment(rate_bps=5e6, bucket_bytes=16_000, queue_bytes=65_535)
    assert Impairment.parse(SLOT) == Impairment(slot=Slot(min_s=0.02, max_s=0.025), slot_packets=5, slot_bytes=3000)
    assert Impairment.parse(SLOT_BY_A_TABLE).slot == Slot(distribution="pareto", mean_s=0.02, jitter_s=0.005)
    assert Impairment.parse(BY_NUMBER) == Impairment(drop_packets=((3, 3), (17, 20)), drop_every=50)
    assert Impairment.parse(FOUR_STATES) == Impairment(loss_state=(0.01, 0.3, 0.2, 0.05, 0.02))


def test_every_word_is_tried_here_and_explained() -> None:
    assert set(WORDS) == {word for words in EVERY for word in words}
    assert all(word.help for word in WORDS.values())


@pytest.mark.parametrize("words", EVERY)
def test_an_impairment_says_its_words(words: dict[str, object]) -> None:
    assert Impairment.parse(words).words() == words


def test_an_impairment_is_described_in_the_order_of_the_words() -> None:
    assert Impairment.parse(dict(reversed(ALL_WORDS.items()))).describe() == (
        "delay=40ms jitter=5ms correlation=25% distribution=normal reorder_by_jitter=True loss=2% ecn=True "
        "duplicate=1% reorder=10% gap=5 corrupt=0.5% rate=10mbit overhead=-4 limit=1000 seed=7"
    )


def test_nothing_asked_is_described_as_clean() -> None:
    assert CLEAN.describe() == "clean"
    assert CLEAN.words() == {}


def test_zero_is_not_absent() -> None:
    assert Impairment(delay_s=0, loss_ratio=0).words() == {"delay": "0s", "loss": "0%"}


@given(impairments())
def test_any_impairment_is_read_back_from_its_own_words(impairment: Impairment) -> None:
    again = Impairment.parse(impairment.words())
    for field, step in (("delay_s", 0.51e-9), ("jitter_s", 0.51e-9), ("loss_ratio", 1e-12), ("rate_bps", 0.5)):
        value, read = getattr(impairment, field), getattr(again, field)
        assert (value is None) == (read is None)
        assert math.isclose(value or 0, read or 0, rel_tol=1e-15, abs_tol=step)
    for field in ("delay_correlation", "duplicate_ratio", "reorder_ratio", "corrupt_ratio", "loss_burst_packets"):
        assert math.isclose(getattr(impairment, field) or 0, getattr(again, field) or 0, rel_tol=1e-9, abs_tol=1e-12)
    for field in ("loss_gemodel", "loss_state"):
        values, read = getattr(impairment, field) or (), getattr(again, field) or ()
        assert len(values) == len(read)
        assert all(math.isclose(a, b, abs_tol=1e-12) for a, b in zip(values, read, strict=True))
    for field in ("distribution", "reorder_by_jitter", "ecn", "reorder_gap_packets", "overhead_bytes", "limit_packets"):
        assert getattr(again, field) == getattr(impairment, field)
    for field in ("seed",):
        assert getattr(again, field) == getattr(impairment, field)


@pytest.mark.parametrize(
    ("words", "read"),
    [
        ({"limit": "1000"}, Impairment(limit_packets=1000)),
        ({"seed": " 7 "}, Impairment(seed=7)),
        (
            {"delay": "1s", "jitter": "1s", "reorder_by_jitter": "True"},
            Impairment(delay_s=1, jitter_s=1, reorder_by_jitter=True),
        ),
        ({"reorder_by_jitter": "false"}, Impairment()),
    ],
)
def test_the_command_line_says_numbers_and_truths_as_text(words: dict[str, object], read: Impairment) -> None:
    assert Impairment.parse(words) == read


@pytest.mark.parametrize("value", [1.0, True, "1.5", "many", None, "9" * 5000])
def test_a_limit_is_a_whole_number(value: object) -> None:
    assert problems_in({"limit": value}) == (f"limit={shown(value)}: not a whole number",)


@pytest.mark.parametrize("value", [1, 0, "yes", None])
def test_a_truth_is_true_or_false(value: object) -> None:
    assert problems_in({"reorder_by_jitter": value}) == (f"reorder_by_jitter={value!r}: must be true or false",)


@pytest.mark.parametrize("value", ["Normal", None, 5, ["normal"]])
def test_a_distribution_is_one_of_four(value: object) -> None:
    (problem,) = problems_in({"distribution": value})
    assert problem.startswith(f"distribution={value!r}: unknown")
    assert problem.endswith(
        "nown: uniform, normal, pareto, paretonormal, or NAME.dist for netem/NAME.dist beside the Compose file"
    )


@pytest.mark.parametrize(
    ("value", "ranges"),
    [
        (3, ((3, 3),)),
        ([3, "17-20"], ((3, 3), (17, 20))),
        ("20, 1-2 ,3", ((1, 3), (20, 20))),
        ("5-9, 7-12, 13", ((5, 13),)),
        ("[3, 17-20]", ((3, 3), (17, 20))),
        (" [ 3 ,'17 - 20', \"25\" ] ", ((3, 3), (17, 20), (25, 25))),
    ],
)
def test_packet_numbers_are_sorted_and_joined(value: object, ranges: tuple[tuple[int, int], ...]) -> None:
    assert Impairment.parse({"drop_packets": value}).drop_packets == ranges


@pytest.mark.parametrize("value", [0, "3-2", "", "a", [True], "1-", [1.5], None, "[3", "3]", "[]", "['3]", "'3'"])
def test_what_is_no_packet_number_is_refused(value: object) -> None:
    (problem,) = problems_in({"drop_packets": value})
    assert "is neither a packet number, counted from 1, nor a range" in problem


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ({"drop_every": 1}, "drop_every=1: must lie between 2 and 2³¹-1; to lose everything, say loss=100%"),
        ({"bucket": "16kB"}, "bucket without rate has no effect: it is filled at the rate"),
        ({"rate": "1mbit", "bucket": "1500B"},
         "bucket=1500: must lie between 1514, a full-size packet (a smaller bucket never passes one), and 2³¹-1"),
        ({"rate": "1mbit", "queue": "16kB"},
         "queue without bucket has no effect: packets wait in it for the bucket; netem's own queue is limit"),
        ({"rate": "1mbit", "bucket": "16kB", "overhead": 4},
         "overhead with bucket: a token bucket counts packets without overhead; leave one of them out"),
        ({"slot_packets": 2}, "slot_packets without slot has no effect: it limits what leaves in one"),
        ({"slot": "25ms 20ms"}, "slot='25ms 20ms': the shortest time is longer than the longest"),
        ({"slot": "0s"}, "slot='0s 0s': a time between turns must be above 0"),
        ({"slot": "normall 20ms 5ms"},
         "slot='normall 20ms 5ms': distribution 'normall': unknown; did you mean 'normal'? "
         "Known: normal, pareto, paretonormal"),
        ({"slot": "1 2 3 4"}, """slot='1 2 3 4': write slot="20ms", slot="20ms 25ms" or slot="normal 20ms 5ms\""""),
        ({"slot": "20"}, 'slot=20: a duration needs a unit; write slot="20ms" or "20s"'),
        ({"bucket": "16kb"}, "bucket='16kb': unknown unit 'kb'; known: B, kB, MB, GB, KiB, MiB, GiB"),
        ({"bucket": 16}, 'bucket=16: a size needs a unit; write bucket="16kB" or "16B"'),
        ({"bucket": "1.5B"}, "bucket='1.5B': must be a whole number of bytes"),
    ],
)  # fmt: skip
def test_sizes_slots_and_numbers_that_make_no_sense_are_refused(words: dict[str, object], problem: str) -> None:
    assert problems_in(words) == (problem,)


def test_an_unknown_word_is_refused_with_the_nearest() -> None:
    assert problems_in({"dealy": "40ms"}) == ("dealy: unknown; did you mean 'delay'? Known: " + ALL,)


def test_a_word_like_no_other_is_refused_with_all_of_them() -> None:
    assert problems_in({"x": 1}) == ("x: unknown; known: " + ALL,)


def test_every_wrong_word_is_named_at_once() -> None:
    assert problems_in({"delay": "5", "colour": "red", 5: 5, "loss": "120%"}) == (  # type: ignore[dict-item]
        'delay=5: a duration needs a unit; write delay="5ms" or "5s"',
        "colour: unknown; known: " + ALL,
        "5: unknown; known: " + ALL,
        "loss='120%': a percentage lies between 0% and 100%",
    )


def test_words_that_are_read_but_out_of_range_are_refused_too() -> None:
    assert problems_in({"delay": "2000min", "limit": 0}) == (
        "delay=120000.0: must lie between 0 and 3600 seconds",
        "limit=0: must lie between 1 and 2³²-1; a queue of 0 passes nothing",
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [("delay_s", "40ms"), ("loss_ratio", "2%"), ("rate_bps", True), ("limit_packets", 1.5), ("seed", "7")],
)
def test_a_field_of_the_wrong_kind_is_refused_with_the_way_to_say_it(field: str, value: object) -> None:
    with pytest.raises(
        InvalidValueError, match=rf"^{field}={re.escape(repr(value))}: must be a number; as text, write"
    ):
        Impairment(**{field: value})  # type: ignore[arg-type]  # the wrong kind is the point


# --- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "report"),
    [
        ("lossi", "unknown; did you mean 'lossy'? Known: clean, lossy"),
        ("zebra", "unknown; known: clean, lossy"),
    ],
)
def test_an_unknown_name_is_reported_with_the_nearest_if_one_is_near(text: str, report: str) -> None:
    assert unknown(text, iter(["clean", "lossy"])) == report


def test_a_profile_is_clean_both_ways_unless_said() -> None:
    assert (Profile(name="x").forward, Profile(name="x").reverse) == (CLEAN, CLEAN)
