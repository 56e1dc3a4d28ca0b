"""What a port passes, and what an impaired port costs unimpaired traffic: TCP per packet, and latency in pairs.

``client -> server`` is impaired. ``other -> server`` passes the same port, unimpaired, and ``plain`` is a host whose
port nobody has touched: the control, measured in turn with it. Who comes first changes each round, so that what the
machine does meanwhile falls on both. There everybody sends packet by packet, offloads off.

Before that come senders that nobody prepared: ``other``, and the machine through a published port, 5 kB to 10 MB to
``server``, in turn with ``packets``, which sends packet by packet: before, while and after ``client -> server`` is
impaired. What is judged are medians of pairs' ratios; where their 95 % interval has the bound in it, that is undecided.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from benchmarks import common
from benchmarks.common import BenchmarkError, Check, Report
from testbed.backends.docker.lab import ComposeLab
from testbed.errors import EnvironmentUnfitError
from testbed.lab.waiting import await_condition
from testbed.spec.links import LinkRef
from tests.lab.programs import bulk

LEAST_BPS = 300e6
MOST_ADDED_RTT_S = 0.0004
MOST_ADDED_S = 0.0002
"""One way, to packets that are not impaired."""

_STACK = common.ROOT / "benchmarks" / "crossing.yaml"
_ROUNDS, _QUICK_ROUNDS = 30, 6
_FLIGHT, _PACE_S = 150, 0.001
_TRANSFERS, _QUICK_TRANSFERS = 10, 2
_SETTLE_S, _LASTS_S = 0.5, 1.5
_BUSY_PACE_S = 0.0005

LEAST_RATIO = 0.75
"""Of the bytes a second of per-packet traffic, and of those before anything was impaired."""
_BULK = "/tmp/bulk.py"  # noqa: S108  # in a host of ours
_SENDERS = ("other", "machine", "packets")
"""The last is the control."""
_SIZES = {5_000: 5, 100_000: 5, 1_000_000: 3, 10_000_000: 1}
"""Bytes, and how many times in a round."""
_BULKS = 12
_SEND_EACH = """
import json, sys; sys.path.insert(0, "/tmp")
from statistics import median
import bulk
sizes = json.loads(sys.argv[2]).items()
print(json.dumps([median(bulk.send(sys.argv[1], int(size)) for _ in range(each)) for size, each in sizes]))
"""

# Counts what comes once TCP has found its rate.
_TAKE = """
import json, socket, sys, time
heard = socket.create_server(("", 9400)); print("ready", flush=True)
taken, _ = heard.accept(); began = time.monotonic(); counted = 0; since = None
while data := taken.recv(1 << 20):
    now = time.monotonic()
    if since is not None: counted += len(data)
    elif now - began >= float(sys.argv[1]): since = now
print(json.dumps(8 * counted / (now - since)))
"""
_POUR = """
import socket, sys, time
with socket.create_connection((sys.argv[1], 9400)) as s:
    until, data = time.monotonic() + float(sys.argv[2]), bytes(1 << 16)
    while time.monotonic() < until: s.sendall(data)
"""
_ECHO = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("", 9401)); print("ready", flush=True)
while True: data, peer = s.recvfrom(99); s.sendto(data, peer)
"""
_PING = """
import json, socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect((sys.argv[1], 9401)); s.settimeout(1); times = []
for number in range(int(sys.argv[2])):
    began = time.perf_counter(); s.send(b"%d" % number); s.recv(99); times.append(time.perf_counter() - began)
    time.sleep(0.001)
print(json.dumps(times))
"""
_STREAM = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); due = time.monotonic(); print("ready", flush=True)
while True:
    s.sendto(bytes(1000), (sys.argv[1], 9)); due += float(sys.argv[2]); time.sleep(max(0, due - time.monotonic()))
"""


def measure(report: Report) -> None:
    """Each engine that this machine has."""
    refused = []
    for engine in ("carried", "host"):
        try:
            _measure_engine(report, engine)
        except EnvironmentUnfitError as error:
            refused.append(f"{engine}: not measured. {error}")
    if len(refused) == 2:
        raise EnvironmentUnfitError("\n".join(refused))
    for line in refused:
        report.note(line)


def _measure_engine(report: Report, engine: str) -> None:
    rounds = _QUICK_ROUNDS if report.quick else _ROUNDS
    transfers = _QUICK_TRANSFERS if report.quick else _TRANSFERS
    with ComposeLab(_STACK, netem=engine, say=report.say) as lab:
        _measure_unprepared(report, engine, lab)
        for host in lab.hosts.values():
            host.inside().call("per_packet", interface=host.interface("lan")["name"])
        for name in ("server", "plain"):
            lab.host(name).start(["python3", "-c", _ECHO], ready="ready")
        report.say(f"{engine}: {rounds} rounds of latency before anything is impaired")
        before = _in_turns(rounds, lambda name: _latency_s(lab, name))
        rtt_before = _in_turns(rounds, lambda name: _round_trip_s(lab, name))
        lab.impair("client -> server", delay="10ms")
        report.say(f"{engine}: and while client -> server is impaired")
        after = _in_turns(rounds, lambda name: _latency_s(lab, name))
        rtt_after = _in_turns(rounds, lambda name: _round_trip_s(lab, name))
        report.say(f"{engine}: and carries {1 / _BUSY_PACE_S:.0f} packets a second")
        address = lab.host("server").addresses("lan")[0]
        stream = lab.host("client").start(["python3", "-c", _STREAM, address, str(_BUSY_PACE_S)], ready="ready")
        busy = _in_turns(rounds, lambda name: _latency_s(lab, name))
        stream.stop("SIGKILL")
        report.say(f"{engine}: {transfers} transfers each, impaired, unimpaired through the same port, and past it")
        rates: dict[str, list[float]] = {"impaired": [], "same port": [], "plain": []}
        ways = (("client", "server", "impaired"), ("other", "server", "same port"), ("other", "plain", "plain"))
        for number in range(transfers):
            for src, dst, name in ways if number % 2 == 0 else reversed(ways):
                rates[name].append(_goodput_bps(lab, src, dst))
    _check_latency(report, f"{engine}: one-way latency added to unimpaired packets", before, after, MOST_ADDED_S)
    _check_latency(
        report,
        f"{engine}: the same, the impaired link carrying {1 / _BUSY_PACE_S:.0f} packets a second",
        before,
        busy,
        MOST_ADDED_S,
    )
    _check_latency(report, f"{engine}: idle round trip added", rtt_before, rtt_after, MOST_ADDED_RTT_S)
    impaired, plain = median(rates["impaired"]), median(rates["plain"])
    report.check(
        Check(
            name=f"{engine}: TCP through a port impaired with 10 ms, median of {transfers}",
            value=impaired / 1e6,
            bound=LEAST_BPS / 1e6,
            unit="Mbit/s",
            at_least=True,
            rivals={
                "a port that nobody touched": f"{plain / 1e6:.0f} Mbit/s, {plain / impaired:.1f} times that",
                "unimpaired, same port": f"{median(rates['same port']) / 1e6:.0f} Mbit/s",
            },
        )
    )
    for name, figures in rates.items():
        report.note(f"{engine}: {name}: {', '.join(f'{rate / 1e6:.0f}' for rate in figures)} Mbit/s")


def _measure_unprepared(report: Report, engine: str, lab: ComposeLab) -> None:
    """Bulk traffic from unprepared senders to the host to which another sends packet by packet."""
    packets = lab.hosts["packets"]
    packets.inside().call("per_packet", interface=packets.interface("lan")["name"])
    for name in ("server", "other", "packets"):
        lab.host(name).put(_BULK, Path(bulk.__file__).read_bytes())
    lab.host("server").start(["python3", _BULK, "serve"], ready="ready")
    times: dict[tuple[str, str, int], list[float]] = {}
    lab.lifecycle.begin(None)
    (ref,) = lab.topology.links("client -> server")
    for phase in ("before", "during", "after"):
        report.say(f"{engine}: {_BULKS} rounds of bulk, {phase} an impairment")
        if phase == "during":
            lab.impair("client -> server", delay="10ms")
        counted = _through_kernel(lab, ref)
        for number in range(_BULKS):
            for sender in _SENDERS if number % 2 == 0 else reversed(_SENDERS):
                for size, took_s in zip(_SIZES, _bulk(lab, sender), strict=True):
                    times.setdefault((phase, sender, size), []).append(took_s)
        if phase == "during" and counted is not None:
            went = await_condition(
                lambda: _through_kernel(lab, ref) or {}, lambda now: now["in"] == now["out"], deadline_s=5
            )
            passed, missing = went["in"] - counted["in"], went["in"] - went["out"]
            refused = went["refused"] - counted["refused"]
            report.check(
                Check(
                    name=f"{engine}: bytes that went into the kernel and did not come out",
                    value=missing,
                    bound=0,
                    unit="bytes",
                    bound_words=f"of {passed}; {refused} packets found its queue full",
                )
            )
        if phase == "during":
            lab.lifecycle.end()
            lab.lifecycle.begin(None)
    for sender in _SENDERS[:-1]:
        for size in _SIZES:
            share = {
                phase: [
                    control / ours
                    for control, ours in zip(times[phase, "packets", size], times[phase, sender, size], strict=True)
                ]
                for phase in ("before", "during", "after")
            }
            again = [after / before for before, after in zip(share["before"], share["after"], strict=True)]
            what = f"{engine}: {sender}, {size:,} bytes"
            # The engine's proxy costs a sender behind a published port, also where nothing is carried.
            anyway = min(1.0, median(share["before"]))
            beside = [sample / anyway for sample in share["during"]]
            _check_ratio(report, f"{what}: rate beside an impaired link, to that of per-packet traffic", beside)
            _check_ratio(report, f"{what}: that share once the next test began, to that before", again)
            rates = ", ".join(
                f"{phase} {8e-6 * size / median(times[phase, sender, size]):.0f}"
                f" (per packet {8e-6 * size / median(times[phase, 'packets', size]):.0f})"
                for phase in share
            )
            report.note(f"{what}: {rates} Mbit/s")


def _bulk(lab: ComposeLab, sender: str) -> list[float]:
    """How long each size takes a sender; seconds, the median of some."""
    if sender == "machine":
        (binding,) = lab.engine.state(lab.hosts["server"].container)["NetworkSettings"]["Ports"][f"{bulk.PORT}/tcp"]
        where, port = binding["HostIp"], int(binding["HostPort"])
        return [median(bulk.send(where, size, port) for _ in range(count)) for size, count in _SIZES.items()]
    address = lab.host("server").addresses("lan")[0]
    done = lab.host(sender).run(["python3", "-c", _SEND_EACH, address, json.dumps(_SIZES)], timeout="60s")
    if not done.ok:
        raise BenchmarkError(f"{sender} -> server: {done.stderr}")
    taken: list[float] = json.loads(done.stdout)
    return taken


def _through_kernel(lab: ComposeLab, ref: LinkRef) -> dict[str, int] | None:
    """Bytes in and out of the carried kernel at a link's port, both ways, and packets refused; None without one."""
    port = lab.ports.of(ref)
    ways = None if port is None else port.channel.call("carried", ports=[port.name]).get(port.name)
    if ways is None:
        return None
    names = {"in": "in_bytes", "out": "out_bytes", "refused": "refused_packets"}
    return {short: sum(way[name] for way in ways.values()) for short, name in names.items()}


def _check_ratio(report: Report, name: str, ratios: Sequence[float]) -> None:
    low, high = _interval(sorted(ratios))
    report.check(
        Check(
            name=f"{name}, median of {len(ratios)}",
            value=median(ratios),
            bound=LEAST_RATIO,
            unit="",
            at_least=True,
            undecided=low < LEAST_RATIO <= high,
            bound_words=f"95 %: {low:.2f} to {high:.2f}",
        )
    )


def _interval(ordered: Sequence[float]) -> tuple[float, float]:
    """The median's, at 95 %."""
    # The binomial's normal approximation, rounded outwards (David and Nagaraja, Order Statistics, section 7.1).
    reach = 1.96 * math.sqrt(len(ordered)) / 2
    low = max(math.floor(len(ordered) / 2 - reach), 0)
    return ordered[low], ordered[min(math.ceil(len(ordered) / 2 + reach), len(ordered) - 1)]


def _in_turns(rounds: int, look: Callable[[str], float]) -> list[tuple[float, float]]:
    """What is seen toward the server and toward the plain host, in pairs."""
    pairs = []
    for number in range(rounds):
        seen = {name: look(name) for name in (("server", "plain") if number % 2 == 0 else ("plain", "server"))}
        pairs.append((seen["server"], seen["plain"]))
    return pairs


def _latency_s(lab: ComposeLab, dst: str) -> float:
    """The median one-way delay of a flight of probes."""
    (ref,) = lab.topology.links(f"other -> {dst}")
    flight = lab.prober.fly(ref, count=_FLIGHT, pace_s=_PACE_S, size_bytes=64, quiet_s=0.05)
    if len(flight.first) < _FLIGHT:
        raise BenchmarkError(f"{ref}: {_FLIGHT - len(flight.first)} of {_FLIGHT} probes did not arrive")
    return median(flight.delays_s.values())


def _round_trip_s(lab: ComposeLab, dst: str) -> float:
    address = lab.host(dst).addresses("lan")[0]
    done = lab.host("other").run(["python3", "-c", _PING, address, str(_FLIGHT)])
    if not done.ok:
        raise BenchmarkError(f"round trips to {dst}: {done.stderr}")
    times: list[float] = json.loads(done.stdout)
    return median(times)


def _goodput_bps(lab: ComposeLab, src: str, dst: str) -> float:
    """Payload a second, once TCP has had time to find its rate."""
    address = lab.host(dst).addresses("lan")[0]
    with ExitStack() as after:
        taking = lab.host(dst).start(["python3", "-c", _TAKE, str(_SETTLE_S)], ready="ready")
        after.callback(taking.stop, "SIGKILL")
        poured = lab.host(src).run(["python3", "-c", _POUR, address, str(_SETTLE_S + _LASTS_S)], timeout="60s")
        taken = taking.wait("30s")
    if not poured.ok or not taken.ok:
        raise BenchmarkError(f"{src} -> {dst}: {poured.stderr}{taken.stderr}")
    return float(taken.stdout.splitlines()[1])


def _check_latency(
    report: Report,
    name: str,
    before: Sequence[tuple[float, float]],
    after: Sequence[tuple[float, float]],
    most_s: float,
) -> None:
    """The pairs' differences afterwards, less their median before: the control's change is removed."""
    was_s = median(ours - control for ours, control in before)
    added = sorted(ours - control - was_s for ours, control in after)
    low, high = _interval(added)
    report.check(
        Check(
            name=f"{name}, median of {len(added)} pairs",
            value=1000 * median(added),
            bound=1000 * most_s,
            unit="ms",
            bound_words=f"95 %: {1000 * low:.3f} to {1000 * high:.3f}",
            rivals={"the untouched port": f"{1000 * median(control for _, control in after):.3f} ms"},
        )
    )


if __name__ == "__main__":
    common.run("What a port passes, and what it adds", measure)
