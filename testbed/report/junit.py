"""INVALID in a JUnit file: an error of its own type instead of a failure. Pure: XML in, XML out.

JUnit has failures, which are the program's, and errors, which are not. Readers (CI services) count them separately. A
test whose conditions were not met is an error. A property of the test marks it; no text of a message decides.
"""

from __future__ import annotations

from xml.etree import ElementTree as Tree

from testbed.evidence.verdict import Verdict

_TYPE = "testbed.invalid"
INVALID_PROPERTY = ("testbed.verdict", Verdict.INVALID.of("test"))
"""The property of a test whose result does not count."""


def invalid_as_error(text: str) -> str:
    """The file that pytest wrote, with each invalid test as an error of the type ``testbed.invalid``."""
    root = Tree.fromstring(text)  # noqa: S314  # pytest has just written it
    for suite in root.iter("testsuite"):
        changed = 0
        for test in suite.iter("testcase"):
            if INVALID_PROPERTY not in ((entry.get("name"), entry.get("value")) for entry in test.iter("property")):
                continue
            for outcome in test:
                if outcome.tag in ("failure", "error"):
                    changed += outcome.tag == "failure"
                    outcome.tag = "error"
                    outcome.set("type", _TYPE)
        if changed:
            suite.set("failures", str(int(suite.get("failures", "0")) - changed))
            suite.set("errors", str(int(suite.get("errors", "0")) + changed))
    return '<?xml version="1.0" encoding="utf-8"?>' + Tree.tostring(root, encoding="unicode")
