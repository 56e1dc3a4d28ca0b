"""README's examples, as README has them: Python to be run as tests or scripts, YAML for ``netem/``, and commands."""

from __future__ import annotations

import re
import shlex
import textwrap
from dataclasses import dataclass

_FENCED = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_NEEDS_A_TERMINAL = "shell"


@dataclass(frozen=True, kw_only=True)
class Examples:
    """All of them, in README's order."""

    tests: tuple[str, ...]
    """Test modules."""
    scripts: tuple[str, ...]
    profiles: tuple[str, ...]
    """YAML of a profile each."""
    commands: tuple[tuple[str, ...], ...]
    """The argv of each line of "By hand", without ``testbed``; tests/lab/test_shell.py runs what wants a terminal."""


def read(text: str) -> Examples:
    """Take the examples out of README's text. Raises ValueError for a fenced block of a kind that nobody runs."""
    tests, scripts, profiles = list[str](), list[str](), list[str]()
    for kind, code in _FENCED.findall(text):
        if kind == "python" and "def test_" in code:
            tests.append(code)
        elif kind == "python" and "LocalLab" in code:
            scripts.append(code)
        elif kind == "python":  # the body of a test: of a link whose packets are all delivered
            head = 'import pytest\n\n\n@pytest.mark.impair("client -> server", delay="100ms")\ndef test_it(lab):\n'
            tests.append(head + textwrap.indent(code, "    "))
        elif kind == "yaml" and "forward:" in code:
            profiles.append(code)
        elif kind == "yaml":  # a part of a Compose file: tests/lab/test_local_compose.py has such services
            if "x-testbed" not in code:
                raise ValueError(f"README has YAML that no test reads: {code}")
        else:
            raise ValueError(f"README has a block of {kind}, which no test runs: {code}")
    _, _, by_hand = text.partition("\n## By hand\n")
    lines = [shlex.split(line, comments=True) for line in by_hand.splitlines() if line.startswith("    testbed ")]
    commands = tuple(tuple(argv[1:]) for argv in lines if argv[1] != _NEEDS_A_TERMINAL)
    if not tests or not scripts or not profiles or not commands:
        raise ValueError("README has no examples of some kind any more")
    return Examples(tests=tuple(tests), scripts=tuple(scripts), profiles=tuple(profiles), commands=commands)
