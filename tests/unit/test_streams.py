"""The output of a program comes complete through the engine's client, or it is an error."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker
import pytest

from testbed.backends.docker.engine import Engine, Exec
from testbed.backends.docker.programs import ComposeProgram
from testbed.backends.docker.streams import Demultiplexed
from testbed.errors import AgentError, LabError
from testbed.lab.channel import Channel

_HEAD = b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\n\r\n"
_CREATED = b'HTTP/1.1 201 Created\r\nConnection: close\r\nContent-Length: 10\r\n\r\n{"Id":"x"}'


def frame(body: bytes, number: int = 1) -> bytes:
    """As the engine sends it."""
    return struct.pack(">BxxxI", number, len(body)) + body


@contextmanager
def engine_that_sends(folder: Path, pieces: Sequence[bytes]) -> Iterator[Engine]:
    """An engine's client, and what answers it: each program is started with these pieces, and that is the end of it."""
    path = str(folder / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            for answer in ([_CREATED], pieces):  # to the client's request to make one, and to that to start it
                connection, _ = listener.accept()
                with connection:
                    request = b""
                    while not request.endswith(b"}"):  # its body's end
                        request += connection.recv(65536)
                    for piece in answer:
                        connection.sendall(piece)

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        made = Engine.__new__(Engine)
        client: Any = docker.DockerClient(base_url=f"unix://{path}", version="1.41", timeout=5)
        made._client, made._api = client, client.api
        yield made
        server.join(5)


def started(engine: Engine) -> Exec:
    container: Any = SimpleNamespace(id="c0ffee")
    return engine.exec(container, ["true"], env={}, workdir=None, user="")


@pytest.mark.parametrize("cut", [0, 3, 8, 10])
def test_output_that_came_with_the_head_of_the_answer_is_not_lost(tmp_path: Path, cut: int) -> None:
    # On a busy machine a short program has ended before the client reads the answer to its start.
    output = frame(b"hello\n") + frame(b"there\n", 2)
    with engine_that_sends(tmp_path, [_HEAD + output[: cut or None], output[cut:] if cut else b""]) as engine:
        stream = started(engine).stream
        assert [stream.frame(5.0) for _ in range(3)] == [(1, b"hello\n"), (2, b"there\n"), None]
        stream.close()


def test_where_nothing_came_with_it_what_follows_is_read(tmp_path: Path) -> None:
    here, there = socket.socketpair()
    with engine_that_sends(tmp_path, [_HEAD]) as engine, here, there:
        stream = started(engine).stream
        assert stream.frame(5.0) is None
        stream.close()


# --- torn streams ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", range(1, 8 + 6))
def test_a_stream_that_ends_within_a_frame_is_an_error(cut: int) -> None:
    here, there = socket.socketpair()
    with here:
        there.sendall(frame(b"whole") + frame(b"hello\n")[:cut])
        there.close()
        stream = Demultiplexed(here)
        assert stream.frame(1.0) == (1, b"whole")
        with pytest.raises(ConnectionError, match="ended within a frame"):
            stream.frame(1.0)


def test_an_agents_torn_answer_is_told_as_such() -> None:
    here, there = socket.socketpair()
    with here:
        there.sendall(frame(b'{"id": 1, "ok": true}\n')[:-1])
        there.shutdown(socket.SHUT_WR)
        channel = Channel(Demultiplexed(here), name="agent")
        with pytest.raises(AgentError, match=r"ended during 'recall': the engine's stream ended within a frame"):
            channel.call("recall")
        there.close()


class _Started(Engine):
    """An engine on which the program has ended with status 0."""

    def __init__(self, stream: Demultiplexed) -> None:
        self._stream = stream

    def exec(self, *_arguments: Any, **_options: Any) -> Exec:
        return Exec(id="x", stream=self._stream)

    def exec_state(self, _program: Exec) -> tuple[int | None, int]:
        return 0, 1


def program(sent: bytes) -> ComposeProgram:
    """One whose output is this, and then the connection ends."""
    here, there = socket.socketpair()
    there.sendall(sent)
    there.close()
    container: Any = None

    def send_signal(_pid: int, _name: str) -> None:
        raise AssertionError("it has ended")

    return ComposeProgram(
        _Started(Demultiplexed(here)),
        container,
        ["print-it"],
        host="client",
        send_signal=send_signal,
        env=None,
        workdir=None,
        user="",
    )


def test_a_programs_output_that_was_broken_off_is_no_result() -> None:
    with pytest.raises(
        LabError, match=r"(?s)`client`: print-it: exit status 0, .* missing: .*5 of 6 bytes; last output:\n    first$"
    ):
        program(frame(b"first\n") + frame(b"hello\n")[:-1]).wait("5s")


def test_a_program_that_printed_nothing_is_one() -> None:
    assert program(b"").wait("5s").stdout == ""
    assert program(frame(b"out") + frame(b"err", 2)).wait("5s").stdout == "out"
