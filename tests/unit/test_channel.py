"""The lab's end of an agent's channel, over a stream that behaves as an agent or a network may."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from testbed.backends.docker.streams import Demultiplexed
from testbed.backends.local.child import PipeStream
from testbed.errors import AgentError
from testbed.lab.channel import Channel, Stream

# What the other side does with a request: the pieces of bytes that arrive, or what happens instead.
Reply = Callable[[dict[str, Any]], list[bytes | Exception]]


class Scripted:
    """A stream whose agent answers each request as the script says."""

    def __init__(self, *script: Reply, last_words: str = "") -> None:
        self.requests: list[dict[str, Any]] = []
        self.deadlines_s: list[float] = []
        self.closed = False
        self._script = list(script)
        self._arriving: list[bytes | Exception] = []
        self._last_words = last_words

    def send(self, data: bytes, deadline_s: float) -> None:
        self.deadlines_s.append(deadline_s)
        assert data.endswith(b"\n")
        assert data.count(b"\n") == 1
        request = json.loads(data)
        self.requests.append(request)
        self._arriving += self._script.pop(0)(request)

    def receive(self, deadline_s: float) -> bytes:
        arriving = self._arriving.pop(0) if self._arriving else b""
        if isinstance(arriving, Exception):
            raise arriving
        return arriving

    def last_words(self) -> str:
        return self._last_words

    def close(self) -> None:
        self.closed = True


def _line(request: dict[str, Any], **answer: Any) -> bytes:
    return json.dumps({"id": request["id"], **answer}).encode() + b"\n"


def echoed(request: dict[str, Any]) -> list[bytes | Exception]:
    return [_line(request, ok=True, result=request["op"])]


def test_a_call_is_a_line_with_its_arguments_and_its_answer_the_result() -> None:
    stream = Scripted(echoed)
    assert Channel(stream, name="agent").call("tc", port="web@lan", lines=["a", "b"]) == "tc"
    (request,) = stream.requests
    assert {key: value for key, value in request.items() if key != "id"} == {
        "op": "tc",
        "port": "web@lan",
        "lines": ["a", "b"],
    }


def test_every_call_has_a_number_of_its_own() -> None:
    stream = Scripted(echoed, echoed, echoed)
    channel = Channel(stream, name="agent")
    assert [channel.call(name) for name in ("a", "b", "c")] == ["a", "b", "c"]
    assert len({request["id"] for request in stream.requests}) == 3


def test_an_answer_may_come_in_pieces_and_with_the_beginning_of_the_next() -> None:
    whole = b""

    def torn(request: dict[str, Any]) -> list[bytes | Exception]:
        nonlocal whole
        whole = _line(request, ok=True, result="torn")
        return [whole[:5], whole[5:6], whole[6:] + b'{"id": ']

    def rest(request: dict[str, Any]) -> list[bytes | Exception]:
        return [_line(request, ok=True, result="rest").removeprefix(b'{"id": ')]

    channel = Channel(Scripted(torn, rest), name="agent")
    assert [channel.call("a"), channel.call("b")] == ["torn", "rest"]


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next() -> None:
    def too_late(request: dict[str, Any]) -> list[bytes | Exception]:
        return [TimeoutError(), _line(request, ok=True, result="late")]

    channel = Channel(Scripted(too_late, echoed), name="agent of web")
    with pytest.raises(AgentError) as timed_out:
        channel.call("slow", answer_within_s=0.5)
    assert str(timed_out.value) == "agent of web: no answer to 'slow' within 0.5 s"
    assert not channel.answers
    assert channel.call("next") == "next"
    assert channel.answers, "it was late, and is there"


def test_an_agent_that_keeps_silent_is_waited_for_once_as_long_as_was_asked_and_then_killed() -> None:
    def nothing(_request: dict[str, Any]) -> list[bytes | Exception]:
        return [TimeoutError()]

    killed: list[str] = []
    stream = Scripted(nothing, nothing)
    channel = Channel(stream, name="agent", kill=lambda: killed.append("it"))
    for within_s in (20, 2):
        with pytest.raises(AgentError, match=rf"^agent: no answer to 'tc' within {within_s} s$"):
            channel.call("tc")
    assert (stream.deadlines_s, channel.silent_s) == ([20, 2], 22)
    channel.give_up()
    with pytest.raises(AgentError, match=r"^agent: 'tc' was not sent: it did not answer$"):
        channel.call("tc")
    channel.close()
    assert killed == ["it"]


def test_an_agent_that_takes_no_request_is_asked_nothing_more() -> None:
    class Full(Scripted):
        def send(self, data: bytes, deadline_s: float) -> None:
            raise TimeoutError

    channel = Channel(Full(), name="agent")
    with pytest.raises(AgentError, match=r"^agent: no answer to 'put' within 20 s$"):
        channel.call("put")
    assert not channel.lives, "half a line may be there: what follows would be none"


def test_a_refusal_is_raised_with_its_words_and_its_kind() -> None:
    def refused(request: dict[str, Any]) -> list[bytes | Exception]:
        return [_line(request, ok=False, error="port 'x' is gone", kind="gone")]

    def crashed(request: dict[str, Any]) -> list[bytes | Exception]:
        return [_line(request, ok=False, error="tc crashed:\nTraceback")]

    channel = Channel(Scripted(refused, crashed, echoed), name="agent")
    with pytest.raises(AgentError, match=r"^agent: port 'x' is gone$") as gone:
        channel.call("tc")
    assert gone.value.kind == "gone"
    with pytest.raises(AgentError, match=r"^agent: tc crashed:\nTraceback$") as broken:
        channel.call("tc")
    assert broken.value.kind == ""
    assert channel.call("still there") == "still there"


@pytest.mark.parametrize(
    ("arriving", "last_words", "reason"),
    [
        ([b""], "", "its output ended"),
        ([b""], "agent: no such device", "agent: no such device"),
        ([b'{"id": 1, "o', b""], "", "its output ended"),
        ([ConnectionResetError("reset by peer")], "", "reset by peer"),
    ],
)
def test_an_agent_that_is_gone_is_reported_with_its_last_words(
    arriving: list[bytes | Exception], last_words: str, reason: str
) -> None:
    channel = Channel(Scripted(lambda _request: arriving, last_words=last_words), name="agent")
    with pytest.raises(AgentError) as gone:
        channel.call("tc")
    assert str(gone.value) == f"agent: ended during 'tc': {reason}"


@pytest.mark.parametrize("noise", [b"Segmentation fault\n", b"5\n", b"[]\n", b"{}\n", b"\xff\n"])
def test_what_is_no_answer_is_an_error_of_the_agent(noise: bytes) -> None:
    channel = Channel(Scripted(lambda _request: [noise]), name="agent")
    with pytest.raises(AgentError) as broken:
        channel.call("tc")
    assert str(broken.value) == f"agent: ended during 'tc': not an answer: {noise.strip()!r}"


def test_a_stream_that_cannot_be_written_to_is_an_agent_that_is_gone() -> None:
    class Broken(Scripted):
        def send(self, data: bytes, deadline_s: float) -> None:
            raise BrokenPipeError("broken pipe")

    with pytest.raises(AgentError, match=r"^agent: ended during 'tc': broken pipe$"):
        Channel(Broken(), name="agent").call("tc")


def _pipe() -> tuple[Stream, Callable[[], None]]:
    requests, ask = os.pipe()
    return PipeStream(ask, os.dup(requests)), partial(os.close, requests)


def _socket() -> tuple[Stream, Callable[[], None]]:
    ours, theirs = socket.socketpair()
    return Demultiplexed(ours), theirs.close


@pytest.mark.parametrize("made", [_pipe, _socket])
def test_a_stream_whose_other_end_reads_nothing_is_written_to_no_longer_than_allowed(
    made: Callable[[], tuple[Stream, Callable[[], None]]],
) -> None:
    stream, close = made()
    try:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            stream.send(b"x" * (1 << 22), 0.2)
        assert time.monotonic() - began >= 0.2
    finally:
        stream.close()
        close()


def test_closing_a_channel_closes_its_stream() -> None:
    stream, killed = Scripted(), list[str]()
    Channel(stream, name="agent", kill=lambda: killed.append("it")).close()
    assert (stream.closed, killed) == (True, []), "it ends by itself"
