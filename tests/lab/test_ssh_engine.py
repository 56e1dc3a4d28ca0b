"""An engine behind ``ssh://``: this machine's, by way of a server of ssh on loopback, of which an alias tells."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import ComposeLab
from testbed.lab.waiting import await_condition
from tests.lab.conftest import HERE
from tests.lab.engines import findings, passes

LABS = ("compose",)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_SSHD = "/usr/sbin/sshd"
_ALIAS = "lab-machine"
_SERVER = """
HostKey {folder}/host
AuthorizedKeysFile {folder}/authorized
ListenAddress 127.0.0.1:{port}
MaxSessions 4
PasswordAuthentication no
StrictModes no
UsePAM no
PidFile none
"""
_CLIENT = """
Host {alias}
  HostName 127.0.0.1
  Port {port}
  User root
  IdentityFile {folder}/home/.ssh/id
  UserKnownHostsFile {folder}/home/.ssh/known_hosts
"""


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as server:
        return server.recv(4) == b"SSH-"
    return False


@pytest.fixture(scope="module")
def behind_ssh(stack: ComposeLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment for the engine, which has the images of the stack."""
    assert stack.run_id
    if os.geteuid() != 0 or not Path(_SSHD).exists():
        pytest.skip("needs root and a server of ssh (openssh-server)")
    folder, port = tmp_path_factory.mktemp("ssh"), _free_port()
    (home := folder / "home" / ".ssh").mkdir(parents=True)
    for key in (folder / "host", home / "id"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    shutil.copy(home / "id.pub", folder / "authorized")
    kind, key_text, *_ = (folder / "host.pub").read_text().split()
    (home / "known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {key_text}\n")
    (home / "config").write_text(_CLIENT.format(alias=_ALIAS, port=port, folder=folder))
    (folder / "server").write_text(_SERVER.format(port=port, folder=folder))
    # Docker's command line runs ssh, which looks for its configuration where the user's account says.
    (programs := folder / "bin").mkdir()
    (programs / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {home}/config "$@"\n')
    (programs / "ssh").chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True)  # where it confines what it does not trust
    server = subprocess.Popen([_SSHD, "-D", "-f", str(folder / "server"), "-E", str(folder / "log")])
    try:
        await_condition(lambda: _answers(port), bool, deadline_s=30)
        yield {
            **os.environ,
            "HOME": str(folder / "home"),
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "DOCKER_HOST": f"ssh://{_ALIAS}",
            "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path("~/.cache").expanduser())),
        }
    finally:
        server.terminate()
        server.wait(30)


def test_the_doctor_finds_the_engine_by_its_alias(behind_ssh: dict[str, str]) -> None:
    engine = findings(behind_ssh)["Docker engine"]
    assert "state='ok'" in engine
    assert f"at ssh://{_ALIAS}:" in engine


def test_links_are_impaired_cut_and_captured_over_more_sessions_than_a_connection_has(
    behind_ssh: dict[str, str],
) -> None:
    flows = f"{HERE}/test_flows_of_readme.py"
    passes(behind_ssh, flows, "-k", "test_1_ or test_6_ or test_8_ or test_10_")
