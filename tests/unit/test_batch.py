"""The framing of one long-lived tc, against a tool that behaves as tc does, or misbehaves on request."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.agent.batch import Batch, LocalTool
from testbed.agent.protocol import Refused

# tc -force -s -j -batch -, seen from outside: a JSON array for a show, complaints, `Command failed -:N`. Every
# show says in which line it was asked and how many bytes came with it, so that answers cannot be mixed up.
FAKE_TC = f"""#!{sys.executable} -IS
import json, os, sys

number, held, pending = 0, None, b""

def say(text):
    global held
    if held is None:
        os.write(1, text.encode() + b"\\n")
    else:
        held += text + "\\n"

while data := os.read(0, 65536):
    pending += data
    *lines, pending = pending.split(b"\\n")
    for line in lines:
        number += 1
        words = line.decode().split()
        if held is not None and words[0].startswith("testbed-"):
            late, held = held, None
            os.write(1, late.encode())
        if words[0].startswith("testbed"):
            say(f'Object "{{words[0]}}" is unknown, try "tc help".')
            say(f"Command failed -:{{number}}")
        elif words[1] == "show" and words[-1].startswith("testbed-"):
            say(f'Cannot find device "{{words[-1]}}"')
            say(f"Command failed -:{{number}}")
        elif words[1] == "show":
            say(json.dumps([{{"dev": words[-1], "line": number, "came": len(data)}}]))
        elif words[1] == "fail":
            for reason in words[2:]:
                say(reason)
            say(f"Command failed -:{{number}}")
        elif words[1] == "warn":
            say(" ".join(words[1:]))
        elif words[1] == "wrong":
            say('Error: argument "frob" is wrong: limit')
            sys.exit(255)
        elif words[1] == "close":
            say("closing")
            os.close(1), os.close(2)
            while os.read(0, 65536):
                pass
            sys.exit()
        elif words[1] == "hold":
            held = ""
"""


@pytest.fixture
def tc(tmp_path: Path) -> Iterator[LocalTool]:
    script = tmp_path / "tc"
    script.write_text(FAKE_TC)
    script.chmod(0o755)
    tool = LocalTool([str(script)])
    yield tool
    tool.close()


def seen(shown: list[list[dict[str, object]]]) -> list[object]:
    return [array[0]["dev"] for array in shown]


def refusal_of(batch: Batch, *lines: str, deadline_s: float = 5.0) -> str:
    with pytest.raises(Refused) as refused:
        batch.run(lines, deadline_s=deadline_s)
    return str(refused.value)


# --- a tool that answers ---------------------------------------------------------------------------


def test_every_show_brings_its_array_in_order_and_the_last_of_ours_is_not_among_them(tc: LocalTool) -> None:
    outcome = tc.batch().run(["qdisc show dev a", "qdisc set x", "filter show dev b"])
    assert seen(outcome.shown) == ["a", "b"]
    assert (outcome.complaints, outcome.notes) == ([], [])


def test_lines_without_a_show_bring_nothing(tc: LocalTool) -> None:
    assert tc.batch().run(["qdisc set x"]).shown == []
    assert tc.batch().run([]).shown == []


def test_a_line_that_fails_is_named_with_its_reasons_and_the_rest_is_run(tc: LocalTool) -> None:
    outcome = tc.batch().run(["qdisc show dev a", "qdisc fail not here", "qdisc fail", "qdisc show dev b"])
    assert outcome.complaints == [
        {"line": "qdisc fail not here", "text": "not; here"},
        {"line": "qdisc fail", "text": "no reason given"},
    ]
    assert seen(outcome.shown) == ["a", "b"]


def test_the_numbers_of_failures_go_on_from_batch_to_batch(tc: LocalTool) -> None:
    for _ in range(3):
        outcome = tc.batch().run(["qdisc set x", "qdisc fail y"])
        assert outcome.complaints == [{"line": "qdisc fail y", "text": "y"}]


def test_a_show_that_fails_brings_no_array_and_is_not_waited_for(tc: LocalTool) -> None:
    outcome = tc.batch().run(["qdisc show dev a", "qdisc show dev testbed-gone", "qdisc show dev b"])
    assert seen(outcome.shown) == ["a", "b"]
    assert outcome.complaints == [{"line": "qdisc show dev testbed-gone", "text": 'Cannot find device "testbed-gone"'}]


def test_a_warning_of_a_line_that_succeeded_is_a_note_not_a_complaint(tc: LocalTool) -> None:
    outcome = tc.batch().run(["qdisc warn quantum is big", "qdisc show dev a", "qdisc warn again"])
    assert outcome.notes == ["warn quantum is big", "warn again"]
    assert outcome.complaints == []


def test_checked_raises_every_complaint_and_passes_what_has_none(tc: LocalTool) -> None:
    batch = tc.batch()
    assert seen(batch.checked(["qdisc show dev a"]).shown) == ["a"]
    with pytest.raises(Refused) as refused:
        batch.checked(["qdisc fail one", "qdisc set x", "qdisc fail two"])
    name = tc.argv[0]
    assert str(refused.value) == f"`{name} qdisc fail one`: one; `{name} qdisc fail two`: two"


def test_a_long_batch_is_handed_over_in_pieces_that_a_console_holds(tc: LocalTool) -> None:
    lines = [f"qdisc show dev device{number:04}" for number in range(500)]
    outcome = tc.batch().run(lines)
    assert seen(outcome.shown) == [f"device{number:04}" for number in range(500)]
    pieces = {array[0]["came"] for array in outcome.shown}
    assert 1024 < max(pieces) <= 2048


def test_failures_are_named_rightly_across_pieces(tc: LocalTool) -> None:
    outcome = tc.batch().run([f"qdisc fail reason{number:04}" for number in range(200)])
    assert outcome.complaints == [
        {"line": f"qdisc fail reason{number:04}", "text": f"reason{number:04}"} for number in range(200)
    ]


@pytest.mark.parametrize("line", ["qdisc set a\nqdisc set b", "qdisc set " + "x" * 2048, "qdisc set a\n"])
def test_what_is_not_one_short_line_is_refused_and_nothing_is_run(tc: LocalTool, line: str) -> None:
    batch = tc.batch()
    before = batch.run(["qdisc show dev a"]).shown[0][0]["line"]
    assert refusal_of(batch, "qdisc set before", line) == f"{tc.argv[0]}: not one short line: {line[:120]!r}"
    assert batch.run(["qdisc show dev a"]).shown[0][0]["line"] == before + 2


# --- a tool that does not --------------------------------------------------------------------------


def test_an_answer_that_is_late_is_not_taken_for_the_next(tc: LocalTool) -> None:
    batch = tc.batch()
    assert "did not answer in time; last seen: ''" in refusal_of(
        batch, "qdisc hold it", "qdisc fail lost", "qdisc show dev lost", deadline_s=0.05
    )
    outcome = batch.run(["qdisc show dev found", "qdisc fail found"])
    assert seen(outcome.shown) == ["found"]
    assert outcome.complaints == [{"line": "qdisc fail found", "text": "found"}]


def test_a_tool_that_a_line_made_exit_is_reported_with_what_it_said(tc: LocalTool) -> None:
    assert refusal_of(tc.batch(), "qdisc warn first", "qdisc wrong frob", "qdisc show dev a") == (
        f"{tc.argv[0]} ended: exit status 255; "
        """last seen: 'warn first; Error: argument "frob" is wrong: limit'"""
    )


def test_after_a_tool_exited_the_next_batch_has_a_new_one(tc: LocalTool) -> None:
    first = tc.batch()
    refusal_of(first, "qdisc wrong frob")
    second = tc.batch()
    assert second is not first
    assert seen(second.run(["qdisc show dev a"]).shown) == ["a"]
    assert tc.batch() is second


def test_a_tool_that_closed_its_end_is_replaced_though_it_still_runs(tc: LocalTool) -> None:
    batch = tc.batch()
    assert refusal_of(batch, "qdisc close it").endswith(" ended: it closed its end; last seen: 'closing'")
    assert batch.closed
    assert seen(tc.batch().run(["qdisc show dev a"]).shown) == ["a"]


def test_a_tool_that_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LocalTool([str(tmp_path / "tc")]).batch()


def test_a_tool_that_ends_at_once_says_why(tmp_path: Path) -> None:
    script = tmp_path / "tc"
    script.write_text("#!/bin/sh\necho 'Object \"frob\" is unknown'\nexit 2\n")
    script.chmod(0o755)
    tool = LocalTool([str(script)])
    with pytest.raises(Refused) as refused:
        tool.batch()
    tool.close()
    assert str(refused.value).startswith(f"{script} ended: exit status 2")


def test_closing_ends_the_process_and_twice_is_once(tc: LocalTool) -> None:
    tc.batch()
    process = tc.process
    assert process is not None
    tc.close()
    tc.close()
    assert process.poll() is not None


# --- two bare descriptors, as of a carried kernel's console -----------------------------------------


class Console:
    """A tool whose answers are written beforehand."""

    def __init__(self, answers: bytes, died: str | None = None) -> None:
        self._requests, write_fd = os.pipe()
        read_fd, self._answers = os.pipe()
        self._descriptors = [self._requests, write_fd, read_fd, self._answers]
        os.write(self._answers, answers)
        self.batch = Batch(write_fd, read_fd, "tc", alive=lambda: died)

    def asked(self) -> bytes:
        return os.read(self._requests, 65536)

    def hang_up(self) -> None:
        for descriptor in (self._requests, self._answers):
            os.close(descriptor)
            self._descriptors.remove(descriptor)

    def close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)


@pytest.fixture
def console(request: pytest.FixtureRequest) -> Iterator[Console]:
    console = Console(*request.param)
    yield console
    console.close()


GREETING = b'Object "testbed-1" is unknown, try "tc help".\r\nCommand failed -:1\r\n'


@pytest.mark.parametrize("console", [(b"modprobe: noise\nready\r\n" + GREETING,)], indirect=True)
def test_a_console_is_spoken_to_once_it_says_ready(console: Console) -> None:
    console.batch.await_ready(deadline_s=5)
    console.batch.synchronise(deadline_s=5)
    assert console.asked() == b"testbed-1\n"


@pytest.mark.parametrize(
    "console",
    [
        (
            b"Command failed -:8\n[]\n"
            b'Object "testbed-1" is unknown\nCommand failed -:41\nCommand failed -:42\nCommand failed -:43\n',
        ),
        (
            b'[]\n[]\nObject "testbed-1" is unknown\n[]\n'
            b"Command failed -:41\nCommand failed -:42\nCommand failed -:43\n",
        ),
    ],
    indirect=True,
)
def test_the_line_count_is_learnt_from_the_answer_to_our_own_question(console: Console) -> None:
    console.batch.synchronise(deadline_s=5)
    # The question was line 41: what fails in 42 is the first line of the next batch, and 43 its end.
    assert console.batch.run(["qdisc fail"]).complaints == [{"line": "qdisc fail", "text": "no reason given"}]


@pytest.mark.parametrize(
    ("console", "refusal"),
    [
        ((b"",), "tc did not answer in time; last seen: ''"),
        ((b"Error: so\npart of a li",), "tc did not answer in time; last seen: 'Error: so; part of a li'"),
        ((b"", "exit status 3"), "tc ended: exit status 3"),
        ((b"Kernel panic\n", "exit status 3"), "tc ended: exit status 3; last seen: 'Kernel panic'"),
        ((b"x" * 900 + b"\nthe last",), "tc did not answer in time; last seen: '" + "x" * 290 + "; the last'"),
    ],
    indirect=["console"],
)
def test_silence_is_refused_with_what_was_seen_last(console: Console, refusal: str) -> None:
    assert refusal_of(console.batch, "qdisc show dev a", deadline_s=0.01) == refusal


@pytest.mark.parametrize("console", [(b"goodbye\n",)], indirect=True)
def test_a_pipe_that_nobody_reads_is_refused(console: Console) -> None:
    console.hang_up()
    assert refusal_of(console.batch, "qdisc show dev a") == "tc ended: it closed its end"
    assert console.batch.closed
