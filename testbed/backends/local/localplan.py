"""From a Compose file to the plan of a local lab, or to all that a local lab cannot honour of it. Starts nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from testbed.backends.local import addressing, servicekeys
from testbed.backends.local.blueprint import LabPlan
from testbed.backends.local.images import Images
from testbed.backends.local.source import WAY_OUT, ServiceSource
from testbed.compose.composefile import ComposeFile
from testbed.compose.problems import FileProblems
from testbed.spec.topology import Topology
from testbed.text import shown

_VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")


def make(file: ComposeFile, topology: Topology, images: Images | None = None) -> LabPlan:
    """The plan of a Compose file; ``images``: where images are, nowhere if it is None.

    Raises InvalidComposeError naming all that a local lab cannot honour, by line.
    """
    problems, images = file.problems.copy(), images or Images()
    not_kept: dict[str, list[str]] = {}
    sources = [
        ServiceSource(name=name, body=body, file=file, problems=problems, images=images, not_kept=not_kept)
        for name, body in file.config["services"].items()
    ]
    _check_volumes(file, problems)
    services = {source.name: servicekeys.plan(source) for source in sources}
    _check_published(sources, topology)
    _check_container_names(sources, topology)
    networks = addressing.networks(file, problems)
    hosts = addressing.hosts(file, topology, networks, problems)
    order = _order({name: service.depends_on for name, service in services.items()}, problems)
    problems.raise_if_any()
    return LabPlan(
        topology=topology,
        networks=tuple(networks.values()),
        services={name: services[name] for name in order},
        hosts=hosts,
        notes=(
            *(f"not kept in a local lab: {what} of {', '.join(names)}" for what, names in not_kept.items()),
            *_notes_on(file),
        ),
    )


def _notes_on(file: ComposeFile) -> Iterator[str]:
    """Networks and volumes of others, in whose place the lab has its own."""
    used = {name for body in file.config["services"].values() for name in body.get("networks") or {}}
    for name in sorted(used & file.config["networks"].keys()):
        if file.config["networks"][name].get("external"):
            yield f"network {shown(name)} is external: in a local lab it is the lab's own, and nobody else is on it"
    for name, body in file.config["volumes"].items():
        if body.get("external") or body.get("driver_opts"):
            why = "is external" if body.get("external") else "has driver_opts"
            yield f"volume {shown(name)} {why}: in a local lab it is an empty folder of the lab's own"


def counts(file: ComposeFile, topology: Topology) -> tuple[int, int]:
    """How many hosts and programs a file asks for, counted without a plan."""
    hosts = programs = 0
    for name, service in topology.services.items():
        body = file.config["services"][name]
        hosts += service.replicas
        if body.get("command") or body.get("entrypoint") or "local" not in (body.get("x-testbed") or {}):
            programs += service.replicas
    return hosts, programs


def _check_volumes(file: ComposeFile, problems: FileProblems) -> None:
    for name, body in file.config["volumes"].items():
        where = ("volumes", name)
        if not _VOLUME_NAME.fullmatch(name):
            problems.of_part(
                where,
                f"volume {shown(name)}: write letters, digits, dots, dashes, underscores, a letter or digit first",
            )
        if body.get("driver") not in (None, "", "local"):
            problems.of_part(where, f"volume {shown(name)}: `driver: {body['driver']}` needs an engine; {WAY_OUT}")


class _PublishedPort(NamedTuple):
    service: ServiceSource
    host_ip: str
    item: int


def _check_published(sources: list[ServiceSource], topology: Topology) -> None:
    """Refuse a port of the machine that two services publish."""
    known: dict[tuple[str, int], list[_PublishedPort]] = {}
    for service in sources:
        for port in service.body["ports"]:
            published = str(port.get("published") or "0")
            if not published.isdecimal() or int(published) == 0:
                continue
            listener = _PublishedPort(service, str(port.get("host_ip") or "127.0.0.1"), port["item"])
            if (replicas := topology.services[service.name].replicas) > 1:
                service.refuse(
                    f"port {published} of this machine for {replicas} replicas; leave it out and each gets one of its "
                    f"own",
                    "ports",
                    listener.item,
                )
            others = known.setdefault((str(port.get("protocol") or "tcp"), int(published)), [])
            if (other := next((other for other in others if _clash(listener, other)), None)) is not None:
                place = service.problems.place(("services", other.service.name, "ports", other.item))
                at = f" ({place[0].name}:{place[1]})" if place else ""
                service.refuse(
                    f"port {published} of this machine is given to service {shown(other.service.name)}{at}",
                    "ports",
                    listener.item,
                )
            others.append(listener)


def _clash(a: _PublishedPort, b: _PublishedPort) -> bool:
    return a.host_ip == b.host_ip or bool({a.host_ip, b.host_ip} & {"0.0.0.0", "::"})  # noqa: S104  # compared only


def _check_container_names(sources: list[ServiceSource], topology: Topology) -> None:
    """Refuse a container's name that is given to two."""
    owners: dict[str, str] = {}
    for service in sources:
        if not (name := service.body.get("container_name")):
            continue
        if (replicas := topology.services[service.name].replicas) > 1:
            service.refuse(f"one container_name, {shown(name)}, for {replicas} replicas", "container_name")
        if (owner := owners.setdefault(name, service.name)) != service.name:
            service.refuse(f"container_name {shown(name)} is taken by {shown(owner)}", "container_name")


def _order(depends_on: Mapping[str, Mapping[str, str]], problems: FileProblems) -> list[str]:
    """The services, each after those that it depends on."""
    order: list[str] = []
    left = dict(depends_on)
    while left:
        ready = [name for name, needs in left.items() if not set(needs) & set(left)]
        if not ready:
            problems.of_part(("services",), f"{', '.join(left)} depend on each other in a circle")
            break
        order += ready
        for name in ready:
            del left[name]
    return order
