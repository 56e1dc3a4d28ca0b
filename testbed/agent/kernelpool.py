"""The carried kernels of one agent: booted when a port needs one, and forgotten when they have died."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from . import devices, splice
from .batch import Batch
from .carried import CLOCK_ETHERTYPE, CLOCK_MTU, CarriedKernel
from .protocol import Refused
from .taps import make_tap, no_tun

# UML's driver has eight interrupts for all devices and polls every device that shares one, so the cost of a packet
# grows with the number of ports of its kernel. And a kernel runs on one processor.
_PORTS_PER_KERNEL = 64


class KernelPool:
    """Every carried kernel of this agent."""

    def __init__(self, *, tag: str, tables: Path, own_net: bool) -> None:
        """``tag``: part of their names. ``tables``: the folder of delay tables. ``own_net``: see `AttachedPorts`."""
        self._tag, self._tables, self._own_net = tag, tables, own_net
        self.root: Path | None = None
        """The root file system that has the kernel, if not this machine's PATH; see `carried.CarriedKernel`."""
        self.running: list[CarriedKernel] = []
        self._clocks: dict[str, dict[str, Any]] = {}
        """The running clocks, by kernel name."""
        self._booted = 0
        self.last_death = ""
        """Why the last one died, in parentheses, for an error message; empty if none did."""

    def boot(self) -> dict[str, Any]:
        """Start a kernel, unless one runs; how long it took, and why it runs without reserved CPU time, if so."""
        kernel = self.running[0] if self.running else self._boot_another()
        return {"boot_s": kernel.boot_s, "release": kernel.release, "waits_its_turn": kernel.waits_its_turn}

    def _boot_another(self) -> CarriedKernel:
        if reason := no_tun():
            raise Refused(f"a carried kernel needs taps: {reason}")
        name = f"tb{self._tag}{f'k{self._booted}' if self._booted else ''}"
        kernel = CarriedKernel(name=name, tables=self._tables, root=self.root)
        self._booted += 1
        self.running.append(kernel)
        return kernel

    def with_room(self, carriers: Iterable[CarriedKernel]) -> CarriedKernel:
        """The kernel with the fewest ports, or a new one if all are full; ``carriers``: the kernel of each port."""
        ports = Counter(id(kernel) for kernel in carriers)
        emptiest = min(self.running, key=lambda kernel: ports[id(kernel)], default=None)
        if emptiest is None or ports[id(emptiest)] >= _PORTS_PER_KERNEL:
            return self._boot_another()
        return emptiest

    def bury(self, put_back_ports: Callable[[CarriedKernel], None]) -> None:
        """Forget every kernel that has died, after its ports were put back: their packets lead nowhere."""
        for kernel in list(self.running):
            reason = kernel.died()
            if reason is None:
                continue
            self.last_death = f" ({reason})"
            kernel.end()
            put_back_ports(kernel)
            kernel.kill()
            self.running.remove(kernel)

    def clocks(self, tc: Batch, *, running: bool) -> dict[str, dict[str, Any]]:
        """By kernel name: the ``tap`` that shows how late the kernel is, and the ``token`` of the frame to send there.

        ``running``: whether the frame is returned to the kernel each time; see `echoes`. ``tc``: this machine's.
        """
        if not running:
            tc.run([f"filter delete dev {kernel.clock} parent ffff:" for kernel in self.running if kernel.clock])
            self._clocks.clear()
            return {}
        for kernel in self.running:
            if kernel.name not in self._clocks and not kernel.stopped:
                self._clocks[kernel.name] = self._start_clock(kernel, tc)
        names = {kernel.name for kernel in self.running}
        self._clocks = {name: clock for name, clock in self._clocks.items() if name in names}
        return self._clocks

    def _start_clock(self, kernel: CarriedKernel, tc: Batch) -> dict[str, Any]:
        """Return frames with a new token from now on; frames with an earlier one are dropped."""
        lines = []
        if (tap := kernel.clock) is None:
            tap = f"{kernel.name}c"
            if self._own_net:
                make_tap(tap)
            kernel.open_clock(tap)
            devices.have_up(tap, mtu=CLOCK_MTU, queue_packets=devices.QUEUE_PACKETS)
            lines = [f"qdisc add dev {tap} ingress"]
        token = secrets.randbits(32)
        match = f"{token:#x} 0xffffffff at 0"
        back = splice.Redirect(source=tap, target=tap, protocol=f"{CLOCK_ETHERTYPE:#x}", match=match)
        tc.checked([*lines, back.put()])
        return {"tap": tap, "token": token}

    def kill(self) -> None:
        """End all of them."""
        for kernel in self.running:
            kernel.kill()
        self.running.clear()
