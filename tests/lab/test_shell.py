"""``testbed shell``, ``exec`` and ``prove`` on a local lab: exit status, stdin, and a real terminal."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.lab.waiting import await_condition
from tests.lab.conftest import HERE

LABS = ("local",)
ROOT = HERE.parents[1]
_COMMAND = (sys.executable, "-m", "testbed.commands.cli")


@pytest.fixture(autouse=True)
def here(kind: str) -> None:
    assert kind == "local"


def run(*arguments: str, given: str = "", cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    argv = [*_COMMAND, "exec", "--lab", "local", *arguments]
    return subprocess.run(argv, cwd=cwd, input=given, capture_output=True, text=True, timeout=60, check=False)


def test_a_program_has_our_stdin_and_we_have_its_output_and_exit_status() -> None:
    done = run("client", "--", "sh", "-c", "cat; getent hosts server >&2; exit 7", given="x\n")
    assert (done.returncode, done.stdout) == (7, "x\n")
    assert " server " in done.stderr
    assert run("client", "--", "sh", "-c", "kill -9 $$").returncode == 137
    assert run("client", "nosuchprog").returncode == 127


def test_a_host_that_is_not_in_the_compose_file_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text("services:\n  a: {x-testbed: {local: {}}, command: [nosuchprog]}\n")
    refused = run("nosuchhost", "true", cwd=tmp_path)
    known = "testbed: a: this machine's programs\n"
    assert (refused.returncode, refused.stderr) == (2, f"{known}testbed: host 'nosuchhost': unknown; known: a\n")
    assert "cannot be started" in run("a", "true", cwd=tmp_path).stderr, "it would have been told"


def test_a_compose_profile_has_its_hosts(tmp_path: Path) -> None:
    service = "x-testbed: {local: {}}, command: [sleep, infinity]"
    (tmp_path / "compose.yaml").write_text(f"services:\n  a: {{{service}}}\n  b: {{{service}, profiles: [more]}}\n")
    assert run("b", "true", cwd=tmp_path).returncode == 2
    assert run("--compose-profile", "more", "b", "true", cwd=tmp_path).returncode == 0


def test_a_link_is_proven_on_a_stack_of_its_own() -> None:
    argv = [*_COMMAND, "prove", "--lab", "local", "--json", "client -> server", "delay=20ms"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (link,) = json.loads(done.stdout)
    assert link["proof"] == {"read_back": "holds", "counters": "not asked", "probe": "holds"}


@pytest.mark.parametrize("command", ["up", "show", "down"])
def test_what_needs_an_engine_names_what_needs_none(command: str) -> None:
    environment = {**os.environ, "DOCKER_HOST": "unix:///nowhere/docker.sock"}
    argv = [*_COMMAND, command]
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "no Docker engine answers" in done.stderr
    assert "`testbed shell`, `testbed exec` and `testbed prove` with --lab local need none" in done.stderr


class Typist:
    """A user at a terminal."""

    def __init__(self, *argv: str) -> None:
        self.screen = ""
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            os.execvp(argv[0], argv)  # noqa: S606  # no shell
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 111, 0, 0))
        os.set_blocking(self._terminal, False)

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def await_screen(self, pattern: str, deadline_s: float = 30) -> re.Match[str]:
        def look() -> re.Match[str] | None:
            with contextlib.suppress(BlockingIOError):
                self.screen += os.read(self._terminal, 65536).decode(errors="replace")
            return re.search(pattern, self.screen)

        state = await_condition(look, bool, deadline_s=deadline_s, every_s=0.01)
        assert state is not None
        return state

    def await_end(self, deadline_s: float) -> int:
        """The exit status."""

        def look() -> tuple[int, int]:
            with contextlib.suppress(OSError):  # nothing, or all of it, has come
                self.screen += os.read(self._terminal, 65536).decode(errors="replace")
            return os.waitpid(self.pid, os.WNOHANG)

        pid, status = await_condition(look, lambda seen: seen[0] != 0, deadline_s=deadline_s, every_s=0.01)
        assert pid == self.pid
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._terminal)


@pytest.fixture
def shell() -> Iterator[Typist]:
    typist = Typist(*_COMMAND, "shell", "--lab", "local", "client")
    try:
        typist.await_screen(r"[#$] $")
        yield typist
    finally:
        typist.close()


def test_a_shell_has_a_terminal_that_its_programs_find(shell: Typist) -> None:
    shell.type("tty; stty size; echo to-it >$(tty); echo and-there >/dev/tty; echo end=$?\n")
    shell.await_screen(r"end=0")
    assert re.search(r"\n/dev/pts/0\r\n33 111\r\nto-it\r\nand-there\r\n", shell.screen), shell.screen
    shell.type("sh -c 'echo under-way; exec sleep 4711'\n")  # it has the terminal by then, and no more the shell
    shell.await_screen(r"\nunder-way\r\n$")
    shell.type("\x03")
    shell.await_screen(r"\^C\r\n.*[#$] $")
    shell.type("echo interrupted=$?\n")
    shell.await_screen(r"interrupted=130")
    shell.type("exit 5\n")
    assert shell.await_end(20) == 5


def test_a_shell_that_is_left_with_a_job_in_the_background_ends_at_once(shell: Typist) -> None:
    shell.type("sleep 4711 &\necho job=$!\n")
    shell.await_screen(r"job=\d+")
    shell.type("echo last; exit 7\n")
    assert shell.await_end(20) == 7
    assert shell.screen.rstrip().splitlines().count("last") == 1
