"""Impairments and timelines for Hypothesis: ``@given(testbed.strategies.impairments(delay="200ms", loss="5%"))``.

Needs Hypothesis: ``pip install "pytest-testbed[hypothesis]"``. What is drawn at random by the kernel has a seed of its
own, so that an example is the same each time Hypothesis runs it. Examples shrink to small values and few words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from testbed.errors import InvalidValueError, Problems
from testbed.spec.features import FEATURES, WORDS, Feature
from testbed.spec.impairment import Impairment
from testbed.spec.steps import parse_steps
from testbed.spec.timeline import Timeline
from testbed.spec.words import (
    DISTRIBUTIONS,
    RATE,
    SHARE,
    SIZE,
    TIME,
    TRUTH,
    WHOLE,
    Slot,
    ValueKind,
    ranges,
    unknown,
)
from testbed.text import shown
from testbed.units import format_time, parse_time

__all__ = ["impairments", "timelines"]

_BOUNDED = ("delay", "jitter", "loss", "duplicate", "reorder", "corrupt", "rate", "drop_packets")
_CHANGING = ("delay", "jitter", "loss", "duplicate", "rate")
"""The words of timelines: netem takes a step without one of the others for one that keeps it."""
_FASTEST_BPS = 10**9
_LOWEST_S = 0.001


def impairments(**worst: object) -> st.SearchStrategy[Impairment]:
    """Impairments of these words, each absent or at most as bad as given; without any: every valid impairment.

    ``impairments(delay="200ms", loss="5%", rate="1mbit")``: delays up to 200 ms, losses up to 5 %, rates from 1 Mbit/s.
    ``drop_packets=40``: any of a link's first 40 packets are lost. Also jitter, duplicate, reorder, corrupt.

    Raises InvalidValueError with every word that is not one of these, and every value that cannot be read.
    """
    return _bounded(_read(worst, _BOUNDED)) if worst else _any_impairment()


def timelines(
    *, length: str = "10s", most_steps: int = 3, outage: str | None = None, **worst: object
) -> st.SearchStrategy[Timeline]:
    """Timelines of at most so many steps, none later than ``length``, each of these words as in `impairments`.

    The words are delay, jitter, loss, duplicate and rate. ``outage``: there may be one, which lasts at most this long.
    Raises InvalidValueError, also where neither a word nor an outage is given.
    """
    problems = Problems()
    length_s = outage_s = 0.0
    with problems.gathered():
        length_s = _time(length, "length")
    with problems.gathered():
        outage_s = _time(outage, "outage") if outage is not None else 0.0
    bounds: dict[str, Any] = {}
    with problems.gathered():
        bounds = _read(worst, _CHANGING)
    if isinstance(most_steps, bool) or not isinstance(most_steps, int) or most_steps < 1:
        problems.append(f"most_steps={shown(most_steps)}: must be a whole number, at least 1")
    if not worst and outage is None:
        problems.append('timelines(): what may change? Give a word, as in delay="100ms", or outage="2s"')
    problems.tell()
    return _timelines(bounds, length_s, most_steps, outage_s)


def _time(text: object, name: str) -> float:
    value = parse_time(text, name=name)
    if value < _LOWEST_S:
        raise InvalidValueError(f"{name}={shown(text)}: must be at least {format_time(_LOWEST_S)}")
    return value


def _read(worst: Mapping[str, object], words: tuple[str, ...]) -> dict[str, Any]:
    """The worst value of each word, by its field. Raises InvalidValueError with every problem."""
    problems = Problems()
    bounds: dict[str, Any] = {}
    for name, written in worst.items():
        if name not in words:
            problems.append(f"{name}: {unknown(name, words)}")
        elif name == "drop_packets":
            if isinstance(written, bool) or not isinstance(written, int) or written < 1:
                problems.append(f"drop_packets={shown(written)}: must be a whole number, how many packets may be lost")
            bounds[name] = written
        else:
            with problems.gathered():
                value = WORDS[name].read(written)
                bounds[name] = value
                problems += [f"{name}={shown(written)}: {problem}" for problem in WORDS[name].problems(value)]
    for name, needed in (("jitter", "delay"), ("reorder", "delay")):
        if name in worst and needed not in worst:
            problems.append(f"{name} without {needed} has no effect: give {needed}, too")
    problems.tell()
    return bounds


def _up_to(value: float) -> st.SearchStrategy[float]:
    """From 0 on, in thousandths (ms, 0.1 %), which shrink to short numbers."""
    thousandths = int(value * 1000)
    whole = st.integers(0, thousandths).map(lambda number: number / 1000)
    return whole if thousandths else st.sampled_from([0.0, value])


@st.composite
def _bounded(draw: st.DrawFn, bounds: Mapping[str, Any]) -> Impairment:
    """An impairment within bounds."""
    fields: dict[str, Any] = {}
    for name, value in bounds.items():
        kind = WORDS[name].kind
        if kind in (TIME, SHARE):
            fields[WORDS[name].field] = draw(_up_to(value)) or None
        elif kind is RATE:
            least, most = sorted((round(value), _FASTEST_BPS))
            fields["rate_bps"] = draw(st.none() | st.integers(least, most))
        else:
            lost = draw(st.sets(st.integers(1, value)))
            fields["drop_packets"] = ranges(sorted(lost))
    if not fields.get("delay_s"):
        fields |= dict.fromkeys({"jitter_s", "reorder_ratio"} & fields.keys())
    if fields.get("drop_packets") or fields.get("loss_ratio") == 1:
        fields.pop("duplicate_ratio", None)
    if fields.get("reorder_ratio") == 1:
        fields["reorder_gap_packets"] = 2
    impairment = Impairment(**fields)
    return replace(impairment, seed=draw(st.integers(0, 2**31 - 1))) if impairment.is_random else impairment


@st.composite
def _timelines(
    draw: st.DrawFn, bounds: Mapping[str, Any], length_s: float, most_steps: int, outage_s: float
) -> Timeline:
    last_ms = round(length_s * 1e3)
    times = sorted(draw(st.sets(st.integers(1, max(last_ms, 1)), max_size=min(most_steps, last_ms) - 1)))
    seed = draw(st.integers(0, 2**31 - 1))
    steps: list[Mapping[str, object]] = []
    for at_ms in (0, *times):
        impairment = draw(_bounded(bounds))
        random = {"seed": seed} if impairment.is_random else {}
        steps.append({"at": f"{at_ms}ms", "clean": True, **impairment.words(), **random})
    if outage_s and draw(st.booleans()):
        at_ms, for_ms = draw(st.integers(0, last_ms)), draw(st.integers(1, max(round(outage_s * 1e3), 1)))
        steps.append({"at": f"{at_ms}ms", "outage": f"{for_ms}ms"})
    return parse_steps(steps)


# --- every valid impairment --------------------------------------------------------------------------

# 0, and from netem's nanosecond to an hour.
_TIMES = st.just(0.0) | st.floats(min_value=1e-9, max_value=3600)
# Up to the widest spread of 2³¹-1 ns.
_SPREADS = st.floats(min_value=1e-9, max_value=2.147483647)


@st.composite
def _slots(draw: st.DrawFn) -> Slot:
    """Any valid slot."""
    low, high = sorted(draw(st.tuples(_TIMES, _TIMES.filter(bool))))
    if draw(st.booleans()):
        return Slot(min_s=low, max_s=high)
    return Slot(distribution=draw(st.sampled_from(DISTRIBUTIONS[1:])), mean_s=high, jitter_s=draw(_SPREADS))


@st.composite
def packet_numbers(draw: st.DrawFn) -> tuple[tuple[int, int], ...]:
    """Rising ranges of packet numbers that do not touch."""
    bounds = draw(st.lists(st.integers(min_value=1, max_value=10**6), max_size=8, unique=True).map(sorted))
    pairs = zip(bounds[::2], bounds[1::2], strict=False)
    return tuple((first, last) for first, last in pairs)


_SOME = st.floats(min_value=2.0**-32, max_value=1)
_SHARES = st.just(0.0) | _SOME
_LESS_THAN_ALL = st.just(0.0) | st.floats(min_value=2.0**-32, max_value=1 - 2.0**-31)


@st.composite
def _chains_of_two(draw: st.DrawFn) -> tuple[float, float, float, float]:
    """Any Gilbert-Elliott model whose states are both entered and left, and which loses some and not all."""
    bad, good = draw(st.tuples(_SHARES, _SHARES).filter(lambda shares: any(shares)))
    assume(min(bad, good) <= 1 - 2.0**-31)
    return draw(_SOME), draw(_SOME), bad, good


@st.composite
def _chains_of_four(draw: st.DrawFn) -> tuple[float, float, float, float, float]:
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


def _values(feature: Feature) -> st.SearchStrategy[Any]:
    """Any value of a feature that depends on no other, or of one that only needs another."""
    least, most = feature.range.least, feature.range.most
    whole = st.integers(min_value=int(least), max_value=int(most)) if feature.kind in (WHOLE, SIZE) else st.nothing()
    return _OF_A_KIND.get(feature.kind, whole)


@st.composite
def _any_impairment(draw: st.DrawFn) -> Impairment:
    """Any valid impairment: jitter only with a delay, a shape only with jitter."""
    fields: dict[str, Any] = draw(_with_others())
    for feature in FEATURES:
        needed = [WORDS[name].field for name in feature.needs]
        if feature.name not in _WITH_OTHERS and (not needed or any(fields.get(name) for name in needed)):
            value = draw(_values(feature) if feature.kind is TRUTH else st.none() | _values(feature))
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
            st.fixed_dictionaries({"loss_gemodel": _chains_of_two()}),
            st.fixed_dictionaries({"loss_state": _chains_of_four()}),
        )
    )
    gap = draw(st.none() | st.integers(min_value=1, max_value=2**32 - 1))
    reorder = draw(ratio if gap is not None and gap > 1 else st.none() | _LESS_THAN_ALL) if delay_s else None
    numbered: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {"drop_packets": packet_numbers(), "drop_every": st.none() | st.integers(min_value=2, max_value=2**31 - 1)}
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
        "slot": draw(st.none() | _slots()),
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
