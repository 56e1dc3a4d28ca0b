"""``pytest --virtual-time``: the same command line runs itself again, in a kernel whose clock is simulated."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

import testbed
from testbed.errors import TestbedError, UserError
from testbed.evidence.replaying import Replay
from testbed.kernel import building, virtual
from testbed.pytest import inside, machine, replays, state
from testbed.pytest.kernels import Kernels, RunKernel
from testbed.pytest.share import ALONE, Share

_INTERRUPTED = 2  # pytest's


def run_again(config: pytest.Config) -> int | None:
    """Run this session in the kernel, and return its exit status; None where several share it."""
    with ExitStack() as undo:
        try:
            seed, limit_s = _check(config)
            _say(f"virtual time, seed {seed}")
            undo.enter_context(_present(_files(config)))
            run = _prepared(config, seed, limit_s, undo)
            replaying = replays.Replays(config, run, _say)
            if (shares := _shares(config)) is None:
                status = run(None, _say, None)
                replaying.replay()
                return status
        except TestbedError as error:
            sys.stderr.write(f"testbed: {error}\n")
            return state.WRONG_USE
        except KeyboardInterrupt:
            sys.stderr.write("testbed: interrupted; the kernel with the simulated clock was ended\n")
            return _INTERRUPTED
        inside.alone(config)
        vars(config.option).update(
            lab="local", netem="host", testbed_seed=None if config.option.testbed_seeds else seed
        )
        kernels = Kernels(config, shares, run=run, say=_say, undo=undo.pop_all(), replay=replaying.replay)
        config.pluginmanager.register(kernels, state.KERNELS)
    return None


@contextmanager
def _present(files: Sequence[Path]) -> Iterator[None]:
    """Have all of these files be there, if empty: a file that is there in later runs alone would move their packets."""
    made = [file for file in files if not file.exists()]
    folders = {folder for file in made for folder in file.parents if not folder.exists()}
    with suppress(OSError):  # whoever cannot write one says so
        for file in made:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    try:
        yield
    finally:
        for file in made:
            if file.is_file() and not file.stat().st_size:
                file.unlink()
        for folder in sorted(folders, reverse=True):
            with suppress(OSError):  # something is in it
                folder.rmdir()


def _shares(config: pytest.Config) -> list[Share] | None:
    """What several kernels are to run; None for one kernel, whose session prints by itself."""
    if config.option.collectonly:
        return None
    if workers := _workers(config):
        return [
            Share(worker=f"gw{number}", number=number, count=workers, dist=_dist(config)) for number in range(workers)
        ]
    seeds = state.seeds_of(config)
    jobs = min(state.jobs_of(config), len(seeds or ()))
    # What a test sees must not depend on the number of kernels.
    return [Share(worker=ALONE, number=number, count=jobs) for number in range(jobs)] if jobs > 1 else None


def _workers(config: pytest.Config) -> int:
    """Number of workers, as pytest-xdist would start them."""
    number = getattr(config.option, "numprocesses", None)
    if number in ("auto", "logical"):
        number = config.hook.pytest_xdist_auto_num_workers(config=config)
    most = getattr(config.option, "maxprocesses", None)
    return min(number, most) if number and most else number or 0


def _dist(config: pytest.Config) -> str:
    return config.option.dist if config.option.dist != "no" else "load"


def _prepared(config: pytest.Config, seed: int, limit_s: float, undo: ExitStack) -> RunKernel:
    """All that is made outside; returns what runs a share of this session, or the whole of it."""
    replay = Replay.requested(os.environ)
    facts = _facts(config)
    if replay is not None:
        _refuse_differences(replay, facts)
    seeded = () if state.seeds_of(config) is not None else ("--testbed-seed", str(seed))
    images = _images(config, undo) if state.has_stack(config) else {}
    virtual.prepare(_say)

    def run(
        share: Share | None,
        say: Callable[[str], None],
        event: Callable[[str], None] | None,
        stop: threading.Event | None = None,
        again: Replay | None = replay,
    ) -> int:
        additions = [*virtual.LAB_OPTIONS, *seeded]
        environment = {} if again is None else again.environment()
        if share is not None:
            additions += ["-p", "no:terminal"]
            environment |= share.variables(seed)
        stdout, stderr = (
            stream.buffer if again is replay else virtual.unseen(stream.buffer) for stream in (sys.stdout, sys.stderr)
        )
        words = shlex.join(additions)
        environment[virtual.ADDITIONS] = f"{os.environ.get(virtual.ADDITIONS, '')} {words}".strip()
        return virtual.run(
            _command_line(config),
            seed=seed if share is None else share.seed(seed),
            cwd=config.invocation_params.dir,
            outputs=virtual.Outputs(
                folders=_folders(config),
                files=_files(config) if share is None else (),
                into=None if again is None else Path(again.into),
                event=event,
            ),
            environment={**images, **environment},
            say=say,
            stdout=stdout,
            stderr=stderr,
            spin_limit_s=limit_s,
            stop=stop,
            facts=facts,
        )

    return run


def _images(config: pytest.Config, undo: ExitStack) -> dict[str, str]:
    from testbed.backends.outside import images_of  # half of this module's imports

    return images_of(
        state.compose_files(config),
        profiles=config.getoption("--compose-profile"),
        images=state.other_images(config),
        say=_say,
        undo=undo,
    )


def _facts(config: pytest.Config) -> dict[str, object]:
    """What this run depends on, besides the kernel; of what it is recorded with, and compared by `testbed replay`."""
    package = Path(testbed.__file__).parent
    words = _command_line(config)[1:]
    command = ["pytest", *words[1:]] if Path(words[0]).name == "pytest" else ["python", *words]
    return {
        "python": platform.python_version(),
        "testbed": machine.revision(package, without=()),
        "programs": machine.revision(config.invocation_params.dir, without=(*_folders(config), *_files(config))),
        "command": command,
        "additions": os.environ.get(virtual.ADDITIONS, ""),
    }


def _refuse_differences(replay: Replay, facts: Mapping[str, object]) -> None:
    """Raise UserError if what a run was recorded with is not what there is here."""
    if replay.expected is None:
        return
    kernel = virtual.identity(building.ensure(_say))
    here = {**facts, "kernel": kernel}
    problems = [
        f"recorded with {name} {_brief(replay.expected.get(key))}, and here is {_brief(here[key])}{advice}"
        for key, (name, advice) in _DECISIVE.items()
        if replay.expected.get(key) != here[key]
    ]
    if problems:
        raise UserError(problems)


_DECISIVE = {
    "kernel": ("the kernel", ": TESTBED_KERNEL=FILE takes that one"),
    "python": ("Python", ""),
    "testbed": ("another testbed: its files'", ""),
    "programs": ("another revision of this folder's files:", ""),
}


def _brief(value: object) -> str:
    if isinstance(value, Mapping):
        return f"{value.get('source')} ({str(value.get('sha256'))[:12]})"
    return str(value)


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
    if getattr(config.option, "dist", "no") == "each":
        problems.append("--dist each: a kernel of each worker runs tests of its own; leave it out")
    if not getattr(config.option, "numprocesses", None) and getattr(config.option, "tx", None):
        problems.append("--tx: kernels with a simulated clock are of this machine; write -n NUMBER")
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
