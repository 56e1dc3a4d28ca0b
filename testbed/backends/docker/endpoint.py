"""Where the engine is: as DOCKER_HOST or the Docker context says, and for ``ssh://`` the user's ``~/.ssh/config``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import docker.context

_SSH_PORT = 22


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where an engine is."""

    url: str
    """Empty for the default socket."""
    machine: str | None
    """The name or address of its machine; None if it is this one."""


def endpoint(environment: Mapping[str, str]) -> Endpoint | None:
    """The engine that these variables mean; None if they name a Docker context that does not exist.

    docker-py ignores the port in ``~/.ssh/config``, so the URL of an engine behind ``ssh://`` has one.
    """
    url = environment.get("DOCKER_HOST", "")
    if not url:
        context = docker.context.ContextAPI.get_context(environment.get("DOCKER_CONTEXT"))
        if context is None:
            return None
        url = str(context.Host or "")
    parts = urlsplit(url)
    if parts.scheme != "ssh" or parts.hostname is None:
        return Endpoint(url=url, machine=parts.hostname)
    configured = _ssh_config(parts.hostname)
    if parts.port is None:
        url = parts._replace(netloc=f"{parts.netloc}:{configured.get('port', _SSH_PORT)}").geturl()
    return Endpoint(url=url, machine=configured.get("hostname", parts.hostname))


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
