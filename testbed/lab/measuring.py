"""The metrics of a test that come by themselves, each from one reading of exact counters at its body's begin and end.

Sources: of `programs`, the lab's clock, from the request to start a program to the end of its output; of `cpu`,
wait4(2), which a local lab's agent calls for each program; of `tcp`, the host's kernel (Tcp OutSegs and RetransSegs,
TcpExt TCPSynRetrans: each such SYN or SYN-ACK follows a time-out); of `wire` and `netem`, the link's netem. No packet
is looked at. Left out, because no counter tells it exactly: bytes of unimpaired links (a host's interface counts TCP
super-packets, each with one header), goodput (no counter has TCP's payload), processor time in containers (the engine
publishes it once a second).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from testbed.errors import LabError
from testbed.evidence.metric import AUTOMATIC, Metric, automatic
from testbed.evidence.programs import ProgramRun
from testbed.evidence.proof import LinkEvidence
from testbed.lab.connections import TcpTables
from testbed.lab.ports import Ports
from testbed.observe.counters import Counters, Readings
from testbed.text import shortened

_MOST_HOSTS = 32
"""A lab of at most so many hosts is read wholly; of a larger one, only hosts at the ends of impaired links."""
_COMMAND_CHARACTERS = 100


class Measuring:
    """What a lab's kernels count during a test's body."""

    def __init__(self, ports: Ports, sockets: TcpTables) -> None:
        self._ports = ports
        self._sockets = sockets
        self.groups: Collection[str] = AUTOMATIC
        """The groups of `metric.AUTOMATIC` to measure."""
        self._before: Mapping[str, Readings] = {}
        self.counted: dict[str, Counters] = {}
        """By host, from begin to end."""

    def forget(self) -> None:
        """A test begins; nothing is counted yet."""
        self._before, self.counted = {}, {}

    def begin(self) -> None:
        """The test's body begins."""
        self.forget()
        if "tcp" in self.groups:
            self._before = self._read(self._chosen())

    def end(self) -> None:
        """The body has ended."""
        now, self._before, before = self._read(list(self._before)), {}, self._before
        for host, readings in now.items():
            try:
                self.counted[host] = Counters.between(before[host], readings)
            except ValueError:
                continue  # the host was started again, and what it had counted is gone

    def _chosen(self) -> list[str]:
        known = self._sockets.tcp_hosts
        if len(known) <= _MOST_HOSTS:
            return list(known)
        ends = {host for ref in self._ports.impaired for host in (ref.src, ref.dst)}
        return [host for host in known if host in ends]

    def _read(self, hosts: Sequence[str]) -> Mapping[str, Readings]:
        try:
            return self._sockets.tcp_counters(hosts) if hosts else {}
        except LabError:
            return {}  # an agent has died: `verify` tells of it

    def metrics(self, programs: Iterable[ProgramRun], links: Iterable[LinkEvidence]) -> list[Metric]:
        """The metrics of the chosen groups."""
        metrics = [*of_programs(programs), *of_links(links), *of_hosts(self.counted)]
        return [metric for metric in metrics if metric.group in self.groups]


def of_programs(programs: Iterable[ProgramRun]) -> Iterator[Metric]:
    """How long each program ran that somebody waited for and nobody stopped; and the processor time of each host's."""
    took: dict[str, list[float]] = {}
    used: dict[str, float] = {}
    for program in programs:
        if program.cpu_s is not None:
            used[program.host] = used.get(program.host, 0.0) + program.cpu_s
        if program.duration_s is not None and not program.stopped:
            command = shortened(" ".join(program.argv), _COMMAND_CHARACTERS)
            took.setdefault(f"{program.host}: {command}", []).append(program.duration_s)
    for name, values in took.items():
        yield automatic("programs", name, values, "s")
    for host, seconds in used.items():
        yield automatic("cpu", host, [seconds], "s")


def of_links(links: Iterable[LinkEvidence]) -> Iterator[Metric]:
    """What netem counted on each link; of one that was healed and impaired again, all of it."""
    met: dict[str, int] = {}
    sent: dict[str, int] = {}
    dropped: dict[str, int] = {}
    for link in links:
        where = f"{link.link} on {link.network}"
        if link.met_packets is not None and link.tally is not None:
            met[where] = met.get(where, 0) + link.met_packets
            dropped[where] = dropped.get(where, 0) + link.tally.dropped_packets
            if link.tally.sent_bytes is not None:
                sent[where] = sent.get(where, 0) + link.tally.sent_bytes
    for where, count in met.items():
        yield automatic("wire", f"packets {where}", [count], "packets")
        if where in sent:
            yield automatic("wire", f"bytes {where}", [sent[where]], "B")
        yield automatic("netem", f"drops {where}", [dropped[where]], "packets", better=None)


def of_hosts(counted: Mapping[str, Counters]) -> Iterator[Metric]:
    """What each host's kernel counted; of hosts that sent no TCP segment, nothing."""
    for host, counters in counted.items():
        if counters.segments_sent or counters.retransmitted_segments:
            yield automatic("tcp", f"segments sent by {host}", [counters.segments_sent], "segments")
            yield automatic("tcp", f"segments sent again by {host}", [counters.retransmitted_segments], "segments")
            yield automatic("tcp", f"SYN time-outs of {host}", [counters.syn_retransmissions], "time-outs")
