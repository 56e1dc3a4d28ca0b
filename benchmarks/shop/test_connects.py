"""Many short connections over a lossy link: some take a second more, in each version."""

from __future__ import annotations

import json

import pytest

from testbed import Lab


@pytest.mark.impair("client -> server", delay="2ms", loss="5%")
def test_connects(lab: Lab) -> None:
    """A twentieth of the SYNs are lost."""
    done = lab.host("client").run(["python3", "client.py", "server", "connects"], timeout="60s")
    assert done.ok, done.stderr
    lab.record("connect", json.loads(done.stdout), unit="s", better="lower")
