"""Environment variables of programs in a kernel whose clock is simulated."""

from __future__ import annotations

import os

INSIDE = "TESTBED_VIRTUAL_TIME"
"""It is set for programs in such a kernel."""
EVENTS = "TESTBED_EVENTS"
"""It names the file of `testbed.kernel.virtual.Outputs.event`."""


def is_inside() -> bool:
    """Whether this process already runs in such a kernel."""
    return bool(os.environ.get(INSIDE))
