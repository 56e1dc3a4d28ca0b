"""One attached port: its devices, what leads packets there, and how to put back what was changed."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from . import carried, devices, splice
from .detour import Detour


@dataclass
class Port:
    """One attached port."""

    name: str
    engine: str
    veth: str
    ifindex: int
    device: str
    """Where the qdiscs are: the veth, or the carried kernel's device."""
    detour: Detour | None = None
    """What leads a carried port's packets through the carried kernel."""
    entry: str | None = None
    """The carried kernel's other device, whose redirect feeds the first and counts what its queue refused."""
    kernel: carried.CarriedKernel | None = None
    """Who carries it."""
    gated: bool = False
    """Whether filters can be put at its gate."""
    bridge: str | None = None
    """Where the veth was, before it was taken off for the splice."""
    device_index: int = 0
    """The ifindex of ``device``, in the kernel that has it."""
    released: bool = False
    """Whether nothing of ours is in its packets' way; all that takes time to prepare is kept for `Ports.tc`."""
    found: dict[str, Any] = field(default_factory=dict)
    """How the veth was before it was attached."""
    before: dict[str, dict[str, int]] = field(default_factory=dict)
    """What had gone through its carried kernel before any packet was led there: taps speak when they come up."""
    undo: ExitStack = field(default_factory=ExitStack)

    @property
    def exists(self) -> bool:
        """Whether its veth is the one that was attached: it goes with its host."""
        return devices.index_of(self.veth) == self.ifindex

    @property
    def inner(self) -> list[splice.Redirect]:
        """What leads packets through its carried kernel."""
        return splice.joined(self.device, self.entry) if self.entry is not None else []

    @property
    def outer(self) -> list[splice.Redirect]:
        """What leads packets into its carried kernel, and ARP past it."""
        return [] if self.detour is None or self.released else self.detour.redirects

    @property
    def gate(self) -> str:
        """The device of this kernel through which every packet to the host leaves the switch, before the qdiscs."""
        return self.veth if self.detour is None else self.detour.gate

    def where(self) -> dict[str, Any]:
        """Where its qdiscs are, and how it was found: the answer of the operation ``attach``."""
        kernel = self.kernel.name if self.kernel else None
        mtu = int((devices.SYS_NET / self.veth / "mtu").read_text())
        return {"device": self.device, "entry": self.entry, "kernel": kernel, "released": self.released, "mtu": mtu,
                "found": self.found}  # fmt: skip
