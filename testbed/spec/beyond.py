"""The names of ends of links that are beyond the stack: the engine's machine, the outside, addresses. Pure."""

from __future__ import annotations

import re
from collections.abc import Container
from ipaddress import ip_network

from testbed.spec.links import LOCALHOST, OUTSIDE
from testbed.text import shown

_MACHINE = ("host", "127.0.0.1", "::1", "0.0.0.0", "host.docker.internal", "host-gateway")  # noqa: S104  # words
_OUTSIDE = ("internet", "external", "world", "wan")
_ADDRESS = re.compile(r"(?:\d+(?:\.\d+){3}|[0-9a-fA-F]*:[0-9a-fA-F:.]*:[0-9a-fA-F.]*)(?:/\d+)?")


def is_beyond(name: str, services: Container[str]) -> bool:
    """Whether a name stands for something beyond the stack; a service of that name comes first."""
    return name not in services and (name in (LOCALHOST, OUTSIDE) or _network(name) is not None)


def misnamed(name: str) -> str | None:
    """What to write for a name that was probably meant for something beyond the stack; None if it was not."""
    if name in (LOCALHOST, OUTSIDE) or _network(name) is not None:
        return "that is beyond the stack, where links end but no program of a test runs"
    if name.lower() in _MACHINE or name.lower() == LOCALHOST:
        return f'the machine itself is called {LOCALHOST}: "{LOCALHOST} -> api"'
    if name.lower() in _OUTSIDE or name.lower() == OUTSIDE:
        return f'what is beyond stack and machine is called {OUTSIDE}, or by its address: "api -> {OUTSIDE}"'
    if not _ADDRESS.fullmatch(name):
        return None
    try:
        ip_network(name)
    except ValueError as error:
        return f"{shown(name)} is no address, nor a network as in 203.0.113.0/24: {error}"
    return "an address that packets of a link can neither come from nor go to; name a host"


def canonical(name: str) -> str:
    """The one spelling of an address or a network; other names as they are."""
    return _network(name) or name


def _network(name: str) -> str | None:
    """An address, or a network of addresses, that is somewhere else; None if it is none."""
    if not _ADDRESS.fullmatch(name) or name in _MACHINE:
        return None
    try:
        network = ip_network(name)
    except ValueError:
        return None
    nowhere = network.is_loopback or network.is_multicast or network.is_unspecified or network.is_link_local
    if nowhere or not network.prefixlen:
        return None
    return str(network.network_address if network.prefixlen == network.max_prefixlen else network)
