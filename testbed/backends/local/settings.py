"""The requests of a local lab to its agent for each host and program. Pure, but for the place of Python."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Set
from typing import Any

from testbed.backends.local.blueprint import HostPlan, LabPlan, ServicePlan, mac_of
from testbed.images.settings import PATH
from testbed.text import word_set

_BIN = "/run/testbed/bin"
"""Where a host finds ``python3``; see `agent.hosts`."""
_PYTHONS = ("/usr/local/sbin", "/usr/local/bin", "/usr/bin", "/bin")
"""Where an image has it, or before."""
# What Docker leaves to a container's programs (moby, oci/caps/defaults.go).
DEFAULT_CAPABILITIES = word_set("""
    CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL
    AUDIT_WRITE
""")
# linux/capability.h
CAPABILITIES = DEFAULT_CAPABILITIES | word_set("""
    AUDIT_CONTROL AUDIT_READ BLOCK_SUSPEND BPF CHECKPOINT_RESTORE DAC_READ_SEARCH IPC_LOCK IPC_OWNER LEASE
    LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE NET_ADMIN NET_BROADCAST PERFMON SYSLOG SYS_ADMIN SYS_BOOT SYS_MODULE
    SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG WAKE_ALARM
""")


def networks(plan: LabPlan) -> list[dict[str, Any]]:
    """Every network; see `testbed.agent.hosts.Hosts.build`."""
    return [
        {
            "name": network.name,
            "mtu": network.mtu,
            "mac": mac_of(network.gateways[0]),
            "addresses": [*map(str, network.gateways)],
            "names": "\n".join(plan.names_on(network.name)),
        }
        for network in plan.networks
    ]


def host(plan: LabPlan, of: HostPlan, roots: Mapping[str, str]) -> dict[str, Any]:
    """One host; see `testbed.agent.hosts.Hosts.build`. ``roots``: the files of unpacked images, by service."""
    service = plan.services[of.service]
    return {
        "name": of.name,
        "interfaces": [
            {
                "network": interface.network,
                "name": interface.name,
                "mac": interface.mac,
                "addresses": [*map(str, interface.addresses)],
            }
            for interface in of.interfaces
        ],
        "routes": of.routes,
        "names": () if service.asks_name_servers else plan.owner(of).hears_of,
        "sysctls": service.sysctls,
        "hostname": of.hostname,
        "hosts_head": plan.hosts_head(of),
        "folders": [(folder, service.tmpfs.get(folder, "")) for folder in service.folders],
        "given": service.given,
        "resolver": service.resolver,
        "shm_bytes": service.shm_bytes,
        "read_only": service.read_only,
        "net_of": of.net_of,
        "ipc_of": of.ipc_of,
        "shm_of": of.ipc_of or (of.name if of.name in plan.whose_memory_is_shared else ""),
        "binds": [*service.binds, *(_hidden_python() if service.image is None else ())],
        "volumes": [(f"{of.name}{name}" if name.startswith(":") else name, *how) for name, *how in service.volumes],
        "python": os.path.realpath(getattr(sys, "_base_executable", sys.executable)) if service.python else None,
        "capabilities": sorted(capabilities(service)),
        "limits": service.limits,
        "image": roots.get(of.service),
        "workdir": service.workdir,
    }


def environment(of: HostPlan, service: ServicePlan, env: Mapping[str, str]) -> dict[str, str]:
    """The environment of a program in a host. ``env`` overrides the Compose file."""
    ours = {"PATH": PATH, "HOSTNAME": of.hostname, **service.environment, **env}
    return {**ours, "PATH": _with_python(ours["PATH"])} if service.image is None else ours


def capabilities(service: ServicePlan) -> Set[str]:
    """As the engine has it (moby, oci/caps/utils.go): ALL but what is dropped; a name that is added stays."""
    added, dropped = set(service.capabilities_added), set(service.capabilities_dropped)
    if "ALL" in added:
        return CAPABILITIES - dropped
    return added if "ALL" in dropped else (DEFAULT_CAPABILITIES - dropped) | added


def _with_python(path: str) -> str:
    """A search path with our ``python3`` where it would have found an image's."""
    folders = path.split(":")
    at = next((number for number, folder in enumerate(folders) if folder in _PYTHONS), None)
    return path if at is None or _BIN in folders else ":".join([*folders[:at], _BIN, *folders[at:]])


def _hidden_python() -> list[tuple[str, str, bool]]:
    """Python's own folder where it lies below one that a host has of its own."""
    prefix = os.path.realpath(sys.base_prefix)
    return [(prefix, prefix, True)] if prefix.startswith(("/tmp/", "/dev/")) else []  # noqa: S108  # compared only
