"""The two services that a Compose file connects most, and the port that one asks the other on."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from testbed.compose.peers import Peers, most_connected


def peers(text: str) -> tuple[str, str, int | None] | None:
    services: dict[str, Any] = yaml.safe_load(text)
    best: Peers | None = most_connected(services)
    return None if best is None else (best.client, best.server, best.port)


@pytest.mark.parametrize(
    ("services", "expected"),
    [
        # The proxy asks the API alone; the API asks three.
        ("proxy: {depends_on: {api: {}}, ports: [{target: 80}]}\n"
         "api: {depends_on: {db: {}, cache: {}}, environment: {DB: 'postgres://me@db/x', CACHE: 'cache:6380'}}\n"
         "db: {image: 'postgres:17'}\ncache: {image: 'redis:8'}", ("api", "db", 5432)),
        ("a: {environment: {API_HOST: b}}\nb: {expose: ['53/udp', '8080']}", ("a", "b", 8080)),
        ("a: {command: [run, --to, 'http://b/x']}\nb: {}", ("a", "b", 80)),
        ("a: {links: ['b:other']}\nb: {ports: [{target: 53, protocol: udp}, {target: 9, protocol: tcp}]}",
         ("a", "b", 9)),
        ("a: {depends_on: {b: {}}}\nb: {healthcheck: {test: [CMD, curl, 'localhost:81/ok']}}", ("a", "b", 81)),
        ("a: {environment: {HOST: 'b:7'}}\nb: {expose: ['8']}", ("a", "b", 7)),
        ("a: {}\nb: {image: 'docker.io/library/nginx@sha256:12'}", ("a", "b", 80)),
        ("a: {}\nb: {}", ("a", "b", None)),
        # A user's name is no address; nor is a part of a longer name; nor a service that ends before the other starts.
        ("a: {environment: {POSTGRES_USER: b, HOST: xb, PEER: 'b.example:1'}}\nc: {depends_on: {b: {}}}\nb: {}",
         ("c", "b", None)),
        ("a: {depends_on: {job: {condition: service_completed_successfully}}}\njob: {command: [x, 'http://b']}\nb: {}",
         ("job", "b", 80)),
        # Without a common network, or without one at all, there is no link.
        ("a: {networks: {x: null}, depends_on: {b: {}}}\nb: {networks: {y: null}}\nc: {networks: {y: null}}",
         ("b", "c", None)),
        ("a: {network_mode: host, depends_on: {b: {}}}\nb: {}", None),
        ("a: {}", None),
    ],
)  # fmt: skip
def test_the_two_that_talk_most(services: str, expected: tuple[str, str, int | None] | None) -> None:
    assert peers(services) == expected
