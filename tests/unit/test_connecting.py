"""Where the engine is, by DOCKER_HOST, contexts and the configuration of ssh; and sessions over several connections."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker
import docker.context
import paramiko
import pytest

from testbed.backends.docker.connecting import EnginePlace, NoEngineError, Sessions, engine_place
from testbed.backends.docker.engine import Engine

CONFIG = "Host lab-machine\n  HostName 192.0.2.7\n  Port 2299\n  User me\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a configuration of ssh, and a context ``far`` beside the default one."""
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text(CONFIG)
    monkeypatch.setenv("HOME", str(tmp_path))
    contexts = {
        None: SimpleNamespace(Host="unix:///var/run/docker.sock"),
        "far": SimpleNamespace(Host="ssh://lab-machine"),
        "tls": SimpleNamespace(Host="tcp://192.0.2.9:2376"),
    }
    monkeypatch.setattr(docker.context.ContextAPI, "get_context", contexts.get)
    return tmp_path


@pytest.mark.parametrize(
    ("environment", "url", "machine"),
    [
        ({}, "unix:///var/run/docker.sock", None),
        ({"DOCKER_HOST": "unix:///elsewhere"}, "unix:///elsewhere", None),
        ({"DOCKER_HOST": "tcp://192.0.2.8:2375", "DOCKER_CONTEXT": "far"}, "tcp://192.0.2.8:2375", "192.0.2.8"),
        ({"DOCKER_CONTEXT": "tls"}, "tcp://192.0.2.9:2376", "192.0.2.9"),
        ({"DOCKER_CONTEXT": "far"}, "ssh://lab-machine:2299", "192.0.2.7"),
        ({"DOCKER_HOST": "ssh://you@lab-machine"}, "ssh://you@lab-machine:2299", "192.0.2.7"),
        ({"DOCKER_HOST": "ssh://lab-machine:23"}, "ssh://lab-machine:23", "192.0.2.7"),
        ({"DOCKER_HOST": "ssh://other"}, "ssh://other:22", "other"),
    ],
)
@pytest.mark.usefixtures("home")
def test_an_engine_is_where_its_url_its_context_and_ssh_say(
    environment: dict[str, str], url: str, machine: str | None
) -> None:
    assert engine_place(environment) == EnginePlace(url=url, machine=machine)


def test_without_a_configuration_of_ssh_its_defaults_count(home: Path) -> None:
    (home / ".ssh" / "config").unlink()
    assert engine_place({"DOCKER_HOST": "ssh://lab-machine"}) == EnginePlace(
        url="ssh://lab-machine:22", machine="lab-machine"
    )


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"DOCKER_CONTEXT": "gone"}, "there is no Docker context 'gone'"),
        ({"DOCKER_HOST": "ssh://a:port"}, "'ssh://a:port' is no URL of an engine: Port could not be cast"),
        ({"DOCKER_HOST": "tcp://[::1"}, "'tcp://[::1' is no URL of an engine: Invalid IPv6 URL"),
    ],
)
@pytest.mark.usefixtures("home")
def test_what_names_no_engine_is_told(environment: dict[str, str], words: str) -> None:
    with pytest.raises(NoEngineError, match=re.escape(words)):
        engine_place(environment)


def test_a_configuration_of_ssh_that_cannot_be_read_is_told(home: Path) -> None:
    (home / ".ssh" / "config").write_text("this is none\n\x00=")
    with pytest.raises(NoEngineError, match=re.escape(str(home / ".ssh" / "config"))):
        engine_place({"DOCKER_HOST": "ssh://lab-machine"})


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (paramiko.SSHException("Server 'a' not found in known_hosts"), "not found in known_hosts"),
        (paramiko.AuthenticationException("Authentication failed."), "Authentication failed"),
    ],
)
@pytest.mark.usefixtures("home")
def test_an_engine_that_ssh_does_not_reach_is_told_with_the_command_to_try(
    monkeypatch: pytest.MonkeyPatch, error: Exception, status: str
) -> None:
    def from_env(**_options: Any) -> Any:
        raise error

    monkeypatch.setattr(docker, "from_env", from_env)
    for environment in ({"DOCKER_HOST": "ssh://you@lab-machine"}, {"DOCKER_CONTEXT": "far"}):
        with pytest.raises(NoEngineError, match=status) as raised:
            Engine(environment)
        assert "`ssh 'ssh://" in str(raised.value)


class Client:
    """A connection whose server allows two sessions."""

    def __init__(self) -> None:
        self.sessions, self.closed = 0, False

    def get_transport(self) -> Client:
        return self

    def open_session(self) -> Client:
        if self.sessions == 2:
            raise paramiko.ChannelException(2, "Connect failed")
        self.sessions += 1
        return self

    def close(self) -> None:
        self.closed = True


CLIENTS: list[Client] = []


class Adapter:
    """docker-py's for ssh://, which connects when it is made."""

    def __init__(self, url: str) -> None:
        self.ssh_host = url.removeprefix("ssh://")
        self.pools = {"http+docker://ssh": "the connection"}
        self.ssh_client: Any = Client()
        CLIENTS.append(self.ssh_client)


def test_a_session_beyond_what_a_server_allows_gets_another_connection() -> None:
    CLIENTS.clear()
    adapter = Adapter("ssh://lab-machine:22")
    sessions = Sessions(adapter)
    assert not adapter.pools, "what holds the connection itself is dropped"
    taken = [sessions.get_transport().open_session() for _ in range(5)]
    assert [CLIENTS.index(client) for client in taken] == [0, 0, 1, 1, 2]
    assert adapter.ssh_client is sessions
    CLIENTS[0].sessions -= 1  # one has ended
    assert sessions.open_session() is CLIENTS[0]
    sessions.close()
    assert all(client.closed for client in CLIENTS)
