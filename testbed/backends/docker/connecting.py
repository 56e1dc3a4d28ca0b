"""The way to the engine that DOCKER_HOST or the Docker context names; behind ``ssh://`` by ``~/.ssh/config``."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import docker
import docker.context

_SSH_PORT = 22


@dataclass(frozen=True, kw_only=True)
class EnginePlace:
    """Where an engine is."""

    url: str
    """Empty for the default socket."""
    machine: str | None
    """The name or address of its machine; None if it is this one."""

    def __str__(self) -> str:
        return "the local socket" if self.machine is None else self.url


def engine_place(environment: Mapping[str, str]) -> EnginePlace | None:
    """Where the engine is that these variables mean; None if they name a Docker context that does not exist.

    docker-py would take the default context then. And it ignores the port in ``~/.ssh/config``, so the URL of an engine
    behind ``ssh://`` has one.
    """
    url = environment.get("DOCKER_HOST", "")
    if not url:
        context = docker.context.ContextAPI.get_context(environment.get("DOCKER_CONTEXT"))
        if context is None:
            return None
        url = str(context.Host or "")
    parts = urlsplit(url)
    if parts.scheme != "ssh" or parts.hostname is None:
        return EnginePlace(url=url, machine=parts.hostname)
    configured = _ssh_config(parts.hostname)
    if parts.port is None:
        url = parts._replace(netloc=f"{parts.netloc}:{configured.get('port', _SSH_PORT)}").geturl()
    return EnginePlace(url=url, machine=configured.get("hostname", parts.hostname))


def _ssh_config(host: str) -> Mapping[str, str]:
    """What the user's configuration of ssh says of a host or alias; nothing without paramiko."""
    try:
        import paramiko
    except ImportError:
        return {}
    path = Path("~/.ssh/config").expanduser()
    if not path.exists():
        return {}
    return dict(paramiko.SSHConfig.from_path(str(path)).lookup(host))


def connected(place: EnginePlace, environment: Mapping[str, str], *, answers_within_s: int) -> docker.DockerClient:
    """A client of the engine at this place. Raises what docker-py raises, and what the libraries below it do."""
    if not place.url.startswith("ssh:"):
        return docker.from_env(timeout=answers_within_s, environment=dict(environment))
    client = docker.from_env(timeout=answers_within_s, environment={**environment, "DOCKER_HOST": place.url})
    Sessions(vars(client.api)["_custom_adapter"])
    return client


class Sessions:
    """As many sessions of ssh as are needed, over several connections, in place of docker-py's single one.

    Each request that is under way, and each stream, is a session. A server allows few per connection: ten unless
    MaxSessions in sshd_config(5) says otherwise.
    """

    def __init__(self, adapter: Any) -> None:
        """``adapter``: docker-py's for ``ssh://``, which is connected; from now on it uses these."""
        self._adapter = adapter
        self._clients = [adapter.ssh_client]
        self._connecting = threading.Lock()
        adapter.ssh_client = self
        adapter.pools.clear()  # they hold the connection

    def get_transport(self) -> Sessions:
        """What docker-py opens sessions with."""
        return self

    def open_session(self) -> Any:
        """A session over the first connection that has room, or over another. Raises what paramiko raises."""
        from paramiko import ChannelException

        with self._connecting:
            for client in self._clients:
                try:
                    return client.get_transport().open_session()
                except ChannelException:
                    continue
            another: Any = type(self._adapter)(f"ssh://{self._adapter.ssh_host}")
            self._clients.append(another.ssh_client)
            return self._clients[-1].get_transport().open_session()

    def close(self) -> None:
        """Close every connection."""
        for client in self._clients:
            client.close()
