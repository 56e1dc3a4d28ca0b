"""A session of tests: its lab, its seed, its problems; and the options."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from testbed.compose.options import LAB_CHOICES, NETEM_CHOICES, UP_DEADLINE, find_compose_file
from testbed.errors import EnvironmentUnfitError, ServiceFailedError, TestbedError, UserError
from testbed.pytest.stacks import OWN, StackOf, base_folders, named
from testbed.text import shortened, shown

if TYPE_CHECKING:
    from testbed.judge.division import Division
    from testbed.lab.lab import Lab
    from testbed.pytest.share import Share

WRONG_USE = 2
"""The exit status where the machine, the Compose file or the markers are at fault, and no test."""

_DEFAULT_RESULTS = Path("report", "results.jsonl")
_LATENESS_CHOICES = ("invalid", "warn")
_CAPTURE_CHOICES = ("on-failure", "always", "never")
_ALL_METRICS, _NO_METRICS = "all", "none"
_VACUOUS_CHOICES = ("invalid", "warn")
_SHRINK_TRIES = 100
_REPLAYS = 3
VIRTUAL_TIME_SPIN = "60s"
KEPT_OPTIONS = (
    ("--up-deadline", UP_DEADLINE),
    ("--testbed-lateness", _LATENESS_CHOICES[0]),
    ("--testbed-vacuous", _VACUOUS_CHOICES[0]),
    ("--testbed-capture", _CAPTURE_CHOICES[0]),
    ("--testbed-results", str(_DEFAULT_RESULTS)),
    ("--testbed-metrics", _ALL_METRICS),
    ("--virtual-time-spin", VIRTUAL_TIME_SPIN),
)
"""Options that change no network, with their defaults."""


LABS: pytest.StashKey[dict[StackOf, Lab]] = pytest.StashKey()
"""The lab of each stack, up or not."""
CHOSEN: pytest.StashKey[tuple[str, str]] = pytest.StashKey()
NOT_UP: pytest.StashKey[dict[StackOf, str]] = pytest.StashKey()
"""Why stacks did not start, by `StackOf.name`."""
UNFIT: pytest.StashKey[bool] = pytest.StashKey()
"""Whether that is a fault of the machine or of the Compose file."""
WARNED: pytest.StashKey[dict[str, None]] = pytest.StashKey()
"""Compose's warnings of its file, each once; shown at the end."""
PROBLEMS: pytest.StashKey[list[str]] = pytest.StashKey()
SEED: pytest.StashKey[int] = pytest.StashKey()
DURATIONS: pytest.StashKey[Mapping[str, float]] = pytest.StashKey()
"""How long tests took in an earlier run, by id; seconds."""
STACKS_S: pytest.StashKey[float] = pytest.StashKey()
"""How long stacks took to come up and to go down since this was told last."""
IMAGES_FROM: pytest.StashKey[Sequence[Mapping[str, str]]] = pytest.StashKey()
"""The variables that lead to each engine of this session; the first one's images count."""
STACKS: pytest.StashKey[Mapping[str, str | None]] = pytest.StashKey()
"""By test, the name of the stack that its marker named in an earlier run."""
ENGINE_LOST: pytest.StashKey[bool] = pytest.StashKey()
"""Whether this session's engine does not answer any more, so that its tests are run on another."""
DIVISION: pytest.StashKey[Division] = pytest.StashKey()
"""Which shard this session is; known once tests are collected, in a controller of pytest-xdist from its workers."""
SHARE: pytest.StashKey[Share] = pytest.StashKey()
"""What this session runs, if it is one of several in kernels with a simulated clock."""
KERNELS = "testbed-kernels"
"""The plugin of the session outside these."""
ENGINES = "testbed-engines"
"""The plugin that places workers on engines."""
COUNTS = "testbed-seeds"
"""The plugin that counts outcomes by seed."""


def add_options(parser: pytest.Parser) -> None:
    """Declare the options."""
    group = parser.getgroup("testbed", "network regression testing")
    group.addoption(
        "--compose-file",
        metavar="FILE",
        action="append",
        default=[],
        help="the Compose file; repeatable: later files add to earlier ones, as with docker compose (default: the "
        "file that Compose finds: compose.yaml, …)",
    )
    group.addoption(
        "--compose-profile", metavar="NAME", action="append", default=[], help="activate a Compose profile; repeatable"
    )
    group.addoption(
        "--testbed-image",
        metavar="SERVICE=IMAGE",
        action="append",
        default=[],
        help="run another image in a service than the Compose file says; repeatable; containers alone",
    )
    group.addoption(
        "--lab",
        choices=LAB_CHOICES,
        default="auto",
        help="where the stack runs: containers of an engine (compose; within: where its network cannot be entered), "
        "tasks of a Docker Swarm (swarm), namespaces of this machine (local), or compose where an engine answers and "
        "local elsewhere (default: auto)",
    )
    group.addoption(
        "--netem",
        choices=NETEM_CHOICES,
        default="auto",
        help="who executes netem: this kernel, a kernel that testbed brings, or auto: this kernel if it has netem "
        "(default: auto)",
    )
    group.addoption(
        "--up-deadline",
        metavar="TIME",
        default=UP_DEADLINE,
        help="how long the stack may take to start, as in 10min (default: %(default)s)",
    )
    group.addoption(
        "--testbed-seed",
        metavar="N",
        help="derive the seeds of random impairments from N and each test's id (default: drawn, and printed)",
    )
    group.addoption(
        "--testbed-seeds",
        metavar="FIRST..LAST",
        help="run each test under each of these seeds, as in 1..1000, and say how many fail; the stack stays up, and "
        "results are kept of the runs that did not pass (with --virtual-time it is fastest)",
    )
    group.addoption(
        "--testbed-shrink",
        metavar="TRIES",
        help="run a test that fails under one of --testbed-seeds at most so many times more, to make its failure "
        "smaller (default: 100 with --virtual-time, else 0)",
    )
    group.addoption(
        "--testbed-jobs",
        metavar="N",
        help="with --virtual-time: divide the seeds of --testbed-seeds among N kernels at once (default: 1)",
    )
    group.addoption(
        "--testbed-replays",
        metavar="N",
        help="with --virtual-time: replay the first N failed tests at the end, and keep the packets at every port and "
        "TCP_INFO (default: 3; 0: none)",
    )
    group.addoption(
        "--virtual-time",
        action="store_true",
        help="run in a kernel whose clock is simulated: waiting takes no time, and the seed decides everything; the "
        "local lab alone (see `testbed kernel`)",
    )
    group.addoption(
        "--virtual-time-spin",
        metavar="TIME",
        default=VIRTUAL_TIME_SPIN,
        help="processor time after which a program that never reads the simulated clock is ended, as in 2min "
        "(default: %(default)s)",
    )
    group.addoption(
        "--testbed-lateness",
        choices=_LATENESS_CHOICES,
        default=_LATENESS_CHOICES[0],
        help="outcome of a test whose carried kernel was late beyond the tolerance, but by less than one second: "
        "INVALID, or only a warning, for machines that are always busy (default: %(default)s)",
    )
    group.addoption(
        "--testbed-reseed-reruns",
        action="store_true",
        help="draw other random losses for each attempt of a test that is run again (default: the same losses)",
    )
    group.addoption(
        "--testbed-vacuous",
        choices=_VACUOUS_CHOICES,
        default=_VACUOUS_CHOICES[0],
        help="outcome of a test that passed although no packet met what its marker impairs (default: %(default)s)",
    )
    group.addoption(
        "--testbed-capture",
        choices=_CAPTURE_CHOICES,
        default=_CAPTURE_CHOICES[0],
        help="keep the packets at each impaired port as pcapng files in report/captures/ (default: of failed tests)",
    )
    group.addoption(
        "--testbed-results",
        metavar="FILE",
        default=str(_DEFAULT_RESULTS),
        help="where the results of tests with a lab are written, as JSON lines (default: %(default)s)",
    )
    group.addoption(
        "--testbed-metrics",
        metavar="GROUPS",
        default=_ALL_METRICS,
        help="the groups of metrics that come by themselves: all, none, or some of programs, cpu, wire, "
        "goodput, tcp, netem, as in wire,tcp (default: %(default)s)",
    )
    group.addoption(
        "--testbed-vary",
        metavar="WORD=VALUE",
        action="append",
        default=[],
        help="give each link that a marker impairs another value of a word, as in loss=3%%; repeatable",
    )
    group.addoption(
        "--testbed-shard",
        metavar="NUMBER/COUNT",
        help="run one of so many parts of the tests, as in 3/8: the others run on other machines, and `testbed merge` "
        "joins their results (needs --testbed-seed)",
    )
    group.addoption(
        "--testbed-durations",
        metavar="FILE",
        help="the results file of an earlier run, by whose durations tests are divided (default: by their number)",
    )
    group.addoption(
        "--testbed-engines",
        metavar="ENGINES",
        help="with -n: the engines that the workers' labs are on, as in unix:///run/docker.sock,ssh://me@b,a-context, "
        "or a file with one a line; the tests of an engine that dies are run on the others. With --lab swarm: those of "
        "the Swarm's nodes, a manager first",
    )
    group.addoption("--testbed-help", action="store_true", help="show what tests may write, and end")
    group.addoption("--testbed-passes", type=int, help=argparse.SUPPRESS)  # the socket of `testbed ab`, `envelope`


def is_told(config: pytest.Config) -> bool:
    """Whether another process tells this session when to run its tests: `testbed.pytest.passes`."""
    return config.getoption("--testbed-passes") is not None


def metric_groups(text: str) -> frozenset[str]:
    """The groups that ``--testbed-metrics`` names. Raises InvalidValueError."""
    from testbed.errors import InvalidValueError
    from testbed.evidence.metric import AUTOMATIC
    from testbed.spec.words import unknown

    if text in (_ALL_METRICS, _NO_METRICS):
        return frozenset(AUTOMATIC if text == _ALL_METRICS else ())
    named = [name.strip() for name in text.split(",")]
    if wrong := [
        f"--testbed-metrics {shown(name)}: {unknown(name, AUTOMATIC)}" for name in named if name not in AUTOMATIC
    ]:
        raise InvalidValueError(wrong)
    return frozenset(named)


def _deadline(text: str) -> None:
    from testbed.units import parse_time

    if parse_time(text, name="--up-deadline") <= 0:
        raise UserError(f"--up-deadline={shown(text)}: must be more than 0")


def _image(text: str) -> None:
    service, _, image = text.partition("=")
    if not service or not image:
        raise UserError(f"--testbed-image={shown(text)}: write SERVICE=IMAGE, as in api=shop/api:1.5")


def _seed(text: str) -> None:
    try:
        int(text)
    except ValueError:
        raise UserError(f"--testbed-seed={shown(text)}: not a whole number") from None


def seeds_of(config: pytest.Config) -> range | None:
    """The seeds that tests are run under, one after the other; None: one seed. Raises UserError."""
    text = config.getoption("--testbed-seeds")
    if text is None:
        return None
    first, dots, last = text.partition("..")
    if not (dots and first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise UserError(f"--testbed-seeds={shown(text)}: write FIRST..LAST, as in 1..1000")
    for option, value in (("--testbed-seed", config.getoption("--testbed-seed")), ("-n", _workers(config))):
        if value:
            raise UserError(f"--testbed-seeds with {option} {value}: leave {option} out")
    return range(int(first), int(last) + 1)


def shrink_tries(config: pytest.Config) -> int:
    """The most tries to make a failure smaller; 0: none. Raises UserError."""
    text = config.getoption("--testbed-shrink")
    if text is None:
        return _SHRINK_TRIES if config.getoption("--virtual-time") else 0
    if not text.isdecimal():
        raise UserError(f"--testbed-shrink={shown(text)}: write a number of tries, as in 100, or 0 for none")
    if config.getoption("--testbed-seeds") is None:
        raise UserError(f"--testbed-shrink {text}: belongs to --testbed-seeds FIRST..LAST; 7..7 for one seed")
    return int(text)


def most_replays(config: pytest.Config) -> int:
    """The most failed tests that are replayed in virtual time. Raises UserError."""
    text = config.getoption("--testbed-replays")
    if text is None:
        return _REPLAYS
    if not text.isdecimal():
        raise UserError(f"--testbed-replays={shown(text)}: write a number of failed tests, as in 3, or 0 for none")
    if not config.getoption("--virtual-time"):
        raise UserError(f"--testbed-replays={shown(text)}: in real time no test can be replayed; add --virtual-time")
    return int(text)


def jobs_of(config: pytest.Config) -> int:
    """Number of kernels that seeds are divided among. Raises UserError."""
    text = config.getoption("--testbed-jobs")
    if text is None:
        return 1
    if not (text.isdecimal() and int(text)):
        raise UserError(f"--testbed-jobs={shown(text)}: write a number of kernels, as in 2")
    for option in ("--testbed-seeds", "--virtual-time"):
        if not config.getoption(option):
            raise UserError(f"--testbed-jobs={shown(text)}: it divides seeds among kernels; add {option}")
    return int(text)


def _workers(config: pytest.Config) -> object:
    return getattr(config.option, "numprocesses", None)


def _shard(config: pytest.Config) -> None:
    from testbed.pytest.manymachines import check_shard

    check_shard(config)


def _engines(config: pytest.Config) -> None:
    from testbed.pytest.manymachines import check_engines

    check_engines(config)


def _durations(config: pytest.Config) -> None:
    """Read them at once: the file may be the one that this run writes anew."""
    from testbed.pytest.manymachines import recorded

    session = recorded(config.invocation_params.dir / config.getoption("--testbed-durations"))
    config.stash[DURATIONS] = {test.id: test.elapsed_s for test in session.tests}
    config.stash[STACKS] = {test.id: test.last.content.get("stack") for test in session.tests}


def _varied(text: str) -> None:
    from testbed.spec.features import WORDS
    from testbed.spec.words import unknown

    word, equals, value = text.partition("=")
    if not equals or not value:
        raise UserError(f"--testbed-vary {shown(text)}: write WORD=VALUE, as in loss=3%")
    if word not in WORDS:
        raise UserError(f"--testbed-vary {shown(text)}: {unknown(word, WORDS)}")


def variation(config: pytest.Config) -> dict[str, str]:
    """What every impaired link is given instead of its marker's values, by word."""
    return dict(text.split("=", 1) for text in config.getoption("--testbed-vary"))


def check_options(config: pytest.Config) -> int:
    """The seed: as given, or drawn. Ends the session with every problem of the options' values.

    argparse would end it at the first, with pytest's usage and exit status 4.
    """
    if problems := option_problems(config):
        pytest.exit("\n".join(problems), returncode=WRONG_USE)
    return seed_of(config)


def option_problems(config: pytest.Config) -> list[str]:
    """Every problem of the options' values."""
    seed, deadline, metrics = map(config.getoption, ("--testbed-seed", "--up-deadline", "--testbed-metrics"))
    checks: list[tuple[Callable[..., object], object]] = [
        *((_image, image) for image in config.getoption("--testbed-image")),
        *((_varied, text) for text in config.getoption("--testbed-vary")),
        *([(_seed, seed)] if seed is not None else []),
        *([(_deadline, deadline)] if deadline != UP_DEADLINE else []),  # the defaults need no imports
        *([(metric_groups, metrics)] if metrics != _ALL_METRICS else []),
    ]
    checks += [(seeds_of, config)] if config.getoption("--testbed-seeds") is not None else []
    checks += [(shrink_tries, config)] if config.getoption("--testbed-shrink") is not None else []
    checks += [(most_replays, config)] if config.getoption("--testbed-replays") is not None else []
    checks += [(jobs_of, config)] if config.getoption("--testbed-jobs") is not None else []
    checks += [(_shard, config)] if config.getoption("--testbed-shard") is not None else []
    checks += [(_engines, config)] if config.getoption("--testbed-engines") is not None else []
    checks += [(_durations, config)] if config.getoption("--testbed-durations") is not None else []
    problems: list[str] = []
    for check, value in checks:
        try:
            check(value)
        except UserError as error:
            problems += error.problems
    return problems


def seed_of(config: pytest.Config) -> int:
    """The seed that is given, or one that is drawn."""
    if (seeds := seeds_of(config)) is not None:
        return seeds[0]
    seed = config.getoption("--testbed-seed")
    return int.from_bytes(os.urandom(4)) if seed is None else int(seed)


def has_stack(config: pytest.Config) -> bool:
    """Whether there is a Compose file. For a project without one no engine is looked for."""
    if config.getoption("--compose-file") or os.environ.get("COMPOSE_FILE"):
        return True
    return any(find_compose_file(folder) for folder in (config.invocation_params.dir, config.rootpath))


def chosen(config: pytest.Config) -> tuple[str, str]:
    """The kind of lab, and why; decided once."""
    from testbed.backends.choice import decide

    if CHOSEN not in config.stash:
        config.stash[CHOSEN] = decide(config.getoption("--lab"))
    return config.stash[CHOSEN]


def check_images(config: pytest.Config) -> None:
    """Note a problem if images are given to a lab that runs none."""
    if config.getoption("--testbed-image") and chosen(config)[0] == "local":
        config.stash[PROBLEMS].append(
            "--testbed-image: a local lab runs the images of its Compose file alone: --lab compose"
        )


def lab_of(config: pytest.Config, stack: StackOf = OWN) -> Lab:
    """The session's lab of a stack, which is up only once a test needs it."""
    labs = config.stash.setdefault(LABS, {})
    if stack not in labs:
        labs[stack] = new_lab(config, stack)
    return labs[stack]


def new_lab(config: pytest.Config, stack: StackOf) -> Lab:
    """A lab of a stack, not up yet."""
    from testbed.backends.choice import make_lab

    return make_lab(
        chosen(config)[0],
        stack.files or compose_files(config),
        netem=config.getoption("--netem"),
        compose_profiles=stack.profiles if stack.files else config.getoption("--compose-profile"),
        images=other_images(config),
        up_deadline=config.getoption("--up-deadline"),
        images_from=config.stash.get(IMAGES_FROM, ()),
        say=sayer(config),
        warn=lambda text: config.stash[WARNED].setdefault(text),
    )


def origins(config: pytest.Config) -> str:
    """Where the programs of each service are from; empty without a stack, or on an engine."""
    if not has_stack(config) or chosen(config)[0] != "local":
        return ""
    from testbed.backends.choice import origins_of

    return origins_of(lab_of(config))


def compose_files(config: pytest.Config) -> list[Path]:
    """The stack's Compose files; none where Compose finds them by itself."""
    files = [config.invocation_params.dir / file for file in config.getoption("--compose-file")]
    return files or [file for file in (_default_file(config),) if file is not None]


def other_images(config: pytest.Config) -> dict[str, str]:
    """The images that services run in place of the Compose file's, by service."""
    return dict(image.split("=", 1) for image in config.getoption("--testbed-image"))


def _default_file(config: pytest.Config) -> Path | None:
    """None where Compose finds a file by itself; else the one at pytest's root, for runs from a subfolder."""
    for folder in (config.invocation_params.dir, config.rootpath):
        if (path := find_compose_file(folder)) is not None:
            return None if folder == Path.cwd() else path
    return None


def sayer(config: pytest.Config) -> Callable[[str], None]:
    """A function that prints one line while tests run.

    What pytest prints in a worker of pytest-xdist goes nowhere; its standard error is the controller's.
    """
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    worker: str | None = getattr(config, "workerinput", {}).get("workerid")

    def say(text: str) -> None:
        capture = config.pluginmanager.get_plugin("capturemanager")
        if (terminal is None and worker is None) or capture is None or config.get_verbosity() < 0:
            return
        with capture.global_and_fixture_disabled():  # or the output of a fixture goes to the test's report
            if worker is not None:
                sys.stderr.write(f"testbed: {worker}: {text}\n")
                sys.stderr.flush()
            elif terminal is not None:
                terminal.ensure_newline()
                terminal.write_line(f"testbed: {text}")

    return say


def bring_up(config: pytest.Config, lab: Lab) -> bool:
    """Bring a lab up; if it does not start, keep why: it is reported once, not once per test."""
    try:
        with timed(config):
            lab.up()
            _let_watch(config, lab)
    except TestbedError as error:
        message = str(error)
        kind, why = chosen(config)
        if config.getoption("--lab") == "auto" and kind == "local":
            message += f"\n(the local lab was chosen because {why})"
        config.stash.setdefault(NOT_UP, {})[_stack_of(config, lab)] = message
        config.stash[UNFIT] = isinstance(error, UserError | EnvironmentUnfitError | ServiceFailedError)
        return False
    return True


def _let_watch(config: pytest.Config, lab: Lab) -> None:
    from testbed.pytest.watched import let_watch  # it brings what labs import

    let_watch(config, lab)


@contextmanager
def timed(config: pytest.Config) -> Iterator[None]:
    """Count the time of this block as that of stacks, and not of the test in which they come up or go down."""
    begin = time.monotonic()
    try:
        yield
    finally:
        config.stash[STACKS_S] = config.stash.get(STACKS_S, 0.0) + time.monotonic() - begin


def fail_if_not_up(config: pytest.Config, lab: Lab) -> None:
    """Fail a test, or a fixture, that needs a lab which did not start."""
    stack = _stack_of(config, lab)
    if (why := config.stash.get(NOT_UP, {}).get(stack)) is not None:
        which, first = f"the stack {stack.name}" if stack.name else "the stack", why.partition("\n")[0]
        pytest.fail(f"{which} is not up: {shortened(first)} (in full at the end)", pytrace=False)


def _stack_of(config: pytest.Config, lab: Lab) -> StackOf:
    return next((stack for stack, known in config.stash[LABS].items() if known is lab), OWN)


class Together:
    """Stacks that are up beside the one of a test."""

    def __init__(self, config: pytest.Config, undo: ExitStack) -> None:
        """``undo`` takes them down."""
        self._config, self._undo = config, undo
        self._up: dict[StackOf, Lab] = {}

    def up(self, *files: str | Path, profiles: Sequence[str] = ()) -> Lab:
        """The stack of these Compose files; up already if it was requested before. Raises UserError, LabError.

        Paths begin at pytest's root, or where pytest was started.
        """
        problems: list[str] = [] if files else ['name a Compose file, as in stacks("other/compose.yaml")']
        stack = named(files, profiles, base_folders(self._config), problems)
        if problems:
            raise UserError([f"stacks: {problem}" for problem in problems])
        if stack not in self._up:
            lab = new_lab(self._config, stack)
            lab.up()
            self._undo.callback(lab.down)
            _let_watch(self._config, lab)
            self._up[stack] = lab
        return self._up[stack]


def why_not_up(config: pytest.Config) -> str | None:
    """Why stacks did not start; None if all did that were to."""
    reasons = config.stash.get(NOT_UP, {})
    return "\n".join(f"stack {stack.name}: {why}" if stack.name else why for stack, why in reasons.items()) or None


def told_at_close(config: pytest.Config, text: str) -> None:
    """Print a line also with -q."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None:
        sys.stderr.write(f"{text}\n")
        return
    terminal.write_line("")
    terminal.write_line(text, red=True)
