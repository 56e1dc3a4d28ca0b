"""What a session of tests has: its lab, its seed, the profiles; and the options."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from testbed.labs.options import LAB_CHOICES, NETEM_CHOICES, find_compose_file
from testbed.text import shown

if TYPE_CHECKING:
    from testbed.labs.lab import Lab

WRONG_USE = 2
"""The exit status where the machine, the Compose file or the markers are at fault, and no test."""

_DEFAULT_RESULTS = Path("report", "results.json")
_LATENESS_CHOICES = ("invalid", "warn")
_CAPTURE_CHOICES = ("on-failure", "always", "never")
KEPT_OPTIONS = (
    ("--testbed-lateness", _LATENESS_CHOICES[0]), ("--testbed-capture", _CAPTURE_CHOICES[0]),
    ("--testbed-results", str(_DEFAULT_RESULTS)),
)  # fmt: skip
"""Options that change no network, and what they are by themselves."""


LAB: pytest.StashKey[Lab] = pytest.StashKey()
CHOSEN: pytest.StashKey[tuple[str, str]] = pytest.StashKey()
UNFIT: pytest.StashKey[str] = pytest.StashKey()
PROBLEMS: pytest.StashKey[list[str]] = pytest.StashKey()
SEED: pytest.StashKey[int] = pytest.StashKey()


def _seed(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shown(text)}: not a whole number") from None


def add_options(parser: pytest.Parser) -> None:
    """Declare the options."""
    group = parser.getgroup("testbed", "network regression testing")
    group.addoption(
        "--compose-file", metavar="FILE", help="the stack under test (default: as Compose finds it: compose.yaml, …)"
    )
    group.addoption(
        "--compose-profile", metavar="NAME", action="append", default=[], help="activate a Compose profile; repeatable"
    )
    group.addoption(
        "--lab", choices=LAB_CHOICES, default="auto",
        help="where the stack runs: containers of an engine (compose), namespaces of this machine (local), or compose "
        "where an engine answers and local elsewhere (default: auto)",
    )  # fmt: skip
    group.addoption(
        "--netem", choices=NETEM_CHOICES, default="auto",
        help="who executes netem: this kernel, a kernel that testbed brings, or whichever is there (default: auto)",
    )  # fmt: skip

    group.addoption(
        "--testbed-seed", metavar="N", type=_seed,
        help="derive the seeds of random impairments from N and each test's id (default: drawn, and printed)",
    )  # fmt: skip
    group.addoption(
        "--testbed-lateness", choices=_LATENESS_CHOICES, default=_LATENESS_CHOICES[0],
        help="what a test is whose carried kernel was late beyond the tolerance, but never stood still for a second: "
        "INVALID, or one with a warning, for machines that are always busy (default: %(default)s)",
    )  # fmt: skip
    group.addoption(
        "--testbed-capture", choices=_CAPTURE_CHOICES, default=_CAPTURE_CHOICES[0],
        help="keep the packets at each impaired port as pcapng files in report/captures/ (default: of failed tests)",
    )  # fmt: skip
    group.addoption(
        "--testbed-results", metavar="FILE", default=str(_DEFAULT_RESULTS),
        help="where the results of tests with a lab are written, as JSON (default: %(default)s)",
    )  # fmt: skip


def has_stack(config: pytest.Config) -> bool:
    """Whether there is a Compose file. A project without one is none of ours: no engine is asked for its sake."""
    if config.getoption("--compose-file") or os.environ.get("COMPOSE_FILE"):
        return True
    return any(find_compose_file(folder) for folder in (config.invocation_params.dir, config.rootpath))


def chosen(config: pytest.Config) -> tuple[str, str]:
    """The kind of lab, and why; settled once."""
    from testbed.labs.choice import decide

    if CHOSEN not in config.stash:
        config.stash[CHOSEN] = decide(config.getoption("--lab"))
    return config.stash[CHOSEN]


def lab_of(config: pytest.Config) -> Lab:
    """The session's lab: known from the start, up only when a test needs it."""
    from testbed.labs.choice import make_lab

    if LAB not in config.stash:
        file = config.getoption("--compose-file")
        config.stash[LAB] = make_lab(
            chosen(config)[0],
            (config.invocation_params.dir / file) if file else _default_file(config),
            netem=config.getoption("--netem"),
            compose_profiles=config.getoption("--compose-profile"),
            say=sayer(config),
        )
    return config.stash[LAB]


def _default_file(config: pytest.Config) -> Path | None:
    """None where Compose finds a file by itself; else the one at pytest's root, for runs from a subfolder."""
    for folder in (config.invocation_params.dir, config.rootpath):
        if (found := find_compose_file(folder)) is not None:
            return None if folder == Path.cwd() else found
    return None


def sayer(config: pytest.Config) -> Callable[[str], None]:
    """What prints one line for the user while tests run."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")

    def say(text: str) -> None:
        capture = config.pluginmanager.get_plugin("capturemanager")
        if terminal is None or capture is None or config.get_verbosity() < 0:
            return
        with capture.global_and_fixture_disabled():  # what a fixture prints goes to the test's report otherwise
            terminal.ensure_newline()
            terminal.write_line(f"testbed: {text}")

    return say
