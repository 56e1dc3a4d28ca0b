"""What Hypothesis draws: every impairment that may be asked for."""

from __future__ import annotations

from hypothesis import strategies as st

from testbed.model.impairment import DISTRIBUTIONS, Impairment

# 0, and from netem's nanosecond to an hour.
_TIMES = st.just(0.0) | st.floats(min_value=1e-9, max_value=3600)


@st.composite
def impairments(draw: st.DrawFn) -> Impairment:
    """Any valid impairment: jitter only with a delay, a shape only with jitter."""
    delay_s = draw(st.none() | _TIMES)
    jitter_s = draw(st.none() | _TIMES) if delay_s else draw(st.none() | st.just(0.0))
    return Impairment(
        delay_s=delay_s,
        jitter_s=jitter_s,
        distribution=draw(st.sampled_from(DISTRIBUTIONS)) if jitter_s else "uniform",
        reorder_by_jitter=draw(st.booleans()) if jitter_s else False,
        loss_ratio=draw(st.none() | st.floats(min_value=0, max_value=1)),
        rate_bps=draw(st.none() | st.floats(min_value=8, max_value=1e13)),
        limit_packets=draw(st.none() | st.integers(min_value=1, max_value=2**32 - 1)),
        seed=draw(st.none() | st.integers(min_value=0, max_value=2**64 - 1)),
    )
