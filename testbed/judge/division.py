"""Divide the tests of a session among machines, by recorded durations. Pure: the same inputs give the same division."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from testbed.errors import InvalidValueError
from testbed.text import shown

_SHARD = re.compile(r"([1-9]\d{0,5})/([1-9]\d{0,5})")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One of several parts of a session, each of which runs on a machine of its own."""

    number: int
    """From 1."""
    count: int
    """Number of parts."""

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``3/8``. Raises InvalidValueError."""
        match = _SHARD.fullmatch(text)
        if match is None or int(match[1]) > int(match[2]):
            raise InvalidValueError(
                f"--testbed-shard={shown(text)}: write NUMBER/COUNT, as in 3/8, with a number from 1 to the count"
            )
        return cls(number=int(match[1]), count=int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


@dataclass(frozen=True, kw_only=True)
class Division:
    """Which shard a session was, of which division: what its results say, so that they can be merged."""

    number: int
    count: int
    tests: int
    """Number of tests of all shards."""
    digest: str
    """Of all tests, each with its shard."""

    @property
    def shard(self) -> Shard:
        """Which one."""
        return Shard(number=self.number, count=self.count)

    def as_json(self) -> dict[str, Any]:
        """As the head of a results file has it."""
        return asdict(self)


def divided(loads: Sequence[int], count: int) -> list[int]:
    """The part, from 0, of each of these loads: neighbours stay together, and the order stays.

    No part is more than the mean of all parts and the largest load. Loads of 0 alone count as equal ones.
    """
    loads = loads if any(loads) else [1] * len(loads)
    total, before, parts = sum(loads), 0, []
    for load in loads:
        parts.append((2 * before + load) * count // (2 * total))  # where the middle of the load lies
        before += load
    return [min(part, count - 1) for part in parts]


def loads_ms(tests: Iterable[tuple[str, bool]], durations_s: Mapping[str, float]) -> list[int]:
    """The expected work of each test, by its id and whether it needs a lab; whole milliseconds, which add up exactly.

    A test without a record counts as the mean of those with one, or as nothing if it needs no lab: results hold tests
    with a lab alone.
    """
    tests = list(tests)
    known = [durations_s[id_] for id_, _ in tests if id_ in durations_s]
    mean = sum(known) / len(known) if known else 0.0
    return [round(1000 * durations_s.get(id_, mean if needs_lab else 0.0)) for id_, needs_lab in tests]


def digest(parts: Iterable[tuple[str, int]]) -> str:
    """What stands for a division: the ids of all tests in order, each with its part."""
    return hashlib.sha256("".join(f"{part} {id_}\n" for id_, part in parts).encode(errors="replace")).hexdigest()[:16]


def longest_first(
    tests: Sequence[str], durations_s: Mapping[str, float], stacks: Mapping[str, str | None]
) -> list[int]:
    """The places of tests in the order in which they are to begin: stack by stack, so that each comes up once.

    The stack with the most work is first, and in it the longest test; a test without a record counts as the mean.
    Without records, the order stays.
    """
    loads = loads_ms([(test, True) for test in tests], durations_s)
    work: dict[str | None, int] = {}
    for test, load in zip(tests, loads, strict=True):
        work[stacks.get(test)] = work.get(stacks.get(test), 0) + load
    places = {stack: place for place, stack in enumerate(sorted(work, key=lambda stack: -work[stack]))}
    return sorted(range(len(tests)), key=lambda index: (places[stacks.get(tests[index])], -loads[index]))
