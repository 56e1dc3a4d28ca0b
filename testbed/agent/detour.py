"""The detour of a carried port: how its packets are led through a carried kernel, and past it again, without loss.

::

    [bridge]—gate=[vecB <-> vecA]=end <-> [veth]—container

``<->`` is a tc redirect of everything, both ways; ``gate`` and ``end`` are taps. (A bridge in place of the outer
redirect would send the frames through iptables where net.bridge.bridge-nf-call-iptables is 1.) ARP, which nothing
impairs, goes past the carried kernel: gate <-> veth. A broadcast goes to every port, and of some hundred hosts that ask
for each other a carried kernel would have nothing else to do.

Either way of a host's packets is whole at every moment, and changes from one to the other in one step: what the host
sends with the redirect at its veth, what is sent to it with the bridge's entry for its address. For a moment both veth
and gate are on the bridge, and of what the bridge floods to all its ports the host may get two. Taken out, the gate
stays on the bridge, where nothing leads to it, and the end stays joined to the veth: what was in the carried kernel
arrives.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from . import splice
from .batch import Batch
from .netlink import Change, Netlink, bridge_port, enslave, reached_through, speechless, up
from .protocol import Refused

_SYS_NET = Path("/sys/class/net")
_KEPT = {"hairpin": "hairpin_mode", "isolated": "isolated"}
"""What a veth keeps on its bridge, in netlink's words, and its file below /sys/class/net/…/brport."""

_FORWARDING = "3"  # linux/if_bridge.h
_FORWARDS_WITHIN_S, _LOOK_AGAIN_S = 5.0, 0.002

# linux/if_bridge.h, struct __fdb_entry: address, number of the port, whether it is the port's own, age, high byte.
_ENTRY = struct.Struct("=6sBBIBxH")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Detour:
    """One port's way through a carried kernel."""

    def __init__(self, veth: str, ifindex: int, *, end: str, gate: str) -> None:
        """``end`` and ``gate``: the taps on the host's side and on the bridge's. Raises Refused without a bridge."""
        self.veth, self._index = veth, ifindex
        self.end, self.gate = end, gate
        self.is_in = False
        """Whether the port's packets go through."""
        self._hooked = False
        """Whether the veth has its ingress qdisc."""
        self.tap_macs = frozenset(bytes.fromhex(_address(tap).replace(":", "")) for tap in (end, gate))
        """Addresses of the taps, which send some frames when they come up."""
        self._in, self._out = splice.joined(veth, end)
        self._arp_out, self._arp_in = splice.past(gate, veth)
        there = _SYS_NET / veth
        if not (there / "master").exists():
            raise Refused(f"veth {veth} is on no bridge; an earlier run may have left it: restart the stack")
        self.bridge = (there / "master").readlink().name
        self._kept = bridge_settings(veth)

    @property
    def redirects(self) -> list[splice.Redirect]:
        """What is there while it is in."""
        return [self._in, self._out, self._arp_out, self._arp_in]

    def prepare(self, tc: Batch, *, mtu: int, queue_packets: int) -> None:
        """Set the taps up and join them, the gate on the bridge where nothing leads to it."""
        end, gate = socket.if_nametoindex(self.end), socket.if_nametoindex(self.gate)
        _apply([
            # No address of the machine's own may speak through a tap; it has room for as many packets as its queue is
            # long.
            speechless(end, mtu=mtu, queue_packets=queue_packets),
            speechless(gate, mtu=mtu, queue_packets=queue_packets),
            up(end),
            enslave(gate, socket.if_nametoindex(self.bridge)),  # while it is down: it must not flood first
            bridge_port(gate, **self._kept, **_open(False)),
            up(gate),
        ])  # fmt: skip
        tc.checked([*splice.lines([self._out]), f"qdisc add dev {self.gate} clsact"])
        _await_forwarding(self.gate)

    def put_in(self, tc: Batch, held: AbstractContextManager[None]) -> None:
        """Have the port's packets go through the carried kernel; ``held`` has that wait with them.

        For a moment a device that is given a qdisc, even of ingress, sends nothing: it loses what is sent through it
        (net/sched/sch_api.c, qdisc_graft). So the veth is given its own once, while what goes to the host waits before
        the carried kernel, and keeps it.
        """
        gate = socket.if_nametoindex(self.gate)
        behind = self._behind(self.veth)
        ways = [self._arp_in.put(), self._in.put()]
        with nullcontext() if self._hooked else held:
            _apply([
                bridge_port(gate, **_open(True)), bridge_port(self._index, **_open(False)),
                *(reached_through(gate, mac) for mac in behind),
            ])  # fmt: skip
            self.is_in = True
            if not self._hooked:
                tc.checked([f"qdisc add dev {self.veth} ingress", *ways])
        tc.checked(ways if self._hooked else [self._arp_out.put()])
        self._hooked = True
        _apply([enslave(self._index, 0)])

    def take_out(self, tc: Batch) -> None:
        """Have them go past it again. The taps may be gone, with a kernel that died, or taken off the bridge."""
        there = (_SYS_NET / self.gate / "brport").exists()
        gate = socket.if_nametoindex(self.gate) if there else 0
        behind = self._behind(self.gate) if there else ()
        try:
            _apply([
                enslave(self._index, socket.if_nametoindex(self.bridge)),
                whole_port(self._index, self._kept),
                *([bridge_port(gate, **_open(False))] if there else []),
                *(reached_through(self._index, mac) for mac in behind),
            ])  # fmt: skip
        finally:
            tc.run([f"filter delete dev {self.veth} parent ffff:"])  # none there is as good
            self.is_in = False

    def _behind(self, device: str) -> Iterable[bytes]:
        """The addresses behind one of the bridge's ports that are the host's: none of ours, which would outlive us."""
        return learned(device).keys() - self.tap_macs

    def remove(self, tc: Batch) -> None:
        """Take it out if it is in, and leave nothing at the veth."""
        try:
            if self.is_in:
                self.take_out(tc)
        finally:
            if self._hooked:
                tc.run([f"qdisc delete dev {self.veth} ingress"])
                self._hooked = False


def _address(device: str) -> str:
    return (_SYS_NET / device / "address").read_text().strip()


def _await_forwarding(device: str) -> None:
    """Wait until a bridge passes packets at a device that was set up. Raises Refused if it does not in time.

    The kernel's link watch tells the bridge of the device's carrier, up to a second late. Until then the bridge drops
    what goes there, and takes no address for it. From Linux 6.7 on, to read the carrier makes the link watch look.
    """
    folder, deadline = _SYS_NET / device, time.monotonic() + _FORWARDS_WITHIN_S
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
    """The addresses that a bridge has seen behind one of its ports, and how many seconds ago each was seen last."""
    there = _SYS_NET / device / "brport"
    number = int((there / "port_no").read_text(), 16)
    entries = _ENTRY.iter_unpack((there / "bridge" / "brforward").read_bytes())
    return {
        mac: age / _TICKS_PER_S
        for mac, low, own, age, high, _unused in entries if not own and high << 8 | low == number
    }  # fmt: skip


def bridge_settings(veth: str) -> dict[str, bool]:
    """What a veth keeps on its bridge: lost when it is taken off."""
    folder = _SYS_NET / veth / "brport"
    return {name: (folder / file).read_text().strip() == "1" for name, file in _KEPT.items()}


def whole_port(index: int, settings: Mapping[str, bool]) -> Change:
    """Have the bridge send and learn at a port as at any other, with these settings of its own."""
    return bridge_port(index, **settings, **_open(True))


def _open(whether: bool) -> dict[str, bool]:
    """Whether the bridge learns from a port, and sends what it floods there."""
    return dict.fromkeys(("learning", "flood", "mcast_flood", "bcast_flood"), whether)


def _apply(changes: Sequence[Change]) -> None:
    with Netlink() as here:
        here.apply(changes)
