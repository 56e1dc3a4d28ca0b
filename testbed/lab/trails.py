"""What passes at every port of a lab, as digests: see `testbed.agent.trails`."""

from __future__ import annotations

from testbed.errors import LabError
from testbed.evidence.trail import Passed, PortParting, Trail
from testbed.lab.backend import Backend
from testbed.lab.channel import Channel
from testbed.lab.observer import fetch
from testbed.observe import pcapng
from testbed.observe.capture import Capture, Packet, Place, packets
from testbed.observe.packet import layers


class Trails:
    """One test's."""

    def __init__(self, backend: Backend, *, since_ns: int, keep_bytes: int = 0) -> None:
        """Follow every port from that time of day on. ``keep_bytes``: how much of each one's packets is kept whole.

        Raises LabError.
        """
        self._since_ns = since_ns
        self._channel: Channel = backend.capture_agent()
        interfaces = [
            {"port": f"{host}@{network}", "ifindex": backend.port_of_sender(host, network)}
            for host in backend.hosts
            for network in backend.topology.networks_of(host)
        ]
        self._channel.call("follow", interfaces=interfaces, since_ns=since_ns, keep_bytes=keep_bytes)
        self._left_out: dict[str, int] = {}

    def end(self) -> Passed:
        """What has passed. Raises LabError."""
        answer = self._channel.call("trails")
        self._left_out = {port: trail["left_out"] for port, trail in answer.items()}
        return Passed(since_ns=self._since_ns, ports={port: Trail.read(trail) for port, trail in answer.items()})

    def files(self) -> dict[str, bytes]:
        """The packets that were kept whole, as a file for Wireshark for each port; after `end`, however much later.

        Raises LabError.
        """
        return {port: pcapng.write(self._capture(port, left_out)) for port, left_out in self._left_out.items()}

    def _capture(self, port: str, left_out: int) -> Capture:
        records = fetch(lambda at: self._channel.call("fetch_trail", since_ns=self._since_ns, port=port, offset=at))
        try:
            seen = packets(records, realtime_minus_monotonic_ns=0)
        except ValueError as error:
            raise LabError(f"packets of {port}: {error}") from None
        return Capture(
            places=(Place(name=port, description=f"the host-side veth of {port.partition('@')[0]}", lost=left_out),),
            packets=seen,
            realtime_minus_monotonic_ns=self._since_ns,
            comment=f"every packet at the port {port}; times count from the beginning of the test",
        )


_BEFORE, _MOST_SHOWN = 2, 8


def neighbourhood(data: bytes, parting: PortParting, recorded: Trail | None) -> list[str]:
    """The packets around the place where two runs part, a line each.

    ``data``: the file of the replay's packets; ``recorded``: the first run's digests of the same port. Raises LabError.
    """
    try:
        seen = pcapng.read(data).packets
    except ValueError as error:
        raise LabError(f"packets of {parting.port}: {error}") from None
    times = [time_ns for time_ns, _ in recorded.marks] if recorded is not None and recorded.every == 1 else []
    first = max(parting.same - _BEFORE, 0)
    lines = []
    for number in range(first, min(max(len(seen), len(times)), first + _MOST_SHOWN)):
        mark = ">" if parting.same <= number < parting.until else " "
        was = f"{times[number] / 1e9:.9f} s" if number < len(times) else "something"
        if recorded is None or number >= recorded.packets:
            was = "nothing"
        now = f"{seen[number].time_ns / 1e9:.9f} s, {brief(seen[number])}" if number < len(seen) else "nothing"
        lines.append(f"{mark} {number + 1}: recorded {was}, replayed {now}")
    return lines


def brief(packet: Packet) -> str:
    """A packet in a line: direction, addresses, protocol, length."""
    fields = {layer.name: dict(layer.fields) for layer in layers(packet)}
    ip = fields.get("IPv4") or fields.get("IPv6")
    transport = next((name for name in ("TCP", "UDP") if name in fields), "")
    way = "toward the host" if packet.left else "from the host"
    if ip is None:
        ethernet = fields.get("Ethernet", {})
        return f"{way}, {packet.length_bytes} bytes, Ethernet type {ethernet.get('type', '?')}"
    ports = fields.get(transport, {})
    ends = [f"{ip[end]}{':' if transport else ''}{ports.get(f'{end} port', '')}" for end in ("source", "destination")]
    more = (
        f" {ports['flags']} seq {ports['sequence number']} ack {ports['acknowledgment number']}"
        if transport == "TCP"
        else ""
    )
    protocol = transport or f"protocol {ip.get('protocol', ip.get('next header'))}"
    return f"{way}, {packet.length_bytes} bytes, {ends[0]} > {ends[1]} {protocol}{more}"
