"""`testbed replay`: which tests, what it refuses, and what two runs differ in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from testbed.commands.cli import cli
from testbed.errors import UserError
from testbed.evidence import results, stored
from testbed.evidence.programs import ProgramRun
from testbed.evidence.trail import Passed, Trail
from testbed.judge.sameness import Sameness, compare

FACTS = {
    "kernel": {"source": "linux 7.2", "sha256": "ab"},
    "python": "3.11.2",
    "testbed": "cd",
    "programs": "ef",
    "command": ["pytest", "--virtual-time"],
    "additions": "",
}
TRAIL = Trail(packets=1, size_bytes=60, digest="00", lost=0, every=1, marks=((1000, 7),))


def attempt(*, digest: str = "00", output: str = "1\n2\n3\n", **changed: Any) -> results.Attempt:
    run = ProgramRun(
        host="client", argv=("try",), exit_code=0, duration_s=1.0, cpu_s=0.0, stopped=False, output=output,
        output_left_out=0,
    )  # fmt: skip
    trail = Trail(**{**vars(TRAIL), "digest": digest, "marks": ((1000, int(digest, 16)),)})
    passed = Passed(since_ns=0, ports={"server@default": trail})
    return results.Attempt(**{"seed": 1, "programs": [run], "packets": passed, **changed})


def session_of(*tests: results.TestResult, virtual: Any = FACTS) -> list[str]:
    machine = {"kernel": "7.2", "versions": {}, "git": None, "virtual": virtual}
    lines = [results.head(started="2027", seed=1, machine=machine), *({"test": test.as_json()} for test in tests)]
    return [f"{json.dumps(line)}\n" for line in lines]


def result_of(*attempts: results.Attempt, name: str = "t.py::test_it") -> results.TestResult:
    return results.TestResult(id=name, attempts=list(attempts))


def compared(one: results.TestResult, other: results.TestResult) -> Sameness:
    first, second = (stored.read(session_of(test), name="results").tests[0] for test in (one, other))
    return compare(first, second)


def test_the_same_test_is_the_same_and_its_packets_are_counted() -> None:
    comparison = compared(
        result_of(attempt(), attempt()), result_of(attempt(), attempt(captures=["x.pcapng"], replay="y"))
    )
    assert (comparison.same, comparison.packets, comparison.ports) == (True, 2, 1)


def test_of_packets_the_first_that_differs_is_named() -> None:
    comparison = compared(result_of(attempt()), result_of(attempt(digest="01")))
    assert not comparison.same
    assert [str(parting) for parting in comparison.parted] == ["server@default: packet 1 differs, by 0.000001 s"]
    assert comparison.differing == ()


def test_packets_of_an_earlier_attempt_are_compared_too() -> None:
    assert not compared(result_of(attempt(), attempt()), result_of(attempt(digest="01"), attempt())).same


def test_of_what_programs_printed_the_first_line_that_differs_is_shown() -> None:
    comparison = compared(result_of(attempt()), result_of(attempt(output="1\n5\n3\n")))
    assert comparison.differing == ("programs[client].output: line 2: recorded '2', replayed '5'",)


def test_every_value_that_differs_is_named() -> None:
    comparison = compared(result_of(attempt()), result_of(attempt(duration_s=2.0, reason="it broke")))
    assert comparison.differing == (
        "duration_s: recorded 0.0, replayed 2.0",
        "reason: recorded None, replayed 'it broke'",
    )


def test_a_test_that_was_not_replayed_or_with_other_attempts_is_not_the_same() -> None:
    (recorded,) = stored.read(session_of(result_of(attempt())), name="results").tests
    assert compare(recorded, None).missing == "the replay did not come to it"
    comparison = compared(result_of(attempt()), result_of(attempt(), attempt()))
    assert comparison.differing == ("recorded with 1 attempts, and replayed with 2",)


def replay(folder: Path, *words: str, lines: list[str]) -> Result:
    (folder / "results.jsonl").write_text("".join(lines))
    return CliRunner().invoke(cli, ["replay", str(folder / "results.jsonl"), *words])


NAMED = [result_of(attempt(), name=name) for name in ("t.py::test_a", "t.py::test_ab", "u.py::test_c")]


@pytest.mark.parametrize(
    ("words", "lines", "problems"),
    [
        ([], session_of(result_of(attempt(packets=None)), virtual=None), ["'t.py::test_it': recorded in real time, "]),
        ([], session_of(*NAMED, virtual=None), ["'t.py::test_a': recorded by several kernels (-n, --testbed-jobs)"]),
        ([], session_of(), ["has no test"]),
        ([], session_of(*NAMED, virtual={**FACTS, "command": ["python", "--testbed-passes=3"]}), ["another command"]),
        (["t.py", "nothing"], session_of(*NAMED), ["test 't.py': several have it: t.py::test_a, t.py::test_ab",
                                                   "test 'nothing': not in "]),
    ],
    ids=["real time", "several kernels", "no test", "by ab", "no such test"],
)  # fmt: skip
def test_what_cannot_be_replayed_is_refused(
    tmp_path: Path, words: list[str], lines: list[str], problems: list[str]
) -> None:
    done = replay(tmp_path, *words, lines=lines)
    assert isinstance(done.exception, UserError)
    assert len(done.exception.problems) == len(problems)
    for message, problem in zip(done.exception.problems, problems, strict=True):
        assert problem in message
