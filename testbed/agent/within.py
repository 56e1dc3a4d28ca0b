"""Ports that are attached within a host: in its network namespace, where the switch cannot be reached.

There a port is the host's own interface, and what enters there is what the switch has sent to the host::

    [switch]—interface: ingress ─▶ gate=[vecB ─▶ vecA]=end ─▶ interface: ingress, again ─▶ host      (CarriedWithin)
    [switch]—interface: ingress ─▶ ifb: qdiscs                ─▶ interface: ingress, past filters ─▶ host (HostWithin)

``─▶`` is a tc redirect, of IP packets alone: ARP is never impaired. The host's own packets leave as ever. ``end`` has
the interface's MAC address, so that the kernel takes a frame that it gives for the host's.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from typing import Any

from . import devices, splice
from .attached import CarriedPort, HostPort, add_ifb, quietly
from .batch import Batch
from .detour import Diversion
from .leftover import stages_of
from .localtc import LocalTc
from .netlink import Netlink, hardware_address, up, without_addresses
from .protocol import Refused

_NO_WAY_OUT = "what a host sends beyond the stack passes the switch, and this port is attached within its host"


class DetourWithin:
    """The path of what enters at an interface through a carried kernel. A `detour.Diversion`."""

    bridge = None
    tap_macs = frozenset[bytes]()

    def __init__(self, interface: str, *, end: str, gate: str) -> None:
        """``gate`` and ``end``: the taps before and after the kernel."""
        self._interface, self._end, self._gate = interface, end, gate
        *self._into, self._back = splice.within(interface, gate, end)
        self._hooked = False

    @property
    def redirects(self) -> list[splice.Redirect]:
        """See `Diversion`."""
        return [*self._into, self._back]

    def prepare(self, tc: Batch, *, mtu: int, queue_packets: int) -> None:
        """See `Diversion`."""
        end, gate = socket.if_nametoindex(self._end), socket.if_nametoindex(self._gate)
        with Netlink() as here:
            here.apply(
                [
                    hardware_address(end, devices.mac(self._interface)),
                    *(without_addresses(tap, mtu=mtu, queue_packets=queue_packets) for tap in (end, gate)),
                    *(up(tap) for tap in (end, gate)),
                ]
            )
        clsact = [f"qdisc add dev {device} clsact" for device in (self._gate, self._interface)]
        tc.checked([*splice.lines([self._back]), *clsact])
        self._hooked = True

    def put_in(self, tc: Batch, held: AbstractContextManager[None]) -> None:  # noqa: ARG002  # nothing is lost
        """See `Diversion`. A filter that is added to a clsact qdisc loses nothing."""
        tc.checked([redirect.put() for redirect in self._into])

    def take_out(self, tc: Batch) -> None:
        """See `Diversion`."""
        tc.run([redirect.delete() for redirect in self._into])

    def remove(self, tc: Batch) -> None:
        """See `Diversion`."""
        if self._hooked:
            tc.run([f"qdisc delete dev {self._interface} clsact"])
            self._hooked = False


class CarriedWithin(CarriedPort):
    """A port whose qdiscs are in a carried kernel in the host's network namespace."""

    def _new_detour(self) -> Diversion:
        return DetourWithin(self.veth, end=self._end, gate=self.gate)

    def way_out(self) -> dict[str, str | None]:
        """There is none."""
        raise Refused(_NO_WAY_OUT)


class HostWithin(HostPort):
    """A port whose qdiscs are on an ifb in the host's network namespace."""

    def __init__(self, name: str, veth: str, ifindex: int, tc: LocalTc, *, before: Mapping[str, Any]) -> None:
        """Create the ifb; nothing leads to it yet. Raises Refused if the kernel makes none."""
        self._entrance = f"{stages_of(ifindex)}in"
        self._redirects = splice.within(veth, self._entrance)
        with suppress(OSError):  # of an agent that was killed
            devices.delete_device(self._entrance)
        index = add_ifb(self._entrance, veth)
        tc.meet(self._entrance, index)
        super().__init__(name, veth, ifindex, tc, before=before)
        self.device = self.gate = self._entrance
        self.device_index = index
        self.undo.callback(quietly, devices.delete_device, self._entrance)
        self.undo.callback(self._take_out)

    def prepare(self) -> None:
        """Lead IP packets from the interface to the ifb."""
        lines = [f"qdisc add dev {self.veth} clsact", *(redirect.put() for redirect in self._redirects)]
        self.tc.batch().checked(lines)

    def _take_out(self) -> None:
        clsact = [f"qdisc delete dev {self.veth} clsact"] if self.exists else []
        self.tc.batch().run([*clsact, f"qdisc delete dev {self._entrance} root"])

    def release(self) -> None:
        """Lead packets past the ifb, and remove its root qdisc."""
        self._take_out()
        self.released = True

    @property
    def outer(self) -> list[splice.Redirect]:
        """What leads to the ifb."""
        return [] if self.released else self._redirects

    def _counts(self) -> dict[str, int]:
        # An ifb counts as received what its qdiscs have given it (drivers/net/ifb.c).
        came, dropped = (devices.statistic(self._entrance, name) for name in ("rx_packets", "rx_dropped"))
        return {"came_packets": came + dropped, "refused_packets": dropped}

    def sides(self) -> dict[str, str | None]:
        """None: the ifb is both."""
        return {"before": None, "after": None}

    def way_out(self) -> dict[str, str | None]:
        """There is none."""
        raise Refused(_NO_WAY_OUT)

    def make_stage(self) -> None:
        """Refused: an ifb sends back where it came from what another ifb has sent to it."""
        raise Refused("a bottleneck needs a second ifb, which a port within its host cannot have: use --netem carried")
