"""The way to the engine that DOCKER_HOST or the Docker context names; behind ``ssh://`` by ``~/.ssh/config``."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import docker
import docker.context
import docker.errors

from testbed.errors import EnvironmentUnfitError
from testbed.text import shown

_SSH_PORT = 22


@dataclass(frozen=True, kw_only=True)
class EnginePlace:
    """Where an engine is."""

    url: str
    """Empty for the default socket."""
    machine: str | None
    """The name or address of its machine; None if it is this one."""

    @property
    def behind_ssh(self) -> bool:
        """Whether a session of ssh leads there."""
        return self.url.startswith("ssh:")

    def __str__(self) -> str:
        return "the local socket" if self.machine is None else self.url


class NoEngineError(EnvironmentUnfitError):
    """No engine answers this user."""

    def __init__(self, reason: str, remedy: str) -> None:
        """``reason``: a sentence without its full stop. ``remedy``: what to do, in whole sentences."""
        super().__init__(f"{reason}. {remedy}")
        self.reason = reason


class NoPermissionError(NoEngineError):
    """An engine is there but this user may not use it."""


def engine_place(environment: Mapping[str, str]) -> EnginePlace:
    """Where the engine is that these variables mean.

    Raises NoEngineError for a context that does not exist, for which docker-py would take the default one, and for what
    is no URL. docker-py ignores the port in ``~/.ssh/config``, so the URL of an engine behind ``ssh://`` has one.
    """
    url, name = environment.get("DOCKER_HOST", ""), environment.get("DOCKER_CONTEXT")
    if not url:
        context = docker.context.ContextAPI.get_context(name)
        if context is None:
            which = shown(name) if name else "of the name that ~/.docker/config.json has as currentContext"
            raise NoEngineError(f"there is no Docker context {which}", "`docker context ls` lists them.")
        url = str(context.Host or "")
    try:
        parts = urlsplit(url)
        machine, port = parts.hostname, parts.port
    except ValueError as error:
        raise NoEngineError(
            f"{shown(url)} is no URL of an engine: {error}",
            "DOCKER_HOST or the Docker context has it. "
            "Write one such as unix:///run/docker.sock, tcp://machine:2376 or ssh://me@machine.",
        ) from None
    if parts.scheme != "ssh" or machine is None:
        return EnginePlace(url=url, machine=machine)
    configured = _ssh_config(machine)
    if port is None:
        url = parts._replace(netloc=f"{parts.netloc}:{configured.get('port', _SSH_PORT)}").geturl()
    return EnginePlace(url=url, machine=configured.get("hostname", machine))


def _ssh_config(host: str) -> Mapping[str, str]:
    """What the user's configuration of ssh says of a host or alias; nothing without paramiko. Raises NoEngineError."""
    try:
        import paramiko
    except ImportError:
        return {}
    path = Path("~/.ssh/config").expanduser()
    if not path.exists():
        return {}
    try:
        return dict(paramiko.SSHConfig.from_path(str(path)).lookup(host))
    except (paramiko.SSHException, OSError, ValueError) as error:
        raise NoEngineError(f"{path} cannot be read: {error}", f"`ssh -G {host}` says what ssh makes of it.") from None


def unreachable(error: Exception, place: EnginePlace, environment: Mapping[str, str]) -> NoEngineError:
    """What to say of an engine that cannot be reached."""
    reason = str(error)
    if isinstance(error, docker.errors.DockerException) and "paramiko" in reason:  # docker-py's, without its extra
        return NoEngineError(
            "the Docker engine is behind ssh://, which needs paramiko", "Install it: pip install 'pytest-testbed[ssh]'"
        )
    if "Permission denied" in reason or "PermissionError" in reason:
        return NoPermissionError(
            "the Docker engine refuses this user (permission denied on its socket)",
            "Add the user to the group: sudo usermod -aG docker $USER, then log in again; or run as root.",
        )
    named = environment.get("DOCKER_HOST")
    where = f" at DOCKER_HOST={shown(named)}" if named else "" if place.machine is None else f" at {shown(place.url)}"
    remedy = (
        "Start one: sudo systemctl start docker, or open Docker Desktop; or point DOCKER_HOST or `docker context use` "
        "at one that runs."
    )
    if place.behind_ssh:
        remedy = (
            f"`ssh {shown(named or place.url)} docker version` must answer without a question: it needs the machine's "
            f"key in ~/.ssh/known_hosts, and a key of yours that needs no password."
        )
    return NoEngineError(f"no Docker engine answers{where} ({reason})", remedy)


def connected(place: EnginePlace, environment: Mapping[str, str], *, answers_within_s: int) -> docker.DockerClient:
    """A client of the engine at this place. Raises what docker-py raises, and what the libraries below it do."""
    if not place.behind_ssh:
        return docker.from_env(timeout=answers_within_s, environment=dict(environment))
    with _told_as_of_a_connection():
        client = docker.from_env(timeout=answers_within_s, environment={**environment, "DOCKER_HOST": place.url})
    Sessions(vars(client.api)["_custom_adapter"])
    return client


@contextmanager
def _told_as_of_a_connection() -> Iterator[None]:
    """What paramiko raises of its own, such as for an unknown host key, as the ConnectionError that it is to others."""
    try:
        yield
    except Exception as error:
        if not any(kind.__module__.startswith("paramiko.") for kind in type(error).__mro__):
            raise
        raise ConnectionError(str(error)) from None


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
        """A session over the first connection that has room, or over another. Raises OSError."""
        from paramiko import ChannelException

        with self._connecting, _told_as_of_a_connection():
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
