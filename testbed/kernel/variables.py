"""Inside a kernel whose clock is simulated: its environment variables, what a run depends on, and its clock."""

from __future__ import annotations

import ctypes
import json
import os
import struct
import time
from collections.abc import Mapping
from typing import Any

INSIDE = "TESTBED_VIRTUAL_TIME"
"""It is set for programs in such a kernel: JSON of what their runs depend on (`facts`)."""
EVENTS = "TESTBED_EVENTS"
"""It names the file of `testbed.kernel.virtual.Outputs.event`."""
_TIMER_ABSTIME = 1  # time.h
_PR_SET_TIMERSLACK, _PR_GET_TIMERSLACK = 29, 30  # linux/prctl.h


def is_inside() -> bool:
    """Whether this process already runs in such a kernel."""
    return bool(os.environ.get(INSIDE))


def facts() -> Mapping[str, Any]:
    """What this run depends on, inside: ``kernel`` (``source`` and ``sha256``), and what `run` was given."""
    content: Mapping[str, Any] = json.loads(os.environ[INSIDE])
    return content


def wait_until(time_ns: int) -> None:
    """Wait for a time of day, in such a kernel: exactly, whatever took some microseconds before."""
    libc = ctypes.CDLL(None)
    slack_ns = libc.prctl(_PR_GET_TIMERSLACK)
    libc.prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1))  # or any timer in the next 50 µs would end the wait
    moment = struct.pack("=qq", *divmod(time_ns, 10**9))
    libc.clock_nanosleep(time.CLOCK_REALTIME, _TIMER_ABSTIME, moment, None)
    libc.prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(slack_ns))
