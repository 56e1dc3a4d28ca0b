"""From a Compose file to what a local lab builds: hosts, addresses, programs; and all that it cannot honour.

Reads Dockerfiles and looks up the files that they copy; starts nothing.
"""

from __future__ import annotations

import grp
import os
import posixpath
import pwd
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from itertools import combinations
from pathlib import Path
from typing import Any

from testbed import reading
from testbed.backends.local.routing import Route, Routing
from testbed.compose import buildcontext, dockerfile
from testbed.compose.buildcontext import Entry
from testbed.compose.composefile import ComposeFile, Problems, is_address
from testbed.compose.composeyaml import Where
from testbed.compose.dockerfile import HealthCheck, Image
from testbed.spec import topologies
from testbed.spec.topology import Topology
from testbed.spec.words import unknown
from testbed.text import shown

# Where Docker's own networks lie (moby, ipamutils): nothing outside can clash with ours, so theirs are as good.
_POOL = [IPv4Network(f"172.{number}.0.0/16") for number in range(18, 32)]
_POOL += list(IPv4Network("192.168.0.0/16").subnets(new_prefix=20))
_MTU_OPTION = "com.docker.network.driver.mtu"

_HONOURED = {
    "build", "image", "command", "entrypoint", "environment", "working_dir", "user", "networks", "ports", "volumes",
    "depends_on", "healthcheck", "deploy", "scale", "stop_signal", "stop_grace_period", "ulimits", "sysctls",
    "hostname", "container_name", "extra_hosts", "cap_add", "cap_drop", "tmpfs", "x-testbed",
}  # fmt: skip
_HARMLESS = {
    "labels", "annotations", "logging", "init", "stdin_open", "tty", "expose", "pull_policy", "platform", "profiles",
    "attach", "read_only", "domainname",
}  # fmt: skip
_REASONS = {
    "network_mode": "a host of a local lab has networks of its own, nothing else; write `networks:` in its place",
    "privileged": "a local lab gives Docker's usual capabilities; name the ones needed under `cap_add:`",
    "restart": "a local lab does not start a program again",
    "devices": "a local lab's hosts have no devices of the machine",
    "secrets": "a local lab has none; use `volumes:` or `environment:`",
    "configs": "a local lab has none; use `volumes:`",
}
# A packet may come in where the way back would not go out.
_FORWARDING = {
    "net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1", "net.ipv4.conf.all.rp_filter": "0",
    "net.ipv4.conf.*.rp_filter": "0",
}  # fmt: skip
# The rest of what Compose knows (compose-spec.json).
_COMPOSES_OWN = {
    "blkio_config", "cgroup", "cgroup_parent", "cpu_count", "cpu_percent", "cpu_period", "cpu_quota", "cpu_rt_period",
    "cpu_rt_runtime", "cpu_shares", "cpus", "cpuset", "credential_spec", "develop", "device_cgroup_rules", "dns",
    "dns_opt", "dns_search", "driver_opts", "env_file", "extends", "external_links", "gpus", "group_add", "ipc",
    "isolation", "label_file", "links", "mac_address", "mem_limit", "mem_reservation", "mem_swappiness",
    "memswap_limit", "models", "oom_kill_disable", "oom_score_adj", "pid", "pids_limit", "post_start", "pre_stop",
    "provider", "pull_refresh_after", "runtime", "security_opt", "shm_size", "storage_opt", "use_api_socket",
    "userns_mode", "uts", "volumes_from",
}  # fmt: skip
# linux/capability.h
CAPABILITIES = {
    "AUDIT_CONTROL", "AUDIT_READ", "AUDIT_WRITE", "BLOCK_SUSPEND", "BPF", "CHECKPOINT_RESTORE", "CHOWN", "DAC_OVERRIDE",
    "DAC_READ_SEARCH", "FOWNER", "FSETID", "IPC_LOCK", "IPC_OWNER", "KILL", "LEASE", "LINUX_IMMUTABLE", "MAC_ADMIN",
    "MAC_OVERRIDE", "MKNOD", "NET_ADMIN", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_RAW", "PERFMON", "SETFCAP",
    "SETGID", "SETPCAP", "SETUID", "SYSLOG", "SYS_ADMIN", "SYS_BOOT", "SYS_CHROOT", "SYS_MODULE", "SYS_NICE",
    "SYS_PACCT", "SYS_PTRACE", "SYS_RAWIO", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "WAKE_ALARM",
}  # fmt: skip
# What every host has of its own, and a lab's programs count on.
_LABS_PLACES = ("/proc", "/sys", "/dev", "/run")
_LABS_PARTS = ("/proc", "/sys", "/run/testbed")
_LABS_FILES = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62})")
_VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_CONTAINER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]+")
_MOST_ID = 2**31 - 1  # of a user or group, as the engine has it
_LEAST_MTU, _MOST_MTU = 68, 65535
_WAY_OUT = "or run it with --lab compose"
_CANNOT = f"a local lab cannot honour it; leave it out, {_WAY_OUT}"


@dataclass(frozen=True, kw_only=True)
class Interface:
    """A host's end of a cable."""

    network: str
    name: str
    mac: str
    addresses: tuple[str, ...]
    """With prefix: ``172.18.0.2/16``."""

    @property
    def plain(self) -> tuple[str, ...]:
        """The addresses without prefix."""
        return tuple(cidr.partition("/")[0] for cidr in self.addresses)

    @property
    def link_local(self) -> tuple[str, ...]:
        """The address that the kernel makes of the MAC address where there is IPv6 (RFC 4291, appendix A)."""
        if not any(":" in cidr for cidr in self.addresses):
            return ()
        mac = bytes.fromhex(self.mac.replace(":", ""))
        identifier = bytes([mac[0] ^ 2, *mac[1:3], 0xFF, 0xFE, *mac[3:]])
        return (str(ip_address(bytes.fromhex("fe80" + "00" * 6) + identifier)),)


@dataclass(frozen=True, kw_only=True)
class NetworkPlan:
    """A bridge."""

    name: str
    subnets: tuple[IPv4Network | IPv6Network, ...]
    gateways: tuple[str, ...]
    """With prefix; the bridge's own addresses."""
    mtu: int = 1500


@dataclass(frozen=True, kw_only=True)
class Published:
    """A port of a host that the machine's loopback shows."""

    host_ip: str
    port: int
    """On the machine; 0 lets the kernel choose."""
    target: int
    last: int = 0
    """Of a range, of which the first that is free is taken; 0 for none."""
    protocol: str = "tcp"


@dataclass(frozen=True, kw_only=True)
class ServicePlan:
    """What every replica of a service runs, and sees."""

    name: str
    argv: tuple[str, ...]
    """Empty: a host where nothing runs until a test starts it."""
    environment: Mapping[str, str]
    workdir: str
    user: str = ""
    depends_on: Mapping[str, str] = field(default_factory=dict)
    """Service to condition."""
    health_check: HealthCheck | None = None
    stop_signal: str = "SIGTERM"
    stop_grace_s: float | None = None
    """How long it may take to stop; None if the file does not say."""
    published: tuple[Published, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """By the name of Python's resource module: ``RLIMIT_NOFILE``."""
    capabilities_added: tuple[str, ...] = ()
    capabilities_dropped: tuple[str, ...] = ()
    """``ALL`` stands for itself."""
    folders: tuple[str, ...] = ()
    """Folders of each replica's own, writable."""
    files: tuple[Entry, ...] = ()
    """What its image puts among the machine's files, before all the others; in this order."""
    binds: tuple[tuple[str, str, bool], ...] = ()
    """Shown as well: what, where, whether read-only."""
    volumes: tuple[tuple[str, str, bool], ...] = ()
    """Folders that the lab's hosts share: name, where, whether read-only; each has its own of a name with a colon."""
    python: bool = False


@dataclass(frozen=True, kw_only=True)
class HostPlan:
    """One replica."""

    name: str
    service: str
    hostname: str
    interfaces: tuple[Interface, ...]
    names: Mapping[str, tuple[str, ...]]
    """By network, the names that it has there."""
    extra_hosts: tuple[tuple[str, str], ...] = ()
    routes: tuple[Route, ...] = ()
    reached: tuple[str, ...] = ()
    """The networks that it is not on and that routers lead to."""
    router: bool = False
    """Whether it passes on what is not meant for it."""

    @property
    def hears_of(self) -> tuple[str, ...]:
        """Every network whose hosts it knows by name, the nearest first."""
        return (*(each.network for each in self.interfaces), *self.reached)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that a local lab builds."""

    topology: Topology
    networks: tuple[NetworkPlan, ...]
    services: Mapping[str, ServicePlan]
    """In an order in which each comes after those that it depends on."""
    hosts: tuple[HostPlan, ...]

    def hosts_file(self, host: HostPlan) -> str:
        """What /etc/hosts says in a host: itself, and every name on a network that it reaches; hosts(5)."""
        lines = [self.hosts_head(host), *("\n".join(self.names_on(network)) for network in host.hears_of)]
        return "\n".join(lines) + "\n"

    def hosts_head(self, host: HostPlan) -> str:
        """What is a host's own in its /etc/hosts."""
        lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
        own = host.interfaces[0].plain[0] if host.interfaces else "127.0.0.1"
        lines.append(f"{own} {host.hostname}")
        lines += [f"{address} {name}" for name, address in host.extra_hosts]
        return "\n".join(lines)

    def names_on(self, network: str) -> list[str]:
        """The lines for everybody on a network."""
        cached: dict[str, list[str]] = self.__dict__.setdefault("_names", {})
        if network not in cached:
            cached[network] = [
                f"{address} {' '.join(other.names[network])}"
                for other in self.hosts
                for interface in other.interfaces
                if interface.network == network
                for address in interface.plain
            ]
        return cached[network]


def make(file: ComposeFile, topology: Topology) -> Plan:
    """The plan of a Compose file. Raises InvalidComposeError naming all that a local lab cannot honour, by line."""
    problems = file.problems.copy()
    for name, body in file.config["volumes"].items():
        if not _VOLUME_NAME.fullmatch(name):
            problems.of_part(
                ("volumes", name),
                f"volume {shown(name)}: write letters, digits, dots, dashes, underscores, a letter or digit first",
            )
        for key in ("driver", "external"):
            if (body or {}).get(key) not in (None, False, "local"):
                problems.of_part(
                    ("volumes", name), f"volume {shown(name)}: `{key}: {body[key]}` needs an engine; {_WAY_OUT}"
                )
    services = {
        name: _service(name, body, file, problems) for name, body in file.config["services"].items()
    }  # fmt: skip
    _check_published(file, topology, problems)
    _check_container_names(file, topology, problems)
    networks = _networks(file, problems)
    hosts = _routed(_hosts(file, topology, networks, problems), networks)
    order = _order({name: service.depends_on for name, service in services.items()}, problems)
    problems.raise_if_any()
    planned = {name: services[name] for name in order}
    return Plan(topology=topology, networks=tuple(networks.values()), services=planned, hosts=hosts)


def counts(file: ComposeFile, topology: Topology) -> tuple[int, int]:
    """How many hosts and programs a file asks for, found without planning each."""
    hosts = programs = 0
    for name, service in topology.services.items():
        body = file.config["services"][name]
        hosts += service.replicas
        if body.get("command") or body.get("entrypoint") or "local" not in (body.get("x-testbed") or {}):
            programs += service.replicas
    return hosts, programs


# --- services ----------------------------------------------------------------------------------------


def _service(name: str, body: Mapping[str, Any], file: ComposeFile, problems: Problems) -> ServicePlan:
    at: Where = ("services", name)

    def wrong(key: str, text: str, *inside: str | int) -> None:
        problems.of_part((*at, key, *inside), f"service {shown(name)}: {text}")

    for key, value in body.items():
        if key in _HONOURED or key in _HARMLESS or key.startswith("x-") or value in (None, [], {}, False):
            continue
        if key == "restart" and value == "no":
            continue
        if key not in _REASONS and key not in _COMPOSES_OWN:
            wrong(key, f"`{key}:`: {unknown(key, sorted(_HONOURED | _HARMLESS))}")
            continue
        reason = f"{_REASONS[key]}; leave it out, {_WAY_OUT}" if key in _REASONS else _CANNOT
        wrong(key, f"`{key}: {value}`: {reason}")
    deploy = {key for key, value in (body.get("deploy") or {}).items() if value not in (None, [], {}, False)}
    for key in sorted(deploy - {"replicas", "mode", "labels", "endpoint_mode"}):
        wrong("deploy", f"`deploy: {key}`: a local lab cannot honour it; {_WAY_OUT}", key)
    image = _image(body, file, wrong, unread=any(problems.known((*at, key)) for key in ("x-testbed", "build")))
    # Where the image cannot be had, the rest is judged all the same.
    described, files, binds = image or (Image(command=("unknown",)), [], [])
    folders: list[str] = []
    # As the engine merges them (moby, daemon/commit.go): an empty entrypoint is none, an empty command the image's.
    asked = body.get("entrypoint")
    entrypoint = described.entrypoint if asked is None else tuple(map(str, asked))
    command = tuple(map(str, body.get("command") or (() if asked else described.command)))
    ours = (body.get("x-testbed") or {}).get("local")
    unread = any(problems.known((*at, key)) for key in ("command", "entrypoint"))
    if not (entrypoint + command) and ours is None and not unread:
        wrong("build" if "build" in body else "image", "no `command:`, and no CMD in a Dockerfile: nothing to run")
    volumes = _volumes(body, file, wrong, folders=folders, binds=binds)
    workdir = _workdir(body, described, wrong)
    if workdir != "/" and not buildcontext.is_machines_folder(workdir):
        if "build" in body and ours is None:  # beside what the image has there
            files += [] if any(workdir == each.target for each in files) else [Entry("", workdir, 0o755)]
        elif not _is_shown(workdir, [*folders, *(target for _, target, _ in (*binds, *volumes))]):
            folders.append(workdir)
    user = str(body.get("user") or described.user)
    if problem := _user_problem(user):
        wrong("user" if body.get("user") else "build", f"user {shown(user)}: {problem}")
    if (hostname := body.get("hostname")) and not _HOSTNAME.fullmatch(hostname):
        wrong("hostname", f"hostname {shown(hostname)}: write at most 63 letters, digits, dots and dashes")
    if (own := body.get("container_name")) is not None and not _CONTAINER_NAME.fullmatch(own):
        wrong(
            "container_name",
            f"container_name {shown(own)}: write two or more letters, digits, dots, dashes, underscores",
        )
    replicas = (body.get("deploy") or {}).get("replicas")
    if None not in (replicas, body.get("scale")) and replicas != body["scale"]:
        wrong("scale", f"scale {body['scale']} and deploy.replicas {replicas}: say one of them, or the same twice")
    grace = body.get("stop_grace_period")
    return ServicePlan(
        name=name,
        argv=entrypoint + command,
        environment={**described.environment, **{k: v for k, v in (body.get("environment") or {}).items()
                                                 if v is not None}},
        workdir=workdir,
        user=user,
        depends_on=_depends_on(body, file, wrong),
        health_check=_health_check(body.get("healthcheck"), described),
        stop_signal=dockerfile.signal_name(body.get("stop_signal") or described.stop_signal),
        stop_grace_s=None if grace is None else dockerfile.duration_s(grace),
        published=tuple(_published(name, body, problems)),
        sysctls={**(_FORWARDING if topologies.is_router(body) else {}), **_sysctls(body, wrong)},
        limits=_limits(body, wrong),
        capabilities_added=_capabilities(body, "cap_add", wrong),
        capabilities_dropped=_capabilities(body, "cap_drop", wrong),
        folders=tuple(dict.fromkeys(folders)),
        files=tuple(files),
        binds=tuple(binds),
        volumes=volumes,
        python=described.python,
    )  # fmt: skip


_Contents = tuple[Image, list[Entry], list[tuple[str, str, bool]]]


def _image(body: Mapping[str, Any], file: ComposeFile, wrong: Any, *, unread: bool) -> _Contents | None:
    """What stands in for a service's image: its settings, what it puts among the files, folders shown."""
    said = (body.get("x-testbed") or {}).get("local")
    if said is not None:
        binds: list[tuple[str, str, bool]] = []
        if said.get("path") is not None:
            workdir = str(body.get("working_dir") or "/app")
            path = os.path.realpath(file.path.parent / said["path"])
            if not os.path.isdir(path):
                wrong("x-testbed", f"x-testbed.local.path {shown(said['path'])}: {path} is no folder", "local", "path")
            elif workdir.startswith("/") and (problem := _place_problem(workdir)):
                wrong("working_dir", f"working_dir {shown(workdir)}, where x-testbed.local.path is shown: {problem}")
            else:
                binds.append((path, workdir, True))
        python = said.get("python")
        return Image(workdir="/app", python=True if python is None else python), [], binds
    if unread:
        return None
    if "build" in body:
        return _built(body["build"], wrong)
    reference = str(body.get("image") or "")
    if (base := dockerfile.base(reference)) is not None and base.python:
        return base, [], []
    wrong(
        "image",
        f"`image: {reference}` is of unknown content: a local lab takes programs from this machine. Say which: "
        f"`x-testbed: {{local: {{path: FOLDER, python: true}}}}` and `command:`, {_WAY_OUT}",
    )
    return None


def _built(build: Mapping[str, Any], wrong: Any) -> _Contents | None:
    context = Path(build["context"])
    for key in sorted(set(build) - {"context", "dockerfile", "args", "labels", "tags"}):
        wrong("build", f"`build: {key}`: a local lab cannot honour it; {_WAY_OUT}")
    path = context / str(build.get("dockerfile") or "Dockerfile")
    if not reading.exists(path):
        wrong("build", f"{path} does not exist")
        return None
    arguments = {name: str(value) for name, value in (build.get("args") or {}).items() if value is not None}
    try:
        text = reading.read_bytes(path).decode(errors="replace")
    except reading.UnreadableError as error:
        wrong("build", f"{path} {error.reason}")
        return None
    image, found = dockerfile.read(text, arguments=arguments)
    entries, missing = buildcontext.entries(context, path, image.layers)
    missing += [
        dockerfile.Problem(layer.line, f"{layer.said}: owner {shown(layer.owner)}: {problem}")
        for layer in image.layers
        if (problem := _user_problem(layer.owner))
    ]
    for told in sorted(found + missing, key=lambda each: each.line):
        wrong("build", f"{path}, {told}")
    return None if found or missing else (image, entries, [])


def _is_shown(path: str, places: Iterable[str]) -> bool:
    return any(path == each or path.startswith(f"{each}/") for each in places)


def _volumes(
    body: Mapping[str, Any],
    file: ComposeFile,
    wrong: Any,
    *,
    folders: list[str],
    binds: list[tuple[str, str, bool]],
) -> tuple[tuple[str, str, bool], ...]:
    """The volumes that hosts share; what is a replica's own, and what is shown of the machine, goes to the others."""
    named: list[tuple[str, str, bool]] = []
    taken: set[str] = set()
    for volume in body["volumes"]:
        number, target, read_only = volume["item"], str(volume["target"]), bool(volume.get("read_only"))
        source = str(volume.get("source") or "")
        problem = _place_problem(target, a_file=volume["type"] == "bind" and os.path.isfile(source))
        if posixpath.normpath(target) in taken:
            problem = "another volume has this place"
        taken.add(posixpath.normpath(target))
        if problem:
            wrong("volumes", f"a volume at {shown(target)}: {problem}", number)
            continue
        match volume["type"]:
            case "bind":
                if not os.path.exists(source):
                    wrong("volumes", f"{shown(source)} does not exist", number)
                binds.append((source, target, read_only))
            case "volume" if source and source not in file.config["volumes"]:
                wrong("volumes", f"volume {shown(source)} is not under the file's own `volumes:`", number)
            case "volume":
                named.append((source or f":{number}", target, read_only))
            case "tmpfs":
                folders.append(target)
            case kind:
                wrong("volumes", f"a volume of type {shown(kind)}; {_WAY_OUT}", number)
    for number, each in enumerate(body.get("tmpfs") or ()):
        target, _, options = str(each or "").partition(":")
        if each is None:
            continue
        if odd := [option for option in options.split(",") if not _TMPFS_OPTION.fullmatch(option)] if options else []:
            wrong("tmpfs", f"tmpfs {shown(target)}: {shown(odd[0])} is no option of a tmpfs; write size=64m", number)
        if target in buildcontext.SCRATCH:
            continue
        if problem := _place_problem(target):
            wrong("tmpfs", f"tmpfs {shown(target)}: {problem}", number)
        else:
            folders.append(target)
    return tuple(named)


# What an engine takes, and the kernel after it (tmpfs(5)). A local lab's folder grows with what is put there.
_TMPFS_OPTION = re.compile(
    r"ro|rw|(no)?(suid|dev|exec|mand|atime|diratime|relatime|strictatime)|defaults|a?sync|dirsync|remount"
    r"|r?(un)?bind(able)?|r?(private|shared|slave)|(uid|gid)=\d+|mode=[0-7]+|mpol=.+"
    r"|(size|nr_blocks|nr_inodes)=\d+[kmgtpe]?%?",
    re.IGNORECASE,
)


def _place_problem(target: str, *, a_file: bool = False) -> str | None:
    """What is wrong with a place to show a folder, or a file, in a host."""
    if not target.startswith("/"):
        return "must be an absolute path"
    place = posixpath.normpath(target)
    if place in _LABS_FILES:
        return "a local lab writes this file; name hosts under `extra_hosts:`"
    if place == "/" or place in _LABS_PLACES or any(place.startswith(f"{each}/") for each in _LABS_PARTS):
        return f"a host of a local lab has its own there; name another folder, {_WAY_OUT}"
    if not any(place.startswith(f"{each}/") for each in (*buildcontext.SCRATCH, "/dev")):
        above = Path(place).parents
        if file := next((each for each in above if os.path.exists(each) and not os.path.isdir(each)), None):
            return f"{file} is no folder on this machine"
        if os.path.exists(place) and os.path.isdir(place) == a_file:
            return f"it is a {'folder' if a_file else 'file'} on this machine, and what is shown there is none"
    return None


def _workdir(body: Mapping[str, Any], described: Image, wrong: Any) -> str:
    said = body.get("working_dir")
    workdir = str(said or described.workdir)
    if said and not workdir.startswith("/"):
        wrong("working_dir", f"working_dir {shown(said)}: must be an absolute path")
    elif not buildcontext.is_machines_folder(workdir) and (problem := _place_problem(workdir)):
        wrong("working_dir" if said else "build", f"working_dir {shown(workdir)}: {problem}")
    return workdir


def _user_problem(user: str) -> str | None:
    """Why a user or group is none of this machine's, whose they are in a local lab."""
    name, _, group = user.partition(":")
    lookups: list[tuple[str, Callable[[str], object], str]] = [
        (name, pwd.getpwnam, "/etc/passwd"), (group, grp.getgrnam, "/etc/group"),
    ]  # fmt: skip
    for word, look_up, where in lookups:
        digits = word.lstrip("0")
        if word.isdecimal() and (len(digits) > len(str(_MOST_ID)) or int(digits or "0") > _MOST_ID):
            return f"{word} is above {_MOST_ID}"
        if word and not word.isdecimal():
            try:
                look_up(word)
            except KeyError:
                return f"{shown(word)} is not in this machine's {where}"
    return None


def _capabilities(body: Mapping[str, Any], key: str, wrong: Any) -> tuple[str, ...]:
    found = []
    for number, each in enumerate(body.get(key) or ()):
        if each is None:
            continue
        name = each.upper().removeprefix("CAP_")
        if name != "ALL" and name not in CAPABILITIES:
            wrong(key, f"{key}: {shown(each)}: {unknown(name, sorted(CAPABILITIES))}", number)
        found.append(name)
    return tuple(found)


_CONDITIONS = ("service_started", "service_healthy", "service_completed_successfully")


def _depends_on(body: Mapping[str, Any], file: ComposeFile, wrong: Any) -> dict[str, str]:
    found = {}
    services = file.config["services"]
    for name, how in body["depends_on"].items():
        condition = str((how or {}).get("condition", "service_started"))
        if name not in services:
            if (how or {}).get("required", True):
                wrong("depends_on", f"depends on {shown(name)}: {unknown(name, services)}", name)
        elif condition not in _CONDITIONS:
            wrong(
                "depends_on", f"condition {shown(condition)} of {shown(name)}: {unknown(condition, _CONDITIONS)}", name
            )
        else:
            found[name] = condition
    return found


def _health_check(said: Any, described: Image) -> HealthCheck | None:
    if not said:
        return described.health_check
    test = said.get("test")
    if said.get("disable") or (test and test[0] == "NONE") or not (test or described.health_check):
        return None
    base = described.health_check or HealthCheck(test=())
    argv = base.test
    if test:
        argv = (*described.shell, str(test[1])) if test[0] == "CMD-SHELL" else tuple(map(str, test[1:]))
    times = {
        field_name: time_s
        for field_name, key in (
            ("interval_s", "interval"),
            ("timeout_s", "timeout"),
            ("start_period_s", "start_period"),
        )
        if (time_s := dockerfile.duration_s(said.get(key) or "0s"))  # 0 is the default, here and below
    }
    retries = said.get("retries") or base.retries
    kept = {"interval_s": base.interval_s, "timeout_s": base.timeout_s, "start_period_s": base.start_period_s}
    return HealthCheck(test=argv, retries=retries, **{**kept, **times})


def _published(name: str, body: Mapping[str, Any], problems: Problems) -> Iterator[Published]:
    for port in body["ports"]:
        where = ("services", name, "ports", port["item"])
        published, protocol = str(port.get("published") or "0"), port.get("protocol") or "tcp"
        if protocol != "tcp":
            problems.of_part(where, f"service {shown(name)}: a local lab publishes TCP ports alone, not {protocol}")
        elif (said := re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", published)) is None or int(said[2] or said[1]) < int(
            said[1]
        ):
            problems.of_part(
                where, f"service {shown(name)}: published port {shown(published)}: write 8080 or 8080-8090"
            )
        else:
            host_ip = str(port.get("host_ip") or "127.0.0.1")
            yield Published(host_ip=host_ip, port=int(said[1]), last=int(said[2] or 0), target=int(port["target"]))


def _check_published(file: ComposeFile, topology: Topology, problems: Problems) -> None:
    """Refuse a port of the machine that is named for two."""
    taken: dict[int, list[tuple[str, str, Where]]] = {}
    for name, body in file.config["services"].items():
        for port in body["ports"]:
            where: Where = ("services", name, "ports", port["item"])
            published = str(port.get("published") or "0")
            if port.get("protocol", "tcp") != "tcp" or not published.isdecimal() or int(published) == 0:
                continue
            others = taken.setdefault(int(published), [])
            host_ip = str(port.get("host_ip") or "127.0.0.1")
            if (replicas := topology.services[name].replicas) > 1:
                problems.of_part(
                    where,
                    f"service {shown(name)}: port {published} of this machine for {replicas} replicas; leave it out "
                    f"and each gets one of its own",
                )
            for other, address, place in others:
                if host_ip == address or {host_ip, address} & {"0.0.0.0", "::"}:  # noqa: S104  # compared only
                    at = problems.place(place)
                    taken_at = f" ({at[0].name}:{at[1]})" if at else ""
                    problems.of_part(
                        where,
                        f"service {shown(name)}: port {published} of this machine is given to service "
                        f"{shown(other)}{taken_at}",
                    )
                    break
            others.append((name, host_ip, where))


def _check_container_names(file: ComposeFile, topology: Topology, problems: Problems) -> None:
    """Refuse a container's name that is given to two."""
    taken: dict[str, str] = {}
    for service, body in file.config["services"].items():
        if not (name := body.get("container_name")):
            continue
        where = ("services", service, "container_name")
        if (replicas := topology.services[service].replicas) > 1:
            problems.of_part(
                where, f"service {shown(service)}: one container_name, {shown(name)}, for {replicas} replicas"
            )
        if (other := taken.setdefault(name, service)) != service:
            problems.of_part(
                where, f"service {shown(service)}: container_name {shown(name)} is taken by {shown(other)}"
            )


def _sysctls(body: Mapping[str, Any], wrong: Any) -> dict[str, str]:
    found = {}
    for name, value in (body.get("sysctls") or {}).items():
        if not str(value).isprintable():
            wrong("sysctls", f"sysctl {shown(name)}: {shown(value)} is no value of a sysctl", name)
        elif name.startswith("net."):
            found[name] = str(value)
        else:
            wrong("sysctls", f"sysctl {shown(name)}: a host has its own `net.*` alone; {_WAY_OUT}", name)
    return found


_LIMITS = {"core", "cpu", "fsize", "data", "stack", "rss", "nproc", "nofile", "memlock", "as", "msgqueue", "nice",
           "rtprio", "sigpending"}  # fmt: skip


def _limits(body: Mapping[str, Any], wrong: Any) -> dict[str, tuple[int, int]]:
    found = {}
    for name, value in (body.get("ulimits") or {}).items():
        if name not in _LIMITS:
            wrong("ulimits", f"ulimit {shown(name)}: {unknown(name, sorted(_LIMITS))}", name)
            continue
        both = value if isinstance(value, Mapping) else {"soft": value, "hard": value}
        soft, hard = both["soft"], both["hard"]
        if hard != -1 and not 0 <= soft <= hard:
            wrong("ulimits", f"ulimit {shown(name)}: soft {soft} is above hard {hard}", name)
        found[f"RLIMIT_{name.upper()}"] = (soft, hard)
    return found


def _order(depends_on: Mapping[str, Mapping[str, str]], problems: Problems) -> list[str]:
    """Services, each after those that it depends on."""
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


# --- networks and addresses --------------------------------------------------------------------------


def _networks(file: ComposeFile, problems: Problems) -> dict[str, NetworkPlan]:
    plans: dict[str, NetworkPlan] = {}
    used = {name for body in file.config["services"].values() for name in body.get("networks") or {}}
    taken = [
        subnet for name, body in file.config["networks"].items() if name in used for subnet in _asked_subnets(body)
    ]
    pool = (each for each in _POOL if not any(each.overlaps(other) for other in taken if other.version == 4))
    # Compose leaves out the others, wherever they are; what is wrong with ours is told all the same.
    for name, body in sorted(file.config["networks"].items(), key=lambda each: each[0] not in used):
        body = body or {}
        at: Where = ("networks", name)
        if name not in used and (body.get("external") or body.get("driver") not in (None, "", "bridge")):
            continue
        if body.get("external"):
            problems.of_part(at, f"network {shown(name)} is external: a local lab's networks are its own; {_WAY_OUT}")
        if body.get("driver") not in (None, "", "bridge"):
            problems.of_part(
                (*at, "driver"),
                f"network {shown(name)}: driver {shown(body['driver'])}; a local lab has bridges; {_WAY_OUT}",
            )
        _refuse_in_network(name, body, problems)
        subnets = _asked_subnets(body, problems, at)
        if not any(each.version == 4 for each in subnets):
            chosen = next(pool, None)
            if chosen is None:
                problems.of_part(at, f"network {shown(name)}: no subnet is left; name one under `ipam:`")
                continue
            subnets.insert(0, chosen)
        if body.get("enable_ipv6") and not any(each.version == 6 for each in subnets):
            subnets.append(IPv6Network(f"fd00:0:0:{len(plans) + 1:x}::/64"))
        said = list(_asked_gateways(name, body, subnets, problems))
        gateways = [
            next((text for text in said if ip_address(text) in subnet), str(subnet.network_address + 1))
            + f"/{subnet.prefixlen}"
            for subnet in subnets
        ]
        mtu = _mtu(name, body, problems)
        plans[name] = NetworkPlan(name=name, subnets=tuple(subnets), gateways=tuple(gateways), mtu=mtu)
    for plan in plans.values():
        for a, b in combinations(plan.subnets, 2):
            if a.version == b.version and a.overlaps(b):
                problems.of_part(
                    ("networks", plan.name), f"network {shown(plan.name)}: its subnets overlap: {a} and {b}"
                )
    for one, other in combinations([plan for name, plan in plans.items() if name in used], 2):
        for a, b in ((a, b) for a in one.subnets for b in other.subnets if a.version == b.version and a.overlaps(b)):
            problems.of_part(
                ("networks", other.name), f"networks {shown(one.name)} and {shown(other.name)} overlap: {a} and {b}"
            )
    return {name: plan for name, plan in plans.items() if name in used}


def _refuse_in_network(name: str, body: Mapping[str, Any], problems: Problems) -> None:
    """Refuse what Compose knows of a network and a local lab does not do."""
    at: Where = ("networks", name)
    ipam = body.get("ipam") or {}
    said: list[tuple[Where, Any]] = [((*at, "ipam", "options"), ipam.get("options"))]
    if body.get("enable_ipv4") is False:
        said.append(((*at, "enable_ipv4"), "false"))
    if ipam.get("driver") != "default":
        said.append(((*at, "ipam", "driver"), ipam.get("driver")))
    for number, each in enumerate(ipam.get("config") or ()):
        said += [((*at, "ipam", "config", number, key), (each or {}).get(key)) for key in ("ip_range", "aux_addresses")]
    for where, value in said:
        if value:
            problems.of_part(where, f"network {shown(name)}: `{where[-1]}: {value}`: {_CANNOT}")


def _refuse_in_joined(service: str, network: str, joined: Any, problems: Problems) -> None:
    """The same of a service's place on a network."""
    for key in ("mac_address", "interface_name", "gw_priority", "link_local_ips", "driver_opts"):
        if value := (joined or {}).get(key):
            where = ("services", service, "networks", network, key)
            problems.of_part(where, f"service {shown(service)}: network {shown(network)}: `{key}: {value}`: {_CANNOT}")


def _asked_gateways(
    name: str, body: Mapping[str, Any], subnets: list[IPv4Network | IPv6Network], problems: Problems
) -> Iterator[str]:
    for number, each in enumerate((body.get("ipam") or {}).get("config") or ()):
        if not each or not each.get("gateway"):
            continue
        text, where = each["gateway"], ("networks", name, "ipam", "config", number, "gateway")
        if not is_address(text):
            problems.of_part(where, f"network {shown(name)}: gateway {shown(text)} is no address")
            continue
        subnet = next((subnet for subnet in subnets if ip_address(text) in subnet), None)
        if subnet is None:
            listed = ", ".join(map(str, subnets))
            problems.of_part(where, f"network {shown(name)}: gateway {text} is in no subnet of its own ({listed})")
        elif (end := _end_of(subnet, text)) is not None:
            problems.of_part(where, f"network {shown(name)}: gateway {text} is the {end} address of {subnet}")
        else:
            yield str(ip_address(text))


def _end_of(subnet: IPv4Network | IPv6Network, text: str) -> str | None:
    """``network`` or ``broadcast`` if an address is that of a subnet and so no host's."""
    address = ip_address(text)
    if subnet.prefixlen >= subnet.max_prefixlen - 1 or address.version != subnet.version:
        return None
    if address == subnet.network_address:
        return "network"
    return "broadcast" if address == subnet.broadcast_address and subnet.version == 4 else None


def _mtu(name: str, body: Mapping[str, Any], problems: Problems) -> int:
    said = str((body.get("driver_opts") or {}).get(_MTU_OPTION) or 1500)
    if re.fullmatch(r"[0-9]{1,9}", said) and _LEAST_MTU <= int(said) <= _MOST_MTU:
        return int(said)
    where = ("networks", name, "driver_opts", _MTU_OPTION)
    problems.of_part(
        where, f"network {shown(name)}: MTU {shown(said)}: must be a number from {_LEAST_MTU} to {_MOST_MTU}"
    )
    return 1500


def _asked_subnets(body: Any, problems: Problems | None = None, at: Where = ()) -> list[IPv4Network | IPv6Network]:
    found: list[IPv4Network | IPv6Network] = []
    for number, each in enumerate(((body or {}).get("ipam") or {}).get("config") or ()):
        if not each or not each.get("subnet"):
            continue
        try:
            subnet = ip_network(str(each["subnet"]))
            if not subnet.prefixlen:
                raise ValueError("it has every address there is; give it a part of them, as in 10.0.0.0/24")
            if subnet.prefixlen == subnet.max_prefixlen:
                raise ValueError("has no room for a gateway and a host; name a larger one")
            found.append(subnet)
        except ValueError as error:
            if problems is not None:
                where = (*at, "ipam", "config", number, "subnet")
                problems.of_part(where, f"network {shown(at[-1])}: subnet {shown(each['subnet'])}: {error}")
    return found


def _routed(hosts: Iterable[HostPlan], networks: Mapping[str, NetworkPlan]) -> tuple[HostPlan, ...]:
    """The hosts with their routes: through routers where there are some, else to the first network's gateway."""
    known = {host.name: host for host in hosts}
    routing = Routing(
        subnets={name: network.subnets for name, network in networks.items()},
        ends={name: {each.network: each.plain for each in host.interfaces} for name, host in known.items()},
        routers=[name for name, host in known.items() if host.router],
    )
    made = []
    for name, host in known.items():
        routes = list(routing.routes(name))
        outward = networks[host.interfaces[0].network].gateways if host.interfaces and not host.router else ()
        for everywhere, gateway in ((_everywhere(each), each.partition("/")[0]) for each in outward):
            if not any(destination == everywhere for destination, _ in routes):
                routes.append((everywhere, gateway))
        made.append(replace(host, routes=tuple(routes), reached=tuple(routing.reached(name))))
    return tuple(made)


def _everywhere(cidr: str) -> str:
    return "::/0" if ":" in cidr else "0.0.0.0/0"


def _hosts(
    file: ComposeFile, topology: Topology, networks: Mapping[str, NetworkPlan], problems: Problems
) -> Iterator[HostPlan]:
    static = _static_addresses(file, topology, networks, problems)
    free = {
        name: [_free(subnet, {*static.get(name, {}), *(each.partition("/")[0] for each in plan.gateways)})
               for subnet in plan.subnets]
        for name, plan in networks.items()
    }  # fmt: skip
    for service in topology.services.values():
        body = file.config["services"][service.name]
        joined = dict(body.get("networks") or {})
        order = sorted(joined, key=lambda each: (-int((joined[each] or {}).get("priority") or 0), each))
        for number, host in enumerate(service.hosts, start=1):
            interfaces: list[Interface] = []
            names: dict[str, tuple[str, ...]] = {}
            for network in order:
                if network not in networks:
                    if network not in file.config["networks"]:
                        where = ("services", service.name, "networks", network)
                        problems.of_part(
                            where,
                            f"service {shown(service.name)}: network {shown(network)}: "
                            f"{unknown(network, file.config['networks'])}",
                        )
                    continue
                addresses = []
                for subnet, pool in zip(networks[network].subnets, free[network], strict=True):
                    asked = (joined[network] or {}).get(f"ipv{subnet.version}_address")
                    given = str(ip_address(asked)) if asked and is_address(asked) else next(pool, None)
                    if given is None:
                        problems.of_part(
                            ("networks", network), f"network {shown(network)}: {subnet} has no address left"
                        )
                        break
                    addresses.append(f"{given}/{subnet.prefixlen}")
                if not addresses:
                    continue
                interfaces.append(
                    Interface(
                        network=network,
                        name=f"eth{len(interfaces)}",
                        mac=_mac(addresses[0]),
                        addresses=tuple(addresses),
                    )
                )
                project = file.config.get("name", "default")
                own = body.get("container_name") or f"{project}-{service.name}-{number}"
                aliases = filter(None, (joined[network] or {}).get("aliases") or ())
                hostname = [str(body["hostname"])] if body.get("hostname") else []
                names[network] = tuple(dict.fromkeys([service.name, str(own), *map(str, aliases), *hostname]))
            extra = tuple((name, address) for name, _, address in
                          (each.partition("=") for each in body.get("extra_hosts", ())))  # fmt: skip
            readable = re.sub(r"[^A-Za-z0-9-]+", "-", host)[-63:].strip("-")
            yield HostPlan(
                name=host, service=service.name, hostname=str(body.get("hostname") or readable),
                interfaces=tuple(interfaces), names=names, extra_hosts=extra, router=topologies.is_router(body),
            )  # fmt: skip


def _static_addresses(
    file: ComposeFile, topology: Topology, networks: Mapping[str, NetworkPlan], problems: Problems
) -> dict[str, dict[str, str]]:
    """Every address that a service names, by network: checked against the subnet, the gateway and each other."""
    taken: dict[str, dict[str, str]] = {}
    for name, body in file.config["services"].items():
        for network, joined in (body.get("networks") or {}).items():
            _refuse_in_joined(name, network, joined, problems)
            if network not in networks:
                continue
            for version in (4, 6):
                asked = (joined or {}).get(f"ipv{version}_address")
                if not asked:
                    continue
                where = ("services", name, "networks", network, f"ipv{version}_address")
                if not is_address(asked) or (parsed := ip_address(asked)).version != version:
                    problems.of_part(where, f"service {shown(name)}: {shown(asked)} is no IPv{version} address")
                    continue
                plan = networks[network]
                others = taken.setdefault(network, {})
                if not any(parsed in subnet for subnet in plan.subnets):
                    listed = ", ".join(map(str, plan.subnets))
                    problems.of_part(
                        where, f"service {shown(name)}: {asked} is not in network {shown(network)} ({listed})"
                    )
                elif str(parsed) in (gateway.partition("/")[0] for gateway in plan.gateways):
                    problems.of_part(
                        where, f"service {shown(name)}: {asked} is the gateway of network {shown(network)}"
                    )
                elif end := next((end for subnet in plan.subnets if (end := _end_of(subnet, asked))), None):
                    problems.of_part(
                        where, f"service {shown(name)}: {asked} is the {end} address of network {shown(network)}"
                    )
                elif str(parsed) in others:
                    problems.of_part(where, f"service {shown(name)}: {asked} is taken by {shown(others[str(parsed)])}")
                elif topology.services[name].replicas > 1:
                    problems.of_part(
                        where, f"service {shown(name)}: one address for {topology.services[name].replicas} replicas"
                    )
                others.setdefault(str(parsed), name)
    return taken


def _free(subnet: IPv4Network | IPv6Network, taken: set[str]) -> Iterator[str]:
    return (text for each in subnet.hosts() if (text := str(each)) not in taken)


def _mac(cidr: str) -> str:
    """A locally administered address out of the IP address, as Docker makes them."""
    packed = ip_address(cidr.partition("/")[0]).packed[-4:]
    return ":".join(f"{byte:02x}" for byte in (0x02, 0x42, *packed))
