"""Journals: what programs write is read back; wrong lines are refused by number; missing ones are reported."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import journal as written_by
import pytest
import wire

from testbed.errors import InvalidValueError
from testbed.evidence import journal
from testbed.evidence.journal import ErrorRow, Journal, SentRow

HEADER = '{"journal": "testbed", "version": 1, "program": "p", "transport": "tcp"}\n'
BEGIN = '["begin",1,7]\n'
SENT = '["sent",5,1,0,3,100,100,90]\n'


def read(text: str) -> Journal:
    return Journal.of(text.encode(), name="client")


def rows(text: str) -> list[journal.JournalRow]:
    return [row for block in read(text).blocks() for row in block]


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(InvalidValueError) as refused:
        rows(text)
    return refused.value.problems


def test_what_a_program_writes_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with written_by.JournalWriter(str(path), program="client.py", transport="tcp") as writing:
        writing.sent(5, 1, 0, 3, size=100, believed=100, taken=90)
        writing.received(1, wire.Message(wire.REPLY, -1, 3, 6, 28, wire.WHOLE))
        writing.unreadable(1, 3, wire.TRUNCATED)
        writing.control(1, 0, "sent")
        writing.error(None, "accept", OSError(24, "Too many open files"))
    reading = Journal.of(path.read_bytes(), name="client")
    rows = [row for block in reading.blocks() for row in block]
    assert reading.cut_short is None
    assert reading.header == journal.Header(program="client.py", transport="tcp")
    assert [row[0] for row in rows] == ["begin", "sent", "received", "received", "control", "error", "end"]
    assert SentRow._make(rows[1]).taken_bytes == 90
    assert ErrorRow._make(rows[5]).errno == 24


def test_threads_and_a_forked_child_write_whole_lines_into_one_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with written_by.JournalWriter(str(path), program="server.py", transport="tcp") as writing:

        def write(flow: int) -> None:
            for sequence in range(700):
                writing.sent(1, 1, flow, sequence, size=1, believed=1, taken=1)

        threads = [threading.Thread(target=write, args=(flow,)) for flow in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if not (pid := os.fork()):
            writing.forked()
            write(3)
            writing.end()
            os._exit(0)
        os.waitpid(pid, 0)
    reading = Journal.of(path.read_bytes(), name="server")
    messages = {(row[3], row[4]) for block in reading.blocks() for row in block if row[0] == "sent"}
    assert reading.cut_short is None
    assert messages == {(flow, sequence) for flow in range(4) for sequence in range(700)}


def test_a_program_without_a_path_writes_nothing() -> None:
    with written_by.JournalWriter(None, program="p", transport="udp") as writing:
        writing.control(1, 0, "sent")


@pytest.mark.parametrize(
    ("rest", "why"),
    [
        (SENT, "1 of its 1 processes wrote no end: killed?"),
        (SENT + '["end",9,7,3', "its last line breaks off: '[\"end\",9,7,3'"),
        (SENT + '["end",9,7,4]\n', "its processes report 4 lines, it has 3"),
        (SENT + '["end",9,7,3]\n', None),
        (SENT + '["begin",2,8]\n["end",9,7,3]\n', "1 of its 2 processes wrote no end: killed?"),
    ],
)
def test_a_journal_that_is_not_complete_says_why(rest: str, why: str | None) -> None:
    reading = read(HEADER + BEGIN + rest)
    for _ in reading.blocks():
        pass
    assert reading.cut_short == why


@pytest.mark.parametrize(
    ("first", "problem"),
    [
        ("", "line 1 is ''"),
        ("hello\n", "line 1 is 'hello'"),
        ("[1]\n", "line 1 is '[1]'"),
        ('{"journal": "other"}\n', 'a journal begins with {"journal": "testbed", "version": 1, …}'),
        ('{"journal": "testbed", "version": 2, "transport": "tcp"}\n', "version 2; this testbed reads 1"),
        ('{"journal": "testbed", "version": 1, "transport": "sctp"}\n', "transport 'sctp'; known: tcp, udp"),
    ],
)
def test_what_is_no_journal_of_ours_is_refused(first: str, problem: str) -> None:
    with pytest.raises(InvalidValueError) as refused:
        read(first)
    assert problem in str(refused.value)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ('["sent",5,1,0,3,100,100]', "6 columns; 'sent' has 7"),
        ('["sent",5,1,0,3,100,100,"90"]', 'taken_bytes is "90"; it is a whole number'),
        ('["sent",5,1,0,true,100,100,90]', "sequence is true; it is a whole number"),
        ('["sent",5,1,0,3.5,100,100,90]', "sequence is 3.5"),
        ('["received",5,1,0,3,100,4,"fine"]', "state 'fine'; known: whole, truncated, corrupt"),
        ('["lost",5]', "unknown kind 'lost'"),
        ('{"sent": 5}', "not an array"),
        ("[]", "not an array that begins with a word"),
        ("[1,2", "no JSON"),
        ('["begin",1,7],["begin",1,7]', "no JSON"),
        ('["close",5,1,"eof",0,"x"]', 'unsent_bytes is "x"; it is a whole number or null'),
    ],
)
def test_a_wrong_line_is_refused_with_its_number_and_itself(line: str, part: str) -> None:
    (problem,) = problems(f"{HEADER}{BEGIN}{SENT}{line}\n{SENT}")
    assert problem.startswith("journal of client, line 4: ")
    assert line[:20] in problem
    assert part in problem


def test_every_wrong_line_is_named_up_to_ten() -> None:
    assert len(problems(HEADER + BEGIN + '["a"]\n' * 12)) == 10


def test_the_number_of_a_line_counts_on_over_blocks() -> None:
    assert problems(HEADER + BEGIN + SENT * 2500 + "[]\n")[0].startswith("journal of client, line 2503:")


def test_the_documented_schema_is_the_one_that_is_read() -> None:
    documented = (Path(__file__).parents[2] / "images" / "README.md").read_text()
    for kind in journal.ROWS:
        assert json.dumps([kind])[:-1] in documented
