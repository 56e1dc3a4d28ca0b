"""INVALID in a JUnit file: an error of its own type, and no failure. Pure: XML in, XML out.

JUnit knows failures, which are the program's, and errors, which are everybody else's; a test whose conditions were not
met is of the latter, and readers (CI services) count the two apart. Which test that is, its properties say: no text
of a message decides.
"""

from __future__ import annotations

from xml.etree import ElementTree as Tree

from testbed.evidence.verdict import Verdict

_TYPE = "testbed.invalid"
INVALID_PROPERTY = ("testbed.verdict", Verdict.INVALID.of("test"))
"""What a test whose result does not count has among its properties."""


def invalid_as_error(text: str) -> str:
    """The file that pytest wrote, with each invalid test as an error of the type ``testbed.invalid``."""
    root = Tree.fromstring(text)  # noqa: S314  # pytest has just written it
    for suite in root.iter("testsuite"):
        changed = 0
        for test in suite.iter("testcase"):
            said = {(each.get("name"), each.get("value")) for each in test.iter("property")}
            for found in test if INVALID_PROPERTY in said else ():
                if found.tag in ("failure", "error"):
                    changed += found.tag == "failure"
                    found.tag = "error"
                    found.set("type", _TYPE)
        if changed:
            suite.set("failures", str(int(suite.get("failures", "0")) - changed))
            suite.set("errors", str(int(suite.get("errors", "0")) + changed))
    return '<?xml version="1.0" encoding="utf-8"?>' + Tree.tostring(root, encoding="unicode")
