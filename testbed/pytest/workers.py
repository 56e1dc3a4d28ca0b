"""The processes of pytest-xdist: what the controller tells its workers, and they it."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import pytest

from testbed.pytest.state import NOT_UP, PROBLEMS, SEED, UNFIT, WARNED, chosen, has_stack

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_TOLD_NOT_UP, TOLD_PROBLEMS, _TOLD_WARNED = "testbed_not_up", "testbed_problems", "testbed_warned"


def worker_of(config: pytest.Config) -> dict[str, Any] | None:
    """What pytest-xdist's controller told this process, if it is one of its workers."""
    told: dict[str, Any] | None = getattr(config, "workerinput", None)
    return told


def tell_worker(node: Any) -> None:
    """Give all of pytest-xdist's workers the same seed and lab: which one runs a test must not change its network.

    And tell those that are our children who we are: see `die_with`.
    """
    node.workerinput["testbed_seed"] = node.config.stash[SEED]
    node.workerinput["testbed_dist"] = node.config.getoption("dist")  # which each worker takes for its own: "no"
    node.workerinput["testbed_lab"] = chosen(node.config) if has_stack(node.config) else None
    spec = node.gateway.spec
    ours = spec.popen and not (spec.python or spec.via)
    node.workerinput["testbed_controller"] = os.getpid() if ours else None


def side_by_side(config: pytest.Config) -> int:
    """How many workers take tests of any kind, and so have a stack each; 1 where groups or files may keep to one."""
    told = worker_of(config) or {}
    return int(told["workercount"]) if told.get("testbed_dist") in ("load", "worksteal", "each") else 1


def die_with(controller: int | None) -> None:
    """Have the kernel kill this worker with its controller, and with the worker its lab goes.

    By itself it would first end its test, and wait for seconds that somebody asks for more.
    """
    if controller is None or sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != controller:  # it was killed before we asked for that
        os.kill(os.getpid(), signal.SIGKILL)


def hear_worker(node: Any) -> None:
    """Hear from one of pytest-xdist's workers what was wrong with the markers, the machine or the Compose file.

    And what Compose warned it of: all workers are warned of the same.
    """
    told = getattr(node, "workeroutput", {})
    for warning in told.get(_TOLD_WARNED, ()):
        node.config.stash[WARNED].setdefault(warning)
    if _TOLD_NOT_UP in told:
        node.config.stash[NOT_UP], node.config.stash[UNFIT] = told[_TOLD_NOT_UP]
    node.config.stash[PROBLEMS] = told.get(TOLD_PROBLEMS, node.config.stash[PROBLEMS])


def tell_controller(config: pytest.Config) -> None:
    """At a worker's end, say why its stack did not start, if it did not; and what Compose warned of."""
    if worker_of(config) is None:
        return
    config.workeroutput[_TOLD_WARNED] = [*config.stash[WARNED]]  # type: ignore[attr-defined]  # xdist's
    if NOT_UP in config.stash:
        told = (config.stash[NOT_UP], config.stash[UNFIT])
        config.workeroutput[_TOLD_NOT_UP] = told  # type: ignore[attr-defined]  # xdist's
