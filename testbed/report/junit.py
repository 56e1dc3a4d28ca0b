"""JUnit files: INVALID as an error of its own type, and several files as one. Pure: XML in, XML out.

JUnit has failures, which are the program's, and errors, which are not. Readers (CI services) count them separately. A
test whose conditions were not met is an error. A property of the test marks it; no text of a message decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree import ElementTree as Tree

from testbed.errors import InvalidValueError
from testbed.evidence.merging import twice
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


def merged(files: Mapping[str, str]) -> str:
    """Several JUnit files as one; ``files``: their texts by name, in the order of the tests.

    Raises InvalidValueError with every file that is none, and every test that two of them have.
    """
    problems: list[str] = []
    suites: dict[str, list[Tree.Element]] = {}
    for name, text in files.items():
        try:
            root = Tree.fromstring(text)  # noqa: S314  # what the user's own pytest wrote
        except Tree.ParseError as error:
            problems.append(f"{name}: no JUnit file: {error}")
            continue
        suites[name] = list(root.iter("testsuite"))
        if root.tag not in ("testsuites", "testsuite"):
            problems.append(f"{name}: no JUnit file: its root is <{root.tag}>, and must be <testsuites>")
    tests = ((_id(test), name) for name, own in suites.items() for suite in own for test in suite.iter("testcase"))
    problems += twice(tests)
    if problems:
        raise InvalidValueError(problems)
    parts = [suite for own in suites.values() for suite in own]
    whole = Tree.Element("testsuite", {**parts[0].attrib})
    for key in ("errors", "failures", "skipped", "tests"):
        whole.set(key, str(sum(int(part.get(key, "0")) for part in parts)))
    whole.set("time", f"{sum(float(part.get('time', '0')) for part in parts):.3f}")
    if stamps := [stamp for part in parts if (stamp := part.get("timestamp"))]:
        whole.set("timestamp", min(stamps))
    whole.extend(child for part in parts for child in part)
    root = Tree.Element("testsuites", {"name": "pytest tests"})
    root.append(whole)
    return '<?xml version="1.0" encoding="utf-8"?>' + Tree.tostring(root, encoding="unicode")


def _id(test: Tree.Element) -> str:
    return f"{test.get('classname', '')}::{test.get('name', '')}"
