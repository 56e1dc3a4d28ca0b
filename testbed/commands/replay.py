"""`testbed replay`: tests that were recorded in virtual time are run again, and proven to be identical."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from testbed.commands.console import OUT, say
from testbed.commands.options import command, example
from testbed.commands.results import DEFAULT_FILE
from testbed.errors import InvalidValueError, LabError
from testbed.evidence.replaying import Replay
from testbed.evidence.stored import Session, StoredTest
from testbed.evidence.trail import Passed
from testbed.judge.sameness import Sameness, compare
from testbed.kernel import virtual
from testbed.lab import keeping
from testbed.lab.trails import neighbourhood
from testbed.report.files import is_results, load
from testbed.text import several, shown, visible

_MOST_SHOWN = 10
_FAILED = 2


@command()
@click.argument("file", type=click.Path(path_type=Path), default=DEFAULT_FILE)
@click.argument("tests", nargs=-1)
@example("""testbed replay
             testbed replay report/results.jsonl test_orders.py::test_reconnects""")
def replay(file: Path, tests: tuple[str, ...]) -> int:
    """Run recorded tests again in virtual time, and prove that they are identical.

    FILE is what `pytest --virtual-time` wrote (default: report/results.jsonl); TESTS are ids in it, or parts that only
    one id has (default: all). The same command runs in the same folder, up to the last of them, because a test's
    packets depend on the tests before it. Compared are every packet at every port, by time, length, direction and
    bytes, the programs' output, the kernel's counters and all else in the results. Where two runs differ, the first
    packets that do are shown.

    Exit status 0 if all are identical, 1 if one is not, 2 if they cannot be replayed here: recorded in real time, with
    another kernel, another Python, or other files.
    """
    session = load(file)
    chosen = _chosen(session, tests)
    facts = _facts(chosen)
    with tempfile.TemporaryDirectory(prefix="testbed-replay-") as name:
        into = Path(name)
        replayed = _run(session, facts, chosen, into)
        if replayed is None:
            return _FAILED
        now = {test.id: test for test in replayed.tests}
        comparisons = [compare(test, now.get(test.id)) for test in chosen]
        for test, comparison in zip(chosen, comparisons, strict=True):
            for line in _lines(test, comparison, into):
                OUT.print(visible(line), markup=False, soft_wrap=True)
    different = sum(not comparison.same for comparison in comparisons)
    OUT.print(
        f"{len(comparisons) - different} of {len(comparisons)} identical"
        + (f", {different} different" if different else "")
    )
    return int(bool(different))


def _chosen(session: Session, words: Sequence[str]) -> list[StoredTest]:
    """The tests that these words name; all without words. Raises InvalidValueError."""
    if not session.tests:
        raise InvalidValueError(f"{session.name}: has no test")
    problems, chosen = [], []
    for word in words:
        matching = [test for test in session.tests if test.id == word] or [
            test for test in session.tests if word in test.id
        ]
        if len(matching) == 1:
            chosen += matching
        else:
            among = several([test.id for test in matching or session.tests])
            problems.append(
                f"test {shown(word)}: {'several have it' if matching else 'not in ' + session.name}: {among}"
            )
    if problems:
        raise InvalidValueError(problems)
    return chosen if words else list(session.tests)


def _facts(tests: Sequence[StoredTest]) -> dict[str, Any]:
    """What the recorded run depends on. Raises InvalidValueError."""
    facts, name = tests[0].machine.get("virtual"), shown(tests[0].id)
    if not facts and tests[0].last.content.get("packets"):
        raise InvalidValueError(
            f"{name}: recorded by several kernels (-n, --testbed-jobs), each of which ran a part of the tests; record "
            "it by one: leave that option out"
        )
    if not facts:
        raise InvalidValueError(
            f"{name}: recorded in real time, where no two runs are the same; "
            "`pytest --virtual-time` records what can be replayed"
        )
    if "command" not in facts or any(word.startswith("--testbed-passes") for word in facts["command"]):
        raise InvalidValueError(f"{name}: not recorded by pytest itself, but by another command of testbed")
    return dict(facts)


def _run(session: Session, facts: dict[str, Any], tests: Sequence[StoredTest], into: Path) -> Session | None:
    """Run the recorded command again; its results, or None if there are none, which has been told."""
    words, additions = facts["command"], facts["additions"]
    if not any(word.startswith("--testbed-seed") for word in (*words, *additions.split())):
        additions = f"{additions} --testbed-seed {session.seed}".strip()
    script = Path(sys.executable).with_name("pytest")
    start = [str(script)] if words[0] == "pytest" and script.exists() else ["-m", "pytest"]
    rest = words[1:] if words[0] == "pytest" else words[words.index("pytest") + 1 :]
    request = Replay(tests=tuple(test.id for test in tests), into=str(into), expected=facts)
    environment = {**os.environ, **request.environment(), virtual.ADDITIONS: additions}
    say(f"running again: {' '.join(words)}")
    done = subprocess.run(
        [sys.executable, *start, *rest],
        env=environment,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        check=False,
    )
    results = next((file for file in sorted(into.rglob("*")) if file.is_file() and is_results(file)), None)
    if results is None:
        last = " | ".join(done.stdout.strip().splitlines()[-8:])
        say(
            f"no test was replayed; exit status {done.returncode}"
            + (f"; its last lines: {visible(last)}" if last else "")
        )
        return None
    return load(results)


def _lines(test: StoredTest, comparison: Sameness, into: Path) -> Iterator[str]:
    if comparison.same:
        yield f"{test.id}: identical: {comparison.packets} packets at {comparison.ports} ports, and all results"
        return
    yield f"{test.id}: different{f': {comparison.missing}' if comparison.missing else ''}"
    for parting in comparison.parted[:_MOST_SHOWN]:
        yield f"  {parting}"
    if comparison.parted:
        first = comparison.parted[0]
        recorded = Passed.read(test.attempts[comparison.attempt].content["packets"]).ports.get(first.port)
        for file in into.rglob(f"{keeping.file_name(test.id)}/*/{first.port}.pcapng"):
            try:
                yield from (f"    {line}" for line in neighbourhood(file.read_bytes(), first, recorded))
            except (LabError, OSError) as error:
                yield f"    not shown: {error}"
    yield from (f"  {line}" for line in comparison.differing[:_MOST_SHOWN])
    if (more := len(comparison.differing) - _MOST_SHOWN) > 0:
        yield f"  and {more} more values"


COMMANDS = (replay,)
