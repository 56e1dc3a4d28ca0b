"""Verdicts: one order for all subjects, and each subject's words."""

from __future__ import annotations

import json
import re

import pytest

from testbed.evidence.proof import Check, LinkEvidence, of_probes
from testbed.evidence.results import SCHEMA_FILE, Attempt, TestResult
from testbed.evidence.verdict import Verdict, words, worst
from testbed.paper.outcomes import ClaimOutcome
from testbed.resources import resource


def test_the_worst_verdict_counts() -> None:
    assert worst() is Verdict.HOLDS
    assert worst(none=Verdict.NOT_ASKED) is Verdict.NOT_ASKED
    assert worst(Verdict.FAILS, Verdict.HOLDS) is Verdict.FAILS
    assert worst(Verdict.FAILS, Verdict.UNKNOWN) is Verdict.UNKNOWN
    assert worst(Verdict.INVALID, Verdict.UNKNOWN, Verdict.FAILS) is Verdict.INVALID
    assert worst(Verdict.HOLDS_WITHIN, Verdict.HOLDS) is Verdict.HOLDS_WITHIN


def test_every_subject_has_its_words_best_first() -> None:
    assert [*words("test")] == ["passed", "skipped", "failed", "invalid"]
    assert [*words("account")] == ["PASS", "FAIL", "INCONCLUSIVE", "INVALID"]
    assert [*words("claim")] == ["HOLDS", "HOLDS WITHIN", "BREAKS", "INVALID"]
    for subject in ("test", "account", "claim"):
        verdicts = [*words(subject).values()]
        assert verdicts == sorted(verdicts, key=[*Verdict].index)
        assert [verdict.of(subject) for verdict in verdicts] == [*words(subject)]


def test_the_schema_of_results_has_each_word_of_a_test() -> None:
    schema = resource(f"testbed/evidence/{SCHEMA_FILE}").read_text(encoding="utf-8")
    outcomes = re.findall(r'"outcome": \{[^}]*"enum": (\[[^]]*\])', schema)
    assert outcomes
    assert all(sorted(json.loads(listed)) == sorted(words("test")) for listed in outcomes)


def test_a_subject_without_a_verdict_does_not_get_it() -> None:
    with pytest.raises(KeyError):
        Verdict.UNKNOWN.of("test")


def test_the_phases_of_a_test_have_the_worst_outcome_and_its_reason() -> None:
    attempt = Attempt(seed=1)
    attempt.add(Verdict.HOLDS, None)
    attempt.add(Verdict.INVALID, "no packet")
    attempt.add(Verdict.FAILS, "assert 0")
    assert (attempt.outcome, attempt.reason) == (Verdict.INVALID, "no packet")


@pytest.mark.parametrize(
    ("before", "flaky"),
    [(Verdict.FAILS, True), (Verdict.INVALID, True), (Verdict.SKIPPED, False), (Verdict.HOLDS, False)],
)
def test_a_test_that_passed_after_a_bad_outcome_is_flaky(before: Verdict, *, flaky: bool) -> None:
    attempts = [Attempt(seed=1, outcome=before), Attempt(seed=1)]
    assert TestResult(id="test_it", attempts=attempts).flaky is flaky


def test_what_probes_gave_is_the_links_third_level() -> None:
    def level(*verdicts: Verdict) -> Verdict:
        return of_probes(Check(field="delay", verdict=verdict) for verdict in verdicts)

    assert level() is Verdict.NOT_ASKED
    assert level(Verdict.SHOWN, Verdict.HOLDS) is level(Verdict.SHOWN) is Verdict.HOLDS
    assert level(Verdict.HOLDS, Verdict.FAILS, Verdict.SHOWN) is Verdict.FAILS


def test_files_and_pytest_xdist_get_plain_strings() -> None:
    """execnet, by which reports travel, refuses subclasses of str."""
    link = LinkEvidence(link="a -> b", network="lan", asked={}, command="tc", checks=[Check(field="delay")])
    written = [TestResult(id="x", attempts=[Attempt(seed=1, links=[link])]).as_json()]
    written += [ClaimOutcome(finding=Verdict.FAILS, sentence="So.").as_json()]
    strings: list[str] = []

    def collect(value: object) -> None:
        if isinstance(value, dict):
            collect([*value, *value.values()])
        elif isinstance(value, list | tuple):
            for item in value:
                collect(item)
        elif isinstance(value, str):
            strings.append(value)

    collect(written)
    assert {"passed", "holds", "shown", "not asked", "BREAKS"} <= set(strings)
    assert {type(string) for string in strings} == {str}
