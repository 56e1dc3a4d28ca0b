"""What the options for several machines say: shards, recorded durations, engines. They know no session."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from testbed.errors import InvalidValueError, UserError
from testbed.evidence.stored import Session
from testbed.judge.division import Shard
from testbed.reading import UnreadableError, read_text
from testbed.text import shown


def check_shard(config: pytest.Config) -> None:
    """Raise UserError with every problem of the shard's option."""
    text: str = config.getoption("--testbed-shard")
    problems: list[str] = []
    try:
        Shard.parse(text)
    except UserError as error:
        problems += error.problems
    if config.getoption("--testbed-seed") is None and config.getoption("--testbed-seeds") is None:
        problems.append(
            f"--testbed-shard={shown(text)}: without --testbed-seed N each shard draws its own losses, and their "
            f"results cannot be merged; give all of them one number, such as that of the CI's run"
        )
    if problems:
        raise InvalidValueError(problems)


def recorded(path: Path) -> Session:
    """An earlier run, whose tests tell how long they took. Raises InvalidValueError."""
    from testbed.report.files import load

    try:
        return load(path)
    except InvalidValueError as error:
        reason = error.reason if isinstance(error, UnreadableError) else error
        raise InvalidValueError(f"--testbed-durations={shown(str(path))}: {reason}") from None


def engines(text: str, folder: Path) -> dict[str, dict[str, str]]:
    """The engines, by name, and the variables that lead the engine's client to each.

    ``text``: URLs and Docker contexts, separated by commas, or the path of a file with one a line. Raises UserError.
    """
    where = f"--testbed-engines={shown(text)}"
    words = text.split(",")
    try:
        if (path := folder / text).is_file():
            words = [line.partition("#")[0] for line in read_text(path).splitlines()]
            words = [word for word in words if word.strip()]
    except UnreadableError as error:
        raise UserError(f"{where}: {error.reason}") from None
    except (OSError, ValueError):  # too long for a path, or none
        words = text.split(",")
    names = [word.strip() for word in words]
    problems = []
    if not all(names) or not names:
        problems.append(f"{where}: name engines, as in unix:///run/docker.sock,ssh://me@b,a-docker-context")
    problems += [f"{where}: {shown(name)} twice" for name, times in Counter(names).items() if name and times > 1]
    if problems:
        raise UserError(problems)
    return {name: {"DOCKER_HOST" if "://" in name else "DOCKER_CONTEXT": name} for name in names}


def check_engines(config: pytest.Config) -> None:
    """Raise UserError with every problem of the engines' option, but for engines that do not answer."""
    problems: list[str] = []
    text: str = config.getoption("--testbed-engines")
    where = f"--testbed-engines={shown(text)}"
    try:
        engines(text, config.invocation_params.dir)
    except UserError as error:
        problems += error.problems
    swarm = config.getoption("--lab") == "swarm"
    if not swarm and not getattr(config.option, "numprocesses", None):
        problems.append(f"{where}: each worker of pytest-xdist has its lab on one of them; add -n NUMBER")
    elif not swarm and (dist := config.getoption("dist", "no")) not in ("no", "load"):
        problems.append(f"{where} with --dist {dist}: tests go to whichever engine is free; leave --dist out")
    if config.getoption("--lab") == "local":
        problems.append(f"{where} with --lab local: a local lab needs no engine; leave one of them out")
    if config.getoption("--virtual-time"):
        problems.append(f"{where} with --virtual-time: that runs the local lab alone; leave one of them out")
    if problems:
        raise InvalidValueError(problems)
