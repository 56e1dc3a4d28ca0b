"""Results of several sessions as those of one: of shards, or of suites that share no test. Pure.

What would make the whole say something untrue is refused: a test that two inputs have, results of different seeds,
commits or versions, and shards of different divisions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from testbed.errors import InvalidValueError
from testbed.evidence.results import as_text, end, head
from testbed.evidence.stored import Session
from testbed.text import several, shown

_AT_ODDS: tuple[tuple[str, Callable[[Session], Any], str], ...] = (
    ("seed", lambda session: session.seed, "give --testbed-seed the same number in each"),
    ("commit", lambda session: (session.machine.get("git") or {}).get("commit"), "check the same out for each"),
    (
        "version of testbed",
        lambda session: (session.machine.get("versions") or {}).get("testbed"),
        "install the same for each",
    ),
)
_OF_SHARDS = (
    ("number of shards", "count", "run them with one COUNT"),
    (
        "division",
        "digest",
        "shards of one session have the same tests, options (-k, paths, --dist) and --testbed-durations",
    ),
)


def in_order(sessions: Sequence[Session]) -> list[Session]:
    """The sessions of one whole: shards by their number, which is the order of the tests.

    Raises InvalidValueError with all that is at odds.
    """
    problems: list[str] = []
    for name, of, remedy in _AT_ODDS:
        problems += _differing(name, {session.name: of(session) for session in sessions}, remedy)
    shards = {session.name: session.shard for session in sessions if session.shard is not None}
    if whole := [session.name for session in sessions if session.shard is None] if shards else []:
        problems.append(f"{several(whole)}: no shard, and {several(list(shards))} is one: merge each kind by itself")
    for name, key, remedy in _OF_SHARDS:
        problems += _differing(name, {source: shard[key] for source, shard in shards.items()}, remedy)
    if not problems:
        for number, sources in _sources((shard["number"], source) for source, shard in shards.items()).items():
            if len(sources) > 1:
                problems.append(f"shard {number} is in several inputs: {several(sources)}; give one of them")
    if not problems:
        problems += twice((test.id, session.name) for session in sessions for test in session.tests)
    if problems:
        raise InvalidValueError(problems)
    return sorted(sessions, key=lambda session: session.shard["number"] if session.shard is not None else 0)


def twice(tests: Iterator[tuple[str, str]]) -> list[str]:
    """A sentence for each test that several inputs have: pairs of a test and its input."""
    return [
        f"{test}: in several inputs, and each test has one result: {several(sources)}"
        for test, sources in _sources(tests).items()
        if len(sources) > 1
    ]


def _sources(pairs: Iterator[tuple[Any, str]]) -> dict[Any, list[str]]:
    sources: dict[Any, dict[str, None]] = {}
    for key, source in pairs:
        sources.setdefault(key, {})[source] = None
    return {key: [*names] for key, names in sources.items()}


def _differing(name: str, values: Mapping[str, Any], remedy: str) -> Iterator[str]:
    by_value = _sources((value, source) for source, value in values.items() if value is not None)
    if len(by_value) > 1:
        listed = "; ".join(f"{shown(value)}: {several(sources)}" for value, sources in by_value.items())
        yield f"{name} differs: {listed}; {remedy}"


def missing(sessions: Sequence[Session]) -> list[str]:
    """Why the whole is not whole, as sentences: shards that are not there, and sessions that broke off."""
    reasons = [session.incomplete for session in sessions if session.incomplete]
    shards = [session.shard for session in sessions if session.shard is not None]
    if shards:
        count = shards[0]["count"]
        absent = sorted({*range(1, count + 1)} - {shard["number"] for shard in shards})
        if absent:
            reasons.append(f"missing: shard {several([f'{number}/{count}' for number in absent])}")
    return reasons


def merged(sessions: Sequence[Session], *, place: Callable[[Session, str], str]) -> Iterator[str]:
    """The lines of the whole's results file; ``sessions``: `in_order`. Without an end if something is missing.

    ``place``: where a file of packets is now, by its session and the path that its results have.
    """
    first = next((test.machine for session in sessions for test in session.tests), sessions[0].machine)
    yield as_text(head(started=min(session.started for session in sessions), seed=sessions[0].seed, machine=first))
    machine = first
    for session in sessions:
        for test in session.tests:
            if test.machine != machine:
                machine = test.machine
                yield as_text({"machine": machine})
            *earlier, last = (_placed(session, attempt.content, place) for attempt in test.attempts)
            yield as_text({"test": {**last, "earlier_attempts": earlier}})
    ends = [session.end for session in sessions if session.end is not None]
    if not missing(sessions):
        not_up = dict.fromkeys(content["not_up"] for content in ends if content.get("not_up"))
        yield as_text(
            end(
                duration_s=sum(content["duration_s"] for content in ends),
                exit_status=max(content["exit_status"] for content in ends),
                problems=[*dict.fromkeys(problem for content in ends for problem in content["problems"])],
                not_up="\n".join(not_up) or None,
            )
        )


def _placed(session: Session, attempt: Mapping[str, Any], place: Callable[[Session, str], str]) -> dict[str, Any]:
    return {**attempt, "captures": [place(session, path) for path in attempt["captures"]]}
