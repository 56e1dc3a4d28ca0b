"""The kernel holds every valid impairment as requested; an invalid one changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings

from testbed import InvalidValueError, Lab
from testbed.spec.impairment import Impairment
from tests.unit.strategies import Nonsense, impairments, nonsense

LABS = ("local",)


# No shrinking: each example is told whole, and a kernel is asked some milliseconds each.
@settings(
    max_examples=150,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(impairment=impairments())
def test_any_impairment_is_taken_by_the_kernel_and_reads_back_equal(lab: Lab, impairment: Impairment) -> None:
    # Each after the one before: whatever that left behind must not show.
    applied = lab.link("client -> server").impair(impairment)
    assert applied.kernel["kind"] == "netem"


# Few examples: what is drawn is refused by the model, which tests/unit tries with many.
@settings(
    max_examples=40,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(sample=nonsense())
@example(sample=Nonsense({"dealy": "5ms"}, "dealy"))
def test_whatever_makes_no_sense_is_refused_before_anything_changes(lab: Lab, sample: Nonsense) -> None:
    link = lab.link("client -> server")
    if lab.ports.impaired != [link.ref]:  # the first example's
        link.impair(delay="7ms", loss="3%", seed=4)
    held, done = lab.ports.netem(link.ref), len(lab.ledger.history)
    for impair in (link.impair, lambda **words: lab.impair("client <-> server", **words)):
        with pytest.raises(InvalidValueError) as refused:
            impair(**sample.words)
        assert any(sample.odd in problem for problem in refused.value.problems)
    assert lab.ports.netem(link.ref) == held
    assert lab.ports.impaired == [link.ref]
    assert lab.impairer.impairments()[link.ref].delay_s == 0.007
    assert len(lab.ledger.history) == done


@pytest.mark.parametrize(
    ("ask", "problem"),
    [
        (lambda lab: lab.cut("client -> server", reject="no"), "reject='no': must be True or False"),
        (lambda lab: lab.link("client -> server").cut(reject=0), "reject=0: must be True or False"),
        (lambda lab: lab.flap("client -> server", up="1s", down="1s", reject="no"), "reject='no'"),
        (lambda lab: lab.partition({"client"}, {"server"}, reject="no"), "reject='no'"),
        (lambda lab: lab.isolate("client", reject=None), "reject=None"),
        (lambda lab: lab.impair("client -> server", delay="5ms", prove="yes"), "prove='yes': must be True or False"),
        (lambda lab: lab.prove("client -> server", alpha=2), "alpha=2: must be a ratio from 1e-12 to 0.1"),
        (lambda lab: lab.prove("client -> server", most_s="x"), "most_s='x': must be a number of seconds"),
        (lambda lab: lab.prove("client -> server", tolerance=-1), "tolerance=-1: must be a number from 0.001 to 1"),
        (lambda lab: lab.prove("client -> server", tolerance=0.1), r"a relative error of 0\.1 in loss=3% takes \d+"),
    ],
)
def test_what_is_no_answer_is_refused_before_anything_changes(
    lab: Lab, ask: Callable[[Lab], object], problem: str
) -> None:
    link = lab.link("client -> server")
    link.impair(delay="7ms", loss="3%", seed=4)
    held = lab.ports.netem(link.ref)
    with pytest.raises(InvalidValueError, match=problem):
        ask(lab)
    assert lab.ports.netem(link.ref) == held
    assert lab.ports.cut == []
