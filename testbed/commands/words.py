"""The impairment of a link on the command line: a profile, words or steps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.backends.docker.lab import ComposeLab
from testbed.errors import InvalidValueError, Problems
from testbed.lab.lab import Lab
from testbed.lab.ledger import Applied
from testbed.lab.wanted import LinksWanted, impairments_of
from testbed.reading import yamltree
from testbed.spec.impairment import Impairment
from testbed.spec.links import LinkRef
from testbed.spec.timeline import Timeline
from testbed.spec.words import SHAPE_WORD
from testbed.text import shown

_BEFORE_A_WORD = re.compile(r"\s+(?=\w+=)")
"""Values may hold blanks, as in ``gemodel=1% 25%``."""


@dataclass(frozen=True, kw_only=True)
class LinkRequest:
    """An impairment of a link, as `Lab.impair` takes it."""

    link: str
    profile: Any
    words: Mapping[str, Any]
    wanted: Mapping[LinkRef, Impairment | Timeline]
    shared: tuple[LinkRef, ...] = ()
    """The links that share a bottleneck of its profile."""

    def impair(self, lab: Lab) -> Sequence[Applied]:
        """Impair the link; the changes. Raises InvalidValueError for a bottleneck that no other command could heal."""
        if self.shared and isinstance(lab, ComposeLab) and lab.stack.outlives_us:
            raise InvalidValueError(
                f"{shown(self.link)}: {SHAPE_WORD}: a bottleneck is not kept for the next command: use it in a test, "
                f"or without a stack of `testbed up`, as in testbed exec --impair"
            )
        return lab.impair(self.link, self.profile, **self.words)


def link_request(lab: Lab, link: str, arguments: Sequence[str]) -> LinkRequest:
    """Read a link, and its profile, words or steps. Raises InvalidValueError with every problem of both."""
    problems = Problems()
    profile: Any = None
    words: dict[str, str] = {}
    asks = LinksWanted(links={})
    with problems.gathered():
        profile, words = _profile_or_words(arguments, problems)
    with problems.gathered():
        if profile is None and not words:
            lab.topology.links(link)
        else:
            asks = impairments_of(lab, link, profile, words)
    problems.tell()
    shared = tuple(ref for refs, _ in asks.shapes for ref in refs)
    return LinkRequest(link=link, profile=profile, words=words, wanted=asks.links, shared=shared)


def _profile_or_words(arguments: Sequence[str], problems: list[str]) -> tuple[Any, dict[str, str]]:
    """A profile's name or a list of steps, else words; of a word given twice the first. Raises InvalidValueError."""
    if len(arguments) == 1 and arguments[0].lstrip().startswith("["):
        try:
            return yamltree.read(arguments[0]).value, {}
        except InvalidValueError as error:
            raise InvalidValueError(f"{shown(arguments[0])}: {problem}" for problem in error.problems) from None
    words: dict[str, str] = {}
    names = [argument for argument in arguments if "=" not in argument]
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if equals and name in words:
            problems.append(f"{name} stands twice: {shown(words[name])} and {shown(value)}")
        elif equals:
            words[name] = value
    if len(names) > 1 or (names and words):
        text = shown(" ".join(arguments))
        raise InvalidValueError(f"{text}: give one profile, or words such as delay=40ms, not both")
    return names[0] if names else None, words


def link_requests(lab: Lab, options: Sequence[str], host: str) -> list[LinkRequest]:
    """Read all ``--impair`` options. Raises InvalidValueError with every problem of all of them, and of the host."""
    problems = Problems()
    requests: list[LinkRequest] = []
    if host not in lab.topology.hosts:
        problems.append(f"host {shown(host)}: {lab.topology.unknown_host(host)}")
    option_of: dict[LinkRef, str] = {}
    for option in options:
        link, _, impairment = (part.strip() for part in option.partition("="))  # a link has no =
        if not link or not impairment:
            problems.append(
                f"--impair {shown(option)}: {'which link?' if not link else 'what is it impaired with?'} "
                f'Write "a -> b=lossy", or words: "a -> b=delay=5ms loss=1%"'
            )
            continue
        with problems.gathered():
            arguments = [impairment] if impairment.startswith("[") else _BEFORE_A_WORD.split(impairment)
            requests.append(link_request(lab, link, arguments))
            for ref in requests[-1].wanted:
                if ref in option_of:
                    both = f"by --impair {shown(option_of[ref])} and by --impair {shown(option)}"
                    problems.append(f"{ref} is impaired twice, {both}; a link has one impairment")
                option_of[ref] = option
    problems.tell()
    return requests
