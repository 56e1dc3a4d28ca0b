"""What an agent that died has left at veths: put right by the next, which is told how the first had found them.

Its taps went with it, and with them the way through a carried kernel: a veth that was led there reaches nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .batch import Batch
from .detour import bridge_settings, whole_port
from .netlink import Change, Netlink, enslave, queue

_SYS_NET = Path("/sys/class/net")
_OURS = ("root", "clsact", "ingress")


def found(veth: str, ifindex: int) -> dict[str, Any]:
    """How a veth is before it is attached, as JSON."""
    folder = _SYS_NET / veth
    on_bridge = (folder / "brport").exists()
    return {
        "ifindex": ifindex,
        "queue_packets": int((folder / "tx_queue_len").read_text()),
        "bridge": (folder / "master").readlink().name if on_bridge else None,
        "settings": bridge_settings(veth) if on_bridge else {},
    }


def put_right(veths: Sequence[Mapping[str, Any]], tc: Batch) -> list[str]:
    """Have these veths be as they were `found`; those that are gone are left out. Returns the others' names."""
    names = dict(socket.if_nameindex())
    there = [each for each in veths if each["ifindex"] in names]
    bridges = {name: index for index, name in names.items()}
    changes = list[Change]()
    for each in there:
        index = each["ifindex"]
        changes.append(queue(index, each["queue_packets"]))
        if (bridge := bridges.get(each["bridge"] or "")) is not None:
            changes += [enslave(index, bridge), whole_port(index, each["settings"])]
    with Netlink() as here:
        here.apply(changes)
    # One that is not there is as good.
    tc.run([f"qdisc delete dev {names[each['ifindex']]} {kind}" for each in there for kind in _OURS])
    return [names[each["ifindex"]] for each in there]
