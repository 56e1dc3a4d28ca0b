"""Whether a test that was run again is the same as the recorded one, and where the two part. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from testbed.evidence.stored import StoredAttempt, StoredTest
from testbed.evidence.trail import Passed, PortParting, partings
from testbed.judge.differing import Entry, compared, differences
from testbed.text import shown

_CHARACTERS = 100


@dataclass(frozen=True, kw_only=True)
class Sameness:
    """A recorded test, and what it was when it was run again."""

    test: str
    packets: int
    """How many were compared, at all ports."""
    ports: int
    parted: tuple[PortParting, ...] = ()
    """The ports whose packets differ, the earliest first."""
    attempt: int = 0
    """In which of the test's attempts the first of them does, from 0."""
    differing: tuple[str, ...] = ()
    """What else differs: counters, journals, metrics, the outcome."""
    missing: str = ""
    """Why it could not be compared."""

    @property
    def same(self) -> bool:
        """Whether everything is identical."""
        return not (self.parted or self.differing or self.missing)


def compare(recorded: StoredTest, replayed: StoredTest | None) -> Sameness:
    """A recorded test and the one that was run again; None if it was not run."""
    if replayed is None:
        return Sameness(test=recorded.id, packets=0, ports=0, missing="the replay did not come to it")
    if len(recorded.attempts) != len(replayed.attempts):
        numbers = f"recorded with {len(recorded.attempts)} attempts, and replayed with {len(replayed.attempts)}"
        return Sameness(test=recorded.id, packets=0, ports=0, differing=(numbers,))
    parted: list[PortParting] = []
    differing: list[str] = []
    packets = ports = attempt = 0
    for number, (one, other) in enumerate(zip(recorded.attempts, replayed.attempts, strict=True)):
        ours, theirs = _passed(one), _passed(other)
        if ours is not None and theirs is not None:
            attempt = attempt if parted else number
            parted += partings(ours, theirs)
            packets += sum(trail.packets for trail in ours.ports.values())
            ports = max(ports, len(ours.ports))
        elif ours is not theirs:
            differing.append(f"packets were {'recorded' if ours is not None else 'replayed'} only")
        differing += _differing(one, other)
    return Sameness(
        test=recorded.id,
        packets=packets,
        ports=ports,
        parted=tuple(parted),
        attempt=attempt,
        differing=tuple(differing),
    )


def _passed(attempt: StoredAttempt) -> Passed | None:
    content = attempt.content.get("packets")
    return None if content is None else Passed.read(content)


def _differing(one: StoredAttempt, other: StoredAttempt) -> Iterator[str]:
    """Each value in which two attempts differ, with its place in them."""
    for difference in differences(compared(one.content), compared(other.content)):
        where = "".join(f".{step}" if isinstance(step, str) else f"[{_name(step)}]" for step in difference.place)
        yield f"{where.removeprefix('.')}: {_values(difference.one, difference.other)}"


def _name(entry: Entry) -> str:
    """What people call an entry of a list."""
    value = entry.value
    names = [value.get(key) for key in ("name", "link", "host", "field")] if isinstance(value, Mapping) else []
    return next((str(name) for name in names if name), str(entry.number))


def _values(one: object, other: object) -> str:
    """Both values; of long texts, the first line that differs."""
    if isinstance(one, str) and isinstance(other, str):
        mine, its = one.splitlines(), other.splitlines()
        line = next((number for number, pair in enumerate(zip(mine, its, strict=False)) if pair[0] != pair[1]), None)
        if line is not None and max(len(mine), len(its)) > 1:
            return (
                f"line {line + 1}: recorded {shown(mine[line], _CHARACTERS)}, replayed {shown(its[line], _CHARACTERS)}"
            )
    return f"recorded {shown(one, _CHARACTERS)}, replayed {shown(other, _CHARACTERS)}"
