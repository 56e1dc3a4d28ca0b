"""Hypothesis strategies: invalid impairments, beside the valid ones of `testbed.strategies`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from testbed.spec.features import FEATURES, Feature
from testbed.spec.words import SHARE, SIZE, TIME, TRUTH, WHOLE
from testbed.strategies import impairments

__all__ = ["AT_ODDS", "NONSENSE", "Nonsense", "impairments", "nonsense"]


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
