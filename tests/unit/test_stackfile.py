"""A Compose configuration becomes a stack file for Docker Swarm."""

from __future__ import annotations

from typing import Any

import pytest

from testbed.compose.stackfile import restarts, stack_of
from testbed.errors import InvalidComposeError

_OURS = {"testbed.run": "0123abcd"}


def stack(**service: Any) -> tuple[dict[str, Any], list[str]]:
    """The stack file's form of a service, and the differences."""
    made, differences = stack_of({"services": {"api": {"image": "i", **service}}}, labels=_OURS)
    return made["services"]["api"], differences


def test_a_service_ends_when_it_ends_and_is_reached_at_its_tasks_own_addresses() -> None:
    service, differences = stack(labels=_OURS)
    assert service["deploy"] == {
        "endpoint_mode": "dnsrr", "restart_policy": {"condition": "none"}, "labels": _OURS,
    }  # fmt: skip  # one row
    assert service["labels"] == _OURS, "of the container"
    assert differences == []


@pytest.mark.parametrize(
    ("restart", "policy", "again"),
    [
        ("no", {"condition": "none"}, False),
        ("always", {"condition": "any"}, True),
        ("unless-stopped", {"condition": "any"}, True),
        ("on-failure", {"condition": "on-failure"}, True),
        ("on-failure:3", {"condition": "on-failure", "max_attempts": 3}, True),
    ],
)
def test_restart_becomes_the_policy_of_the_tasks(restart: str, policy: dict[str, Any], again: bool) -> None:
    service, _ = stack(restart=restart)
    assert "restart" not in service
    assert service["deploy"]["restart_policy"] == policy
    assert restarts({"restart": restart}) is again


def test_what_the_file_says_of_its_deployment_counts() -> None:
    deploy = {"endpoint_mode": "vip", "restart_policy": {"condition": "any"}, "labels": {"a": "b"}, "replicas": 2}
    service, _ = stack(deploy=deploy, restart="no", scale=5)
    assert service["deploy"] == {**deploy, "labels": {"a": "b", **_OURS}}
    assert "scale" not in service
    assert restarts({"deploy": deploy, "restart": "no"})
    assert stack(scale=5)[0]["deploy"]["replicas"] == 5


def test_what_a_swarm_does_not_honour_is_told() -> None:
    service, differences = stack(
        depends_on={"db": {"condition": "service_healthy"}},
        networks={"lan": {"ipv4_address": "10.0.0.5", "aliases": ["web"], "priority": 1}, "other": None},
        ports=[{"mode": "ingress", "target": 80, "published": "8080", "protocol": "tcp", "host_ip": "127.0.0.1"}],
        build={"context": "."},
    )
    assert differences == [
        "services.api.depends_on: a Swarm starts all services at once",
        "services.api.ports: host_ip '127.0.0.1': a Swarm publishes on all addresses of a node",
        "services.api.networks: ipv4_address: a Swarm chooses addresses",
    ]
    assert service["networks"] == {"lan": {"aliases": ["web"]}, "other": None}
    assert service["ports"] == [{"target": 80, "published": 8080, "protocol": "tcp", "mode": "host"}]
    assert "build" not in service
    assert "depends_on" not in service


def test_a_bind_mount_has_no_word_that_the_older_format_lacks() -> None:
    bind = {"type": "bind", "source": "/a", "target": "/b", "bind": {"create_host_path": True, "propagation": "rslave"}}
    volume = {"type": "volume", "source": "data", "target": "/d", "volume": {}}
    service, _ = stack(volumes=[bind, volume])
    assert service["volumes"] == [{**bind, "bind": {"propagation": "rslave"}}, volume]


def test_networks_span_the_machines_and_our_containers_can_join_them() -> None:
    lan: dict[str, Any] = {"name": "p_lan", "driver": "bridge", "labels": _OURS}
    networks = {"lan": lan, "theirs": {"external": True}}
    made, _ = stack_of(
        {"services": {"api": {"image": "i"}}, "networks": networks, "volumes": {"data": None}}, labels={}
    )
    assert made["networks"]["lan"] == {**lan, "driver": "overlay", "attachable": True, "ipam": {}}
    assert made["networks"]["theirs"] == {"external": True}
    assert made["volumes"] == {"data": {}}


def test_what_no_swarm_can_run_is_refused_with_every_problem() -> None:
    services = {"a": {"image": "i", "deploy": {"mode": "global"}}, "b": {"image": "i", "network_mode": "host"}}
    with pytest.raises(InvalidComposeError) as raised:
        stack_of({"services": services}, labels={})
    assert [problem.partition(":")[0] for problem in raised.value.problems] == [
        "services.a.deploy.mode", "services.b.network_mode",
    ]  # fmt: skip  # one row
