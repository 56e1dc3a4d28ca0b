"""In which values two runs of a test differ. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_NOT_COMPARED = (
    "captures", "replay", "packets", "earlier_attempts", "replayed", "elapsed_s", "stacks_s", "engine", "given_back_by",
)  # fmt: skip
"""Of what the results say of a test: what tells of nothing that it did, what its set-up took, and what is compared by
itself."""

_ADDRESS = re.compile(r" at 0x[0-9a-f]+>")
"""Of an object of Python's, in its repr: where it lies in memory changes nothing, and depends on what is kept there."""


class Entry(NamedTuple):
    """A place in a list."""

    number: int
    """From 0."""
    of: int
    value: Any
    """The first run's."""


class Unequal(NamedTuple):
    """A place in the results, and its value in each run."""

    place: tuple[str | Entry, ...]
    one: Any
    other: Any


def compared(content: Mapping[str, Any]) -> dict[str, Any]:
    """What is compared of what the results say of a test."""
    return {key: value for key, value in content.items() if key not in _NOT_COMPARED}


def differences(one: Any, other: Any, place: tuple[str | Entry, ...] = ()) -> Iterator[Unequal]:
    """Each value in which two contents differ, in their order."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in dict.fromkeys((*one, *other)):
            yield from differences(one.get(key), other.get(key), (*place, str(key)))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (mine, its) in enumerate(zip(one, other, strict=True)):
            yield from differences(mine, its, (*place, Entry(number, len(one), mine)))
    elif one != other and _without_addresses(one) != _without_addresses(other):
        yield Unequal(place, one, other)


def _without_addresses(value: Any) -> Any:
    return _ADDRESS.sub(">", value) if isinstance(value, str) else value
