"""Between two tests: connections of the first do not send in the second; packets of those that live on are counted.

A program that a test started ends with the test, but its kernel retransmits until the other side has acknowledged all.
Such a retransmission would take a number in the next test's sequence.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from testbed.errors import AgentError
from testbed.lab.backend import Backend
from testbed.lab.waiting import NotSeenError, await_condition
from testbed.observe.connections import Connection, ConnectionTable, Crossed, Over, Received, crossed, over
from testbed.observe.counters import Readings
from testbed.spec.links import LinkRef

_ENDS_ITSELF_S = 2.0
"""How long a connection may take to close by itself. Then it is destroyed, which its peer sees as a reset."""
_GONE_S = 2.0
_WITHOUT_DESTROYING_S = 5.0
_EVERY_S = 0.02


class LeftOverWarning(UserWarning):
    """Connections of a test may send something in the next one."""


class KernelReadings:
    """What the kernels of a kind of lab's hosts tell. A lab that overrides nothing tells nothing."""

    @property
    def tcp_hosts(self) -> Sequence[str]:
        """The hosts whose connections can be read now."""
        return ()

    def tcp_tables(self) -> dict[str, ConnectionTable]:
        """The TCP connections of `tcp_hosts`; of a host that is gone, none."""
        return {}

    def tcp_counters(self, _hosts: Sequence[str]) -> dict[str, Readings]:
        """The counters of the kernels of these hosts (/proc/net/snmp, netstat); of a host that is gone, none."""
        return {}

    def count_payload(self, _hosts: Sequence[str]) -> None:
        """Count the TCP payload that these hosts receive from now on."""

    def payload(self) -> Mapping[str, Sequence[Received]]:
        """What hosts have received since `count_payload`; nothing of a host whose kernel did not report all of it."""
        return {}

    def processor_times(self) -> Mapping[str, tuple[object, float]]:
        """The processor time of each host's programs since it was started: that start's id, and seconds."""
        return {}

    def destroy_tcp(self, _host: str, _ids: Sequence[str]) -> str | None:
        """Destroy connections of a host; why its kernel cannot, or None. Raises AgentError if the host is gone."""
        return None


class Connections:
    """The connections of a lab's hosts that began before a test."""

    def __init__(self, backend: Backend, sockets: KernelReadings) -> None:
        self._backend = backend
        self._sockets = sockets
        self._earlier: dict[str, set[str]] = {}
        """By host, the ids of those that were there when the test began."""
        self._before: dict[str, list[Connection]] = {}
        """The same as they were when its body began."""
        self._now: Mapping[str, ConnectionTable] | None = None

    def begin(self) -> None:
        """A test begins."""
        self._earlier, self._before, self._now = {}, {}, None
        self._learn(self._sockets.tcp_tables())

    def begin_body(self) -> None:
        """The test's body begins: count what earlier connections send from now on."""
        tables = self._sockets.tcp_tables()
        self._learn(tables)
        self._before = {
            host: [connection for connection in table.connections if connection.id in self._earlier[host]]
            for host, table in tables.items()
        }

    def _learn(self, tables: Mapping[str, ConnectionTable]) -> None:
        """Note the connections of hosts that are read for the first time: all of them are earlier ones."""
        for host, table in tables.items():
            self._earlier.setdefault(host, {connection.id for connection in table.connections})

    def look(self) -> None:
        """Read what the earlier connections have sent, if there are any."""
        self._now = self._sockets.tcp_tables() if any(self._before.values()) else {}

    def crossed(self, ref: LinkRef) -> Crossed | None:
        """What they had sent on a link at the last reading; None if nothing, or if that is unknown."""
        before = self._before.get(ref.src)
        if not before or self._now is None or ref.to or ref.beyond:
            return None
        now = self._now[ref.src].connections if ref.src in self._now else ()
        sources = self._backend.hosts[ref.src].source_addresses(ref.network)
        targets = self._backend.hosts[ref.dst].addresses(ref.network)
        return crossed(before, now, sources=sources, targets=targets, traffic=ref.traffic)

    def settle(self) -> str:
        """End the test's connections that only kernels still work on. Returns those left, as text; empty if none.

        Connections without a program at either end are destroyed at once, the others after a while.
        """
        earlier = {id_ for ids in self._earlier.values() for id_ in ids}
        host_of = {
            address: name for name in self._sockets.tcp_hosts for address in self._backend.hosts[name].addresses()
        }
        refused: list[str] = []
        patience = time.monotonic() + _ENDS_ITSELF_S

        def left() -> list[Over]:
            ending = over(self._sockets.tcp_tables(), earlier, host_of) if host_of else []
            late = time.monotonic() > patience
            doomed: dict[str, list[str]] = {}
            for pending in ending:
                if not refused and (late or pending.unheard):
                    doomed.setdefault(pending.connection.host, []).append(pending.connection.id)
            for host, ids in doomed.items():
                with suppress(AgentError):  # the host is gone, and its connections with it
                    refused.extend(filter(None, [self._sockets.destroy_tcp(host, ids)]))
            return ending

        deadline_s = _ENDS_ITSELF_S + _GONE_S
        try:
            await_condition(left, lambda ending: not ending, deadline_s=deadline_s, every_s=_EVERY_S)
        except NotSeenError:
            if not refused:
                return _said(left())
        else:
            return ""
        try:
            await_condition(left, lambda ending: not ending, deadline_s=_WITHOUT_DESTROYING_S, every_s=_EVERY_S)
        except NotSeenError:
            return f"{_said(left())}; this kernel cannot destroy them: {refused[0]}"
        return ""


def _said(ending: list[Over]) -> str:
    """What is left, in words."""
    return ", ".join(str(pending.connection) for pending in ending)
