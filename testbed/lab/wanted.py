"""What a marker, a call or a command line asks of each link."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from testbed.errors import InvalidValueError
from testbed.netem.profiles import checked_side, find_profile, find_table
from testbed.spec.impairment import Impairment
from testbed.spec.links import LinkRef
from testbed.spec.profile import Profile
from testbed.spec.timeline import Timeline
from testbed.spec.topology import Topology
from testbed.text import shown


class InvalidWantError(InvalidValueError):
    """A link, or what it is to be impaired with, that cannot be."""

    def __init__(self, of_link: Sequence[str], of_impairment: Sequence[str]) -> None:
        self.of_link, self.of_impairment = of_link, of_impairment
        super().__init__((*of_link, *of_impairment))


def impairments_of(
    topology: Topology,
    profiles: Mapping[str, Profile],
    text: str,
    profile: str | Profile | Sequence[object] | None,
    words: Mapping[str, object],
    *,
    tables: Mapping[str, Path],
    side: Callable[[object], Impairment | Timeline] = checked_side,
) -> dict[LinkRef, Impairment | Timeline]:
    """What the words of a marker, a call or a command line ask of each link; ``side`` reads the words.

    Raises InvalidWantError with every problem of the link, the profile, the words and their tables at once.
    """
    of_link: Sequence[str] = ()
    problems: list[str] = []
    forward: tuple[LinkRef, ...] = ()
    reverse: tuple[LinkRef, ...] = ()
    chosen: Profile | None = None
    try:
        forward, reverse = topology.directions(text)
    except InvalidValueError as error:
        of_link = error.problems
    try:
        if profile is not None and words:
            problems.append(f"{shown(text)}: give a profile or words such as delay=, not both")
        elif isinstance(profile, Profile):
            chosen = profile
        elif isinstance(profile, list | tuple) and any(isinstance(step, Mapping) for step in profile):
            both = side(profile)
            chosen = Profile(name="", forward=both, reverse=both)
        elif profile is not None:
            chosen = find_profile(profiles, profile)
        elif not words:
            problems.append(
                f'{shown(text)}: what is it impaired with? Give a profile\'s name or words such as delay="40ms"'
            )
        else:
            same = side(words)
            chosen = Profile(name="", forward=same, reverse=same)
        for half in (chosen.forward, chosen.reverse) if chosen is not None else ():
            problems += _missing_tables(half, tables)
    except InvalidValueError as error:
        problems += error.problems
    if of_link or problems or chosen is None:
        raise InvalidWantError(of_link, tuple(dict.fromkeys(problems)))
    return {**dict.fromkeys(forward, chosen.forward), **dict.fromkeys(reverse, chosen.reverse)}


def profile_name(said: object) -> str:
    """Of what a marker or a call gives for a profile, its name; empty if it is words or steps."""
    return said.name if isinstance(said, Profile) else said if isinstance(said, str) else ""


def _missing_tables(half: Impairment | Timeline, tables: Mapping[str, Path]) -> list[str]:
    problems: list[str] = []
    for name in half.own_tables:
        try:
            find_table(tables, name)
        except InvalidValueError as error:
            problems += error.problems
    return problems
