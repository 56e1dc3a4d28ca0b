"""Results files as runs that can be compared, and what must be alike in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.evidence import machine, stored
from testbed.evidence.stored import Session, StoredTest
from testbed.judge.cells import Run, TestRun, in_words
from testbed.reading import read_text

_MOST_BYTES = 256 << 20
_SEED = "seed"


def read(path: Path) -> Run:
    """The run that a results file describes. Raises InvalidValueError with every problem."""
    return as_run(stored.read(read_text(path, most_bytes=_MOST_BYTES).splitlines(keepends=True), name=str(path)))


def as_run(session: Session) -> Run:
    """What is compared of a session."""
    return Run(
        source=session.name,
        seed=session.seed,
        started=session.started,
        machine=session.machine,
        tests={test.id: _test(test) for test in session.tests},
    )


def _test(test: StoredTest) -> TestRun:
    last = test.last
    return TestRun(
        id=test.id,
        profile=test.profile,
        links=tuple(map(_link, last.content["links"])),
        outcome=last.outcome,
        reason=last.reason,
        replay=last.replay,
        metrics={metric.name: metric for metric in last.metrics},
        content=last.content,
    )


def _link(link: Mapping[str, Any]) -> tuple[str, str]:
    """A link, and what was asked of it, without the seed."""
    return link["link"], " ".join(f"{word} {value}" for word, value in link["asked"].items() if word != _SEED)


# --- what must be alike ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Unlike:
    """Something that the runs do not share, so that a difference may be of it and not of the version."""

    what: str
    """What it is, for people: ``kernel``, ``links of tests/test_upload.py::test_upload``."""
    how: str
    """What it is in the one and in the other, as a clause."""


def unlike(base: Sequence[Run], head: Sequence[Run]) -> list[Unlike]:
    """In what the runs of two versions differ that must be alike."""
    differences: dict[str, Unlike] = {}
    first = base[0]
    for run in (*base, *head):
        for key, pair in machine.differences(first.machine, run.machine).items():
            how = f"{machine.in_words({key: pair})}: {first.source}, {run.source}"
            differences.setdefault(key, Unlike(what=machine.DECISIVE[key], how=how))
    return [*differences.values(), *_links(base, head)]


def _links(base: Sequence[Run], head: Sequence[Run]) -> Iterator[Unlike]:
    """Tests whose links were asked to be something else: a profile, or a marker, was changed."""
    ours, theirs = (
        {test.id: test for run in runs for test in run.tests.values() if test.links} for runs in (base, head)
    )
    for test in ours:
        if test in theirs and ours[test].links != theirs[test].links:
            links = f"{in_words(ours[test])} in base, {in_words(theirs[test])} in head"
            yield Unlike(what=f"links of {test}", how=f"links of {test}: {links}")
