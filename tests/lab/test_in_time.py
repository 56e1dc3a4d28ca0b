"""A carried kernel carries packets in time, also on a busy machine; watch frames show its lateness."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import quantiles

import pytest

from testbed import ImpairmentNotAppliedError, Lab
from testbed.agent.carried import CLOCK_DELAY_S, WAKE_EVERY_S
from testbed.lab.waiting import await_condition
from tests.lab import truth
from tests.lab.conftest import Datagrams, busy_processes, prepare

DELAY_S = 0.02
PACKETS, PACE_S = 400, 0.005
FRAMES = 40
MOST_LATE_S = 0.001
"""Of 95 % of the packets. With a share of its own 99 % are less than 0.5 ms late, at whatever load; without, half."""


@pytest.fixture
def carried(stack: Lab) -> Lab:
    """The stack, if a carried kernel impairs it."""
    if stack.netem_engine != "carried":
        pytest.skip("these are a carried kernel's")
    return stack


def most_of(late_s: list[float]) -> float:
    """The 95th percentile."""
    return quantiles(late_s, n=20)[-1]


def test_beside_busy_processes_packets_are_in_time_and_so_are_frames(carried: Lab) -> None:
    client, server = carried.hosts["client"], carried.hosts["server"]
    prepare(client, server)
    carried.lifecycle.begin("in time")
    try:
        carried.impair(truth.LINK, delay=f"{DELAY_S}s")
        port = carried.ports.attached("server", "lan")
        if waits := port.channel.call("boot")["waits_its_turn"]:
            pytest.skip(f"this agent may not give it a share of its own: {waits}")
        with busy_processes(4 * (os.cpu_count() or 1)):
            carried.carriage.settle()
            with carried.observe(captures=[truth.LINK]) as seen:
                assert len(Datagrams(client, server).arrived(PACKETS, pace_s=PACE_S)) == PACKETS
            truth.await_frames(carried, FRAMES)
            (kernel,) = carried.capture_agent().call("passages")["kernels"].values()
    finally:
        carried.heal()
        carried.lifecycle.end()
    delays_s = [passage.delay_s for passage in seen.passages("server@lan") if passage.delay_s is not None]
    assert len(delays_s) >= PACKETS
    packets_s = [delay_s - DELAY_S for delay_s in delays_s]
    frames_s = [passage_ns / 1e9 - CLOCK_DELAY_S for passage_ns in kernel["passages_ns"]]
    assert min(packets_s) > -1e-4, "a packet was early: it met no delay"
    assert most_of(packets_s) < MOST_LATE_S
    assert most_of(frames_s) < MOST_LATE_S


def test_a_carried_kernel_is_woken_for_packets_that_it_missed_also_while_its_agent_stands_still(carried: Lab) -> None:
    carried.impair(truth.LINK, delay="1ms")
    port = carried.ports.attached("server", "lan")
    assert port.kernel is not None
    kernel, *_ = truth.kernel_of(port.kernel)  # the only one who finds a container's, too
    agent = int(Path(f"/proc/{kernel}/stat").read_text().rpartition(")")[2].split()[1])
    sleeper = subprocess.Popen([sys.executable, "-c", f"import time\nwhile True: time.sleep({WAKE_EVERY_S})"])
    os.kill(agent, signal.SIGSTOP)
    try:
        await_woken(sleeper.pid, 51)
        before, of_sleeper = woken(kernel), woken(sleeper.pid)
        await_woken(sleeper.pid, 101)
        times, of_sleeper = woken(kernel) - before, woken(sleeper.pid) - of_sleeper
    finally:
        os.kill(agent, signal.SIGCONT)
        sleeper.kill()
        sleeper.wait()
        carried.heal()
    # Whoever wants to be woken as often is, on a busy machine as well; unwoken it was six to eight times a second.
    assert times > of_sleeper / 2, "a packet that came while it went to sleep would lie in its tap until the next one"


def test_one_frame_goes_round_while_a_test_runs_and_none_after_it(carried: Lab) -> None:
    for name in ("one", "next"):  # whose frame is another
        carried.lifecycle.begin(name)
        try:
            carried.impair(truth.LINK, delay="10ms")
            carried.carriage.settle()
            place = truth.place(carried)
            assert place.port.kernel is not None
            kernel, *_ = truth.kernel_of(place.port.kernel)
            (tap,) = (clock["tap"] for clock in place.port.channel.call("clocks").values())
            truth.await_frames(carried, 20)
            began, before = time.monotonic(), came_back(place, tap)
            now = await_condition(lambda: came_back(place, tap), lambda now: now > before + 50, deadline_s=20)  # noqa: B023  # awaited here
            rounds = (time.monotonic() - began) / CLOCK_DELAY_S
            assert now - before <= rounds + 1, "a second one goes round"
        finally:
            carried.heal()
            carried.lifecycle.end()
    await_woken(kernel, 10)  # the last may be under way
    last = came_back(place, tap)
    await_woken(kernel, 50)  # as it is to send one, if one were still there
    assert came_back(place, tap) == last


def test_who_reads_when_frames_passed_may_be_late(carried: Lab) -> None:
    carried.lifecycle.begin("late reader")
    try:
        carried.impair(truth.LINK, delay="10ms")
        carried.carriage.settle()
        truth.await_frames(carried, 10)
        reader = truth.capturing(carried)
        for line in reader:
            os.kill(line, signal.SIGSTOP)
        try:
            time.sleep(0.5)  # what is asked is that it stood still for a while
        finally:
            for line in reader:
                os.kill(line, signal.SIGCONT)
        (kernel,) = carried.capture_agent().call("passages")["kernels"].values()
    finally:
        carried.heal()
        carried.lifecycle.end()
    assert len(kernel["passages_ns"]) > 10 + 0.3 / CLOCK_DELAY_S
    assert max(kernel["passages_ns"]) < 0.3e9


_FLOOD = """
import socket, sys, time
_UDP_SEGMENT, AT_ONCE, BYTES = 103, 50, 100
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, BYTES)
until = time.monotonic() + float(sys.argv[2])
while time.monotonic() < until: s.sendto(bytes(BYTES * AT_ONCE), (sys.argv[1], 9))
"""


def _waits_are_told(carried: Lab, *, flooded: bool) -> bool:
    """Whether the evidence of a link says that packets waited in the queue before the carried kernel."""
    carried.lifecycle.begin("queue")
    try:
        carried.impair(truth.LINK, delay="10ms")
        carried.carriage.settle()
        server = next(address for address in carried.host("server").addresses("lan") if "." in address)
        carried.host("client").run(["python3", "-c", _FLOOD, server, "1" if flooded else "0"])
        truth.await_frames(carried, 20)
        with contextlib.suppress(ImpairmentNotAppliedError):  # that so much was lost is another thing
            carried.verifier.verify()
        (link,) = carried.ledger.evidence
        port = carried.ports.attached("server", "lan")
        await_condition(  # the frames are none of what went in and must come out
            lambda: port.channel.call("carried", ports=[port.name])[port.name]["to_host"],
            lambda way: way["in_packets"] == way["out_packets"],
            deadline_s=5,
        )
    finally:
        carried.heal()
        carried.lifecycle.end()
    return any("waited in the queue before the carried kernel" in warning for warning in link.warnings)


@pytest.mark.parametrize("flooded", [True, False])
def test_how_long_packets_wait_in_the_queue_of_a_saturated_port_is_told(carried: Lab, flooded: bool) -> None:
    # A queue that is full all the time refuses the frames, too, by which the waits are measured.
    tries = 4 if flooded else 1
    assert any(_waits_are_told(carried, flooded=flooded) for _ in range(tries)) == flooded


def came_back(place: truth.Place, tap: str) -> int:
    """How many frames the carried kernel has sent to its clock's tap."""
    (shown,) = json.loads(place.beside("ip", "-j", "-s", "link", "show", "dev", tap))
    return int(shown["stats64"]["rx"]["packets"])


def await_woken(pid: int, times: int) -> None:
    """Wait until a process was woken so many times more."""
    before = woken(pid)
    await_condition(lambda: woken(pid), lambda now: now >= before + times, deadline_s=20)


def woken(pid: int) -> int:
    """Number of voluntary context switches of a process so far (proc_pid_status(5))."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
