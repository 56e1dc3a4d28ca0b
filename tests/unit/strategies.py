"""What Hypothesis draws: every impairment that may be asked for."""

from __future__ import annotations

from hypothesis import strategies as st

from testbed.model.impairment import DISTRIBUTIONS, Impairment, Slot

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


@st.composite
def impairments(draw: st.DrawFn) -> Impairment:
    """Any valid impairment: jitter only with a delay, a shape only with jitter."""
    share = st.just(0.0) | st.floats(min_value=2.0**-32, max_value=1)
    ratio = st.none() | share
    delay_s = draw(st.none() | _TIMES)
    jitter_s = draw(st.none() | st.just(0.0) | _SPREADS) if delay_s else draw(st.none() | st.just(0.0))
    loss: dict[str, object] = draw(
        st.one_of(
            st.fixed_dictionaries({"loss_ratio": ratio}),
            st.fixed_dictionaries({
                "loss_ratio": st.floats(min_value=1e-6, max_value=0.9),
                "loss_burst_packets": st.floats(min_value=10, max_value=1000),
            }),
            st.fixed_dictionaries({"loss_gemodel": st.tuples(share, share, share, share)}),
            st.fixed_dictionaries({"loss_state": st.tuples(share, share, share, share, share)}),
        )
    )  # fmt: skip
    reorder = draw(ratio) if delay_s else None
    rate_bps = draw(st.none() | st.floats(min_value=8, max_value=1e13))
    bucket: dict[str, object] = {}
    if rate_bps is not None and 8000 <= rate_bps <= 1e10 and draw(st.booleans()):
        sizes = st.integers(min_value=1514, max_value=10**6)
        bucket = {"bucket_bytes": draw(sizes), "queue_bytes": draw(st.none() | sizes)}
    slot = draw(st.none() | slots())
    return Impairment(
        **bucket,  # type: ignore[arg-type]  # likewise
        slot=slot,
        slot_packets=draw(st.none() | st.integers(min_value=1, max_value=2**31 - 2)) if slot else None,
        slot_bytes=draw(st.none() | st.integers(min_value=1, max_value=2**31 - 2)) if slot else None,
        drop_packets=draw(numbers()),
        drop_every=draw(st.none() | st.integers(min_value=2, max_value=2**31 - 1)),
        **loss,  # type: ignore[arg-type]  # each strategy draws what its field holds
        ecn=draw(st.booleans()) if any(loss.values()) else False,
        delay_correlation=draw(ratio) if jitter_s else None,
        duplicate_ratio=draw(ratio),
        reorder_ratio=reorder,
        reorder_gap_packets=draw(st.none() | st.integers(min_value=1, max_value=2**32 - 1)) if reorder else None,
        corrupt_ratio=draw(ratio),
        overhead_bytes=draw(st.none() | st.integers(min_value=-100, max_value=1000))
        if rate_bps and not bucket
        else None,
        delay_s=delay_s,
        jitter_s=jitter_s,
        distribution=draw(st.sampled_from(DISTRIBUTIONS)) if jitter_s else "uniform",
        reorder_by_jitter=draw(st.booleans()) if jitter_s else False,
        rate_bps=rate_bps,
        limit_packets=draw(st.none() | st.integers(min_value=1, max_value=2**32 - 1)),
        seed=draw(st.none() | st.integers(min_value=0, max_value=2**64 - 1)),
    )
