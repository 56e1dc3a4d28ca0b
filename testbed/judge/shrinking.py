"""Make a failure smaller while it still fails: fewer lost packets, shorter timelines, fewer words, less work.

Random losses are first replaced by the packets that were lost, by their numbers. Those are then minimised by delta
debugging (Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002). Pure: the caller runs the
test, and says of each `Scenario` whether it fails in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple, TypeVar

from testbed.errors import InvalidValueError
from testbed.spec.features import FEATURES
from testbed.spec.impairment import LOSS_MODELS, Impairment
from testbed.spec.links import LinkRef
from testbed.spec.timeline import Phase, Timeline
from testbed.spec.words import ranges

T = TypeVar("T", bound=Hashable)

_WITH_LOSS = {*LOSS_MODELS, "burst", "ecn", "drop_every", "duplicate"}
"""What the numbers of lost packets stand for; no duplicates beside them, which would be counted, too."""
_PLACES = 8
"""Of the first loss that are tried with less work."""
_DEFAULTS = {feature.field: getattr(Impairment(), feature.field) for feature in FEATURES}


class Put(NamedTuple):
    """One of the impairments that a test puts on a link."""

    link: LinkRef
    number: int
    """From 0, in the order in which the test puts them on this link."""


@dataclass(frozen=True)
class Scenario:
    """What a test is run under."""

    puts: Mapping[Put, Impairment | Timeline]
    work: Mapping[str, int]
    """How much work the test does, by its own names: see the fixture `at_most`."""

    @property
    def key(self) -> Hashable:
        """Equal scenarios have equal keys."""
        return frozenset(self.puts.items()), frozenset(self.work.items())

    @property
    def dropped(self) -> list[tuple[Put, int]]:
        """Each packet that is lost by its number."""
        return [
            (put, number)
            for put, wanted in self.puts.items()
            if isinstance(wanted, Impairment)
            for first, last in wanted.drop_packets
            for number in range(first, last + 1)
        ]

    def putting(self, put: Put, wanted: Impairment | Timeline) -> Scenario:
        """With another impairment in one place."""
        return Scenario({**self.puts, put: wanted}, self.work)

    def dropping(self, chosen: Sequence[tuple[Put, int]]) -> Scenario:
        """With these packets lost by number, and no others."""
        numbers: dict[Put, list[int]] = {put: [] for put in self.puts}
        for put, number in chosen:
            numbers[put].append(number)
        puts = {
            put: replace(wanted, drop_packets=ranges(numbers[put])) if isinstance(wanted, Impairment) else wanted
            for put, wanted in self.puts.items()
        }
        return Scenario(puts, self.work)


class SpentError(Exception):
    """The most tries were made."""


class Shrinking:
    """One failure, made smaller. `best` is the smallest scenario so far that fails; at first the one that was found."""

    def __init__(self, whole: Scenario, fails: Callable[[Scenario], bool], *, most_tries: int) -> None:
        self.best = whole
        self.tries = 0
        self.complete = False
        """Whether nothing that is tried makes it smaller still; else the tries ended first."""
        self._fails = fails
        self._most = most_tries
        self._tried: set[Hashable] = {whole.key}

    def run(self, lost: Mapping[LinkRef, Sequence[int]]) -> None:
        """Until nothing makes it smaller, or the most tries are made. ``lost``: by the links of the scenario found."""
        try:
            self._number(lost)
            size = None
            while size != (size := self.best.key):
                self._drop_less()
                self._work_less()
                self._shorten()
                self._leave_out()
            self.complete = True
        except SpentError:
            return

    def _try(self, scenario: Scenario) -> bool:
        """Whether it fails too; then it is the best."""
        if scenario.key in self._tried:
            return False
        if self.tries >= self._most:
            raise SpentError
        self._tried.add(scenario.key)
        self.tries += 1
        if fails := self._fails(scenario):
            self.best = scenario
        return fails

    def _number(self, lost: Mapping[LinkRef, Sequence[int]]) -> None:
        """Lose the same packets by their numbers: of all links at once, or else of each for which that fails too.

        Of a link that is impaired several times in a test, the numbers of its packets are not those of one impairment.
        """
        several = {put.link for put in self.best.puts if put.number}
        chosen = {
            put: by_number
            for put, wanted in self.best.puts.items()
            if put.link in lost
            and put.link not in several
            and (by_number := numbered(wanted, lost[put.link])) not in (None, wanted)
        }
        if not chosen or self._try(Scenario({**self.best.puts, **chosen}, self.best.work)):
            return
        for put, by_number in chosen.items():
            self._try(self.best.putting(put, by_number))

    def _drop_less(self) -> None:
        if dropped := self.best.dropped:
            minimised(dropped, lambda chosen: self._try(self.best.dropping(chosen)))

    def _work_less(self) -> None:
        """Less work. The packets that matter may be the last ones, so their numbers may have to be smaller, too."""
        for name, most in self.best.work.items():
            for count in _fewer(most):
                less = Scenario(self.best.puts, {**self.best.work, name: count})
                if self._try(less) or any(map(self._try, _nearer(less))):
                    break

    def _shorten(self) -> None:
        """Fewer steps and outages of each timeline."""
        for put, wanted in self.best.puts.items():
            if not isinstance(wanted, Timeline):
                continue
            first, *later = wanted.phases
            parts = [*later, *wanted.outages, *([wanted.repeat_s] if wanted.repeat_s is not None else [])]

            def fails(chosen: Sequence[Any], put: Put = put, first: Phase = first, wanted: Timeline = wanted) -> bool:
                return self._try(self.best.putting(put, _of_parts(first, wanted, chosen)))

            minimised(parts, fails)

    def _leave_out(self) -> None:
        """Fewer words: first all of an impairment, then each; what depends on a word before it."""
        for put in self.best.puts:
            for fewer in chain([Impairment()], self._without_a_word(put)):
                self._try(self.best.putting(put, fewer))

    def _without_a_word(self, put: Put) -> Iterator[Impairment]:
        for feature in reversed(FEATURES):
            wanted = self.best.puts[put]
            if not isinstance(wanted, Impairment) or feature.name in ("drop_packets", "seed"):
                continue
            if getattr(wanted, feature.field) != (default := _DEFAULTS[feature.field]):
                try:
                    yield replace(wanted, **{feature.field: default})
                except InvalidValueError:  # another word needs it, and matters
                    continue


def numbered(wanted: Impairment | Timeline, numbers: Sequence[int]) -> Impairment | None:
    """The same impairment, or the first of a timeline, that loses these packets instead; None if it loses none."""
    impairment = wanted if isinstance(wanted, Impairment) else wanted.phases[0].impairment
    words = {feature.field: _DEFAULTS[feature.field] for feature in FEATURES if feature.name in _WITH_LOSS}
    if not numbers and all(getattr(impairment, field) == default for field, default in words.items()):
        return None if isinstance(wanted, Impairment) else impairment
    return replace(impairment, **words, drop_packets=ranges(sorted(numbers)))


def minimised(items: Sequence[T], fails: Callable[[Sequence[T]], bool]) -> list[T]:
    """Some of the items, such that it fails with them and with none of them left out; it fails with all of them.

    Delta debugging: parts are left out, half of the items at first, then ever smaller ones.
    """
    left = list(items)
    parts = 1
    while left:
        size = -(-len(left) // parts)
        for start in range(0, len(left), size):
            fewer = [*left[:start], *left[start + size :]]
            if fails(fewer):
                left, parts = fewer, max(parts - 1, 1)
                break
        else:
            if size == 1:
                break
            parts = min(parts * 2, len(left))
    return left


def _fewer(most: int) -> Iterator[int]:
    """Smaller counts, the smallest first: 1, 2, 4, and so on."""
    count = 1
    while count < most:
        yield count
        count *= 2
    if most > 1:
        yield most - 1


def _nearer(scenario: Scenario) -> Iterator[Scenario]:
    """Earlier losses, with the same distances between them: from the first packet of the link on, the second."""
    dropped = scenario.dropped
    first = min((number for _, number in dropped), default=1)
    for earlier in range(1, min(first, _PLACES + 1)):
        yield scenario.dropping([(put, number - first + earlier) for put, number in dropped])


def _of_parts(first: Phase, wanted: Timeline, parts: Sequence[Any]) -> Timeline:
    """A timeline of its first step and some of the later ones, outages and its repetition."""
    return replace(
        wanted,
        phases=(first, *(phase for phase in wanted.phases[1:] if phase in parts)),
        outages=tuple(outage for outage in wanted.outages if outage in parts),
        repeat_s=wanted.repeat_s if wanted.repeat_s in parts else None,
        words="",
    )
