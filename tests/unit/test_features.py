"""Each row has its clause of tc's line, its read-back and its place in a timeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from testbed.netem import indexed, qdisc, readback
from testbed.spec.features import FEATURES, WORDS, Feature
from testbed.spec.impairment import Impairment
from testbed.spec.steps import merged
from testbed.spec.timeline import RAMPED

from .test_impairment import EVERY
from .test_readback import faithful

JITTER: dict[str, object] = {"delay": "40ms", "jitter": "5ms", "reorder_by_jitter": True}


def example(feature: Feature) -> Mapping[str, object]:
    """Words among which the feature shows: no rate beside what becomes one."""
    return JITTER if feature.name == "reorder_by_jitter" else next(words for words in EVERY if feature.name in words)


def without(words: Mapping[str, object], name: str) -> Impairment:
    """The same without a word and whatever needs it."""
    left = {word: value for word, value in words.items() if word != name}
    for feature in FEATURES:
        if feature.needs and not set(feature.needs) & left.keys():
            left.pop(feature.name, None)
    return Impairment.parse(left)


def kernel_words(impairment: Impairment) -> tuple[object, ...]:
    """Everything that a kernel is told of an impairment."""
    counted = indexed.tags(impairment.drop_packets, impairment.drop_every) if impairment.by_number else None
    return qdisc.netem(impairment), qdisc.bucket("eth0", 0x10, impairment), counted


def fields_that_differ(impairment: Impairment, there: Impairment) -> list[str]:
    """The fields that are found to be otherwise, where a kernel has what another impairment asks."""
    kernel: dict[str, Any] = faithful(qdisc.netem(there), tick_ns=1)
    differences = readback.differences(impairment, kernel)
    if impairment.bucket_bytes is not None and there.bucket_bytes is None:
        differences += readback.bucket_differences(impairment, [kernel], kernel)
    if impairment.queue_bytes is not None and there.bucket_bytes is not None:
        size, rate = qdisc.sized_queue_bytes(there), (there.rate_bps or 0) / 8
        options = {"rate": rate, "burst": there.bucket_bytes, "lat": (size - there.bucket_bytes) / rate * 1e6}
        tbf = {"kind": "tbf", "handle": "2010:", "parent": "10:1", "options": options}
        differences += readback.bucket_differences(impairment, [kernel, tbf], kernel)
    if impairment.by_number:
        program = {"tag": indexed.tags(there.drop_packets, there.drop_every)[1] if there.by_number else "0"}
        actions = [{"control_action": {"type": "drop"}}]
        shown = [{"kind": "bpf", "options": {"prog": program, "actions": actions}}]
        differences += readback.count_differences(impairment, shown)
    return [difference.field for difference in differences]


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: str(feature.name))
def test_a_kernel_is_told_of_every_feature(feature: Feature) -> None:
    words = example(feature)
    assert kernel_words(Impairment.parse(words)) != kernel_words(without(words, feature.name))


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: str(feature.name))
def test_a_feature_that_a_kernel_lacks_is_found_missing(feature: Feature) -> None:
    words = example(feature)
    differences = fields_that_differ(Impairment.parse(words), without(words, feature.name))
    # A table is the one thing that a kernel does not report.
    assert bool(differences) is (feature.name != "distribution")
    assert fields_that_differ(Impairment.parse(words), Impairment.parse(words)) == []


def test_what_a_word_needs_stands_before_it() -> None:
    names = list(WORDS)
    assert [
        (feature.name, needed)
        for feature in FEATURES
        for needed in feature.needs
        if feature.fades and len(feature.needs) == 1 and names.index(needed) > names.index(feature.name)
    ] == []


def test_what_may_be_ramped_is_a_time_a_share_or_a_rate() -> None:
    assert RAMPED == ("delay", "jitter", "correlation", "loss", "duplicate", "reorder", "corrupt", "rate")


def test_what_fades_goes_with_what_it_needs_and_what_it_needs_in_turn() -> None:
    before = {"rate": "1mbit", "bucket": "16kB", "queue": "64kB", "delay": "40ms", "jitter": "5ms"}
    assert merged(before, {"rate": None}) == {"delay": "40ms", "jitter": "5ms"}
    assert merged(before, {"delay": None})["jitter"] == "5ms", "a delay that is forgotten is an error, not a wish"
