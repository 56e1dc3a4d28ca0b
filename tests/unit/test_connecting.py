"""Where the engine is, by DOCKER_HOST, contexts and the configuration of ssh; and sessions over several connections."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker.context
import paramiko
import pytest

from testbed.backends.docker.connecting import EnginePlace, Sessions, engine_place

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


@pytest.mark.usefixtures("home")
def test_a_context_that_is_not_there_is_no_engine() -> None:
    assert engine_place({"DOCKER_CONTEXT": "gone"}) is None


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
