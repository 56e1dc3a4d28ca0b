"""How many hosts a local lab starts, how fast, and the cost of each; beside Mininet and Docker Compose in one run.

Hosts have nothing to run: a namespace, a cable, an address and a place on one bridge. Mininet's have a shell each,
Compose's a `sleep`. Mininet is compared where it is installed (as root: apt-get install --no-install-recommends
mininet bridge-utils; Open vSwitch is neither needed nor started), Compose where an engine answers. The full run adds a
gossip of 500 hosts, each with 8 others through impaired links, judged by the oracle. Writes ``report/scale.svg``.

The host engine's pair is measured in two parts where this machine's kernel has no netem: all but the impairing here,
and that on the machine of a carried kernel, where every call takes longer.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from html import escape
from itertools import pairwise
from pathlib import Path
from statistics import median

from benchmarks import common, gossip
from benchmarks.common import BenchmarkError, Check, Report, timed
from testbed import topologies
from testbed.backends.docker import images
from testbed.backends.docker.engine import Engine
from testbed.backends.local.lab import LocalLab
from testbed.compose.command import Composer
from testbed.errors import EnvironmentUnfitError, LabError
from testbed.lab.waiting import NotSeenError, await_condition
from testbed.spec.impairment import Impairment

PAIR_S = {"host": 0.5, "carried": 3.0}
"""Two hosts up, impaired, one message, down."""
SECOND_S = 0.05
"""The links of a session's second test impaired."""
BOUNDS_S = {100: 0.8, 1000: 10.0}
DOWN_S = 1.0
TIMES_MININET = 5.0
CONSTANT_WITHIN = 0.2

GOSSIP_S = 240.0
"""Five hundred hosts up, 4,000 links impaired, 20,000 messages, judged, down."""

_ROUNDS, _QUICK_ROUNDS = 5, 3
_SIZES, _QUICK_SIZES = (1, 10, 100, 400, 700, 1000), (1, 10, 100)
_SMALL = 100
"""Up to so many hosts a round is repeated: it is short, and the machine's own noise is as large as a host."""
_FILLING, _MOST_FILLED, _SAME_WITHIN = 200, 4000, 0.05
_COMPOSE_HOSTS, _QUICK_COMPOSE_HOSTS = 20, 10
_GOSSIP_HOSTS, _QUICK_GOSSIP_HOSTS, _NEIGHBOURS = 500, 40, 8
_DEADLINE_S = 240.0
_SETTLE_DEADLINE_S = 5.0


def measure(report: Report) -> None:
    """All of it; raises EnvironmentUnfitError if no local lab can be had here."""
    _measure_pair(report)
    rounds = _QUICK_ROUNDS if report.quick else _ROUNDS
    sizes = _QUICK_SIZES if report.quick else _SIZES
    memory = {} if report.quick else _memory(report, sizes)
    _up_and_down(sizes[-1])  # the first of its size finds the machine's memory cold
    seen: dict[int, list[tuple[float, float]]] = {hosts: [] for hosts in sizes}
    for number in range(rounds):
        report.say(f"round {number + 1} of {rounds}: {', '.join(map(str, sizes))} hosts")
        for hosts in sizes:
            seen[hosts] += [_up_and_down(hosts) for _ in range(3 if hosts <= _SMALL and not report.quick else 1)]
    times, down = ({hosts: median(sample[which] for sample in seen[hosts]) for hosts in sizes} for which in range(2))
    for hosts in (size for size in sizes if size in BOUNDS_S):
        rivals = _rivals(report, hosts) if hosts == 100 else {}
        report.check(
            Check(
                name=f"{hosts} hosts up, median of {rounds}",
                value=times[hosts],
                bound=BOUNDS_S[hosts],
                unit="s",
                rivals={name: f"{took_s:.2f} s" for name, took_s in rivals.items()},
            )
        )
        if hosts == 100:
            report.check(Check(name="100 hosts down", value=down[hosts], bound=DOWN_S, unit="s"))
        if _MININET in rivals:
            report.check(
                Check(
                    name="100 hosts up and down: times faster than Mininet",
                    bound=TIMES_MININET,
                    unit="×",
                    value=rivals[_MININET] / (times[hosts] + down[hosts]),
                    at_least=True,
                )
            )
    if memory:
        _tell_constancy(report, {hosts: min(sample[0] for sample in seen[hosts]) for hosts in sizes}, memory)
    _measure_gossip(report)


def _measure_pair(report: Report) -> None:
    report.say("two hosts: up, impaired, one message, down")
    rounds, rest_s, seconds_s, engine = [], [], [], ""
    for number in range(1 + (_QUICK_ROUNDS if report.quick else _ROUNDS)):
        started = time.perf_counter()
        with LocalLab(common.STACK, say=report.say) as lab:
            impaired = timed(lambda lab=lab: lab.impair("client <-> server", delay="1ms"))  # type: ignore[misc]  # bound at once
            if not lab.host("client").run(["python3", "paper_client.py", "server"]).ok:
                raise BenchmarkError("the message was not sent")
            before_second = time.perf_counter() - started
            lab.heal()
            again = timed(lambda lab=lab: lab.impair("client <-> server", delay="2ms"))  # type: ignore[misc]  # bound at once
            down_from, engine = time.perf_counter(), lab.netem_engine
        if number:  # the first does not count: it may fetch a kernel
            rounds.append(before_second + time.perf_counter() - down_from)
            rest_s.append(rounds[-1] - impaired)
            seconds_s.append(again)
    name = f"two hosts up, impaired, one message, down, {engine} netem, median of {len(rounds)}"
    report.check(Check(name=name, value=median(rounds), bound=PAIR_S[engine], unit="s"))
    if engine == "carried":
        impaired = _impaired_by_host(report)
        rest = median(rest_s)
        report.note(f"host netem: {rest:.2f} s here without impairing, {impaired:.2f} s for that in a carried kernel")
        name = f"two hosts up, impaired, one message, down, host netem, by its parts, median of {len(rounds)}"
        report.check(Check(name=name, value=rest + impaired, bound=PAIR_S["host"], unit="s"))
    report.check(Check(name="the second test's links impaired", value=median(seconds_s), bound=SECOND_S, unit="s"))


def _impaired_by_host(report: Report) -> float:
    """Seconds that the host engine takes to impair a pair both ways, on the machine of a carried kernel."""
    return float(median(common.in_carried(report, __file__, common.HOST_ENGINE)))


def _tell_host_engine() -> None:
    """On that machine: the seconds of each round as JSON."""
    rounds = []
    for _round in range(_ROUNDS):
        with LocalLab(common.STACK, say=lambda _text: None, netem="host") as lab:
            rounds.append(timed(lambda lab=lab: lab.impair("client <-> server", delay="1ms")))  # type: ignore[misc]  # bound at once
            lab.verifier.verify()
    json.dump(rounds, sys.stdout)


def _up_and_down(hosts: int) -> tuple[float, float]:
    """Seconds up, and seconds down."""
    alive = _namespaces()
    lab = LocalLab(topologies.star(hosts))
    try:
        up_s = timed(lab.up)
    finally:
        down_s = timed(lab.down)
    _settle(alive)
    return up_s, down_s


def _memory(report: Report, sizes: Sequence[int]) -> dict[int, float]:
    """Bytes of the kernel's memory that a lab of each size takes, all of them up at once.

    The kernel keeps what earlier labs have let go of, in parts of pages. So labs come up first until that is used up
    and one costs what the one before it did, and none goes down before the last is measured.
    """
    costs: list[float] = []
    with ExitStack() as undo:

        def cost(hosts: int) -> float:
            before = _kernel_memory()
            lab = LocalLab(topologies.star(hosts))
            lab.up()
            undo.callback(lab.down)
            return _kernel_memory() - before

        report.say("memory: using up what the kernel has kept of earlier labs")
        while len(costs) * _FILLING < _MOST_FILLED:
            costs.append(cost(_FILLING))
            if len(costs) > 2 and max(costs[-3:]) <= min(costs[-3:]) * (1 + _SAME_WITHIN):
                break
        report.note(f"memory: after {len(costs) * _FILLING} hosts that were up before.")
        return {hosts: cost(hosts) for hosts in sizes}


def _kernel_memory() -> float:
    """The kernel's own memory without cached files; proc_meminfo(5)."""
    wanted = ("Slab", "Percpu", "KernelStack", "PageTables")
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    memory = {words[0].rstrip(":"): float(words[1]) * 1024 for words in lines}
    if missing := [name for name in wanted if name not in memory]:
        raise EnvironmentUnfitError(f"/proc/meminfo has no {', '.join(missing)}")
    return sum(memory[name] for name in wanted)


def _namespaces() -> int | None:
    """The network namespaces that this kernel has, as far as it tells (slabinfo(5), root alone)."""
    try:
        lines = Path("/proc/slabinfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("net_namespace ")), None)


def _settle(alive: int | None) -> None:
    """Wait until the kernel has removed the last lab's namespaces, which it does in the background."""
    if alive is None:
        time.sleep(1.0)  # it cannot be seen, and the next measurement must not pay for this one
        return
    # What is freed stays in a processor's cache of such objects for a while; and others on the machine may make some.
    with suppress(NotSeenError):
        await_condition(_namespaces, lambda now: now is None or now <= alive + 16, deadline_s=_SETTLE_DEADLINE_S)


def _tell_constancy(report: Report, times: Mapping[int, float], memory: Mapping[int, float]) -> None:
    first, *sizes = sorted(times)
    for name, unit, of in (
        ("time, the fastest of all rounds", "ms", {n: 1e3 * t for n, t in times.items()}),
        ("the kernel's memory", "KiB", {n: m / 1024 for n, m in memory.items()}),
    ):
        # What the lab itself costs is in a lab of one.
        growth = {hosts: (of[hosts] - of[first]) / (hosts - first) for hosts in sizes}
        costs = ", ".join(f"{cost:.3g} ({hosts} hosts)" for hosts, cost in growth.items())
        report.note(f"{name}: a lab of {first} takes {of[first]:.3g} {unit}, each further host {costs} {unit}.")
        line = growth[sizes[-1]]
        report.check(
            Check(
                name=f"{name}: how far off the line through {first} and {sizes[-1]} hosts the others are",
                value=max(abs(of[hosts] / (of[first] + (hosts - first) * line) - 1) for hosts in sizes),
                bound=CONSTANT_WITHIN,
                unit="",
            )
        )
        slopes = [(of[big] - of[small]) / (big - small) for small, big in pairwise(sizes)]
        report.check(
            Check(
                name=f"{name} a further host costs, {sizes[0]} to {sizes[-1]} hosts: largest over smallest, less 1",
                value=max(slopes) / min(slopes) - 1 if min(slopes) > 0 else None,
                bound=CONSTANT_WITHIN,
                unit="",
            )
        )
    folder = common.ROOT / "report"
    folder.mkdir(exist_ok=True)
    (folder / "scale.svg").write_text(plot(times, memory), encoding="utf-8")
    report.note(f"written: {folder / 'scale.svg'}")


def plot(times: Mapping[int, float], memory: Mapping[int, float]) -> str:
    """Time and memory against the number of hosts, each with the line through its first and last point."""
    panels = [
        _panel(0, "up, seconds", list(times.items())),
        _panel(420, "memory, MiB", [(hosts, used / 2**20) for hosts, used in memory.items()]),
    ]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 840 330" font-family="sans-serif" font-size="12">'
        f"<title>A local lab of 10 to 1,000 hosts</title>{''.join(panels)}</svg>\n"
    )


def _panel(left: int, title: str, points: Sequence[tuple[int, float]]) -> str:
    points = sorted(points)
    most_x, most_y = points[-1][0], max(value for _, value in points) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        return left + 60 + 330 * x / most_x, 280 - 230 * y / most_y

    (x1, y1), (x2, y2) = at(*points[0]), at(*points[-1])
    drawn = [
        f'<text x="{left + 60}" y="30" font-weight="bold">{escape(title)}</text>',
        f'<path d="M{left + 60} 50V280H{left + 395}" fill="none" stroke="#888"/>',
        f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="#bbb" stroke-dasharray="4"/>',
        f'<text x="{left + 225}" y="318" text-anchor="middle">hosts</text>',
    ]
    said_at = -100.0
    for hosts, value in points:
        x, y = at(hosts, value)
        drawn.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#1f6feb"><title>{hosts}: {value:.3g}</title></circle>'
        )
        if x - said_at < 25:
            continue  # its words would lie on the last one's
        said_at = x
        drawn.append(f'<text x="{x:.1f}" y="298" text-anchor="middle">{hosts}</text>')
        drawn.append(f'<text x="{x - 8:.1f}" y="{y - 8:.1f}" text-anchor="end">{value:.3g}</text>')
    return "".join(drawn)


# --- rivals ----------------------------------------------------------------------------------------

_MININET = "Mininet, Linux bridge, up and down"


def _rivals(report: Report, hosts: int) -> dict[str, float]:
    return {**_mininet(report, hosts), **_compose(report, _QUICK_COMPOSE_HOSTS if report.quick else _COMPOSE_HOSTS)}


def _mininet(report: Report, hosts: int) -> dict[str, float]:
    """Mininet's time for the same number of hosts on one Linux bridge; None if it is not installed."""
    if shutil.which("mn") is None or os.geteuid() != 0:
        report.note(
            "Mininet is not here (as root: apt-get install --no-install-recommends mininet bridge-utils): not compared."
        )
        return {}
    report.say("Mininet")
    argv = ["mn", "--switch", "lxbr", "--controller", "none", "--topo", f"single,{hosts}", "--test", "none"]
    started = time.perf_counter()
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_DEADLINE_S)
    took_s = time.perf_counter() - started
    if done.returncode:
        report.note(f"Mininet failed: {done.stderr.strip()[-200:]}")
        return {}
    return {_MININET: took_s}


def _compose(report: Report, hosts: int) -> dict[str, float]:
    """The time of `docker compose up` for so many containers of the base image; None without an engine."""
    try:
        engine = Engine()
    except EnvironmentUnfitError as error:
        report.note(f"Docker Compose is not compared: {error}")
        return {}
    images.ensure_base(engine, report.say)
    report.say(f"docker compose up of {hosts} containers")
    with tempfile.TemporaryDirectory(prefix="testbed-scale-") as folder:
        path = Path(folder) / "compose.yaml"
        path.write_text(
            f"services: {{h: {{image: '{images.BASE}', command: [sleep, infinity], init: true, scale: {hosts}}}}}\n",
            encoding="utf-8",
        )
        composer = Composer([path], project=f"testbed-scale-{os.getpid()}")
        config = composer.config()
        messages: list[str | None] = []
        try:
            up_s = timed(lambda: messages.append(composer.up(config, timeout_s=_DEADLINE_S)))
        finally:
            down_s = timed(lambda: _down(composer))
    if messages[0] is not None:
        report.note(f"Docker Compose failed: {messages[0][-200:]}")
        return {}
    report.note(f"docker compose down of {hosts} containers: {down_s:.2f} s.")
    return {f"docker compose up, {hosts} containers": up_s}


def _down(composer: Composer) -> None:
    try:
        composer.down(timeout_s=_DEADLINE_S)
    except LabError:  # a busy engine still has endpoints of containers that are gone: it has let go of them by now
        composer.down(timeout_s=_DEADLINE_S)


# --- gossip ----------------------------------------------------------------------------------------


def _measure_gossip(report: Report) -> None:
    hosts = _QUICK_GOSSIP_HOSTS if report.quick else _GOSSIP_HOSTS
    report.say(f"gossip of {hosts} hosts, each with {_NEIGHBOURS} others")
    started = time.perf_counter()
    with LocalLab(gossip.drawing(hosts, common.ROOT / "images" / "common"), say=report.say) as lab:
        talked = gossip.talk(
            lab,
            neighbours=_NEIGHBOURS,
            impairment=Impairment(delay_s=0.02, loss_ratio=0.02),
            messages=5,
            rate_per_s=10.0 if report.quick else 0.5,
            deadline_s=120.0,
        )
    took_s = time.perf_counter() - started
    lost = ", ".join(f"{count:,} {cause}" for cause, count in talked.causes.items())
    report.note(f"gossip: {talked.sent:,} messages between {len(talked.accounts):,} pairs; {lost or 'none lost'}.")
    for message in talked.unexplained[:5]:
        report.note(f"not explained: {message}")
    words = f"gossip, {hosts} hosts, {_NEIGHBOURS} neighbours each"
    planned = hosts * _NEIGHBOURS * talked.messages
    report.check(
        Check(name=f"{words}: pairs not explained by the oracle", value=len(talked.unexplained), bound=0, unit="")
    )
    report.check(
        Check(
            name=f"{words}: messages sent",
            value=talked.sent if talked.complete else None,
            bound=planned,
            unit="",
            at_least=True,
        )
    )
    report.check(Check(name=f"{words}: all of it, down included", value=took_s, bound=GOSSIP_S, unit="s"))


if __name__ == "__main__":
    if common.HOST_ENGINE in sys.argv:
        _tell_host_engine()
        sys.exit()
    common.run("Scale of a local lab", measure)
