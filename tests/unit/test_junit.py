"""INVALID in a JUnit file."""

from __future__ import annotations

from xml.etree import ElementTree as Tree

from testbed.report.junit import invalid_as_error

PROPERTIES = '<properties><property name="{}" value="{}"/></properties>'
INVALID = PROPERTIES.format("testbed.verdict", "invalid")
WRITTEN = (
    '<?xml version="1.0" encoding="utf-8"?><testsuites name="pytest tests"><testsuite name="pytest" errors="1" '
    f'failures="3" skipped="0" tests="5"><testcase name="good"/><testcase name="invalid">{INVALID}'
    '<failure message="asked loss 2 %">asked</failure></testcase>'
    '<testcase name="wrong"><failure message="assert 1 == 2">E</failure></testcase>'
    f'<testcase name="says">{PROPERTIES.format("testbed.reason", "invalid")}'
    '<failure message="INVALID: certificate">INVALID: E</failure></testcase>'
    f'<testcase name="unset">{INVALID}<error message="failed on setup with &quot;port gone&quot;">E</error>'
    "</testcase></testsuite></testsuites>"
)


def test_an_invalid_test_is_an_error_of_its_own_type_and_no_failure_whatever_the_texts_say() -> None:
    suite = Tree.fromstring(invalid_as_error(WRITTEN))[0]  # noqa: S314  # ours
    outcomes = {
        test.get("name"): [(element.tag, element.get("type")) for element in test if element.tag != "properties"]
        for test in suite
    }
    assert outcomes == {
        "good": [],
        "invalid": [("error", "testbed.invalid")],
        "wrong": [("failure", None)],
        "says": [("failure", None)],
        "unset": [("error", "testbed.invalid")],
    }
    assert (suite.get("errors"), suite.get("failures"), suite.get("tests")) == ("2", "2", "5")


def test_what_is_not_invalid_stays_as_it_was() -> None:
    plain = WRITTEN.replace("testbed.verdict", "testbed.other")
    assert Tree.canonicalize(invalid_as_error(plain)) == Tree.canonicalize(plain)
