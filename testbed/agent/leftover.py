"""Veths after the death of an agent: the next agent restores the state that the first had recorded.

The taps vanish with the agent, and with them the path through a carried kernel: its veth reaches nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Any

from .batch import Batch
from .detour import bridge_settings, open_port
from .devices import SYS_NET, delete_ways_out
from .netlink import Netlink, NetlinkRequest, delete, enslave, queue

_OUR_QDISCS = ("root", "clsact", "ingress")


def stages_of(ifindex: int) -> str:
    """What the names of a port's ifb devices begin with: see `attached.AttachedPort.make_stage`."""
    return f"tbs{ifindex}."


def state_of(veth: str, ifindex: int) -> dict[str, Any]:
    """A veth's state before it is attached, as JSON."""
    folder = SYS_NET / veth
    on_bridge = (folder / "brport").exists()
    return {
        "ifindex": ifindex,
        "queue_packets": int((folder / "tx_queue_len").read_text()),
        "bridge": (folder / "master").readlink().name if on_bridge else None,
        "settings": bridge_settings(veth) if on_bridge else {},
    }


def put_right(states: Sequence[Mapping[str, Any]], tc: Batch) -> list[str]:
    """Restore the state of the veths that still exist; returns their names. ``states``: see `state_of`."""
    names = dict(socket.if_nameindex())
    existing = {names[state["ifindex"]]: state for state in states if state["ifindex"] in names}
    indexes = {name: index for index, name in names.items()}
    changes = list[NetlinkRequest]()
    for state in existing.values():
        index = state["ifindex"]
        changes.append(queue(index, state["queue_packets"]))
        if (bridge := indexes.get(state["bridge"] or "")) is not None:
            changes += [enslave(index, bridge), open_port(index, state["settings"])]
        changes += [delete(stage) for name, stage in indexes.items() if name.startswith(stages_of(index))]
    with Netlink() as here:
        here.apply(changes)
    # Fails where there is none, which is as good.
    # Of a host's own interface, which is on no bridge, the root is the host's.
    tc.run(
        [
            f"qdisc delete dev {name} {qdisc}"
            for name, state in existing.items()
            for qdisc in _OUR_QDISCS
            if state["bridge"] or qdisc != "root"
        ]
    )
    delete_ways_out(*(state["ifindex"] for state in existing.values()))
    return list(existing)
