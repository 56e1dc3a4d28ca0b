"""What the command line asks of a link: a profile, words or steps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.errors import InvalidValueError, Problems
from testbed.lab.lab import Lab
from testbed.reading import yamltree
from testbed.spec.impairment import Impairment
from testbed.spec.links import LinkRef
from testbed.spec.timeline import Timeline
from testbed.text import shown

# Values may hold blanks, as in gemodel=1% 25%; what comes before the next word's = is no part of them.
_BEFORE_A_WORD = re.compile(r"\s+(?=\w+=)")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line asks of a link, as `Lab.impair` takes it."""

    link: str
    profile: Any
    words: Mapping[str, Any]
    wanted: Mapping[LinkRef, Impairment | Timeline]


def asked_of(lab: Lab, link: str, what: Sequence[str]) -> Asked:
    """Read a link, and the profile, words or steps for it. Raises InvalidValueError with every problem of both."""
    problems = Problems()
    profile: Any = None
    words: dict[str, str] = {}
    wanted: Mapping[LinkRef, Impairment | Timeline] = {}
    with problems.gathered():
        profile, words = _profile_or_words(what, problems)
    with problems.gathered():
        if profile is None and not words:
            lab.topology.links(link)
        else:
            wanted = lab.wanted(link, profile, words)
    problems.tell()
    return Asked(link=link, profile=profile, words=words, wanted=wanted)


def _profile_or_words(what: Sequence[str], problems: list[str]) -> tuple[Any, dict[str, str]]:
    """A profile's name or a list of steps, else words; of a word given twice the first. Raises InvalidValueError."""
    if len(what) == 1 and what[0].lstrip().startswith("["):
        try:
            return yamltree.read(what[0]).value, {}
        except InvalidValueError as error:
            raise InvalidValueError(f"{shown(what[0])}: {problem}" for problem in error.problems) from None
    words: dict[str, str] = {}
    names = [each for each in what if "=" not in each]
    for each in what:
        name, equals, value = each.partition("=")
        if equals and name in words:
            problems.append(f"{name} stands twice: {shown(words[name])} and {shown(value)}")
        elif equals:
            words[name] = value
    if len(names) > 1 or (names and words):
        raise InvalidValueError(f"{shown(' '.join(what))}: give one profile, or words such as delay=40ms, not both")
    return names[0] if names else None, words


def impaired_first(lab: Lab, impaired: Sequence[str], host: str) -> list[Asked]:
    """What each ``--impair`` asks. Raises InvalidValueError with every problem of all of them, and of the host."""
    problems = Problems()
    wanted: list[Asked] = []
    if host not in lab.topology.hosts:
        problems.append(f"host {shown(host)}: {lab.topology.unknown_host(host)}")
    said_by: dict[LinkRef, str] = {}
    for each in impaired:
        link, _, said = (part.strip() for part in each.partition("="))  # a link has no =
        if not link or not said:
            problems.append(
                f"--impair {shown(each)}: {'which link?' if not link else 'what is it impaired with?'} "
                f'Write "a -> b=lossy", or words: "a -> b=delay=5ms loss=1%"'
            )
            continue
        with problems.gathered():
            what = [said] if said.startswith("[") else _BEFORE_A_WORD.split(said)
            wanted.append(asked_of(lab, link, what))
            for ref in wanted[-1].wanted:
                if ref in said_by:
                    twice = f"by --impair {shown(said_by[ref])} and by --impair {shown(each)}"
                    problems.append(f"{ref} is impaired twice, {twice}; a link has one impairment")
                said_by[ref] = each
    problems.tell()
    return wanted
