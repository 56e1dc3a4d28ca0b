"""``--testbed-shard 3/8``: this session runs its part of the tests; other machines run the other parts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from testbed.judge.division import Division, Shard, digest, divided, loads_ms
from testbed.pytest.markers import id_of
from testbed.pytest.share import group
from testbed.pytest.stacks import together, uses_stack
from testbed.pytest.state import DIVISION, DURATIONS
from testbed.pytest.workers import worker_of

_GROUPS = ("loadfile", "loadscope")


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


def may_be_empty(config: pytest.Config) -> bool:
    """Whether it is this shard that has no tests, and not the whole."""
    return DIVISION in config.stash and config.stash[DIVISION].tests > 0
