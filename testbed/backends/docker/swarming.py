"""What an engine knows of its Swarm: its own node, and on a manager all nodes, services and tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import docker

_KINDS = {"service": "services", "secret": "secrets", "config": "configs"}
"""What only a manager has, and the client's collection of each."""


@dataclass(frozen=True, kw_only=True)
class SwarmNode:
    """A machine of a Swarm."""

    id: str
    name: str
    """Its machine's host name."""
    ready: bool = True
    takes_tasks: bool = True


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of a service."""

    id: str
    service: str
    """The id of its service."""
    slot: int
    state: str
    words: str
    """Its state and why, as the Swarm tells it."""


@dataclass(frozen=True, kw_only=True)
class Membership:
    """An engine's place in a Swarm."""

    node: str
    """The id of its node; empty if it is in no Swarm."""
    manages: bool

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Membership:
        """By what the engine tells of itself."""
        swarm = info.get("Swarm") or {}
        active = swarm.get("LocalNodeState") == "active"
        return cls(node=str(swarm.get("NodeID") or "") if active else "", manages=bool(swarm.get("ControlAvailable")))


class Manager:
    """A manager of a Swarm."""

    def __init__(self, client: docker.DockerClient) -> None:
        self._client = client

    def nodes(self) -> list[SwarmNode]:
        """The machines."""
        return [
            SwarmNode(
                id=str(row["ID"]),
                name=str(row["Description"]["Hostname"]),
                ready=row["Status"]["State"] == "ready",
                takes_tasks=row["Spec"]["Availability"] == "active",
            )
            for row in self._client.api.nodes()
        ]

    def tasks(self, project: str) -> list[Task]:
        """The tasks of a stack that are meant to run, or were."""
        return [
            Task(
                id=str(row["ID"]),
                service=str(row["ServiceID"]),
                slot=int(row.get("Slot", 0)),
                state=str(row["Status"]["State"]),
                words=": ".join(filter(None, (row["Status"]["State"], row["Status"].get("Err")))),
            )
            for row in self._client.api.tasks(  # type: ignore[no-untyped-call]  # the stubs lack its types
                filters={"label": f"com.docker.stack.namespace={project}"}
            )
        ]

    def set_availability(self, node: str, availability: str) -> None:
        """Have a node take tasks (``active``), or give them to others (``drain``)."""
        handle = self._client.nodes.get(node)
        handle.update({**handle.attrs["Spec"], "Availability": availability})

    def start_anew(self, service: str) -> None:
        """Have all tasks of a service replaced by new ones."""
        handle = self._client.services.get(service)  # type: ignore[no-untyped-call]  # the stubs lack its types
        handle.force_update()

    def labelled(self, filters: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, str], Any]]:
        """The kind, name, labels and handle of each service, secret and config that passes a filter."""
        for kind, collection in _KINDS.items():
            for item in getattr(self._client, collection).list(filters=dict(filters)):
                yield kind, item.name, item.attrs["Spec"].get("Labels") or {}, item
