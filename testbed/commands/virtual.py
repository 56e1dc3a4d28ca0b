"""``--virtual-time`` of a command: the same command line runs itself again, in a kernel whose clock is simulated.

Or in several, each with a share of the work.
"""

from __future__ import annotations

import io
import os
import secrets
import shlex
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any, BinaryIO

import click

from testbed.backends.outside import images_of
from testbed.commands.console import say
from testbed.errors import EnvironmentUnfitError, Problems
from testbed.kernel import virtual
from testbed.kernel.variables import is_inside
from testbed.text import shown

_SEED = 1
"""Of a command that has no --seed: each run is the same."""
_SPIN_LIMIT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Again:
    """A command, to be run again in kernels."""

    folder: Path
    """Where its results go."""
    seed: int
    _words: Sequence[str]
    """The command line, with what virtual time adds to it."""
    _files: Sequence[Path]
    _environment: Mapping[str, str]

    def run(
        self,
        additions: Sequence[str] = (),
        *,
        into: Path | None = None,
        stdout: BinaryIO | None = None,
        stderr: BinaryIO | None = None,
        stop: threading.Event | None = None,
    ) -> int:
        """Run it in a kernel; returns its exit status. ``additions``: to its options; the rest: see `virtual.run`."""
        return virtual.run(
            [*self._words, *additions],
            seed=self.seed,
            cwd=Path.cwd(),
            outputs=virtual.Outputs(folders=[self.folder.absolute()], files=self._files, into=into),
            environment=self._environment,
            say=say,
            stdout=stdout or sys.stdout.buffer,
            stderr=stderr or sys.stderr.buffer,
            spin_limit_s=_SPIN_LIMIT_S,
            stop=stop,
        )

    @contextmanager
    def shared(self, shares: Sequence[Sequence[str]]) -> Iterator[list[Future[Path]]]:
        """Run it once with each of these additions to its options, in a kernel each, the first ones first.

        So many at once as there are processors. Each gives the folder of what it has written. Their output on stdout is
        not shown; progress is, as whole lines.
        """
        stop = threading.Event()
        virtual.prepare(say)
        with (
            tempfile.TemporaryDirectory(prefix="testbed-shares-") as name,
            ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
        ):
            try:
                yield [
                    pool.submit(self._run_share, words, Path(name, str(number)), stop)
                    for number, words in enumerate(shares)
                ]
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _run_share(self, words: Sequence[str], into: Path, stop: threading.Event) -> Path:
        stdout, stderr = virtual.unseen(sys.stdout.buffer), _WholeLines(sys.stderr.buffer)
        status = self.run(words, into=into, stdout=stdout, stderr=stderr, stop=stop)
        if status not in (0, 1):
            raise EnvironmentUnfitError(f"{' '.join(words)}: ended with status {status} in virtual time")
        return into / self.folder.name


class _WholeLines(io.BytesIO):
    """Passes on whole lines, so that those of several kernels do not mix."""

    def __init__(self, target: BinaryIO) -> None:
        super().__init__()
        self._target, self._begun = target, b""

    def write(self, content: Any, /) -> int:
        lines, line_end, self._begun = (self._begun + bytes(content)).rpartition(b"\n")
        self._target.write(lines + line_end)
        self._target.flush()
        return len(content)


def virtual_time_option(
    function: Any, *, run_again: Callable[[Again, Mapping[str, Any]], int] = lambda again, _arguments: again.run()
) -> Any:
    """Add ``--virtual-time``. The outermost of the options that a command shares with others.

    ``run_again``: runs the command, which has these arguments, and returns its exit status.
    """

    @wraps(function)
    def call(*, virtual_time: bool, **arguments: Any) -> int:
        if not virtual_time or is_inside():
            return int(function(**arguments))
        with ExitStack() as undo:
            return run_again(_prepared(click.get_current_context(), arguments, undo), arguments)

    return click.option(
        "--virtual-time",
        is_flag=True,
        help="Run in a kernel whose clock is simulated: waiting takes no time; the local lab alone.",
    )(call)


def _prepared(context: click.Context, arguments: Mapping[str, Any], undo: ExitStack) -> Again:
    """What is made outside of the kernels."""
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
    images = images_of(
        arguments.get("compose_file", ()),
        profiles=arguments.get("compose_profile", ()),
        images={},
        say=say,
        undo=undo,
    )
    additions = f"{os.environ.get(virtual.ADDITIONS, '')} {shlex.join(virtual.LAB_OPTIONS)}".strip()
    return Again(
        folder=folder,
        seed=seed,
        _words=[sys.executable, *command_line[1:at], *words, *command_line[at:]],
        _files=[path for path in (arguments.get("markdown"),) if path is not None],
        _environment={**images, virtual.ADDITIONS: additions},
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
