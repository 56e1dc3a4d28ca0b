"""The cost of watching carried kernels, and whether watch frames are as late as packets, also on a busy machine.

The cost is processor time of the carried kernel and of the agents, with the watch and without, in turns: idle, and
beside a stream of packets. How late a packet was is what it took between two captures beyond its delay.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles

from benchmarks import common
from benchmarks.common import BenchmarkError, Check, Report
from testbed.agent.carried import CLOCK_DELAY_S
from testbed.backends.local.lab import LocalLab
from testbed.lab.lab import Lab
from testbed.lab.ports import Port
from tests.lab import truth
from tests.lab.conftest import busy_processes
from tests.lab.programs import stamped

MOST_CPU_RATIO = 0.01
"""Of one core."""
MOST_LATE_S = 0.001
"""Of 99 % of the packets."""

LINK = truth.LINK
_DELAY_S = 0.02
_ROUNDS, _QUICK_ROUNDS = 6, 2
_TURN_S, _QUICK_TURN_S = 5.0, 2.0
_PACKETS, _QUICK_PACKETS, _PACE_S = 2000, 400, 0.005
_STREAM_S = 0.001
_STAMPED = "/tmp/stamped.py"  # noqa: S108  # in a host of ours


def measure(report: Report) -> None:
    """On a local lab. Raises EnvironmentUnfitError if none can run here."""
    with LocalLab(common.STACK, netem="carried", say=report.say) as lab:
        lab.lifecycle.begin("lateness")
        lab.impair(LINK, delay=f"{_DELAY_S}s")
        (port,) = lab.ports
        report.note(f"the carried kernel runs first: {port.channel.call('boot')['waits_its_turn'] or 'yes'}")
        _measure_cost(report, lab, port, "idle")
        for name in ("client", "server"):
            lab.host(name).put(_STAMPED, Path(stamped.__file__).read_bytes())
        with _received(lab), _streamed(lab):
            _measure_cost(report, lab, port, f"beside {1 / _STREAM_S:.0f} packets a second")
        lab.lifecycle.end()
        lab.lifecycle.begin("lateness")  # by a clock that is the test's own again
        lab.impair(LINK, delay=f"{_DELAY_S}s")
        for busy in (0, 4 * (os.cpu_count() or 1)):
            with _received(lab), busy_processes(busy):
                _measure_lateness(report, lab, f"beside {busy} busy processes")
        lab.heal()
        lab.lifecycle.end()


def _measure_cost(report: Report, lab: Lab, port: Port, when: str) -> None:
    rounds, turn_s = (_QUICK_ROUNDS, _QUICK_TURN_S) if report.quick else (_ROUNDS, _TURN_S)
    agent = lab.capture_agent()
    costs = []
    for number in range(rounds):
        used = {}
        for watched in (False, True) if number % 2 == 0 else (True, False):
            if watched:
                agent.call("watch_passages", clocks=port.channel.call("clocks"))
            else:
                agent.call("rest")
                port.channel.call("clocks", running=False)
            before, began = _ran_ns(), time.monotonic_ns()
            time.sleep(turn_s)  # what is measured is of a while
            used[watched] = (_ran_ns() - before) / (time.monotonic_ns() - began)
        costs.append(used[True] - used[False])
    report.check(
        Check(
            name=f"share of a core that the watch takes, {when}, median of {rounds}",
            value=100 * median(costs),
            bound=100 * MOST_CPU_RATIO,
            unit="%",
            bound_words=f"{100 * min(costs):.2f} to {100 * max(costs):.2f}",
        )
    )


def _measure_lateness(report: Report, lab: Lab, when: str) -> None:
    count = _QUICK_PACKETS if report.quick else _PACKETS
    server = lab.host("server").addresses("lan")[0]
    with lab.observe(captures=[LINK]) as seen:
        lab.carriage.settle()
        done = lab.host("client").run(
            ["python3", _STAMPED, "send", server, "9000", str(count), str(_PACE_S)], timeout="120s"
        )
        (kernel,) = lab.capture_agent().call("passages")["kernels"].values()
        if not done.ok:
            raise BenchmarkError(f"the sender failed with status {done.exit_code}: {done.stderr}")
    passages = [passage.delay_s for passage in seen.passages("server@lan") if passage.delay_s is not None]
    packets = _late("packets", [passage - _DELAY_S for passage in passages])
    frames = _late("frames", [passage_ns / 1e9 - CLOCK_DELAY_S for passage_ns in kernel["passages_ns"]])
    report.check(
        Check(
            name=f"how late 99 % of {len(passages)} packets are at the most, {when}",
            value=1000 * packets[98],
            bound=1000 * MOST_LATE_S,
            unit="ms",
            rivals={"frames": f"{1000 * frames[98]:.2f} ms"},
        )
    )
    report.note(
        f"{when}, 50 %, 90 %, 99 %: packets {_ms(packets)}, frames {_ms(frames)}; load {os.getloadavg()[0]:.0f}"
    )


def _late(what: str, late_s: Sequence[float]) -> list[float]:
    if len(late_s) < 2:
        raise BenchmarkError(f"{len(late_s)} {what} came")
    return quantiles(late_s, n=100)


def _ms(percentiles: Sequence[float]) -> str:
    return ", ".join(f"{1000 * percentiles[percent - 1]:.2f}" for percent in (50, 90, 99)) + " ms"


def _ran_ns() -> int:
    """Processor time of all agents and carried kernels so far, without programs in hosts."""
    ran = 0
    for pid in _descendants(os.getpid()):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if words[0].endswith(b"linux.uml") or b"-I" in words:  # as `testbed.agent.command` starts one
                ran += sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))
        except OSError:
            continue  # it ended while we looked
    return ran


def _descendants(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(word) for word in task.read_text().split()]
        except OSError:
            continue  # it ended while we looked
        for child in children:
            yield child
            yield from _descendants(child)


@contextmanager
def _received(lab: Lab) -> Iterator[None]:
    """Listen at the port, so that no host answers with an ICMP error."""
    receiver = lab.host("server").start(["python3", _STAMPED, "receive", "9000"], ready="ready")
    try:
        yield
    finally:
        receiver.stop("SIGKILL")


@contextmanager
def _streamed(lab: Lab) -> Iterator[None]:
    server = lab.host("server").addresses("lan")[0]
    stream = lab.host("client").start(["python3", _STAMPED, "send", server, "9000", "1000000", str(_STREAM_S)])
    try:
        yield
    finally:
        stream.stop("SIGKILL")


if __name__ == "__main__":
    common.run("What the watch on carried kernels costs, and how late they are", measure)
