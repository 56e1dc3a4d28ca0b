"""``pytest --testbed-help``: on one page, what tests may write."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping

import pytest

from testbed.pytest.declared import NAMES

_EXAMPLE = """\
    @pytest.mark.impair("client -> server", "lossy-latency")           a profile, one way
    @pytest.mark.impair("client <-> server tcp/80", delay="40ms")      both ways, of one port
    def test_login(lab):
        assert lab.host("client").run(["curl", "--fail", "http://server/"], timeout="60s").ok
"""


def text(config: pytest.Config, fixtures: Mapping[str, object]) -> str:
    """The page; ``fixtures``: by name, with their docstrings."""
    return "\n".join(_lines(config, fixtures))


def _lines(config: pytest.Config, fixtures: Mapping[str, object]) -> Iterator[str]:
    from testbed.spec.features import WORDS

    yield from ("A test, beside a Compose file with the services `client` and `server`:", "", _EXAMPLE)
    yield "Markers:"
    known = dict(str(line).partition(":")[::2] for line in config.getini("markers"))
    yield from (f"  {call}\n      {known[call].strip()}" for call in known if call.partition("(")[0] in NAMES)
    yield from ("", "Fixtures:")
    for name, fixture in fixtures.items():
        described = inspect.getdoc(fixture) or ""
        yield f"  {name}\n      {' '.join(described.partition(chr(10) * 2)[0].split())}"
    yield from ("", "Words of an impairment:")
    yield from (f"  {name:<16} {word.help}" for name, word in WORDS.items())
    yield from (
        "",
        "More: `testbed profiles` lists the profiles, with a name it explains one; `testbed doctor` tells what this",
        "machine can do; `pytest --help` has the options, and docs/ of testbed's repository the tutorial and how-tos.",
    )
