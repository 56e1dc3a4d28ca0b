"""``--testbed-shard 3/8``: this session runs its part of the tests; other machines run the other parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from testbed.errors import InvalidValueError, UserError
from testbed.evidence import stored
from testbed.judge.division import Division, Shard, digest, divided, loads_ms
from testbed.pytest.markers import id_of
from testbed.pytest.share import group
from testbed.pytest.stacks import together, uses_stack
from testbed.pytest.state import DIVISION, DURATIONS
from testbed.pytest.workers import worker_of
from testbed.text import shown

_OUTPUT = "testbed_division"
_GROUPS = ("loadfile", "loadscope")


def check(config: pytest.Config) -> None:
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


def durations_of(path: Path) -> Mapping[str, float]:
    """How long each test of a results file took, in seconds. Raises InvalidValueError."""
    try:
        with path.open(encoding="utf-8") as lines:
            session = stored.read(lines, name=str(path))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidValueError(f"--testbed-durations={shown(str(path))}: cannot be read: {reason}") from None
    return {test.id: test.elapsed_s for test in session.tests}


def keep(config: pytest.Config, items: list[pytest.Item], collected: Sequence[pytest.Item]) -> None:
    """Deselect what other shards run. ``collected``: in the order of the files, whatever order other plugins prefer."""
    shard = Shard.parse(config.getoption("--testbed-shard"))
    left = set(items)
    whole = [item for item in collected if item in left]
    together(whole)
    dist = (worker_of(config) or {}).get("testbed_dist", config.getoption("dist", "no"))
    groups: dict[str, list[pytest.Item]] = {}
    for item in whole:
        groups.setdefault(group(item, dist if dist in _GROUPS else "loadgroup"), []).append(item)
    loads = loads_ms([(id_of(item), uses_stack(item)) for item in whole], config.stash.get(DURATIONS, {}))
    load_of = dict(zip(whole, loads if any(loads) else [1] * len(whole), strict=True))
    parts = divided([sum(load_of[item] for item in members) for members in groups.values()], shard.count)
    part_of = {item: part for members, part in zip(groups.values(), parts, strict=True) for item in members}
    config.stash[DIVISION] = Division(
        number=shard.number,
        count=shard.count,
        tests=len(whole),
        digest=digest((id_of(item), part_of[item]) for item in whole),
    )
    others = [item for item in items if part_of[item] != shard.number - 1]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if part_of[item] == shard.number - 1]


def tell_controller(config: pytest.Config) -> None:
    """At a worker's end, output which shard this was."""
    if worker_of(config) is not None and DIVISION in config.stash:
        config.workeroutput[_OUTPUT] = config.stash[DIVISION].as_json()  # type: ignore[attr-defined]  # xdist's


def hear(config: pytest.Config, division: Mapping[str, object] | None) -> None:
    """Take from a worker's output or report which shard this is."""
    if division is not None:
        config.stash[DIVISION] = Division(**division)  # type: ignore[arg-type]  # a worker's, which is this module


def hear_worker(config: pytest.Config, output: Mapping[str, Mapping[str, object]]) -> None:
    """Take from a worker's output which shard this is."""
    hear(config, output.get(_OUTPUT))


def may_be_empty(config: pytest.Config) -> bool:
    """Whether it is this shard that has no tests, and not the whole."""
    return DIVISION in config.stash and config.stash[DIVISION].tests > 0
