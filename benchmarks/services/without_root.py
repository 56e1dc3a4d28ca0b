"""What `benchmarks/images.py` measures as an ordinary user, run by scripts/ordinary: five services up, some times.

Their images are archives beside the Compose file. The times, in seconds, are properties of the test.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.images import ROUNDS, up_and_use
from testbed.backends.local.lab import LocalLab


def test_five_services_come_up(pytestconfig: pytest.Config, record_property: Callable[[str, object], None]) -> None:
    """Their images are unpacked before, as for root."""
    (file,) = pytestconfig.getoption("--compose-file")
    record_property("uid", os.geteuid())
    with LocalLab(Path(file)):
        pass
    for _ in range(ROUNDS):
        record_property("up_s", up_and_use(Path(file)))
