"""``--virtual-time`` of a command: the same command line runs itself again, in a kernel whose clock is simulated."""

from __future__ import annotations

import os
import secrets
import shlex
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any

import click

from testbed.backends.outside import images_of
from testbed.commands.console import say
from testbed.errors import Problems
from testbed.kernel import virtual
from testbed.kernel.variables import is_inside
from testbed.text import shown

_SEED = 1
"""Of a command that has no --seed: each run is the same."""
_SPIN_LIMIT_S = 60.0


def virtual_time_option(function: Any) -> Any:
    """Add ``--virtual-time``. The outermost of the options that a command shares with others."""

    @wraps(function)
    def call(*, virtual_time: bool, **arguments: Any) -> int:
        if not virtual_time or is_inside():
            return int(function(**arguments))
        return _run_again(click.get_current_context(), arguments)

    return click.option(
        "--virtual-time",
        is_flag=True,
        help="Run in a kernel whose clock is simulated: waiting takes no time; the local lab alone.",
    )(call)


def _run_again(context: click.Context, arguments: Mapping[str, Any]) -> int:
    """Run this process's command in the kernel, and return its exit status."""
    name = context.info_name or ""
    folder, seed = _report(name, arguments.get("folder")), _SEED
    words: list[str] = []
    _check(context, folder)
    if "kind" in arguments:
        words += virtual.LAB_OPTIONS
    if "seed" in arguments:
        given = arguments["seed"]
        seed = secrets.randbelow(1 << 31) if given is None else given
        words += ["--seed", str(seed)]
    if "keep" in arguments:
        folder = arguments["keep"] or folder
        words += ["--keep", str(folder)]
    say(f"virtual time, seed {seed}")
    command_line = list(sys.orig_argv)
    at = command_line.index(name, 1) + 1
    additions = shlex.join(virtual.LAB_OPTIONS)
    with ExitStack() as undo:
        images = images_of(
            arguments.get("compose_file", ()),
            profiles=arguments.get("compose_profile", ()),
            images={},
            say=say,
            undo=undo,
        )
        return virtual.run(
            [sys.executable, *command_line[1:at], *words, *command_line[at:]],
            seed=seed,
            cwd=Path.cwd(),
            outputs=virtual.Outputs(
                folders=[folder.absolute()], files=[path for path in (arguments.get("markdown"),) if path is not None]
            ),
            environment={**images, virtual.ADDITIONS: f"{os.environ.get(virtual.ADDITIONS, '')} {additions}".strip()},
            say=say,
            stdout=sys.stdout.buffer,
            stderr=sys.stderr.buffer,
            spin_limit_s=_SPIN_LIMIT_S,
        )


def _report(name: str, folder: Path | None) -> Path:
    """Where the command's results go: the clock inside would give each run's folder the same name."""
    return folder or Path("report", name, datetime.now(UTC).strftime("%Y%m%d-%H%M%S"))


def _check(context: click.Context, folder: Path) -> None:
    """Refuse what cannot be inside. Raises UserError with every problem."""
    problems = Problems()
    for parameter, option, possible in (("kind", "--lab", "local"), ("netem", "--netem", "host")):
        value = context.params.get(parameter)
        if value not in (None, "auto", possible):
            problems.append(virtual.only(option, value, possible))
    if Path.cwd().is_relative_to(folder.absolute()):
        problems.append(f"--report {shown(str(folder))}: in virtual time this folder is empty at first; name another")
    problems.tell()
