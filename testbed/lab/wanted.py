"""The impairment of each link that a marker, a call or a command line asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed import units
from testbed.errors import InvalidValueError, Problems
from testbed.lab import beyond
from testbed.lab.backend import Backend
from testbed.netem.profiles import checked_half, checked_side, find_profile, find_table, read_trace
from testbed.spec.bottleneck import Bottleneck
from testbed.spec.impairment import Impairment
from testbed.spec.links import LinkRef, PortRef
from testbed.spec.profile import Profile
from testbed.spec.steps import ReadTrace
from testbed.spec.timeline import Timeline
from testbed.text import shown


class InvalidWantError(InvalidValueError):
    """An invalid link, or an invalid impairment for it."""

    def __init__(self, of_link: Sequence[str], of_impairment: Sequence[str]) -> None:
        self.of_link, self.of_impairment = of_link, of_impairment
        super().__init__((*of_link, *of_impairment))


Shared = tuple[tuple[LinkRef, ...], Bottleneck]
"""A bottleneck, and the links that share it at each port at which they end."""


@dataclass(frozen=True, kw_only=True)
class LinksWanted:
    """What a marker, a call or a command line asks of links."""

    links: Mapping[LinkRef, Impairment | Timeline]
    """The impairment of each."""
    shapes: Sequence[Shared] = ()


def impairments_of(
    backend: Backend,
    text: str,
    profile: str | Profile | Sequence[object] | None,
    words: Mapping[str, object],
) -> LinksWanted:
    """The impairment of each link that a marker, a call or a command line asks for, and what they share.

    Raises InvalidWantError with every problem of the link, the profile, the words and their tables at once.
    """
    of_link: Sequence[str] = ()
    problems: list[str] = []
    forward: tuple[LinkRef, ...] = ()
    reverse: tuple[LinkRef, ...] = ()
    chosen: Profile | None = None
    try:
        forward, reverse = backend.topology.directions(text)
    except InvalidValueError as error:
        of_link = error.problems
    try:
        if profile is not None and words:
            problems.append(f"{shown(text)}: give a profile or words such as delay=, not both")
        elif isinstance(profile, Profile):
            chosen = profile
        elif isinstance(profile, list | tuple) and any(isinstance(step, Mapping) for step in profile):
            chosen = _both_ways(backend, profile)
        elif profile is not None:
            chosen = find_profile(backend.profiles, profile)
        elif not words:
            problems.append(
                f'{shown(text)}: what is it impaired with? Give a profile\'s name or words such as delay="40ms"'
            )
        else:
            chosen = _both_ways(backend, words)
        for half in (chosen.forward, chosen.reverse) if chosen is not None else ():
            problems += _missing_tables(half, backend.tables)
    except InvalidValueError as error:
        problems += error.problems
    halves = [] if chosen is None else [(forward, chosen.forward_shape), (reverse, chosen.reverse_shape)]
    shapes = [(refs, shape) for refs, shape in halves if refs and shape is not None]
    problems += [problem for refs, _ in shapes for problem in _unshapable(refs)]
    if of_link or problems or chosen is None:
        raise InvalidWantError(of_link, tuple(dict.fromkeys(problems)))
    links = {**dict.fromkeys(forward, chosen.forward), **dict.fromkeys(reverse, chosen.reverse)}
    return LinksWanted(links=links, shapes=shapes)


def _both_ways(backend: Backend, written: object) -> Profile:
    side, shape = checked_half(written, _reader(backend))
    return Profile(name="", forward=side, reverse=side, forward_shape=shape, reverse_shape=shape)


def bottleneck_of(backend: Backend, text: str, words: Mapping[str, object]) -> Shared:
    """The links and the bottleneck that a marker or a call asks for. Raises InvalidValueError with every problem."""
    problems = Problems()
    with problems.gathered():
        refs = backend.topology.links(text)
        problems += _unshapable(refs)
    with problems.gathered():
        bottleneck = Bottleneck.parse(words)
    problems.tell()
    return refs, bottleneck


def _unshapable(refs: Sequence[LinkRef]) -> list[str]:
    """Why these links cannot share a bottleneck, if they cannot."""
    return [
        f"{ref}: a bottleneck is shared by hosts of the stack, at the port toward another; an end beyond them has a "
        f"rate of its own: lab.impair"
        for ref in refs
        if ref.beyond
    ][:1]


def varied(
    impairments: Mapping[LinkRef, Impairment | Timeline], words: Mapping[str, str]
) -> dict[LinkRef, Impairment | Timeline]:
    """The impairments with other values of some words. Raises InvalidValueError if that is not possible."""
    if not words:
        return dict(impairments)
    problems: list[str] = []
    changed: dict[LinkRef, Impairment | Timeline] = {}
    for ref, impairment in impairments.items():
        if isinstance(impairment, Timeline):
            problems.append(f"changes over time, so that {', '.join(words)} cannot be varied; write it in words")
            continue
        try:
            changed[ref] = Impairment.parse({**impairment.words(), **words})
        except InvalidValueError as error:
            problems += error.problems
    if problems:
        values = " ".join(f"{word}={value}" for word, value in words.items())
        raise InvalidValueError(f"with {values}: {problem}" for problem in dict.fromkeys(problems))
    return changed


def side(backend: Backend, words: object) -> Impairment | Timeline:
    """The impairment that words or a list of steps describe. Raises InvalidValueError with every problem."""
    return checked_side(words, _reader(backend))


def _reader(backend: Backend) -> ReadTrace:
    folders = [] if backend.netem_folder is None else [backend.netem_folder]
    return lambda name: read_trace(name, *folders)


def notes(impairments: Mapping[LinkRef, Impairment | Timeline], *, machine_is_ours: bool) -> list[str]:
    """What to know of links that are impaired, a line each."""
    of_links = (
        note
        for ref in impairments
        for note in (beyond.of_names(ref), beyond.of_another_machine(ref, machine_is_ours=machine_is_ours))
    )
    return [*separate_rates(impairments), *filter(None, of_links)]


def separate_rates(impairments: Mapping[LinkRef, Impairment | Timeline]) -> list[str]:
    """One line per receiver to which several senders have a rate: what they may send together."""
    rates: dict[PortRef, dict[str, float]] = {}
    for ref, impairment in impairments.items():
        if isinstance(impairment, Impairment) and impairment.rate_bps is not None:
            rates.setdefault(ref.receivers_port, {})[ref.src] = impairment.rate_bps
    return [
        f"{len(of_senders)} senders do not share a rate, each has its own: up to "
        f"{units.format_rate(sum(of_senders.values()))} together reach `{port.host}` on `{port.network}`"
        for port, of_senders in rates.items()
        if len(of_senders) > 1
    ]


def profile_name(profile: object) -> str:
    """The name of the profile that a marker or a call gives; empty if it gives words or steps."""
    return profile.name if isinstance(profile, Profile) else profile if isinstance(profile, str) else ""


def _missing_tables(half: Impairment | Timeline, tables: Mapping[str, Path]) -> list[str]:
    problems: list[str] = []
    for name in half.own_tables:
        try:
            find_table(tables, name)
        except InvalidValueError as error:
            problems += error.problems
    return problems
