"""What an engine knows of its Swarm: its own node, and on a manager all nodes, services and tasks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import docker

SWARM_LABEL = "com.docker.swarm.service.name"
"""On the container of a task."""
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
                state=str(row["Status"]["State"]),
                words=": ".join(filter(None, (row["Status"]["State"], row["Status"].get("Err")))),
            )
            for row in self._client.api.tasks(  # type: ignore[no-untyped-call]  # the stubs lack its types
                filters={"label": f"com.docker.stack.namespace={project}"}
            )
        ]

    def drain(self, node: str, labels: Mapping[str, str]) -> None:
        """Have a node give its tasks to others, and note who wants that."""
        handle = self._client.nodes.get(node)
        spec = handle.attrs["Spec"]
        handle.update({**spec, "Availability": "drain", "Labels": {**(spec.get("Labels") or {}), **labels}})

    def rejoin(self, node: str, labels: Collection[str]) -> None:
        """Have a node take tasks again, and remove these labels from it."""
        handle = self._client.nodes.get(node)
        spec = handle.attrs["Spec"]
        kept = {key: value for key, value in (spec.get("Labels") or {}).items() if key not in labels}
        handle.update({**spec, "Availability": "active", "Labels": kept})

    def start_anew(self, service: str) -> None:
        """Have all tasks of a service replaced by new ones."""
        handle = self._client.services.get(service)  # type: ignore[no-untyped-call]  # the stubs lack its types
        handle.force_update()

    def labelled(self, filters: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, str], Any]]:
        """The kind, name, labels and handle of each service, secret and config that passes a filter for a label.

        Likewise of each node: one that is drained has the labels of who wants that.
        """
        for kind, collection in _KINDS.items():
            for item in getattr(self._client, collection).list(filters=dict(filters)):
                yield kind, item.name, item.attrs["Spec"].get("Labels") or {}, item
        key, equals, value = str(filters["label"]).partition("=")
        for node in self._client.nodes.list():
            labels = node.attrs["Spec"].get("Labels") or {}
            if key in labels and (not equals or labels[key] == value):
                yield "node", node.attrs["Description"]["Hostname"], labels, node
