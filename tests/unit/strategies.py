"""Hypothesis strategies: every valid impairment, and invalid ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from testbed.spec.features import FEATURES, WORDS, Feature
from testbed.spec.impairment import Impairment
from testbed.spec.words import DISTRIBUTIONS, SHARE, SIZE, TIME, TRUTH, WHOLE, Slot, ValueKind

# 0, and from netem's nanosecond to an hour.
_TIMES = st.just(0.0) | st.floats(min_value=1e-9, max_value=3600)
# Up to the widest spread of 2³¹-1 ns.
_SPREADS = st.floats(min_value=1e-9, max_value=2.147483647)


@st.composite
def slots(draw: st.DrawFn) -> Slot:
    """Any valid slot."""
    low, high = sorted(draw(st.tuples(_TIMES, _TIMES.filter(bool))))
    if draw(st.booleans()):
        return Slot(min_s=low, max_s=high)
    return Slot(distribution=draw(st.sampled_from(DISTRIBUTIONS[1:])), mean_s=high, jitter_s=draw(_SPREADS))


@st.composite
def numbers(draw: st.DrawFn) -> tuple[tuple[int, int], ...]:
    """Rising ranges of packet numbers that do not touch."""
    bounds = draw(st.lists(st.integers(min_value=1, max_value=10**6), max_size=8, unique=True).map(sorted))
    pairs = zip(bounds[::2], bounds[1::2], strict=False)
    return tuple((first, last) for first, last in pairs)


_SOME = st.floats(min_value=2.0**-32, max_value=1)
_SHARES = st.just(0.0) | _SOME
_LESS_THAN_ALL = st.just(0.0) | st.floats(min_value=2.0**-32, max_value=1 - 2.0**-31)


@st.composite
def chains_of_two(draw: st.DrawFn) -> tuple[float, float, float, float]:
    """Any Gilbert-Elliott model whose states are both entered and left, and which loses some and not all."""
    bad, good = draw(st.tuples(_SHARES, _SHARES).filter(lambda shares: any(shares)))
    assume(min(bad, good) <= 1 - 2.0**-31)
    return draw(_SOME), draw(_SOME), bad, good


@st.composite
def chains_of_four(draw: st.DrawFn) -> tuple[float, float, float, float, float]:
    """Any model of four states that loses something, again and again, and not all; shares of one draw below all."""
    half = st.just(0.0) | st.floats(min_value=2.0**-32, max_value=0.4999)
    p13, p14 = draw(st.tuples(half, half).filter(lambda shares: any(shares)))
    p31, p32 = draw(st.tuples(half, half))
    assume(not p13 or p31 or p32)
    return p13, p31, p32, draw(_SOME if p13 and p32 else _SHARES), p14


_OF_A_KIND: dict[ValueKind, st.SearchStrategy[Any]] = {TIME: _TIMES, SHARE: _SHARES, TRUTH: st.booleans()}
_WITH_OTHERS = {
    "delay", "jitter", "correlation", "distribution", "loss", "burst", "gemodel", "loss_state", "duplicate", "reorder",
    "gap", "rate", "overhead", "bucket", "queue", "slot", "drop_packets", "drop_every",
}  # fmt: skip
"""What is drawn by what else is asked; of all others the row says enough."""


def values(feature: Feature) -> st.SearchStrategy[Any]:
    """Any value of a feature that depends on no other, or of one that only needs another."""
    least, most = feature.range.least, feature.range.most
    whole = st.integers(min_value=int(least), max_value=int(most)) if feature.kind in (WHOLE, SIZE) else st.nothing()
    return _OF_A_KIND.get(feature.kind, whole)


@st.composite
def impairments(draw: st.DrawFn) -> Impairment:
    """Any valid impairment: jitter only with a delay, a shape only with jitter."""
    fields: dict[str, Any] = draw(_with_others())
    for feature in FEATURES:
        needed = [WORDS[name].field for name in feature.needs]
        if feature.name not in _WITH_OTHERS and (not needed or any(fields.get(name) for name in needed)):
            value = draw(values(feature) if feature.kind is TRUTH else st.none() | values(feature))
            fields[feature.field] = value
    return Impairment(**fields)


@st.composite
def _with_others(draw: st.DrawFn) -> dict[str, Any]:
    ratio = st.none() | _SHARES
    delay_s = draw(st.none() | _TIMES)
    jitter_s = draw(st.none() | st.just(0.0) | _SPREADS) if delay_s else draw(st.none() | st.just(0.0))
    loss: dict[str, Any] = draw(
        st.one_of(
            st.fixed_dictionaries({"loss_ratio": ratio}),
            st.fixed_dictionaries(
                {
                    "loss_ratio": st.floats(min_value=1e-6, max_value=0.9),
                    "loss_burst_packets": st.floats(min_value=10, max_value=1000),
                }
            ),
            st.fixed_dictionaries({"loss_gemodel": chains_of_two()}),
            st.fixed_dictionaries({"loss_state": chains_of_four()}),
        )
    )
    gap = draw(st.none() | st.integers(min_value=1, max_value=2**32 - 1))
    reorder = draw(ratio if gap is not None and gap > 1 else st.none() | _LESS_THAN_ALL) if delay_s else None
    numbered: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {"drop_packets": numbers(), "drop_every": st.none() | st.integers(min_value=2, max_value=2**31 - 1)}
        )
    )
    duplicate = None if any(numbered.values()) or (loss.get("loss_ratio") or 0) > 1 - 2.0**-31 else draw(ratio)
    rate_bps = draw(st.none() | st.floats(min_value=8, max_value=1e13))
    bucket: dict[str, object] = {}
    if rate_bps is not None and 8000 <= rate_bps <= 1e10 and draw(st.booleans()):
        sizes = st.integers(min_value=1514, max_value=10**6)
        bucket = {"bucket_bytes": draw(sizes), "queue_bytes": draw(st.none() | sizes)}
    within = st.none() | st.integers(min_value=-34, max_value=65_535)
    return {
        **bucket,
        **numbered,
        **loss,
        "slot": draw(st.none() | slots()),
        "delay_correlation": draw(st.none() | _LESS_THAN_ALL) if jitter_s else None,
        "duplicate_ratio": duplicate,
        "reorder_ratio": reorder,
        "reorder_gap_packets": gap if reorder else None,
        "overhead_bytes": draw(within) if rate_bps and not bucket else None,
        "delay_s": delay_s,
        "jitter_s": jitter_s,
        "distribution": draw(st.sampled_from(DISTRIBUTIONS)) if jitter_s else "uniform",
        "rate_bps": rate_bps,
    }


@dataclass(frozen=True)
class Nonsense:
    """Words that may not be asked for."""

    words: dict[str, Any]
    odd: str
    """The word, or one of the words, that makes them so: any refusal names it."""


def _times(*more: str) -> list[object]:
    return ["-1ms", "5", "", "1h2", "fast", "3601s", "1e-12s", True, None, [1], *more]


_NO_SHARES: list[object] = ["101%", "-1%", "5", "much", "", True, None, "1e-12%", "nan%"]
_NO_NUMBERS: list[object] = ["many", "1.5", 1.5, True, None, [1]]
_NO_TRUTHS: list[object] = ["yes", 1, 0, None, "no", []]
_NO_SIZES: list[object] = ["16kb", 16, "1.5B", "-1kB", "1GB1", True, None, "1TB"]
_OF_NO_KIND = {TIME: _times(), SHARE: _NO_SHARES, WHOLE: _NO_NUMBERS, TRUTH: _NO_TRUTHS, SIZE: _NO_SIZES}
_OWN_NONSENSE: dict[str, list[object]] = {
    "jitter": ["2.2s"],
    "correlation": ["100%"],
    "distribution": ["gaussian", "", None, 5, "../x.dist", "Normal"],
    "loss": ["10% 25%"],
    "burst": ["0.5", "many", True, None, "1e7", "nan", "-3"],
    "gemodel": ["1%", "1% 2% 3% 4% 5%", "0% 30%", "1% 0%", "1% 30% 0% 0%", "1% 101%", None, "a b"],
    "loss_state": ["1% 2%", "0% 0% 0% 0% 0%", "5% 0% 0% 5% 0%", "5% 5% 5% 0% 0%", "60% 5% 0% 0% 60%", None],
    "reorder": ["100%"],
    "rate": ["10mbps", "10", "0bit", "-5mbit", "fast", True, None, "1000000000000gbit"],
    "overhead": [-2000],
    "bucket": ["1500B"],
    "queue": ["1500B"],
    "slot": ["20", "25ms 20ms", "0s", "normall 20ms 5ms", "normal 20ms 0s", "1 2 3 4", "uniform 5ms 1ms", None, True],
    "slot_bytes": ["0B"],
    "drop_packets": [0, "3-2", "", "a", [True], "1-", [1.5], None, 2**31],
}


def _nonsense(feature: Feature) -> list[object]:
    beyond = [int(feature.range.least) - 1, int(feature.range.most) + 1] if feature.kind is WHOLE else []
    return [*_OF_NO_KIND.get(feature.kind, []), *beyond, *_OWN_NONSENSE.get(feature.name, [])]


NONSENSE = {feature.name: _nonsense(feature) for feature in FEATURES}
"""Of each word, what is none of its values in any company."""
AT_ODDS: list[dict[str, object]] = [
    {"jitter": "5ms", "delay": "0s"},
    {"distribution": "normal", "jitter": "0s"},
    {"reorder_by_jitter": True, "jitter": "0s"},
    {"correlation": "25%", "jitter": "0s"},
    {"loss": "5%", "gemodel": "1% 10%"},
    {"gemodel": "1% 10%", "loss_state": "1% 30% 20% 5% 2%"},
    {"ecn": True, "loss": "0%", "gemodel": None, "loss_state": None},
    {"burst": 3, "loss": "0%"},
    {"burst": 3, "loss": "100%"},
    {"burst": 2, "loss": "75%"},
    {"loss": "100%", "duplicate": "10%", "gemodel": None, "loss_state": None, "burst": None},
    {"duplicate": "10%", "drop_every": 50},
    {"duplicate": "10%", "drop_packets": [3, "17-20"]},
    {"reorder": "5%", "delay": "0s", "jitter": None, "correlation": None, "distribution": None},
    {"reorder": "100%", "delay": "40ms", "gap": None},
    {"gap": 5, "reorder": "0%"},
    {"overhead": 24, "rate": None},
    {"bucket": "16kB", "rate": None},
    {"queue": "16kB", "bucket": None},
    {"overhead": 24, "bucket": "16kB", "rate": "1mbit"},
    {"slot_packets": 5, "slot": None},
    {"slot_bytes": "3kB", "slot": None},
]
"""Words that make no sense together, the odd one first; None: not said."""


@st.composite
def nonsense(draw: st.DrawFn) -> Nonsense:
    """A valid impairment's words, of which one was made nonsensical, by itself or beside the others."""
    words: dict[str, Any] = draw(impairments()).words()
    if draw(st.booleans()):
        odd = draw(st.sampled_from(sorted(NONSENSE)))
        return Nonsense({**words, odd: draw(st.sampled_from(NONSENSE[odd]))}, odd)
    wrong = draw(st.sampled_from(AT_ODDS))
    words = {name: value for name, value in {**words, **wrong}.items() if value is not None}
    return Nonsense(words, next(iter(wrong)))
