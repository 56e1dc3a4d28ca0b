"""What a service's keys ask of its hosts: restarts, shared namespaces, name servers, secrets and configs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from testbed.backends.local.blueprint import Given, Restart
from testbed.backends.local.source import WAY_OUT, ServiceSource
from testbed.spec.words import unknown
from testbed.text import shown, word_set

SHM_BYTES = 64 << 20
"""Docker's /dev/shm."""
NOT_KEPT = word_set("""
    blkio_config cgroup cgroup_parent cpu_count cpu_percent cpu_period cpu_quota cpu_rt_period cpu_rt_runtime cpu_shares
    cpus cpuset device_cgroup_rules gpus group_add mem_limit mem_reservation mem_swappiness memswap_limit
    oom_kill_disable oom_score_adj pid pids_limit runtime security_opt storage_opt userns_mode uts
""")
"""Keys that limit or label a container, and change nothing that its programs send: told, and not kept."""
_RESTART = re.compile(r"(no|always|unless-stopped|on-failure)(?::(\d+))?")
_CONDITIONS = {"none": "no", "on-failure": "on-failure", "any": "always", "unless-stopped": "unless-stopped"}
_MOST_MODE = "0444"
"""Compose's mode of a secret or config that it writes itself."""


def restart(service: ServiceSource) -> Restart:
    """Its `deploy: {restart_policy: …}`, or else its `restart:`, as Compose takes them (pkg/compose, create.go)."""
    policy = (service.body.get("deploy") or {}).get("restart_policy")
    if isinstance(policy, Mapping):
        condition = str(policy.get("condition") or "none")
        if condition not in _CONDITIONS:
            service.refuse(f"restart_policy: condition {shown(condition)}: {unknown(condition, _CONDITIONS)}", "deploy")
        attempts = str(policy.get("max_attempts") or 0)
        return Restart(when=_CONDITIONS.get(condition, "no"), most=int(attempts) if attempts.isdecimal() else 0)
    text = str(service.body.get("restart") or "no")
    match = _RESTART.fullmatch(text)
    if match is None or (match[2] and match[1] != "on-failure"):
        service.refuse(
            f"restart: {shown(text)}: write no, always, unless-stopped, on-failure or on-failure:3", "restart"
        )
        return Restart()
    return Restart(when=match[1], most=int(match[2] or 0))


def check_shared(service: ServiceSource, key: str) -> None:
    """Refuse a network mode, or an IPC mode, that is neither a namespace of its own nor that of a service."""
    mode = str(service.body.get(key) or "")
    kind, _, other = mode.partition(":")
    services = service.file.config["services"]
    if kind == "container":
        named = [name for name, body in services.items() if body.get("container_name") == other]
        if not named:
            service.refuse(f"`{key}: {mode}`: no service of this file has this `container_name:`; {WAY_OUT}", key)
            return
        other = named[0]
    if kind in ("service", "container"):
        body = services.get(other)
        if body is None or other == service.name:
            service.refuse(
                f"`{key}: {mode}`: {unknown(other, [name for name in services if name != service.name])}", key
            )
        elif ((body.get("deploy") or {}).get("replicas") or body.get("scale") or 1) != 1:
            service.refuse(f"`{key}: {mode}`: {shown(other)} has several replicas", key)
        elif services[other].get(key, "").startswith(("service:", "container:")):
            service.refuse(f"`{key}: {mode}`: {shown(other)} itself is in another's; name that", key)
    elif mode not in (("", "none") if key == "network_mode" else ("", "none", "private", "shareable")):
        what, way = (
            ("a network", "write `networks:`") if key == "network_mode" else ("an IPC namespace", "leave it out")
        )
        service.refuse(
            f"`{key}: {mode}`: a host of a local lab has {what} of its own, or that of a service; {way}, {WAY_OUT}", key
        )


def shm_bytes(service: ServiceSource) -> int:
    """The size of /dev/shm."""
    return int(service.body.get("shm_size") or 0) or SHM_BYTES


def resolver(service: ServiceSource) -> str:
    """The lines of /etc/resolv.conf that it asks for; empty if there are none."""
    body = service.body
    lines = [f"nameserver {server}" for server in body.get("dns") or () if server]
    for word, key in (("search", "dns_search"), ("options", "dns_opt")):
        if values := [str(value) for value in body.get(key) or () if value]:
            lines.append(f"{word} {' '.join(values)}")
    if bad := [line for line in lines if not line.isprintable()]:
        service.refuse(f"dns: {shown(bad[0])}: not printable", "dns")
        return ""
    if lines and not body.get("dns"):
        lines.insert(0, "nameserver 127.0.0.1")
    return "".join(f"{line}\n" for line in lines)


def bound_files(service: ServiceSource) -> Iterator[tuple[str, str, bool]]:
    """Secrets and configs that are files of the machine, as mounts: Compose binds them, modes and owners unchanged."""
    for kind, place, body in _entries(service):
        if body.get("file"):
            if not os.path.exists(body["file"]):
                service.refuse(f"{kind[:-1]} {shown(body['name'])}: {body['file']} does not exist", kind)
            yield body["file"], place["target"], True


def given(service: ServiceSource, environment: Mapping[str, str]) -> Iterator[Given]:
    """Secrets and configs whose content is in the file, or in the environment."""
    for kind, place, body in _entries(service):
        if body.get("file"):
            continue
        if service.body.get("read_only"):
            service.refuse(
                f"{kind[:-1]} {shown(body['name'])} in a service with `read_only:`: Compose writes it into the "
                f"container, and refuses; give it a `file:`",
                kind,
            )
            continue
        content = body.get("content")
        if (variable := body.get("environment")) is not None:
            content = environment.get(variable)
            if content is None:
                service.refuse(f"{kind[:-1]} {shown(body['name'])}: variable {variable} is not set", kind)
        if content is not None:
            numbers = [str(place.get(key) or 0) for key in ("uid", "gid")]
            if bad := [number for number in numbers if not number.isdecimal()]:
                service.refuse(f"{kind[:-1]} {shown(body['name'])}: owner {shown(bad[0])}: write a number", kind)
                continue
            mode = int(str(place.get("mode") or _MOST_MODE), 8)
            yield Given(place["target"], str(content), mode, int(numbers[0]), int(numbers[1]))


def _entries(service: ServiceSource) -> Iterator[tuple[str, dict[str, Any], Mapping[str, Any]]]:
    """Each secret and config of a service: its kind, its place in the host, and what the file says of it."""
    for kind, folder in (("secrets", "/run/secrets"), ("configs", "")):
        known = service.file.config.get(kind) or {}
        for entry in service.body.get(kind) or ():
            name = entry["source"]
            if name not in known:
                service.refuse(f"{kind[:-1]} {shown(name)}: {unknown(name, known)}", kind)
            elif known[name].get("external"):
                service.refuse(f"{kind[:-1]} {shown(name)} is external: Compose has none, nor has a local lab", kind)
            else:
                target = str(entry.get("target") or name)
                if not target.startswith("/"):
                    target = f"{folder}/{target}"
                yield kind, {**entry, "target": target}, known[name]


def tell_what_is_not_kept(service: ServiceSource) -> None:
    """Note each key that is read and not kept."""
    for key in sorted(NOT_KEPT.intersection(service.body)):
        if service.body[key] not in (None, [], {}, False):
            service.tell(f"`{key}:`")
    deploy = service.body.get("deploy") or {}
    if deploy.get("resources"):
        service.tell("`deploy: resources`")


def implied(service: ServiceSource) -> set[str]:
    """The services that it starts after because it links them or is in their namespaces."""
    links = {str(link).partition(":")[0] for link in service.body.get("links") or ()}
    return links | {str(service.body.get(key) or "").partition(":")[2] for key in ("network_mode", "ipc", "pid")}
