"""What in a Compose file only one stack on a machine can have. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from testbed.text import shown


def ports(config: Mapping[str, Any]) -> Iterator[str]:
    """Published ports with a fixed number; a range or no number gives each stack a free port."""
    for name, body in (config.get("services") or {}).items():
        for port in body.get("ports") or ():
            published, target = str(port.get("published") or "0"), port["target"]
            if published.isdecimal() and int(published):
                ip = port.get("host_ip")
                free = f"{ip}::{target}" if ip else str(target)
                yield f"service {shown(name)} publishes port {published}: write `ports: [{free!r}]` for a free one"


def names_and_subnets(config: Mapping[str, Any]) -> Iterator[str]:
    """Container names and subnets, which an engine has once."""
    for name, body in (config.get("services") or {}).items():
        if body.get("container_name"):
            yield f"service {shown(name)} has `container_name: {shown(body['container_name'])}`: leave it out"
    for name, body in (config.get("networks") or {}).items():
        for pool in ((body or {}).get("ipam") or {}).get("config") or ():
            if pool.get("subnet"):
                yield f"network {shown(name)} has `subnet: {pool['subnet']}`: leave it out"
