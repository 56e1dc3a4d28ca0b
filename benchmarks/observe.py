"""The cost of observing: goodput and delay of a flow with it and without, in turns in one run.

Observing is all of it: counters, the sockets of both hosts every 10 ms, and packets on both sides of the impairment.
The flow runs through a netem that delays it, at a rate that a link may have. Without a rate it is as fast as the
machine can make it: whatever observing takes of the machine is then missing from it. That figure is told, not judged:
it is the share of the machine, not of the flow.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

from benchmarks import common
from benchmarks.common import BenchmarkError, Check, Report
from testbed.backends.docker.lab import ComposeLab
from testbed.observe.observation import Observation

MOST_GOODPUT_LOST = 0.03
MOST_DELAY_ADDED_S = 0.0001
MOST_CPU = 0.02

LINK = "client -> server"
_PORT = "9500"
_ROUNDS, _QUICK_ROUNDS = 40, 6
_ROUND_TRIPS = 200

# Takes connections one by one; answers each with its end once all of it has come, or byte by byte if it says so.
_SERVE = """
import socket, sys
heard = socket.create_server(("", int(sys.argv[1]))); print("ready", flush=True)
while True:
    taken, _ = heard.accept(); taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    echo = taken.recv(1) == b"e"
    while data := taken.recv(1 << 18):
        if echo: taken.sendall(data)
    taken.close()
"""
_SEND = """
import socket, sys, time
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as s:
    data, left = memoryview(bytes(1 << 18)), int(sys.argv[3])
    s.sendall(b"s"); began = time.perf_counter()
    while left > 0: left -= s.send(data[:left])
    s.shutdown(socket.SHUT_WR); s.recv(1)
    print(time.perf_counter() - began)
"""
_PING = """
import json, socket, sys, time
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as s:
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1); s.sendall(b"e"); times = []
    for _ in range(int(sys.argv[3])):
        began = time.perf_counter(); s.sendall(b"x"); s.recv(1); times.append(time.perf_counter() - began)
        time.sleep(0.001)
    print(json.dumps(times))
"""


@dataclass
class Turns:
    """One figure, observed and not, in pairs."""

    plain: list[float] = field(default_factory=list)
    observed: list[float] = field(default_factory=list)

    def interval(self, compare: Callable[[float, float], float]) -> tuple[float, float, float]:
        """The median of the pairs' comparison, and the order statistics that enclose it with 95 % confidence."""
        compared = sorted(compare(*pair) for pair in zip(self.plain, self.observed, strict=True))
        count = len(compared)
        # The binomial's normal approximation, rounded outwards (David and Nagaraja, Order Statistics, section 7.1).
        reach = 1.96 * math.sqrt(count) / 2
        low, high = math.floor(count / 2 - reach), math.ceil(count / 2 + reach)
        return median(compared), compared[max(low, 0)], compared[min(high, count - 1)]


@dataclass
class Run:
    """A lab with the flow's other end running in it."""

    lab: ComposeLab
    address: str
    cpu: list[float] = field(default_factory=list)
    every_s: list[float] = field(default_factory=list)
    lost: int = 0

    def client(self, program: str, argument: int) -> str:
        """What the client's program printed. Raises BenchmarkError if it failed."""
        argv = ["python3", "-c", program, self.address, _PORT, str(argument)]
        done = self.lab.host("client").run(argv, timeout="60s")
        if not done.ok:
            raise BenchmarkError(f"the client failed with status {done.exit_code}: {done.stderr}")
        return done.stdout

    def goodput_bps(self, count: int) -> float:
        """Payload bits a second of one transfer of so many bytes."""
        return 8 * count / float(self.client(_SEND, count))

    def round_trip_s(self) -> float:
        """The median of many exchanges."""
        times: list[float] = json.loads(self.client(_PING, _ROUND_TRIPS))
        return median(times)

    @contextmanager
    def observed(self) -> Iterator[None]:
        """Observe, and keep what that cost."""
        with self.lab.observe() as seen:
            yield
        self._account(seen)

    def _account(self, seen: Observation) -> None:
        if seen.missing or not seen.captures:
            raise BenchmarkError(f"not all was observed: {seen.missing or 'no packets'}")
        for host in seen.hosts.values():
            self.cpu.append(host.sampling.cpu_ratio)
            self.every_s.append(host.sampling.every_s)
        self.lost += sum(place.lost for capture in seen.captures.values() for place in capture.places)

    def take_turns(self, measure: Callable[[], float], rounds: int) -> Turns:
        """Measure in turns, in the order plain, observed, observed, plain, …."""
        turns = Turns()
        for number in range(rounds):
            for observed in (False, True) if number % 2 == 0 else (True, False):
                if observed:
                    with self.observed():
                        turns.observed.append(measure())
                else:
                    turns.plain.append(measure())
        return turns


def measure(report: Report) -> None:
    """The whole of it, on the first engine that this machine has."""
    rounds = _QUICK_ROUNDS if report.quick else _ROUNDS
    with ComposeLab(common.STACK, say=report.say) as lab:
        server = lab.host("server")
        server.start(["python3", "-c", _SERVE, _PORT], ready="ready")
        run = Run(lab, server.addresses("lan")[0])
        lab.impair(LINK, delay="2ms")
        size = _size(run)
        report.say(f"{lab.netem_engine}: {rounds} rounds of transfers of {size / 1e6:.0f} MB")
        fast = run.take_turns(lambda: run.goodput_bps(size), rounds)
        report.say(f"{rounds} rounds of {_ROUND_TRIPS} round trips")
        slow = run.take_turns(run.round_trip_s, rounds)
        lab.impair(LINK, delay="2ms", rate="50mbit")
        report.say(f"{rounds} rounds at 50 Mbit/s")
        limited = run.take_turns(lambda: run.goodput_bps(2_000_000), rounds)
    lost, low, high = limited.interval(_lost)
    report.check(
        Check(
            name=f"{lab.netem_engine}: goodput lost at 50 Mbit/s, median",
            value=100 * lost,
            bound=100 * MOST_GOODPUT_LOST,
            unit="%",
            bound_words=f"95 %: {100 * low:.2f} to {100 * high:.2f}",
        )
    )
    added, low, high = slow.interval(lambda plain, observed: (observed - plain) / 2)
    report.check(
        Check(
            name=f"{lab.netem_engine}: one-way delay added, median",
            value=1000 * added,
            bound=1000 * MOST_DELAY_ADDED_S,
            unit="ms",
            bound_words=f"half of the round trip; 95 %: {1000 * low:.3f} to {1000 * high:.3f}",
        )
    )
    report.check(
        Check(
            name="sampler's share of a core, median of all turns",
            value=100 * median(run.cpu),
            bound=100 * MOST_CPU,
            unit="%",
            bound_words=f"it looked every {1000 * median(run.every_s):.1f} ms",
        )
    )
    lost, low, high = fast.interval(_lost)
    report.note(
        f"as fast as this machine can, {median(fast.plain) / 1e6:.0f} Mbit/s, goodput was {100 * lost:.1f} % less "
        f"(95 %: {100 * low:.1f} to {100 * high:.1f})"
    )
    report.note(f"packets that the captures could not keep up with: {run.lost}")
    report.note(f"the most that the sampler took in a turn: {100 * max(run.cpu):.1f} % of a core")


def _size(run: Run) -> int:
    """A transfer of about 0.3 s: short turns share the machine's other load."""
    first = run.goodput_bps(10_000_000)
    return int(min(max(0.3 * first / 8, 5_000_000), 200_000_000))


def _lost(plain: float, observed: float) -> float:
    """The relative loss of a figure."""
    return 1 - observed / plain


if __name__ == "__main__":
    common.run("What observing costs the observed", measure)
