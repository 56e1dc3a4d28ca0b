"""The metrics of a test that come by themselves, each from one reading of exact counters at its body's begin and end.

Sources: of `programs`, the lab's clock, from the request to start a program to the end of its output; of `cpu`,
wait4(2), which a local lab's agent calls for each program, and the cgroup of a container; of `goodput`, TCP_INFO's
bytes_received of every connection; of `queue`, the bottleneck's qdiscs; of `traffic`, our own programs; of `tcp`, the
host's kernel (Tcp OutSegs and RetransSegs, TcpExt TCPSynRetrans: each such SYN or SYN-ACK follows a time-out); of
`wire` and `netem`, the link's netem. No packet is looked at. Left out, because no counter tells it exactly: bytes of
unimpaired links (a host's interface counts TCP super-packets, each with one header).
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

from testbed.errors import LabError
from testbed.evidence.flows import TrafficFlow
from testbed.evidence.metric import AUTOMATIC, Metric, automatic
from testbed.evidence.programs import ProgramRun
from testbed.evidence.proof import LinkEvidence
from testbed.lab.backend import Backend
from testbed.lab.connections import KernelReadings
from testbed.lab.ports import Ports
from testbed.observe.counters import Counters, Readings
from testbed.text import shortened

_MOST_HOSTS = 32
"""A lab of at most so many hosts is read wholly; of a larger one, only hosts at the ends of impaired links."""
_COMMAND_CHARACTERS = 100


class Measuring:
    """What a lab's kernels count during a test's body."""

    def __init__(self, ports: Ports, kernels: KernelReadings, backend: Backend) -> None:
        self._ports = ports
        self._kernels = kernels
        self._backend = backend
        self.groups: Collection[str] = AUTOMATIC
        """The groups of `metric.AUTOMATIC` to measure."""
        self._before: Mapping[str, Readings] = {}
        self._times: Mapping[str, tuple[object, float]] = {}
        self.counted: dict[str, Counters] = {}
        """By host, from begin to end."""
        self.used_s: dict[str, float] = {}
        """By host, the processor time of its programs from begin to end."""
        self.body_s = (0.0, 0.0)
        """When the body began and ended, by time.perf_counter()."""
        self.received: dict[tuple[str, str], int] = {}
        """By sender and receiver, the TCP payload from begin to end; bytes."""

    def forget(self) -> None:
        """A test begins; nothing is counted yet."""
        self._before, self._times = {}, {}
        self.counted, self.used_s, self.received = {}, {}, {}

    def begin(self) -> None:
        """The test's body begins."""
        self.forget()
        self.body_s = (time.perf_counter(), math.inf)
        chosen = self._chosen()
        if "tcp" in self.groups:
            self._before = self._read(chosen)
        with suppress(LabError):  # an agent has died: `verify` tells of it
            if "goodput" in self.groups:
                self._kernels.count_payload(chosen)
            if "cpu" in self.groups:
                self._times = self._kernels.processor_times()

    def end(self) -> None:
        """The body has ended."""
        self.body_s = (self.body_s[0], time.perf_counter())
        with suppress(LabError):
            self._end()
        now, self._before, before = self._read(list(self._before)), {}, self._before
        for host, readings in now.items():
            try:
                self.counted[host] = Counters.between(before[host], readings)
            except ValueError:
                continue  # the host was started again, and what it had counted is gone

    def _end(self) -> None:
        times = self._kernels.processor_times() if self._times else {}
        for host, (start, used_s) in times.items():
            before = self._times.get(host)
            if before is not None and before[0] == start:  # not one that was started again
                self.used_s[host] = used_s - before[1]
        received = self._kernels.payload() if "goodput" in self.groups else {}
        if any(received.values()):
            host_of = {
                address: name for name in self._kernels.tcp_hosts for address in self._backend.hosts[name].addresses()
            }
            for host, parts in received.items():
                for part in parts:
                    if (source := host_of.get(part.source, host)) != host:
                        self.received[source, host] = self.received.get((source, host), 0) + part.size_bytes

    def _chosen(self) -> list[str]:
        known = self._kernels.tcp_hosts
        if len(known) <= _MOST_HOSTS:
            return list(known)
        ends = {host for ref in self._ports.impaired for host in (ref.src, ref.dst)}
        return [host for host in known if host in ends]

    def _read(self, hosts: Sequence[str]) -> Mapping[str, Readings]:
        try:
            return self._kernels.tcp_counters(hosts) if hosts else {}
        except LabError:
            return {}  # an agent has died: `verify` tells of it

    def metrics(
        self, programs: Iterable[ProgramRun], links: Sequence[LinkEvidence], flows: Iterable[TrafficFlow] = ()
    ) -> list[Metric]:
        """The metrics of the chosen groups."""
        ran = list(programs)
        metrics = [
            *of_programs(ran),
            *of_processors(ran, self.used_s),
            *of_payload(self.received, ran, self.body_s),
            *of_links(links),
            *of_hosts(self.counted),
            *of_queues(links),
            *of_traffic(flows),
        ]
        return [metric for metric in metrics if metric.group in self.groups]


def of_programs(programs: Iterable[ProgramRun]) -> Iterator[Metric]:
    """How long each program ran that somebody waited for and nobody stopped."""
    took: dict[str, list[float]] = {}
    for program in programs:
        if program.duration_s is not None and not program.stopped:
            command = shortened(" ".join(program.argv), _COMMAND_CHARACTERS)
            took.setdefault(f"{program.host}: {command}", []).append(program.duration_s)
    for name, values in took.items():
        yield automatic("programs", name, values, "s")


def of_processors(programs: Iterable[ProgramRun], used_s: Mapping[str, float]) -> Iterator[Metric]:
    """The processor time of each host's programs: as a whole where that is known, else of those that have ended."""
    used = dict(used_s)
    for program in programs:
        if program.cpu_s is not None and program.host not in used_s:
            used[program.host] = used.get(program.host, 0.0) + program.cpu_s
    for host, seconds in used.items():
        if seconds:
            yield automatic("cpu", host, [seconds], "s")


def of_payload(
    received: Mapping[tuple[str, str], int], programs: Sequence[ProgramRun], body_s: tuple[float, float]
) -> Iterator[Metric]:
    """What a host received from another in the body, per second of it that awaited programs ran in either."""
    begin, end = body_s
    for (source, host), size_bytes in received.items():
        ran_s = _covered_s(
            (max(program.began_s, begin), min(program.began_s + program.duration_s, end))
            for program in programs
            if program.host in (source, host) and not program.stopped
            if program.began_s is not None and program.duration_s is not None
        )
        if size_bytes and ran_s:
            yield automatic("goodput", f"{source} -> {host}", [size_bytes / ran_s], "B/s", better="higher")


def _covered_s(intervals: Iterable[tuple[float, float]]) -> float:
    """The time that intervals cover together."""
    covered_s, until = 0.0, -math.inf
    for begin, end in sorted(intervals):
        covered_s += max(end - max(begin, until), 0.0)
        until = max(until, end)
    return covered_s


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


def of_queues(bottlenecks: Iterable[LinkEvidence]) -> Iterator[Metric]:
    """What the queue of each bottleneck dropped and marked; of one that was made again, all of it."""
    counts: dict[tuple[str, str], int] = {}
    for bottleneck in bottlenecks:
        if bottleneck.queue is not None:
            where = f"{bottleneck.link} on {bottleneck.network}"
            for what, packets in (
                ("drops", bottleneck.queue.dropped_packets),
                ("marks", bottleneck.queue.marked_packets),
            ):
                counts[what, where] = counts.get((what, where), 0) + packets
    for (what, where), packets in counts.items():
        yield automatic("queue", f"{what} {where}", [packets], "packets", better=None)


def of_traffic(flows: Iterable[TrafficFlow]) -> Iterator[Metric]:
    """The goodput of each flow of competing traffic; of flows of one name, a sample each."""
    goodput: dict[str, list[float]] = {}
    for flow in flows:
        goodput.setdefault(f"{flow.link} {flow.name}", []).append(flow.goodput_bps / 8)
    for name, values in goodput.items():
        yield automatic("traffic", name, values, "B/s", better=None)


def of_hosts(counted: Mapping[str, Counters]) -> Iterator[Metric]:
    """What each host's kernel counted; of hosts that sent no TCP segment, nothing."""
    for host, counters in counted.items():
        if counters.segments_sent or counters.retransmitted_segments:
            yield automatic("tcp", f"segments sent by {host}", [counters.segments_sent], "segments")
            yield automatic("tcp", f"segments sent again by {host}", [counters.retransmitted_segments], "segments")
            yield automatic("tcp", f"SYN time-outs of {host}", [counters.syn_retransmissions], "time-outs")
