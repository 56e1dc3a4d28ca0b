"""Lets `testbed watch` look into a session, at the labs that are up."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from testbed.kernel.variables import is_inside
from testbed.lab.lab import Lab
from testbed.lab.picture import picture
from testbed.lab.window import Window

_WATCHED: pytest.StashKey[list[Lab]] = pytest.StashKey()


def let_watch(config: pytest.Config, lab: Lab) -> None:
    """Show this lab to those who watch; not from within a kernel with a simulated clock, which nobody reaches."""
    if is_inside():
        return
    labs = config.stash.get(_WATCHED, None)
    if labs is None:
        labs = config.stash[_WATCHED] = []
        with suppress(OSError):  # a session within a session: one of a process can be watched
            config.add_cleanup(Window(partial(_look, labs)).close)
    if lab not in labs:
        labs.append(lab)


def _look(labs: list[Lab]) -> dict[str, Any]:
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" (")[0]
    return {"at_s": time.monotonic(), "test": test, "labs": [picture(lab) for lab in list(labs) if lab.hosts]}
