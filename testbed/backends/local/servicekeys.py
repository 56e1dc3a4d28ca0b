"""What a service's own keys in a Compose file ask of a local lab; each that it cannot honour is refused."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from testbed.backends.local import hostkeys, storage
from testbed.backends.local.blueprint import Published, ServicePlan
from testbed.backends.local.settings import CAPABILITIES
from testbed.backends.local.source import CANNOT, WAY_OUT, ServiceSource
from testbed.compose import scalars
from testbed.images.settings import HealthCheck, Settings
from testbed.spec import drawings
from testbed.spec.words import unknown
from testbed.text import shown, word_set

HONOURED = word_set("""
    build image command entrypoint environment working_dir user networks ports volumes depends_on healthcheck deploy
    scale stop_signal stop_grace_period ulimits sysctls hostname container_name extra_hosts cap_add cap_drop tmpfs
    x-testbed restart links network_mode ipc shm_size dns dns_opt dns_search secrets configs read_only init mac_address
""")
_HARMLESS = word_set("""
    labels annotations logging stdin_open tty expose pull_policy platform profiles attach domainname develop label_file
    pull_refresh_after
""")
_REASONS = {
    "privileged": "a local lab gives Docker's usual capabilities; name the ones needed under `cap_add:`",
    "devices": "a local lab's hosts have no devices of the machine",
    "external_links": "a local lab has no container of another stack",
    "volumes_from": "write the volumes under each service",
}
# The rest of what Compose knows (compose-spec.json).
_COMPOSES_OWN = word_set("""
    credential_spec driver_opts env_file extends external_links isolation models post_start
    pre_stop provider use_api_socket volumes_from
""")
# Without rp_filter, a packet may come in on one network and its answer go out on another.
_FORWARDING = {
    "net.ipv4.ip_forward": "1",
    "net.ipv6.conf.all.forwarding": "1",
    "net.ipv4.conf.all.rp_filter": "0",
    "net.ipv4.conf.*.rp_filter": "0",
}
_OF_DEPLOY = word_set("""
    replicas mode labels endpoint_mode resources restart_policy placement update_config rollback_config
""")
"""What Compose itself heeds, or leaves to a swarm."""
_LIMITS = word_set("core cpu fsize data stack rss nproc nofile memlock as msgqueue nice rtprio sigpending")
_CONDITIONS = ("service_started", "service_healthy", "service_completed_successfully")
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62})")
_CONTAINER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]+")
_PORTS = re.compile(r"(?P<first>[0-9]+)(?:-(?P<last>[0-9]+))?")


def plan(service: ServiceSource) -> ServicePlan:
    """The plan of one service. Problems are noted in the source."""
    body = service.body
    _refuse_unknown(service)
    hostkeys.tell_what_is_not_kept(service)
    for key in ("network_mode", "ipc"):
        hostkeys.check_shared(service, key)
    _check_names(service)
    place = storage.of_service(service)
    image = place.image
    user = str(body.get("user") or image.user)
    if problem := storage.user_problem(user, names=place.found is None):
        service.refuse(f"user {shown(user)}: {problem}", "user" if body.get("user") else "build")
    grace = body.get("stop_grace_period")
    environment = {name: value for name, value in (body.get("environment") or {}).items() if value is not None}
    return ServicePlan(
        name=service.name,
        argv=_argv(service, image),
        environment={**image.environment, **environment},
        workdir=place.workdir,
        user=user,
        depends_on=_depends_on(service),
        health_check=_health_check(body.get("healthcheck"), image),
        stop_signal=_stop_signal(service, image),
        stop_grace_s=None if grace is None else scalars.duration_s(grace),
        published=tuple(_published(service)),
        sysctls={**(_FORWARDING if drawings.is_router(body) else {}), **_sysctls(service)},
        limits=_limits(service),
        capabilities_added=_capabilities(service, "cap_add"),
        capabilities_dropped=_capabilities(service, "cap_drop"),
        folders=tuple(dict.fromkeys(place.folders)),
        binds=(*place.binds, *hostkeys.bound_files(service)),
        volumes=tuple(place.volumes),
        python=place.python,
        image=place.found,
        restart=hostkeys.restart(service),
        shm_bytes=hostkeys.shm_bytes(service),
        resolver=hostkeys.resolver(service),
        given=tuple(hostkeys.given(service, os.environ)),
        read_only=bool(body.get("read_only")),
        tmpfs=place.tmpfs,
        new_folders=tuple(place.new_folders),
        signal_named=bool(body.get("stop_signal")),
    )


def _refuse_unknown(service: ServiceSource) -> None:
    for key, value in service.body.items():
        if key in HONOURED or key in _HARMLESS or key.startswith("x-") or value in (None, [], {}, False):
            continue
        if key in hostkeys.NOT_KEPT:
            continue
        if key not in _REASONS and key not in _COMPOSES_OWN:
            service.refuse(f"`{key}:`: {unknown(key, sorted(HONOURED | _HARMLESS))}", key)
            continue
        reason = f"{_REASONS[key]}; leave it out, {WAY_OUT}" if key in _REASONS else CANNOT
        service.refuse(f"`{key}: {value}`: {reason}", key)
    deploy = service.body.get("deploy") or {}
    given = {key for key, value in deploy.items() if value not in (None, [], {}, False)}
    for key in sorted(given - _OF_DEPLOY):
        service.refuse(f"`deploy: {key}`: a local lab cannot honour it; {WAY_OUT}", "deploy", key)


def _check_names(service: ServiceSource) -> None:
    body = service.body
    if (hostname := body.get("hostname")) and not _HOSTNAME.fullmatch(hostname):
        service.refuse(f"hostname {shown(hostname)}: write at most 63 letters, digits, dots and dashes", "hostname")
    if (name := body.get("container_name")) is not None and not _CONTAINER_NAME.fullmatch(name):
        service.refuse(
            f"container_name {shown(name)}: write two or more letters, digits, dots, dashes, underscores",
            "container_name",
        )
    replicas = (body.get("deploy") or {}).get("replicas")
    if None not in (replicas, body.get("scale")) and replicas != body["scale"]:
        service.refuse(
            f"scale {body['scale']} and deploy.replicas {replicas}: say one of them, or the same twice", "scale"
        )


def _stop_signal(service: ServiceSource, image: Settings) -> str:
    try:
        return scalars.signal_name(service.body.get("stop_signal") or image.stop_signal)
    except ValueError as error:  # the image's; the file's was checked
        service.refuse(f"the image's stop signal: {error}: write `stop_signal:`", "image")
        return "SIGTERM"


def _argv(service: ServiceSource, image: Settings) -> tuple[str, ...]:
    """What runs, as the engine merges it: an empty entrypoint is none, an empty command the image's.

    See moby, daemon/commit.go.
    """
    body = service.body
    own = body.get("entrypoint")
    entrypoint = image.entrypoint if own is None else tuple(map(str, own))
    argv = entrypoint + tuple(map(str, body.get("command") or (() if own else image.command)))
    if not argv and service.local is None and not service.unread("command", "entrypoint"):
        service.refuse("no `command:`, and none in its image: nothing to run", "build" if "build" in body else "image")
    return argv


def _capabilities(service: ServiceSource, key: str) -> tuple[str, ...]:
    names = []
    for number, text in enumerate(service.body.get(key) or ()):
        if text is None:
            continue
        name = text.upper().removeprefix("CAP_")
        if name != "ALL" and name not in CAPABILITIES:
            service.refuse(f"{key}: {shown(text)}: {unknown(name, sorted(CAPABILITIES))}", key, number)
        names.append(name)
    return tuple(names)


def _depends_on(service: ServiceSource) -> dict[str, str]:
    conditions = {}
    services = service.file.config["services"]
    for name, dependency in service.body["depends_on"].items():
        condition = str((dependency or {}).get("condition", "service_started"))
        where = "depends_on", name
        if name not in services:
            implied = name in hostkeys.implied(service)  # which is refused where it stands
            if (dependency or {}).get("required", True) and not implied:
                service.refuse(f"depends on {shown(name)}: {unknown(name, services)}", *where)
        elif condition not in _CONDITIONS:
            service.refuse(f"condition {shown(condition)} of {shown(name)}: {unknown(condition, _CONDITIONS)}", *where)
        else:
            conditions[name] = condition
    return conditions


def _health_check(own: Any, image: Settings) -> HealthCheck | None:
    if not own:
        return image.health_check
    test = own.get("test")
    if own.get("disable") or (test and test[0] == "NONE") or not (test or image.health_check):
        return None
    base = image.health_check or HealthCheck(test=())
    argv = base.test
    if test:
        argv = (*image.shell, str(test[1])) if test[0] == "CMD-SHELL" else tuple(map(str, test[1:]))

    def time_s(key: str, default_s: float) -> float:
        return scalars.duration_s(own.get(key) or "0s") or default_s  # 0 is the default, in `retries` too

    return HealthCheck(
        test=argv,
        retries=own.get("retries") or base.retries,
        interval_s=time_s("interval", base.interval_s),
        timeout_s=time_s("timeout", base.timeout_s),
        start_period_s=time_s("start_period", base.start_period_s),
    )


def _published(service: ServiceSource) -> Iterator[Published]:
    for port in service.body["ports"]:
        where = "ports", port["item"]
        published, protocol = str(port.get("published") or "0"), port.get("protocol") or "tcp"
        if protocol not in ("tcp", "udp"):
            service.refuse(f"a local lab publishes TCP and UDP ports, not {protocol}", *where)
            continue
        if mode := str(service.body.get("network_mode") or ""):
            if mode.startswith(("service:", "container:")):  # the engine ignores ports of the other modes
                service.refuse("its network is another service's; publish the port there", *where)
            continue
        match = _PORTS.fullmatch(published)
        first, last = (int(match["first"]), int(match["last"] or 0)) if match else (1, 0)
        if match is None or (match["last"] and last < first):
            service.refuse(f"published port {shown(published)}: write 8080 or 8080-8090", *where)
            continue
        host_ip = str(port.get("host_ip") or "127.0.0.1")
        yield Published(host_ip=host_ip, port=first, last=last, target=int(port["target"]), protocol=protocol)


def _sysctls(service: ServiceSource) -> dict[str, str]:
    values = {}
    for name, value in (service.body.get("sysctls") or {}).items():
        where = "sysctls", name
        if not str(value).isprintable():
            service.refuse(f"sysctl {shown(name)}: {shown(value)} is no value of a sysctl", *where)
        elif name.startswith("net."):
            values[name] = str(value)
        else:
            service.refuse(f"sysctl {shown(name)}: a host has its own `net.*` alone; {WAY_OUT}", *where)
    return values


def _limits(service: ServiceSource) -> dict[str, tuple[int, int]]:
    limits = {}
    for name, value in (service.body.get("ulimits") or {}).items():
        where = "ulimits", name
        if name not in _LIMITS:
            service.refuse(f"ulimit {shown(name)}: {unknown(name, sorted(_LIMITS))}", *where)
            continue
        pair: Mapping[str, int] = value if isinstance(value, Mapping) else {"soft": value, "hard": value}
        soft, hard = pair["soft"], pair["hard"]
        if hard != -1 and not 0 <= soft <= hard:
            service.refuse(f"ulimit {shown(name)}: soft {soft} is above hard {hard}", *where)
        limits[f"RLIMIT_{name.upper()}"] = (soft, hard)
    return limits
