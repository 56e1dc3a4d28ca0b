"""Which services of a Compose file talk to each other, by what the file says of them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any

# EXPOSE of the official images, and what their programs listen on by default.
_IMAGE_PORTS = {
    "nginx": 80, "httpd": 80, "caddy": 80, "traefik": 80, "redis": 6379, "valkey": 6379, "memcached": 11211,
    "postgres": 5432, "postgis": 5432, "mysql": 3306, "mariadb": 3306, "mongo": 27017, "rabbitmq": 5672,
    "eclipse-mosquitto": 1883, "nats": 4222, "elasticsearch": 9200,
}  # fmt: skip
_SCHEME_PORTS = {"http": 80, "https": 443, "redis": 6379, "postgres": 5432, "postgresql": 5432, "mysql": 3306,
                 "mongodb": 27017, "amqp": 5672, "mqtt": 1883, "nats": 4222}  # fmt: skip
_ADDRESS_KEY = re.compile(r"HOST|SERVER|ADDR|URL|URI|BROKER|PEER|NODE|ENDPOINT", re.IGNORECASE)
_OWN_ADDRESS = re.compile(r"(?:localhost|127\.0\.0\.1|\[::1\])[:/](\d+)")


@dataclass(frozen=True, kw_only=True)
class Peers:
    """Two services, of which one asks the other."""

    client: str
    server: str
    port: int | None
    """The server's TCP port; None if the file does not tell."""


@dataclass(frozen=True, kw_only=True)
class _Edge:
    client: str
    server: str
    reasons: int
    """In how many ways the file says that they talk; 0: it only lets them."""
    port: int | None


def most_connected(services: Mapping[str, Any]) -> Peers | None:
    """The two services of which the file says most; None if no two share a network.

    ``services``: as Compose prints them. Each counts with the number of services that it talks to.
    """
    edges = list(_edges(services))
    degree = {
        name: len({edge.client + edge.server for edge in edges if edge.reasons and name in (edge.client, edge.server)})
        for name in services
    }

    def weight(edge: _Edge) -> tuple[int, int, bool]:
        return bool(edge.reasons) * (degree[edge.client] + degree[edge.server]), edge.reasons, edge.port is not None

    best = max(edges, key=weight, default=None)  # of several, the first in the file
    return None if best is None else Peers(client=best.client, server=best.server, port=best.port)


def _edges(services: Mapping[str, Any]) -> Iterator[_Edge]:
    for (client, body), (server, other) in permutations(services.items(), 2):
        if not set(_networks(body)) & set(_networks(other)):
            continue
        mentions = list(_mentions(body, server))
        needed = (body.get("depends_on") or {}).get(server)
        waits_for_job = (needed or {}).get("condition") == "service_completed_successfully"
        linked = any(str(link).partition(":")[0] == server for link in body.get("links") or ())
        reasons = (needed is not None and not waits_for_job) + linked + bool(mentions)
        port = next((port for port in mentions if port), None) or _port(other)
        yield _Edge(client=client, server=server, reasons=0 if waits_for_job else reasons, port=port)


def _networks(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a service with a network mode, none: it has no link of its own."""
    networks: Mapping[str, Any] = body.get("networks") or {"default": None}
    return {} if body.get("network_mode") else networks


def _mentions(body: Mapping[str, Any], server: str) -> Iterator[int | None]:
    """Each place where a service names another as an address: the port that is named with it, if one is."""
    name = re.escape(server)
    address = re.compile(rf"(?:(\w+)://(?:[^\s/@]*@)?|(?<![\w.-])){name}(?::(\d+))?(?![\w.-])")
    words = [("", str(word)) for key in ("entrypoint", "command") for word in body.get(key) or ()]
    for key, value in [*(body.get("environment") or {}).items(), *words]:
        for match in address.finditer(str(value or "")):
            scheme, port = match[1], match[2]
            # A name alone may be anything, such as that of a user.
            if scheme or port or (match[0] == value and _ADDRESS_KEY.search(key)):
                yield int(port) if port else _SCHEME_PORTS.get(scheme or "")


def _port(body: Mapping[str, Any]) -> int | None:
    """The first TCP port that a service exposes or publishes, asks itself on to be healthy, or is known for."""
    exposed = [str(port).partition("/") for port in body.get("expose") or ()]
    ports = [port for port, _, protocol in exposed if protocol in ("", "tcp")]
    ports += [str(port.get("target")) for port in body.get("ports") or () if port.get("protocol", "tcp") == "tcp"]
    health = " ".join(map(str, (body.get("healthcheck") or {}).get("test") or ()))
    ports += [match[1] for match in _OWN_ADDRESS.finditer(health)]
    image = str(body.get("image") or "").rpartition("/")[2].partition("@")[0].partition(":")[0]
    return next((int(port) for port in ports if port.isdigit()), None) or _IMAGE_PORTS.get(image)
