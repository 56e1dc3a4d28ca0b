"""Interfaces of hosts whose segmentation offloads are off, and what the offloads were before."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from testbed.errors import LabError
from testbed.lab.host import Host
from testbed.spec.links import PortRef


class PerPacket:
    """The interfaces that send packet by packet because of us."""

    def __init__(self, state: Iterable[Mapping[str, Any]] = ()) -> None:
        """``state``: as another process left it; see `state`."""
        self._before: dict[PortRef, tuple[int, dict[str, bool]]] = {
            PortRef(kept["host"], kept["network"]): (int(kept["ifindex"]), dict(kept["offloads"])) for kept in state
        }

    def want(self, host: Host, port: PortRef, ifindex: int) -> None:
        """Have an interface send packet by packet. ``ifindex``: of its port; a restarted host has another."""
        if self._before.get(port, (0, {}))[0] != ifindex:
            self._before[port] = (ifindex, host.send_per_packet(port.network))

    def give_back(self, hosts: Mapping[str, Host], *, but: Collection[PortRef]) -> None:
        """Restore the offloads of every interface, except ``but``."""
        for port in [port for port in self._before if port not in but]:
            _, offloads = self._before.pop(port)
            try:
                hosts[port.host].send_as_before(port.network, offloads)
            except (LabError, KeyError):
                continue  # the host has ended; if it was started again, it has its usual offloads

    def state(self) -> list[dict[str, Any]]:
        """What another process must know, as JSON."""
        return [
            {**vars(port), "ifindex": ifindex, "offloads": offloads}
            for port, (ifindex, offloads) in self._before.items()
        ]
