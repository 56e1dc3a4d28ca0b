"""A Compose configuration as a stack file of Docker Swarm, and what of it Swarm does not honour. Pure.

`docker stack deploy` takes files of an older format than Compose prints, and has other defaults. A service is reached
by its tasks' own addresses (``dnsrr``), so that the end of a link is a receiver and not a balancer, and a task that
ends stays ended unless the file has it restarted, as with Compose.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from testbed.errors import InvalidComposeError
from testbed.text import shown

_VERSION = "3.9"
_RESTARTS = {"no": "none", "always": "any", "unless-stopped": "any", "on-failure": "on-failure"}
_TOP = ("networks", "volumes", "secrets", "configs")


def stack_of(config: Mapping[str, Any], *, labels: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """The stack file, and a line for each thing that is not as in the Compose file.

    ``config``: as Compose prints it, every service with an image. ``labels``: of all that is made. Raises
    InvalidComposeError for what no Swarm can run.
    """
    differences: list[str] = []
    problems: list[str] = []
    services = {}
    for name, body in config["services"].items():
        if (body.get("deploy") or {}).get("mode", "replicated") != "replicated":
            problems.append(
                f"services.{name}.deploy.mode: {shown(body['deploy']['mode'])}: its hosts would depend on the nodes; "
                f"write `replicas: N`"
            )
        if body.get("network_mode"):
            problems.append(
                f"services.{name}.network_mode: {shown(body['network_mode'])}: a Swarm has networks alone; write "
                f"`networks:`"
            )
        services[name] = _service(name, body, labels, differences)
    if problems:
        raise InvalidComposeError(problems)
    top = {kind: _top(kind, config[kind]) for kind in _TOP if config.get(kind)}
    return {"version": _VERSION, "services": services, **top}, differences


def _service(name: str, body: Mapping[str, Any], labels: Mapping[str, str], differences: list[str]) -> dict[str, Any]:
    service = {key: value for key, value in body.items() if not key.startswith("x-") and key not in ("build", "scale")}
    where = f"services.{name}"
    if service.pop("depends_on", None):
        differences.append(f"{where}.depends_on: a Swarm starts all services at once")
    deploy = dict(service.get("deploy") or {})
    deploy.setdefault("endpoint_mode", "dnsrr")
    deploy.setdefault("restart_policy", _restart_policy(str(service.pop("restart", None) or "no")))
    deploy["labels"] = {**(deploy.get("labels") or {}), **labels}
    if body.get("scale") is not None:
        deploy.setdefault("replicas", body["scale"])
    service["deploy"] = deploy
    if ports := service.get("ports"):
        service["ports"] = [_port(f"{where}.ports", port, differences) for port in ports]
    if volumes := service.get("volumes"):
        service["volumes"] = [_volume(volume) for volume in volumes]
    networks = service.get("networks")
    if isinstance(networks, Mapping):
        fixed = {key for body in networks.values() for key in body or {} if key.endswith("_address")}
        differences += [f"{where}.networks: {key}: a Swarm chooses addresses" for key in sorted(fixed)]
        service["networks"] = {
            key: value and {word: setting for word, setting in value.items() if word == "aliases"}
            for key, value in networks.items()
        }
    return service


def restarts(body: Mapping[str, Any]) -> bool:
    """Whether a Swarm starts a task of this service again, or elsewhere; the service is as Compose prints it."""
    policy = (body.get("deploy") or {}).get("restart_policy")
    return (_restart_policy(str(body.get("restart") or "no")) if policy is None else policy).get("condition") != "none"


def _restart_policy(restart: str) -> dict[str, Any]:
    word, _, attempts = restart.partition(":")
    policy: dict[str, Any] = {"condition": _RESTARTS.get(word, "none")}
    return {**policy, "max_attempts": int(attempts)} if attempts.isdigit() else policy


def _port(where: str, port: Any, differences: list[str]) -> Any:
    """It is published on the node of the task: an ingress port needs a virtual address, which `dnsrr` has not."""
    if not isinstance(port, Mapping):
        return port
    known = {key: port[key] for key in ("target", "protocol") if key in port}
    if port.get("host_ip"):
        differences.append(f"{where}: host_ip {shown(port['host_ip'])}: a Swarm publishes on all addresses of a node")
    if str(port.get("published", "")).isdigit():
        known["published"] = int(port["published"])
    return {**known, "mode": "host"}


def _volume(volume: Any) -> Any:
    if not isinstance(volume, Mapping) or "bind" not in volume:
        return volume
    bind = {key: value for key, value in volume["bind"].items() if key == "propagation"}
    return {**{key: value for key, value in volume.items() if key != "bind"}, **({"bind": bind} if bind else {})}


def _top(kind: str, bodies: Mapping[str, Any]) -> dict[str, Any]:
    """Networks span the machines, and containers of ours can join them."""
    kept = {name: dict(body or {}) for name, body in bodies.items()}
    if kind != "networks":
        return kept
    for body in kept.values():
        if body.get("external"):
            continue
        if body.get("driver", "bridge") == "bridge":
            body["driver"] = "overlay"
        body["attachable"] = True
        body.pop("enable_ipv6", None)
        body["ipam"] = body.get("ipam") or {}
    return kept
