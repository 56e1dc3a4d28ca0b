"""Attached ports: their devices, what leads packets there, and how to put back what was changed.

With the ``host`` engine a port's qdiscs are on the host-side veth itself (`HostPort`). With the ``carried`` engine the
veth is spliced through a carried kernel, which has the qdiscs (`CarriedPort`; see `detour` for the drawing).
"""

from __future__ import annotations

import abc
import itertools
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, ClassVar

from . import devices, offloads, splice
from .batch import Batch
from .carried import CLOCK_DEVICE, FRAME_BYTES, QUEUE_ETHERTYPE, CarriedKernel
from .detour import Detour, Diversion
from .leftover import stages_of
from .localtc import LocalTc
from .netlink import Netlink, intermediate, up, without_addresses
from .protocol import Refused
from .qdiscreader import QdiscReader
from .splice import Redirect
from .taps import make_tap

_OUT = 50_000
"""The priority of the redirects out of a host, and the number after it."""
_STAGES = itertools.count()
"""Of their devices' names: a long-lived tc keeps the ifindex of a name that it has met (iproute2, ll_map.c)."""
FAR_END = "the host's own end of it"


class AttachedPort(abc.ABC):
    """One attached port."""

    engine: ClassVar[str]
    resumes_first: ClassVar[bool]
    """Whether `resume` comes before the port's root qdisc is made, or after."""
    device: str
    """The device that has the senders' qdiscs."""
    device_index: int
    """Its ifindex, in the kernel that has it."""
    last: str | None = None
    """The device that has the qdiscs behind those, which all senders share, if the port is `staged`."""
    kernel: CarriedKernel | None = None
    """The carried kernel that has the device; None if it is this machine's own."""
    gate: str
    """The device of this machine's kernel through which every packet to the host leaves, before the qdiscs."""
    qdisc_reader: QdiscReader
    """Reads single qdiscs of the kernel that has them."""
    entry: str | None = None
    """The carried kernel's other device. Its redirect feeds the first, and counts what that device's queue refused."""

    def __init__(self, name: str, veth: str, ifindex: int, tc: LocalTc, *, before: Mapping[str, Any]) -> None:
        """``before``: how the veth was before it was attached; see `leftover.state_of`."""
        self.name, self.veth, self.ifindex, self.before = name, veth, ifindex, before
        self.tc = tc
        """tc of this machine's own kernel."""
        self.bridge: str | None = None
        """The bridge that the veth is on, or was on before the splice."""
        self.has_gate = False
        """Whether filters can be put at its gate."""
        self.released = False
        """Whether packets bypass us; what takes time to prepare is kept, for `resume`."""
        self.undo = ExitStack()
        self._before_gateway: dict[str, bool] | None = None
        self._last_index = 0

    @abc.abstractmethod
    def prepare(self) -> None:
        """NetlinkRequest what the port needs. What was changed is put back when ``undo`` is closed. Raises Refused."""

    @abc.abstractmethod
    def release(self) -> None:
        """Have packets bypass us, as if the port had never been attached."""

    @abc.abstractmethod
    def resume(self) -> None:
        """Undo `release`, if the port is released."""

    @abc.abstractmethod
    def sides(self) -> dict[str, str | None]:
        """The devices of this machine's kernel before and after the qdiscs."""

    @property
    @abc.abstractmethod
    def qdisc_tc(self) -> Batch:
        """Tc of the kernel that has the qdiscs."""

    @property
    def indexes(self) -> dict[str, int]:
        """The ifindex of each device that may have qdiscs: of packets to the host, and of those from it."""
        return {self.device: self.device_index, **({} if self.last is None else {self.last: self._last_index})}

    @property
    @abc.abstractmethod
    def leads_out_to(self) -> str:
        """The device to which IP packets from the host are redirected at its veth; empty if they are not."""

    @abc.abstractmethod
    def way_out(self) -> dict[str, str | None]:
        """The ``device`` that has the qdiscs of packets from the host, made now if need be, and its ``entry``."""

    def send_per_packet(self) -> None:
        """Have the bridge itself, the network's gateway, send packet by packet while the port is attached."""
        if self.bridge is None or self._before_gateway is not None:
            return
        self._before_gateway = before = offloads.switch_off(self.bridge)
        self.undo.callback(self._send_as_before, before)

    def _send_as_before(self, before: dict[str, bool]) -> None:
        self._before_gateway = None
        if self.bridge is not None:
            quietly(offloads.put_back, self.bridge, before)

    @property
    def inner(self) -> list[splice.Redirect]:
        """The redirects in its carried kernel."""
        return []

    @property
    def outer(self) -> list[splice.Redirect]:
        """The redirects into its carried kernel, and those of ARP past it."""
        return []

    @property
    def tap_macs(self) -> frozenset[bytes]:
        """The addresses of its taps, which send some frames when they come up."""
        return frozenset()

    def devices_amiss(self) -> list[str]:
        """What is wrong with its devices in this machine's kernel."""
        return splice.amiss(devices.device(self.veth), master=self.bridge, far_end=FAR_END)

    @property
    def exists(self) -> bool:
        """Whether its veth is still the one that was attached: it goes with its host."""
        return devices.index_of(self.veth) == self.ifindex

    def where(self) -> dict[str, Any]:
        """Where its qdiscs are, what the network's gateway is, and how the veth was before: the reply to ``attach``."""
        return {
            "device": self.device,
            "last": self.last,
            "entry": self.entry,
            "kernel": self.kernel.name if self.kernel else None,
            "released": self.released,
            "gateway": self.bridge and devices.gateway(self.bridge),
            "mtu": int((devices.SYS_NET / self.veth / "mtu").read_text()),
            "found": self.before,
        }

    def make_stage(self) -> None:
        """Move the senders' qdiscs to an ifb device of their own, so that others can come behind them.

        ::

            ▶ last: clsact ─▶ stage: htb, a netem per sender ─▶ last: root, shared by the senders ▶ host

        The device that had the qdiscs loses them, and what waits there. Raises Refused if there is no ifb.
        """
        if self.last is not None:
            return
        last, stage = self.device, f"{stages_of(self.ifindex)}{next(_STAGES)}"
        stage_index = self._add_ifb(stage)
        try:
            self.qdisc_tc.run([f"qdisc delete dev {last} root"])  # fails if there is none, which is as good
            self.qdisc_tc.checked([splice.staged(last, stage).put()])
        except Refused:
            self._delete_ifb(stage)
            raise
        self._last_index, self.device_index = self.device_index, stage_index
        self.device, self.last = stage, last
        self.undo.callback(quietly, self.remove_stage)

    def remove_stage(self) -> None:
        """Undo `make_stage`, if the port is staged. The device has no qdiscs then."""
        if self.last is None:
            return
        stage, last = self.device, self.last
        self.device, self.device_index, self.last = last, self._last_index, None
        self.qdisc_tc.run([splice.staged(last, stage).delete(), f"qdisc delete dev {last} root"])
        self._delete_ifb(stage)

    @property
    def staging(self) -> list[splice.Redirect]:
        """The redirect to the stage, if there is one."""
        return [] if self.last is None else [splice.staged(self.last, self.device)]

    @abc.abstractmethod
    def _add_ifb(self, name: str) -> int:
        """Create an ifb device, up, in the kernel that has the qdiscs; its ifindex. Raises Refused."""

    @abc.abstractmethod
    def _delete_ifb(self, name: str) -> None:
        """Delete it."""

    def open_gate(self) -> None:
        """Make sure that filters can be put at its gate."""
        if not self.has_gate:
            self.tc.batch().checked([f"qdisc add dev {self.gate} clsact"])
            self.has_gate = True
            self.undo.callback(self._clear_gate)

    def _clear_gate(self) -> None:
        if devices.index_of(self.gate) is not None:
            self.tc.batch().run([f"qdisc delete dev {self.gate} clsact"])


class HostPort(AttachedPort):
    """A port whose qdiscs are on its veth."""

    engine = "host"
    resumes_first = True  # a classful qdisc takes its children's length from the device

    def __init__(self, name: str, veth: str, ifindex: int, tc: LocalTc, *, before: Mapping[str, Any]) -> None:
        super().__init__(name, veth, ifindex, tc, before=before)
        self.device, self.device_index = veth, ifindex
        self.gate = veth  # whose egress filters come before its root qdisc
        self.qdisc_reader = tc.qdisc_reader
        self._counted_before = self._counts()
        self._ifb = devices.way_out_of(ifindex)
        self._ifb_index = 0
        """Once known, it stays: tc keeps the indexes of names."""
        self._has_way_out = False

    @property
    def indexes(self) -> dict[str, int]:
        """The veth, the device on the way out, and the stage."""
        return {**super().indexes, self._ifb: self._ifb_index}

    @property
    def leads_out_to(self) -> str:
        """See `AttachedPort.leads_out_to`."""
        return self._ifb if self._has_way_out else ""

    def way_out(self) -> dict[str, str | None]:
        """An ifb, to which IP packets from the host are redirected when they enter at the veth."""
        if not self._has_way_out:
            self._has_way_out = True
            if not self.released:  # else `resume` does
                self._lead_out()
        return {"device": self._ifb, "entry": None}

    def _lead_out(self) -> None:
        devices.delete_ways_out()
        try:
            self._ifb_index = add_ifb(self._ifb, self.veth, index=self._ifb_index)
        except Refused as refused:
            self._has_way_out = False
            raise Refused(
                f"what a host sends beyond the stack passes an ifb here: {refused}, or use --netem carried"
            ) from None
        self.undo.callback(quietly, devices.delete_device, self._ifb)
        self.open_gate()
        self.undo.callback(lambda: self.tc.batch().run([f"filter delete dev {self.veth} ingress"]))
        self.tc.batch().checked([redirect.put() for redirect in self._out])

    @property
    def outer(self) -> list[splice.Redirect]:
        """What leads to the ifb on the way out, and to the stage."""
        return [*self._out, *self.staging]

    @property
    def _out(self) -> list[splice.Redirect]:
        """IP packets from the host to the ifb, if there is one; ARP enters as ever."""
        if self.released or not self._has_way_out:
            return []
        families = enumerate(("ip", "ipv6"))
        return [
            Redirect(source=self.veth, target=self._ifb, at="ingress", protocol=family, priority=_OUT + number)
            for number, family in families
        ]

    def prepare(self) -> None:
        """Give the veth a queue: Docker's have none."""
        self.bridge = devices.device(self.veth).master
        queue_packets = int((devices.SYS_NET / self.veth / "tx_queue_len").read_text())
        if queue_packets != devices.QUEUE_PACKETS:
            devices.set_queue(self.ifindex, devices.QUEUE_PACKETS)
            self.undo.callback(quietly, self._set_queue_back, queue_packets)
        self.undo.callback(self._clear_root)

    def _set_queue_back(self, packets: int) -> None:
        if self.exists:  # it may have gone with its container
            devices.set_queue(self.ifindex, packets)

    def _clear_root(self) -> None:
        if self.exists:
            self.tc.batch().run([f"qdisc delete dev {self.veth} root"])  # fails if there is none, which is as good

    def release(self) -> None:
        """Remove the root qdisc, with all below it."""
        self.undo.close()
        self.has_gate = False
        self.released = True

    def resume(self) -> None:
        """Prepare the veth again."""
        if self.released:
            self.prepare()
            self.released = False
            if self._has_way_out:
                self._lead_out()

    def devices_amiss(self) -> list[str]:
        """What is wrong with its veth, and its stage."""
        return super().devices_amiss() + ([] if self.last is None else splice.amiss(devices.device(self.device)))

    def _add_ifb(self, name: str) -> int:
        index = add_ifb(name, self.veth)
        self.open_gate()
        return index

    def _delete_ifb(self, name: str) -> None:
        if devices.index_of(name) is not None:
            devices.delete_device(name)

    def counted(self) -> dict[str, int]:
        """Packets that came to the veth since it was attached, and those that it dropped, without its qdiscs' drops.

        A device drops packets while it gets a new root qdisc (`noop_enqueue`; counted by recent kernels, such as 6.18),
        and those that the host's end does not take. Raises OSError if the veth is gone.
        """
        return {name: count - self._counted_before[name] for name, count in self._counts().items()}

    def _counts(self) -> dict[str, int]:
        sent, dropped = (devices.statistic(self.veth, name) for name in ("tx_packets", "tx_dropped"))
        return {"came_packets": sent + dropped, "refused_packets": dropped}

    def sides(self) -> dict[str, str | None]:
        """Packets that have not passed the qdiscs yet are seen at the senders' own ports only."""
        return {"before": None, "after": self.veth}

    @property
    def qdisc_tc(self) -> Batch:
        """Tc of this machine's kernel."""
        return self.tc.batch()


class CarriedPort(AttachedPort):
    """A port whose qdiscs are in a carried kernel."""

    engine = "carried"
    resumes_first = False  # a device that is given its root qdisc loses packets meanwhile
    kernel: CarriedKernel
    entry: str

    def __init__(
        self,
        name: str,
        veth: str,
        ifindex: int,
        tc: LocalTc,
        *,
        before: Mapping[str, Any],
        kernel: CarriedKernel,
        tag: str,
        number: int,
        persistent_taps: bool,
    ) -> None:
        """``tag`` and ``number`` name its devices. ``persistent_taps``: see `ports.AttachedPorts`, ``own_net``."""
        super().__init__(name, veth, ifindex, tc, before=before)
        self.kernel, self.qdisc_reader = kernel, kernel.qdisc_reader
        self.device, self.entry = f"vec{2 * number}", f"vec{2 * number + 1}"
        self._end, self.gate = f"tb{tag}{number}a", f"tb{tag}{number}b"
        self._persistent_taps = persistent_taps
        self._detour: Diversion | None = None
        self._passed_before: dict[str, dict[str, int]] = {}
        self._queues_shown = False
        self._entry_index = 0

    @property
    def indexes(self) -> dict[str, int]:
        """Both devices, and the stage."""
        return {**super().indexes, self.entry: self._entry_index}

    def prepare(self) -> None:
        """Plug two devices into the kernel and splice them there; the port is released until `resume`."""
        mtu = int((devices.SYS_NET / self.veth / "mtu").read_text())
        pairs = ((self.device, self._end), (self.entry, self.gate))
        for device, tap in pairs:
            if self._persistent_taps:
                make_tap(tap)
                self.undo.callback(quietly, devices.delete_device, tap)
            self.kernel.plug(device, tap, mtu=mtu)
            self.undo.callback(quietly, self.kernel.unplug, device)
            self.undo.callback(quietly, self.kernel.ip.run, [f"link set dev {device} down"])
        lines = [f"link set dev {device} txqueuelen {devices.QUEUE_PACKETS} promisc on up" for device, _ in pairs]
        shows = [f"link show dev {device}" for device, _ in pairs]
        shown = self.kernel.ip.checked([*lines, *shows]).shown
        self.device_index, self._entry_index = (links[0]["ifindex"] for links in shown)
        for device, tap in pairs:
            self.kernel.thread(device)
            # UML's driver turns super-packets on when it opens the tap, but its buffers hold single packets.
            offloads.switch_off(tap)
        self.kernel.tc.checked(list(splice.lines(self.inner)))
        self._detour = self._new_detour()
        self.bridge = self._detour.bridge
        self.has_gate = True
        self._detour.prepare(self.tc.batch(), mtu=mtu, queue_packets=devices.QUEUE_PACKETS)
        self._passed_before = self._counts()
        self.undo.callback(self._remove_detour, self._detour)
        self.released = True

    def _new_detour(self) -> Diversion:
        return Detour(self.veth, self.ifindex, end=self._end, gate=self.gate)

    def _remove_detour(self, detour: Diversion) -> None:
        if self.exists:
            quietly(detour.remove, self.tc.batch())

    def release(self) -> None:
        """Take the detour out; the qdiscs stay in the kernel."""
        self._prepared.take_out(self.tc.batch())
        self.released = True

    def resume(self) -> None:
        """Put the detour in."""
        if self.released:
            self._prepared.put_in(self.tc.batch(), self.kernel.held())
            self.released = False

    @property
    def _prepared(self) -> Diversion:
        if self._detour is None:
            raise Refused(f"port {self.name} was not prepared")
        return self._detour

    def sides(self) -> dict[str, str | None]:
        """Both taps."""
        return {"before": self.gate, "after": self._end}

    @property
    def qdisc_tc(self) -> Batch:
        """Tc of the carried kernel."""
        return self.kernel.tc

    @property
    def inner(self) -> list[splice.Redirect]:
        """Both ways between its two devices, and to its stage."""
        return [*splice.joined(self._outlet, self.entry), *self.staging]

    @property
    def _outlet(self) -> str:
        """The device that sends to the host."""
        return self.last or self.device

    def _add_ifb(self, name: str) -> int:
        make = f"link add name {name} txqueuelen {devices.QUEUE_PACKETS} type ifb"
        (links,) = self.kernel.ip.checked([make, f"link set dev {name} up", f"link show dev {name}"]).shown
        return int(links[0]["ifindex"])

    def _delete_ifb(self, name: str) -> None:
        self.kernel.ip.run([f"link delete dev {name}"])

    @property
    def outer(self) -> list[splice.Redirect]:
        """What the detour puts in."""
        return [] if self.released else self._prepared.redirects

    @property
    def tap_macs(self) -> frozenset[bytes]:
        """See `Detour`."""
        return self._prepared.tap_macs

    def devices_amiss(self) -> list[str]:
        """What is wrong with veth, taps and bridge."""
        if self.released:
            return super().devices_amiss()
        problems = splice.amiss(devices.device(self.veth), far_end=FAR_END)
        problems += splice.amiss(devices.device(self.gate), master=self.bridge)
        problems += splice.amiss(devices.device(self._end))
        return problems + (splice.amiss(devices.device(self.bridge)) if self.bridge is not None else [])

    @property
    def leads_out_to(self) -> str:
        """See `AttachedPort.leads_out_to`."""
        return self._end

    def way_out(self) -> dict[str, str | None]:
        """The device toward the bridge; the one toward the host feeds it."""
        return {"device": self.entry, "entry": self._outlet}

    def show_queues(self) -> dict[str, str]:
        """Redirect frames of `QUEUE_ETHERTYPE` from a tap to the kernel's clock; returns the tap of each direction.

        The time that they take beyond the clock's delay is the time that packets wait in the tap's queue.
        """
        if not self._queues_shown:
            self.kernel.tc.checked([redirect.put() for redirect in self._to_clock.values()])
            self._queues_shown = True
        return {"to_host": self.gate, "from_host": self._end}

    @property
    def _to_clock(self) -> dict[str, splice.Redirect]:
        return {
            way: replace(redirect, target=CLOCK_DEVICE, protocol=f"{QUEUE_ETHERTYPE:#x}", priority=1)
            for way, redirect in zip(("from_host", "to_host"), splice.joined(self._outlet, self.entry), strict=True)
        }

    def passed(self) -> dict[str, dict[str, int]]:
        """Packets and bytes that its kernel took and gave, each way, since it was attached.

        Frames that the taps send when they come up, and those of `show_queues`, do not count. Raises OSError if the
        taps are gone.
        """
        passed = {
            way: {name: count - self._passed_before[way][name] for name, count in counts.items()}
            for way, counts in self._counts().items()
        }
        if self._queues_shown:
            redirects = self._to_clock
            output = self.kernel.tc.run([redirect.show() for redirect in redirects.values()])
            for (way, redirect), shown in zip(redirects.items(), output.shown, strict=False):
                frames = redirect.packets(shown)
                passed[way]["in_packets"] -= frames
                passed[way]["in_bytes"] -= frames * FRAME_BYTES
        return passed

    def _counts(self) -> dict[str, dict[str, int]]:
        return {"to_host": _way(self.gate, self._end), "from_host": _way(self._end, self.gate)}


def add_ifb(name: str, beside: str, *, index: int = 0) -> int:
    """Create an ifb device in this machine's kernel, up, with another device's MTU; its ifindex. Raises Refused.

    ``index``: the ifindex to give it; 0 for any.
    """
    mtu = int((devices.SYS_NET / beside / "mtu").read_text())
    with Netlink() as here:
        try:
            here.apply([intermediate(name, index)])
        except Refused as refused:
            raise Refused(f"this machine's kernel makes no ifb device ({refused}): modprobe ifb") from None
        index = socket.if_nametoindex(name)
        here.apply([without_addresses(index, mtu=mtu, queue_packets=devices.QUEUE_PACKETS), up(index)])
    return index


def _way(into: str, out_of: str) -> dict[str, int]:
    """What a carried kernel took from one tap and gave to another."""
    taken = {f"in_{unit}": devices.statistic(into, f"tx_{unit}") for unit in ("packets", "bytes")}
    given = {f"out_{unit}": devices.statistic(out_of, f"rx_{unit}") for unit in ("packets", "bytes")}
    return {**taken, **given, "refused_packets": devices.statistic(into, "tx_dropped")}


def quietly(step: Callable[..., object], *arguments: Any) -> None:
    """Take one step of putting things back. A failure is reported on stderr and does not stop the other steps."""
    try:
        step(*arguments)
    except (Refused, OSError) as error:
        os.write(2, f"agent: while putting back: {error}\n".encode())
