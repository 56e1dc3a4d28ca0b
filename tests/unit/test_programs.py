"""The programs of images/ over this machine's loopback, as users run them, judged by the oracle."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from testbed.evidence.journal import Journal
from testbed.evidence.verdict import Verdict
from testbed.judge.account import Account, Cause
from testbed.judge.oracle import judge
from testbed.lab.waiting import await_condition

IMAGES = Path(__file__).parents[2] / "images"
STRUCTURES = ("iterative", "threads", "fork", "selectors", "asyncio")
DEADLINE_S = 60


def started(program: str, *words: str, cwd: Path) -> subprocess.Popen[str]:
    role = "server" if "server" in program else "client"
    paths = os.pathsep.join([str(IMAGES / "common"), str(IMAGES / role)])
    return subprocess.Popen(
        [sys.executable, str(IMAGES / role / program), *words],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"},
    )


@contextmanager
def serving(cwd: Path, program: str, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server on a port that the kernel chose; stopped by SIGTERM at the end, and it must end well."""
    server = started(program, "--host", "127.0.0.1", "--port", "0", "--journal", "server", *words, cwd=cwd)
    try:
        assert server.stdout is not None
        ready = re.fullmatch(r"ready .*?(\d+)\n", server.stdout.readline())
        assert ready is not None, server.communicate(timeout=DEADLINE_S)[1]
        yield server, ready[1]
        if server.poll() is None:
            server.send_signal(signal.SIGTERM)
        _, errors = server.communicate(timeout=DEADLINE_S)
        assert (server.returncode, errors) == (0, "")
    finally:
        server.kill()
        server.communicate()


def established(port: int) -> list[str]:
    """The connections of a port of this machine's, at the end that was connected to (proc(5), /proc/net/tcp)."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [line[2] for line in lines if line[1].endswith(f":{port:04X}") and line[3] == "01"]


def run(program: str, *words: str, cwd: Path) -> tuple[int, dict[str, int]]:
    """A client to its end: its exit status, and what it says it did."""
    client = started(program, *words, "--journal", "client", cwd=cwd)
    try:
        output, errors = client.communicate(timeout=DEADLINE_S)
    finally:
        client.kill()
    assert errors == ""
    did: dict[str, int] = json.loads(output.splitlines()[-1])
    return client.returncode, did


def account(cwd: Path) -> Account:
    return judge([Journal.of((cwd / name).read_bytes(), name=name) for name in ("client", "server")])


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("replies", [[], ["--replies"]])
def test_every_structure_takes_all_messages_of_three_connections(
    tmp_path: Path, structure: str, replies: Sequence[str]
) -> None:
    words = ["--connections", "3", "--messages", "50", "--size", "5000", *replies]
    with serving(tmp_path, "server.py", "--structure", structure) as (_, port):
        code, did = run("client.py", "127.0.0.1", port, *words, cwd=tmp_path)
    balance = account(tmp_path)
    assert (code, did["taken"], did["answered"]) == (0, 150, 150 if replies else 0)
    assert balance.verdict is Verdict.HOLDS, str(balance)
    assert balance.direction("client", "server").delivered == 150
    assert balance.connect["client"].count == 3


def test_a_paced_client_without_replies_ends_when_all_is_sent(tmp_path: Path) -> None:
    with serving(tmp_path, "server.py", "--structure", "threads") as (_, port):
        code, did = run(
            "client.py", "127.0.0.1", port, "--messages", "20", "--rate", "500", "--deadline", "5", cwd=tmp_path
        )
    assert (code, did["taken"]) == (0, 20)
    assert account(tmp_path).verdict is Verdict.HOLDS


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(("ending", "drain"), [(signal.SIGTERM, "5"), (signal.SIGINT, "0")])
def test_what_was_sent_before_a_server_is_asked_to_stop_is_read_before_it_ends(
    tmp_path: Path, structure: str, ending: signal.Signals, drain: str
) -> None:
    """Four clients that have sent and gone, none of whom the server has accepted; also if it has no time to wait."""
    words = ["--structure", structure, "--backlog", "8", "--drain", drain]
    with serving(tmp_path, "server.py", *words) as (server, port):
        server.send_signal(signal.SIGSTOP)
        # The kernel takes connections and messages for it meanwhile.
        code, did = run(
            "client.py", "127.0.0.1", port, "--careless", "--connections", "4", "--messages", "5", cwd=tmp_path
        )
        server.send_signal(ending)
        server.send_signal(signal.SIGCONT)
        server.wait(DEADLINE_S)
    balance = account(tmp_path)
    assert (code, did["taken"]) == (0, 20)
    assert balance.verdict is Verdict.HOLDS, str(balance)
    assert balance.direction("client", "server").delivered == 20


@pytest.mark.parametrize("structure", STRUCTURES)
def test_an_idle_connection_does_not_keep_a_server_from_stopping(tmp_path: Path, structure: str) -> None:
    with (
        serving(tmp_path, "server.py", "--structure", structure, "--drain", "0.2") as (server, port),
        socket.create_connection(("127.0.0.1", int(port))),
    ):
        # The client is connected once it has an answer; the server's kernel may not have heard of that yet.
        await_condition(lambda: established(int(port)), bool, deadline_s=DEADLINE_S)
        server.send_signal(signal.SIGTERM)
        server.wait(DEADLINE_S)
    rows = (tmp_path / "server").read_text()
    assert '"close"' in rows
    assert '"stop"' in rows


def test_a_stalled_client_stalls_an_iterative_server_and_no_other(tmp_path: Path) -> None:
    for structure in STRUCTURES:
        with (
            serving(tmp_path, "server.py", "--structure", structure, "--drain", "0.1") as (_, port),
            socket.create_connection(("127.0.0.1", int(port))),
        ):
            code, did = run("client.py", "127.0.0.1", port, "--replies", "--deadline", "1", cwd=tmp_path)
        served = structure != "iterative"
        assert (code, did["answered"]) == (0 if served else 1, int(served)), structure


def test_a_server_that_reads_once_tears_a_message_and_the_careless_client_is_told_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, "server.py", "--one-recv", "1024") as (_, port):
        code, _ = run("client.py", "127.0.0.1", port, "--careless", "--size", "1025", cwd=tmp_path)
    balance = account(tmp_path)
    assert code == 0
    assert (balance.verdict, balance.causes) == (Verdict.FAILS, {Cause.CUT_BY_RECV: 1})
    assert balance.direction("client", "server").truncated == 1


def test_a_client_that_awaits_the_end_is_told_that_its_message_was_torn(tmp_path: Path) -> None:
    words = ["--size", "5000", "--messages", "3", "--no-reconnect"]
    with serving(tmp_path, "server.py", "--one-recv", "1024") as (_, port):
        code, did = run("client.py", "127.0.0.1", port, *words, cwd=tmp_path)
    assert (code, did["finished_flows"]) == (1, 0)


def test_a_client_connects_again_until_the_server_is_there_and_sends_again_what_was_not_answered(
    tmp_path: Path,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        client = started(
            "client.py", "127.0.0.1", port, "--replies", "--messages", "3", "--journal", "client", cwd=tmp_path
        )
        first, _ = listener.accept()
        with first:
            assert first.recv(10)
    # The port is free; whoever listens there next gets the rest.
    server = started("server.py", "--host", "127.0.0.1", "--port", port, "--journal", "server", cwd=tmp_path)
    try:
        output, _ = client.communicate(timeout=DEADLINE_S)
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=DEADLINE_S)
    finally:
        client.kill()
        server.kill()
    balance = account(tmp_path)
    did = json.loads(output)
    assert (client.returncode, did["answered"], did["connects"]) == (0, 3, 2)
    assert balance.verdict is Verdict.HOLDS, str(balance)
    assert balance.direction("client", "server").resent >= 1


def test_nobody_there_is_exit_status_1_after_the_deadline(tmp_path: Path) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        port = str(unheard.getsockname()[1])
        code, did = run("client.py", "127.0.0.1", port, "--deadline", "0.3", cwd=tmp_path)
    assert code == 1
    assert did["errors"] >= 2, "it tried again"


def test_a_client_that_is_asked_to_stop_leaves_a_complete_journal(tmp_path: Path) -> None:
    with serving(tmp_path, "server.py") as (_, port):
        words = ["127.0.0.1", port, "--messages", "1000000", "--rate", "100", "--replies"]
        client = started("client.py", *words, "--journal", "client", cwd=tmp_path)
        await_lines(tmp_path / "server", 20)
        client.send_signal(signal.SIGINT)
        client.communicate(timeout=DEADLINE_S)
    assert client.returncode == 1
    assert account(tmp_path).verdict is Verdict.HOLDS, str(account(tmp_path))


def await_lines(path: Path, count: int) -> None:
    """Until a journal has grown so far: it is written 256 lines at a time."""
    from testbed.lab.waiting import await_condition

    await_condition(lambda: len(path.read_bytes().splitlines()), lambda lines: lines >= count, deadline_s=DEADLINE_S)


@pytest.mark.parametrize("replies", [[], ["--replies"]])
def test_datagrams_arrive_and_are_answered(tmp_path: Path, replies: Sequence[str]) -> None:
    words = ["--connections", "2", "--messages", "50", "--rate", "1000", *replies]
    with serving(tmp_path, "udp_server.py") as (_, port):
        code, did = run("udp_client.py", "127.0.0.1", port, *words, cwd=tmp_path)
    balance = account(tmp_path)
    assert (code, did["taken"], did["ended"]) == (0, 100, 2)
    assert balance.verdict is Verdict.HOLDS, str(balance)


def test_a_datagram_longer_than_what_is_read_is_truncated(tmp_path: Path) -> None:
    with serving(tmp_path, "udp_server.py", "--read-size", "512") as (_, port):
        run("udp_client.py", "127.0.0.1", port, "--messages", "3", "--size", "600", cwd=tmp_path)
    balance = account(tmp_path)
    assert balance.causes == {Cause.CUT_BY_RECV: 3}
    assert balance.direction("client", "server").truncated == 3


def test_datagrams_to_a_port_that_nobody_has_open_are_noted_as_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unheard:
        unheard.bind(("127.0.0.1", 0))
        port = str(unheard.getsockname()[1])
    code, did = run("udp_client.py", "127.0.0.1", port, "--messages", "5", "--deadline", "1", cwd=tmp_path)
    assert code == 1
    assert did["errors"] >= 1
    assert "ConnectionRefusedError" in (tmp_path / "client").read_text()


def test_a_player_whose_hello_is_lost_says_it_again(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(20)
        player = started("game_client.py", "127.0.0.1", "--port", str(server.getsockname()[1]), cwd=tmp_path)
        try:
            server.recv(100)
            server.recv(100)  # in 0.2 s
        finally:
            player.kill()
            player.communicate()


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_a_player_gets_every_update_of_a_game(tmp_path: Path, transport: str) -> None:
    with serving(tmp_path, "game_server.py", "--transport", transport, "--updates", "30") as (_, port):
        words = ["127.0.0.1", "--transport", transport, "--port", port]
        code, did = run("game_client.py", *words, cwd=tmp_path)
    balance = account(tmp_path)
    assert (code, did["updates"]) == (0, 30)
    assert balance.verdict is Verdict.HOLDS, str(balance)
    assert balance.direction("server", "client").delivered == 30


@pytest.mark.parametrize(
    ("program", "words", "text"),
    [
        ("client.py", ["--size", "5"], "--size 5: must be 28 to 67108864 bytes"),
        ("client.py", ["--size", "5", "--rate", "-1"], "--rate -1: must be 0 (no limit) or more per second"),
        ("client.py", ["--careless", "--replies"], "a careless client waits for no reply"),
        ("server.py", ["--structure", "thread"], "invalid choice: 'thread'"),
        ("server.py", ["--reply-size", "1"], "--reply-size 1"),
        ("udp_client.py", ["--size", "70000"], "a datagram holds 28 to 65507 bytes"),
        ("game_server.py", ["--rate", "0"], "--rate: above 0"),
    ],
)
def test_wrong_use_is_exit_status_2_and_says_what(tmp_path: Path, program: str, words: list[str], text: str) -> None:
    wrong = started(program, *words, "--journal", "journal", cwd=tmp_path)
    _, errors = wrong.communicate(timeout=DEADLINE_S)
    assert wrong.returncode == 2
    assert text in errors
    assert not (tmp_path / "journal").exists()


def test_messages_are_paced_from_the_first_connect_however_long_that_took(tmp_path: Path) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        port = str(unheard.getsockname()[1])
        words = ["--messages", "20", "--rate", "100", "--back-off", "0.05", "--journal", "client"]
        client = started("client.py", "127.0.0.1", port, *words, cwd=tmp_path)
        time.sleep(0.5)  # not readiness: nobody is there for so long
    server = started("server.py", "--host", "127.0.0.1", "--port", port, "--journal", "server", cwd=tmp_path)
    try:
        client.communicate(timeout=DEADLINE_S)
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=DEADLINE_S)
    finally:
        client.kill()
        server.kill()
    rows = [row for rows in Journal.of((tmp_path / "client").read_bytes(), name="client").blocks() for row in rows]
    connected, sent = ([row[1] for row in rows if row[0] == kind] for kind in ("connect", "sent"))
    assert len(sent) == 20
    assert sent[0] >= connected[0]
    assert sent[-1] - connected[0] >= 0.19e9, "and not at once, for having been due"
