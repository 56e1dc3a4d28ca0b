"""Whatever may be asked, the kernel takes and holds as it was asked; whatever may not, changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from testbed import InvalidValueError, Lab
from testbed.model.impairment import Impairment
from tests.unit.strategies import impairments

LABS = ("local",)


# No shrinking: each example is told whole, and a kernel is asked some milliseconds each.
@settings(
    max_examples=150, deadline=None, phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)  # fmt: skip
@given(impairment=impairments())
def test_any_impairment_is_taken_by_the_kernel_and_reads_back_equal(lab: Lab, impairment: Impairment) -> None:
    # Each after the one before: whatever that left behind must not show.
    applied = lab.link("client -> server").impair(impairment)
    assert applied.kernel["kind"] == "netem"


@pytest.mark.parametrize(
    "words",
    [
        {"loss": "101%"}, {"delay": "5"}, {"reorder": "5%"}, {"jitter": "5ms"}, {"loss": "5%", "delay": "-1ms"},
        {"loss": "10%", "correlation": "25%"}, {"rate": "10mbps"}, {"bucket": "16kB"}, {"ecn": True},
        {"gap": 5, "delay": "5ms"}, {"loss": "5%", "gemodel": "1% 10%"}, {"slot": "20ms 10ms"}, {"seed": 2**64},
        {"delay": "5ms", "jitter": "1ms", "distribution": "gaussian"}, {"drop_packets": [0]}, {"dealy": "5ms"},
    ],
    ids=lambda words: " ".join(f"{name}={value}" for name, value in words.items()),
)  # fmt: skip
def test_what_makes_no_sense_is_refused_before_anything_changes(lab: Lab, words: dict[str, Any]) -> None:
    link = lab.link("client -> server")
    link.impair(delay="7ms", loss="3%", seed=4)
    held = lab.netem(link.ref)
    with pytest.raises(InvalidValueError):
        link.impair(**words)
    with pytest.raises(InvalidValueError):
        lab.impair("client <-> server", **words)
    assert lab.netem(link.ref) == held
    assert lab.impaired == [link.ref]
    assert [each.asked.delay_s for each in lab.history] == [0.007]
