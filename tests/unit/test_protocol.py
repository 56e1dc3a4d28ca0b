"""The agent's loop: every request is answered once, and only its end ends it."""

from __future__ import annotations

import io
import json
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from testbed.agent.protocol import Operation, Refused, serve
from testbed.lab.waiting import await_condition


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Give this process its signal handlers back; the loop takes them, as it may in a process of its own."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def refuse(**_arguments: object) -> None:
    raise Refused("port 'x' is not attached")


def refuse_as_gone() -> None:
    raise Refused("port 'x' is gone", kind="gone")


def crash() -> None:
    raise ZeroDivisionError("what broke")


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


OPERATIONS: dict[str, Operation] = {
    "add": lambda a, b=1: a + b,
    "refuse": refuse,
    "refuse_as_gone": refuse_as_gone,
    "crash": crash,
    "no_json": lambda: {1, 2},
    "terminate": terminate,
    "interrupt": interrupt,
}


def answers_to(*requests: dict[str, Any] | bytes) -> list[dict[str, Any]]:
    lines = [request if isinstance(request, bytes) else json.dumps(request).encode() + b"\n" for request in requests]
    answers = io.BytesIO()
    with coming(b"".join(lines)) as requests_file:
        serve(OPERATIONS, requests_file, answers)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def coming(data: bytes) -> BinaryIO:
    """What is read where others wrote this, and nothing else will come."""
    file = tempfile.TemporaryFile()  # noqa: SIM115  # whoever asks for it closes it
    file.write(data)
    file.seek(0)
    return file


def test_a_result_is_answered_under_the_requests_number() -> None:
    assert answers_to({"id": 7, "op": "add", "a": 1, "b": 2}, {"id": "x", "op": "add", "a": 1}) == [
        {"id": 7, "ok": True, "result": 3},
        {"id": "x", "ok": True, "result": 2},
    ]


def test_nothing_asked_is_nothing_answered() -> None:
    assert answers_to() == []


def test_a_refusal_is_answered_with_its_words_and_kind() -> None:
    assert answers_to({"id": 1, "op": "refuse", "port": "x"}, {"id": 2, "op": "refuse_as_gone"}) == [
        {"id": 1, "ok": False, "kind": "refused", "error": "port 'x' is not attached"},
        {"id": 2, "ok": False, "kind": "gone", "error": "port 'x' is gone"},
    ]


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ({"op": "crash"}, "ZeroDivisionError: what broke"),
        ({"op": "add"}, "TypeError: "),
        ({"op": "add", "a": 1, "c": 2}, "TypeError: "),
        ({"op": "add", "a": "1"}, "TypeError: "),
        ({"op": "no_json"}, "TypeError: Object of type set is not JSON serializable"),
    ],
)
def test_a_crash_is_answered_with_its_traceback_and_the_loop_goes_on(request_: dict[str, Any], text: str) -> None:
    broken, sound = answers_to({"id": 1, **request_}, {"id": 2, "op": "add", "a": 1})
    assert (broken["id"], broken["ok"]) == (1, False)
    assert broken["error"].startswith(f"{request_['op']} crashed:\nTraceback (most recent call last):\n")
    assert text in broken["error"]
    assert sound == {"id": 2, "ok": True, "result": 2}


@pytest.mark.parametrize("name", ["sub", "", "ADD", None, 5, ["add"], {"add": 1}])
def test_an_unknown_operation_is_answered_with_the_known_ones(name: object) -> None:
    assert answers_to({"id": 1, "op": name}, {"id": 2, "op": "add", "a": 1}) == [
        {
            "id": 1,
            "ok": False,
            "error": f"unknown operation {name!r}; "
            "known: add, crash, interrupt, no_json, refuse, refuse_as_gone, terminate, alive, stop",
        },
        {"id": 2, "ok": True, "result": 2},
    ]


@pytest.mark.parametrize(
    "line",
    [
        b"{\n",
        b"\n",
        b"\xff\xfe\n",
        b"5\n",
        b'"add"\n',
        b"[]\n",
        b"[1]\n",
        b"null\n",
        b"{}\n",
        b'{"id": 1}\n',
        b'{"op": "add"}\n',
    ],
)
def test_what_is_no_request_is_answered_with_itself(line: bytes) -> None:
    bad, sound = answers_to(line, {"id": 2, "op": "add", "a": 1})
    assert (bad["id"], bad["ok"]) == (None, False)
    assert bad["error"].startswith("not a request with id and op (")
    assert bad["error"].endswith(f": {line!r}")
    assert sound["ok"]


def test_a_long_line_that_is_no_request_is_quoted_in_part() -> None:
    (bad,) = answers_to(b"x" * 10_000 + b"\n")
    assert bad["error"].endswith(f": {b'x' * 200!r}")


def test_a_request_without_its_newline_is_still_answered() -> None:
    assert answers_to(b'{"id": 1, "op": "add", "a": 1}') == [{"id": 1, "ok": True, "result": 2}]


def test_stop_is_answered_and_what_comes_behind_is_not() -> None:
    assert answers_to({"id": 1, "op": "stop"}, {"id": 2, "op": "add", "a": 1}) == [
        {"id": 1, "ok": True, "result": None}
    ]


@pytest.mark.parametrize("op", ["terminate", "interrupt"])
def test_a_signal_ends_the_loop_without_an_exception(op: str) -> None:
    assert answers_to({"id": 1, "op": "add", "a": 1}, {"id": 2, "op": op}, {"id": 3, "op": "add", "a": 1}) == [
        {"id": 1, "ok": True, "result": 2}
    ]


@pytest.mark.parametrize("op", ["terminate", "stop", "add"])
def test_after_the_loop_no_signal_cuts_the_putting_back_short(op: str) -> None:
    answers_to({"id": 1, "op": op})
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == [signal.SIG_IGN] * 2


def test_an_asker_who_is_gone_ends_the_loop() -> None:
    class Gone(io.BytesIO):
        def write(self, _data: object) -> int:
            raise BrokenPipeError

    with coming(b'{"id": 1, "op": "add", "a": 1}\n' * 2) as requests:
        serve(OPERATIONS, requests, Gone())


def test_a_signal_that_ends_no_wait_is_handled_though_nobody_asks() -> None:
    """As one that comes in the moment before the loop waits; here it comes through another thread."""
    read, write = os.pipe()

    def handle(_number: int, _frame: object) -> None:
        with open(write, "wb") as asks:
            asks.write(b'{"id": 1, "op": "add", "a": 1}\n')

    before = signal.signal(signal.SIGUSR1, handle)

    def come_late() -> None:
        waiting = Path(f"/proc/self/task/{threading.main_thread().native_id}/wchan")
        await_condition(waiting.read_text, lambda place: "poll" in place or "pipe" in place, deadline_s=10)
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    deadline = threading.Timer(20, os.write, (write, b'{"id": 0, "op": "stop"}\n'))
    answers = io.BytesIO()
    other = threading.Thread(target=come_late)
    try:
        deadline.start()
        other.start()
        with open(read, "rb") as requests:
            serve(OPERATIONS, requests, answers)
    finally:
        deadline.cancel()
        other.join()
        signal.signal(signal.SIGUSR1, before)
    assert [json.loads(line) for line in answers.getvalue().splitlines()] == [{"id": 1, "ok": True, "result": 2}]
