"""INVALID in a JUnit file."""

from __future__ import annotations

from xml.etree import ElementTree as Tree

from testbed.report.junit import invalid_as_error

WRITTEN = (
    '<?xml version="1.0" encoding="utf-8"?><testsuites name="pytest tests"><testsuite name="pytest" errors="1" '
    'failures="2" skipped="0" tests="4"><testcase name="good"/><testcase name="invalid"><properties>'
    '<property name="proof" value="&lt;fails&gt;"/></properties><failure message="INVALID: asked loss 2 %">INVALID: '
    'asked</failure></testcase><testcase name="wrong"><failure message="assert 1 == 2">E</failure></testcase>'
    '<testcase name="unset"><error message="failed on setup with &quot;INVALID: port gone&quot;">INVALID</error>'
    "</testcase></testsuite></testsuites>"
)


def test_an_invalid_test_is_an_error_of_its_own_type_and_no_failure() -> None:
    suite = Tree.fromstring(invalid_as_error(WRITTEN))[0]  # noqa: S314  # ours
    outcomes = {test.get("name"): [(each.tag, each.get("type")) for each in test if each.tag != "properties"]
                for test in suite}  # fmt: skip
    assert outcomes == {
        "good": [], "invalid": [("error", "testbed.invalid")], "wrong": [("failure", None)],
        "unset": [("error", "testbed.invalid")],
    }  # fmt: skip
    assert (suite.get("errors"), suite.get("failures"), suite.get("tests")) == ("2", "1", "4")


def test_what_is_not_invalid_stays_as_it_was() -> None:
    plain = WRITTEN.replace("INVALID: ", "")
    assert Tree.canonicalize(invalid_as_error(plain)) == Tree.canonicalize(plain)
