"""``pytest --virtual-time``: the same command line runs itself again, in a kernel whose clock is simulated."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from testbed.backends.outside import images_of
from testbed.errors import TestbedError, UserError
from testbed.kernel import virtual
from testbed.pytest import state

_INTERRUPTED = 2  # pytest's


def run_again(config: pytest.Config) -> int | None:
    """Run this session in the kernel, and return its exit status; None in that kernel."""
    if virtual.is_inside():
        return None
    try:
        with ExitStack() as undo:
            return _run_again(config, undo)
    except TestbedError as error:
        sys.stderr.write(f"testbed: {error}\n")
        return state.WRONG_USE
    except KeyboardInterrupt:
        sys.stderr.write("testbed: interrupted; the kernel with the simulated clock was ended\n")
        return _INTERRUPTED


def _run_again(config: pytest.Config, undo: ExitStack) -> int:
    seed, limit_s = _check(config)
    _say(f"virtual time, seed {seed}")
    seeded = () if state.seeds_of(config) is not None else ("--testbed-seed", str(seed))
    additions = shlex.join((*virtual.LAB_OPTIONS, *seeded))
    images = images_of(
        state.compose_files(config),
        profiles=config.getoption("--compose-profile"),
        images=state.other_images(config),
        say=_say,
        undo=undo,
    )
    return virtual.run(
        _command_line(config),
        seed=seed,
        cwd=config.invocation_params.dir,
        outputs=virtual.Outputs(folders=_folders(config), files=_files(config)),
        environment={**images, virtual.ADDITIONS: f"{os.environ.get(virtual.ADDITIONS, '')} {additions}".strip()},
        say=_say,
        stdout=sys.stdout.buffer,
        stderr=sys.stderr.buffer,
        spin_limit_s=limit_s,
    )


def _say(text: str) -> None:
    sys.stderr.write(f"testbed: {text}\n")
    sys.stderr.flush()


def _check(config: pytest.Config) -> tuple[int, float]:
    """The seed and the limit for programs that spin. Raises UserError with every problem."""
    from testbed.errors import InvalidValueError
    from testbed.units import parse_time

    problems = state.option_problems(config)
    given = [*map(str, config.invocation_params.args)]
    for option, possible in (("--lab", "local"), ("--netem", "host")):
        value = config.getoption(option)
        if value not in ("auto", possible) and any(text.partition("=")[0] == option for text in given):
            problems.append(virtual.only(option, value, possible))
    if getattr(config.option, "numprocesses", None):
        problems.append(
            f"-n {config.option.numprocesses}: a kernel with a simulated clock has one processor; leave -n out"
        )
    limit_s = 0.0
    try:
        limit_s = parse_time(config.getoption("--virtual-time-spin"), name="--virtual-time-spin")
    except UserError as error:
        problems += error.problems
    if problems:
        raise InvalidValueError(problems)
    return state.seed_of(config), limit_s


def _command_line(config: pytest.Config) -> Sequence[str]:
    """The command line of this process, if it is pytest's; else pytest with the session's arguments."""
    given = [*map(str, config.invocation_params.args)]
    if given and sys.orig_argv[-len(given) :] == given:
        return [sys.executable, *sys.orig_argv[1:]]
    return [sys.executable, "-m", "pytest", *given]


def _folders(config: pytest.Config) -> list[Path]:
    """The folders that reports go to."""
    here = config.invocation_params.dir
    report = here / "report"
    results = (here / config.getoption("--testbed-results")).parent
    return [report] if results.is_relative_to(report) or results == here else [report, results]


def _files(config: pytest.Config) -> list[Path]:
    """The files that are written elsewhere."""
    files = [Path(path) for name in ("xmlpath", "report_log") if (path := getattr(config.option, name, None))]
    return [config.invocation_params.dir / file for file in (*files, Path(config.getoption("--testbed-results")))]
