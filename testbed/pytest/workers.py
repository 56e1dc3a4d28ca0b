"""The processes of pytest-xdist: what the controller sends to its workers, and what they send back."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from testbed.pytest.stacks import StackOf
from testbed.pytest.state import DIVISION, DURATIONS, ENGINES, NOT_UP, PROBLEMS, SEED, UNFIT, WARNED, chosen, has_stack

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_OUTPUT_NOT_UP, OUTPUT_PROBLEMS, _OUTPUT_WARNED = "testbed_not_up", "testbed_problems", "testbed_warned"
_OUTPUT_DIVISION = "testbed_division"
_ONE_IS_DOWN: pytest.StashKey[bool] = pytest.StashKey()
"""Whether a worker has ended, so that a new one replaces it."""


def worker_of(config: pytest.Config) -> dict[str, Any] | None:
    """The controller's input of this process, if it is a worker of pytest-xdist."""
    worker_input: dict[str, Any] | None = getattr(config, "workerinput", None)
    return worker_input


def tell_worker(node: Any) -> None:
    """Give all workers the same seed and lab: which one runs a test must not change its network.

    Our child processes also get our process id, see `die_with`.
    """
    node.workerinput["testbed_seed"] = node.config.stash[SEED]
    node.workerinput["testbed_dist"] = node.config.getoption("dist")  # a worker's own option is "no"
    node.workerinput["testbed_replaces"] = node.config.stash.get(_ONE_IS_DOWN, False)
    if (engines := node.config.pluginmanager.get_plugin(ENGINES)) is not None:
        node.workerinput["testbed_engine"] = engines.place(node.gateway.id)
    if node.config.getoption("--testbed-shard"):
        node.workerinput["testbed_durations"] = dict(node.config.stash.get(DURATIONS, {}))
    node.workerinput["testbed_lab"] = chosen(node.config) if has_stack(node.config) else None
    spec = node.gateway.spec
    ours = spec.popen and not (spec.python or spec.via)
    node.workerinput["testbed_controller"] = os.getpid() if ours else None


def side_by_side(config: pytest.Config) -> int:
    """Number of workers that run tests of any kind, and so have a stack each; 1 where groups may keep to one."""
    worker = worker_of(config) or {}
    return int(worker["workercount"]) if worker.get("testbed_dist") in ("load", "worksteal", "each") else 1


def die_with(controller: int | None) -> None:
    """Have the kernel kill this worker with its controller; the lab ends with the worker.

    Otherwise the worker would first finish its test, and wait seconds for the controller.
    """
    if controller is None or sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != controller:  # it was killed before
        os.kill(os.getpid(), signal.SIGKILL)


def hear_worker(node: Any) -> None:
    """Take from a worker's output the problems of markers, machine or Compose file, and Compose's warnings.

    Compose warns all workers of the same.
    """
    node.config.stash[_ONE_IS_DOWN] = True
    output = getattr(node, "workeroutput", {})
    if node.config.getoption("--testbed-shard"):
        hear_division(node.config, output.get(_OUTPUT_DIVISION))
    for warning in output.get(_OUTPUT_WARNED, ()):
        node.config.stash[WARNED].setdefault(warning)
    if _OUTPUT_NOT_UP in output:
        not_up, node.config.stash[UNFIT] = output[_OUTPUT_NOT_UP]
        node.config.stash.setdefault(NOT_UP, {}).update(
            (StackOf(files=tuple(map(Path, files)), profiles=tuple(profiles)), why) for files, profiles, why in not_up
        )
    node.config.stash[PROBLEMS] = output.get(OUTPUT_PROBLEMS, node.config.stash[PROBLEMS])


def hear_division(config: pytest.Config, division: Mapping[str, Any] | None) -> None:
    """Take from a worker's output, or from a report, which shard this is."""
    from testbed.judge.division import Division

    if division is not None:
        config.stash[DIVISION] = Division(**division)


def tell_controller(config: pytest.Config) -> None:
    """At a worker's end, output why its stack did not start, and Compose's warnings."""
    if worker_of(config) is None:
        return
    output: dict[str, object] = config.workeroutput  # type: ignore[attr-defined]  # xdist's
    output[_OUTPUT_WARNED] = [*config.stash[WARNED]]
    if DIVISION in config.stash:
        output[_OUTPUT_DIVISION] = config.stash[DIVISION].as_json()
    if NOT_UP in config.stash:
        reasons = [([*map(str, stack.files)], [*stack.profiles], why) for stack, why in config.stash[NOT_UP].items()]
        output[_OUTPUT_NOT_UP] = (reasons, config.stash[UNFIT])
