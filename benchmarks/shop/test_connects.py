"""Many short connections over a lossy link: some take a second more, in each version."""

from __future__ import annotations

import pytest
from measuring import measured

from testbed import Lab


@pytest.mark.impair("client -> server", delay="2ms", loss="5%")
def test_connects(lab: Lab) -> None:
    """A twentieth of the SYNs are lost."""
    lab.record("connect", measured(lab, "connects")["connect"], unit="s", better="lower")
