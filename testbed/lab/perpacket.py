"""Which hosts' interfaces were made to send packet by packet, and what their offloads were before."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from testbed.errors import LabError
from testbed.lab.host import Host


class PerPacket:
    """The interfaces that send packet by packet for us."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        """``state``: as another process left it; see `state`."""
        self._before = {key: (int(each[0]), dict(each[1])) for key, each in (state or {}).items()}

    def want(self, host: Host, network: str, ifindex: int) -> None:
        """Have a host's interface send packet by packet; ``ifindex``: of its port, another once it is started again."""
        key = f"{host.name}@{network}"
        if self._before.get(key, (0, {}))[0] != ifindex:
            self._before[key] = (ifindex, host.send_per_packet(network))

    def give_back(self, hosts: Mapping[str, Host], *, but: Collection[str]) -> None:
        """Set every other interface to what it was; ``but``: ``host@network``."""
        for key in [each for each in self._before if each not in but]:
            _, before = self._before.pop(key)
            host, _, network = key.rpartition("@")
            try:
                hosts[host].send_as_before(network, before)
            except (LabError, KeyError):
                continue  # it is gone, and was started again, if at all, with what is usual

    def state(self) -> dict[str, Any]:
        """What another process must know, as JSON."""
        return dict(self._before)
