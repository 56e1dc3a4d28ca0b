"""The detour of a carried port: leads its packets through a carried kernel, and past it again, without loss.

::

    [bridge]—gate=[vecB <-> vecA]=end <-> [veth]—container

``<->`` is a tc redirect of all packets, both ways; ``gate`` and ``end`` are taps; the qdiscs are on vecA. (A bridge
instead of the outer redirect would send the frames through iptables where net.bridge.bridge-nf-call-iptables is 1.)
ARP, which is never impaired, bypasses the carried kernel: gate <-> veth. A broadcast goes to every port, so the ARP
requests of some hundred hosts would keep a carried kernel busy.

At every moment each direction has a complete path, and it changes in one step: packets from the host with the redirect
at its veth, packets to the host with the bridge's entry for its address. For a moment both veth and gate are on the
bridge, and the host may get two copies of a frame that the bridge floods. When the detour is taken out, the gate stays
on the bridge, where nothing leads to it, and the end stays joined to the veth, so that packets in the carried kernel
still arrive.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from . import devices, splice
from .batch import Batch
from .netlink import Netlink, NetlinkRequest, bridge_port, enslave, reached_through, up, without_addresses
from .protocol import Refused

_SETTINGS = {"hairpin": "hairpin_mode", "isolated": "isolated"}
"""A bridge port's settings: netlink's name of each, and its file below /sys/class/net/…/brport."""

_FORWARDING = "3"  # linux/if_bridge.h
_FORWARDS_WITHIN_S, _LOOK_AGAIN_S = 5.0, 0.002

# linux/if_bridge.h, struct __fdb_entry: address, port number, whether it is the port's own, age, high byte of number.
_ENTRY = struct.Struct("=6sBBIBxH")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Diversion(Protocol):
    """What leads a port's packets through a carried kernel, past it, and is removed."""

    @property
    def bridge(self) -> str | None:
        """The bridge that the port is on, if it is seen from here."""

    @property
    def tap_macs(self) -> frozenset[bytes]:
        """The MAC addresses of the taps, as the bridge learns them."""

    @property
    def redirects(self) -> list[splice.Redirect]:
        """The redirects that exist while packets are led through."""

    def prepare(self, tc: Batch, *, mtu: int, queue_packets: int) -> None:
        """Set the taps up."""

    def put_in(self, tc: Batch, held: AbstractContextManager[None]) -> None:
        """Lead the port's packets through the carried kernel; ``held``: suspends that kernel."""

    def take_out(self, tc: Batch) -> None:
        """Lead packets past it."""

    def remove(self, tc: Batch) -> None:
        """Likewise, and leave nothing at the port."""


class Detour:
    """One port's path through a carried kernel."""

    def __init__(self, veth: str, ifindex: int, *, end: str, gate: str) -> None:
        """``end`` and ``gate``: the taps on the host's and the bridge's side. Raises Refused without a bridge."""
        self.veth, self._index = veth, ifindex
        self.end, self.gate = end, gate
        self.is_in = False
        """Whether the port's packets go through the carried kernel."""
        self._hooked = False
        """Whether the veth has its ingress qdisc."""
        self.tap_macs = frozenset(devices.mac(tap) for tap in (end, gate))
        """The MAC addresses of the taps, which send some frames when they come up."""
        self._in, self._out = splice.joined(veth, end)
        self._arp_out, self._arp_in = splice.past(gate, veth)
        bridge = devices.device(veth).master
        if bridge is None:
            raise Refused(f"veth {veth} is on no bridge; an earlier run may have left it: restart the stack")
        self.bridge = bridge
        self._settings = bridge_settings(veth)

    @property
    def redirects(self) -> list[splice.Redirect]:
        """The redirects that exist while the detour is in."""
        return [self._in, self._out, self._arp_out, self._arp_in]

    def prepare(self, tc: Batch, *, mtu: int, queue_packets: int) -> None:
        """Set the taps up, and put the gate on the bridge, where nothing leads to it yet."""
        end, gate = socket.if_nametoindex(self.end), socket.if_nametoindex(self.gate)
        changes = [
            without_addresses(end, mtu=mtu, queue_packets=queue_packets),
            without_addresses(gate, mtu=mtu, queue_packets=queue_packets),
            up(end),
            enslave(gate, socket.if_nametoindex(self.bridge)),  # while it is down: it must not flood first
            bridge_port(gate, **self._settings, **_open(False)),
            up(gate),
        ]
        _apply(changes)
        tc.checked([*splice.lines([self._out]), f"qdisc add dev {self.gate} clsact"])
        _await_forwarding(self.gate)

    def put_in(self, tc: Batch, held: AbstractContextManager[None]) -> None:
        """Lead the port's packets through the carried kernel; ``held``: suspends that kernel.

        A device that is given a qdisc, even an ingress one, loses the packets that it should send at that moment
        (net/sched/sch_api.c, qdisc_graft). So the veth gets its ingress qdisc only once, while packets to the host wait
        in front of the suspended kernel.
        """
        gate = socket.if_nametoindex(self.gate)
        changes = [bridge_port(gate, **_open(True)), bridge_port(self._index, **_open(False))]
        changes += [reached_through(gate, mac) for mac in self._behind(self.veth)]
        redirects = [self._arp_in.put(), self._in.put()]
        with nullcontext() if self._hooked else held:
            _apply(changes)
            self.is_in = True
            if not self._hooked:
                tc.checked([f"qdisc add dev {self.veth} ingress", *redirects])
        tc.checked(redirects if self._hooked else [self._arp_out.put()])
        self._hooked = True
        _apply([enslave(self._index, 0)])

    def take_out(self, tc: Batch) -> None:
        """Lead packets past the carried kernel. The taps may be gone with their kernel, or off the bridge."""
        changes = [enslave(self._index, socket.if_nametoindex(self.bridge)), open_port(self._index, self._settings)]
        if (devices.SYS_NET / self.gate / "brport").exists():
            changes.append(bridge_port(socket.if_nametoindex(self.gate), **_open(False)))
            changes += [reached_through(self._index, mac) for mac in self._behind(self.gate)]
        try:
            _apply(changes)
        finally:
            tc.run([f"filter delete dev {self.veth} parent ffff:"])  # fails if there is none, which is as good
            self.is_in = False

    def _behind(self, device: str) -> Iterable[bytes]:
        """The host's addresses behind one of the bridge's ports, without those of our taps, which would outlive us."""
        return learned(device).keys() - self.tap_macs

    def remove(self, tc: Batch) -> None:
        """Take the detour out if it is in, and leave nothing at the veth."""
        try:
            if self.is_in:
                self.take_out(tc)
        finally:
            if self._hooked:
                tc.run([f"qdisc delete dev {self.veth} ingress"])
                self._hooked = False


def _await_forwarding(device: str) -> None:
    """Wait until a bridge forwards packets at a device that was set up. Raises Refused if it does not in time.

    The kernel's link watch reports the device's carrier to the bridge, up to a second late. Until then the bridge drops
    packets for the device, and takes no address for it. From Linux 6.7 on, reading the carrier triggers the link watch.
    """
    folder, deadline = devices.SYS_NET / device, time.monotonic() + _FORWARDS_WITHIN_S
    while True:
        try:
            carrier, state = ((folder / name).read_text().strip() for name in ("carrier", "brport/state"))
        except OSError as error:  # it went with its kernel
            raise Refused(f"{device}: {error.strerror}") from None
        if state == _FORWARDING:
            return
        if time.monotonic() >= deadline:
            raise Refused(
                f"the bridge passes nothing at {device} {_FORWARDS_WITHIN_S:g} s after it was set up: its state there "
                f"is {state} ({_FORWARDING} is forwarding), the carrier {carrier}"
            )
        time.sleep(_LOOK_AGAIN_S)


def learned(device: str) -> dict[bytes, float]:
    """The addresses that a bridge has learned behind one of its ports, and the seconds since each was last seen."""
    folder = devices.SYS_NET / device / "brport"
    port = int((folder / "port_no").read_text(), 16)
    ages: dict[bytes, float] = {}
    for mac, low, own, age, high, _unused in _ENTRY.iter_unpack((folder / "bridge" / "brforward").read_bytes()):
        if not own and high << 8 | low == port:
            ages[mac] = age / _TICKS_PER_S
    return ages


def bridge_settings(veth: str) -> dict[str, bool]:
    """A veth's settings as a bridge port, which are lost when it leaves the bridge."""
    folder = devices.SYS_NET / veth / "brport"
    return {name: (folder / file).read_text().strip() == "1" for name, file in _SETTINGS.items()}


def open_port(index: int, settings: Mapping[str, bool]) -> NetlinkRequest:
    """Have the bridge learn from a port and flood to it, as usual, with these settings of its own."""
    return bridge_port(index, **settings, **_open(True))


def _open(is_open: bool) -> dict[str, bool]:
    """Whether the bridge learns from a port, and floods to it."""
    return dict.fromkeys(("learning", "flood", "mcast_flood", "bcast_flood"), is_open)


def _apply(changes: Sequence[NetlinkRequest]) -> None:
    with Netlink() as here:
        here.apply(changes)
