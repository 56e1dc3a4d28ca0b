"""Real services on the local lab, in the files of their images, beside plain Compose in one run.

Redis, nginx, PostgreSQL, Mosquitto and a Python web service: up, impaired, a request each, down; `docker compose up
--wait` of the same file. Once more as an ordinary user, who has no engine and their images as archives (not with
``--quick``). Beside that: the first unpacking of an image and `docker export | tar x` of it, in pairs, and
many hosts of one image: how long until they are up, and the memory of their processes.

Building the services' images is a step before all of this, with its own time: minutes at the first run, a second later.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shlex
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import yaml

from benchmarks import common
from benchmarks.common import BenchmarkError, Check, Report, timed
from benchmarks.services.suite import DELAY_S, REQUESTS
from testbed import kernel
from testbed.backends.docker import images as engine_images
from testbed.backends.docker import runs
from testbed.backends.docker.engine import OWNER_LABEL, RUN_LABEL, Engine
from testbed.backends.docker.lab import ComposeLab
from testbed.backends.local.images import of_engine
from testbed.backends.local.lab import LocalLab
from testbed.images.cache import Cache
from testbed.lab.lab import Lab
from testbed.spec.impairment import Impairment

SERVICES = common.ROOT / "benchmarks/services/compose.yaml"
TIMES_COMPOSE = 5.0
TIMES_EXPORT = 1.5
HOSTS_S = {100: 1.5, 1000: 15.0}
CONSTANT_WITHIN = 0.2
ROUNDS, _QUICK_ROUNDS = 5, 2
_SIZES, _QUICK_MOST = (10, 55, 100, 1000), 100
_DEADLINE_S = 300.0


def measure(report: Report) -> None:
    """All of it. Raises EnvironmentUnfitError if there is no engine, or no local lab."""
    engine = Engine()
    rounds = _QUICK_ROUNDS if report.quick else ROUNDS
    runs.clear_stale(engine, report.say)
    report.say("building the services' images, and unpacking them: minutes at the first run")
    report.note(f"building and unpacking: {timed(lambda: _ready(report)):.0f} s, before all that is measured")
    whole_s, local_s, compose_s = [], [], []
    for number in range(rounds):
        report.say(f"round {number + 1} of {rounds}")
        began = time.perf_counter()
        local_s.append(up_and_use(SERVICES))
        whole_s.append(time.perf_counter() - began)
        began = time.perf_counter()
        with ComposeLab(SERVICES):
            compose_s.append(time.perf_counter() - began)
    compose, local = statistics.median(compose_s), statistics.median(local_s)
    _check_up(report, f"five services up: times faster than on the engine, median of {rounds}", local, compose)
    report.note(f"up, five links impaired, a request each, down: {statistics.median(whole_s):.2f} s on the local lab")
    if not report.quick and os.geteuid() == 0:
        _measure_without_root(report, compose)
    _measure_unpacking(report, engine, pairs=2 * rounds if not report.quick else rounds)
    _measure_hosts(report)


def up_and_use(file: Path) -> float:
    """Bring the services up on the local lab, use them, and take them down; how long until they were up, in seconds."""
    began = time.perf_counter()
    with LocalLab(file) as lab:
        up_s = time.perf_counter() - began
        _use(lab)
    return up_s


def _measure_without_root(report: Report, compose_s: float) -> None:
    """The same rounds as a user who is not root and finds no engine; ``compose_s``: what Compose took in this run."""
    report.say(f"the same as an ordinary user, {ROUNDS} rounds")
    composition = yaml.safe_load(SERVICES.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="testbed-images-", dir="/var/tmp") as name:
        folder = Path(name)
        for service, plan in LocalLab(SERVICES).plan.services.items():
            if plan.image is None:
                raise BenchmarkError(f"the engine has no image of {service}")
            subprocess.run(
                ["docker", "save", "-o", str(folder / f"{service}.tar"), plan.image.id], check=True, timeout=_DEADLINE_S
            )
            (folder / f"{service}.tar").chmod(0o644)
            body = composition["services"][service]
            body["x-testbed"] = {"local": {"image": f"./{service}.tar"}}
            del body["build"]
        (folder / "compose.yaml").write_text(yaml.safe_dump(composition), encoding="utf-8")
        junit = folder / "of-the-user/junit.xml"
        for path in (folder, junit.parent):
            path.mkdir(exist_ok=True)
            path.chmod(0o777)
        argv = ["scripts/ordinary", "-q", f"--compose-file={folder}/compose.yaml", f"--junit-xml={junit}"]
        done = subprocess.run(
            [*argv, "benchmarks/services/without_root.py"],
            cwd=common.ROOT, capture_output=True, text=True, check=False, timeout=_DEADLINE_S,
        )  # fmt: skip
        if done.returncode:
            raise BenchmarkError(
                f"as an ordinary user: status {done.returncode}: {(done.stdout + done.stderr)[-1000:]}"
            )
        seen = [
            (entry.get("name"), float(entry.get("value", "")))
            for entry in ElementTree.parse(junit).getroot().iter("property")  # noqa: S314  # pytest has just written it
            if entry.get("name") in ("uid", "up_s")
        ]
    if ("uid", 0.0) in seen or not seen:
        raise BenchmarkError(f"no ordinary user ran: {seen}")
    local_s = statistics.median(value for name, value in seen if name == "up_s")
    name = f"five services up without root: times faster than on the engine, median of {ROUNDS}"
    _check_up(report, name, local_s, compose_s)


def _check_up(report: Report, name: str, local_s: float, compose_s: float) -> None:
    report.check(
        Check(
            name=name,
            value=compose_s / local_s,
            bound=TIMES_COMPOSE,
            unit="×",
            at_least=True,
            rivals={"local lab": f"{local_s:.2f} s", "Compose lab (`docker compose up`)": f"{compose_s:.2f} s"},
        )
    )


def _use(lab: Lab) -> None:
    """Impair the way to every service, and have the client ask each; a request must take at least the delay."""
    for service in REQUESTS:
        lab.link(f"client -> {service}").impair(Impairment(delay_s=DELAY_S))
    for service, request in REQUESTS.items():
        result = lab.host("client").run(shlex.split(request), timeout="60s")
        if not result.ok:
            raise BenchmarkError(f"{service}: `{request}` ended with {result.exit_code}: {result.stderr}")
        if result.duration_s < DELAY_S:
            raise BenchmarkError(
                f"{service}: `{request}` took {result.duration_s:g} s, less than the delay of its link"
            )


def _ready(report: Report) -> None:
    with LocalLab(SERVICES, say=report.say):
        pass


def _measure_unpacking(report: Report, engine: Engine, pairs: int) -> None:
    """The largest of the images, new in a cache of its own; and what the engine's export and tar do of it, in turns."""
    report.say(f"PostgreSQL's image unpacked {pairs} times, and exported by the engine's client as often")
    plan = LocalLab(SERVICES).plan.services["postgres"].image
    inspection = None if plan is None else engine.image(plan.id)
    if plan is None or inspection is None:
        raise BenchmarkError("the engine has no image of postgres")
    ours_s: list[float] = []
    theirs_s: list[float] = []
    with _scratch() as folder, ExitStack() as undo:
        for number in range(pairs):
            image = of_engine(engine, inspection, plan.name, report.say)
            store = Cache(folder / f"cache{number}")
            steps = [
                (ours_s, lambda: store.hold(image.content, image.name, image.unpack, undo)),  # noqa: B023  # run at once
                (theirs_s, lambda: _exported(plan.id, folder / f"exported{number}")),  # noqa: B023  # likewise
            ]
            for seconds, step in steps if number % 2 else steps[::-1]:
                seconds.append(timed(step))
        # Nothing is removed between: ext4 searches the longer for a free inode, the more were just freed.
    ratios = [ours / theirs for ours, theirs in zip(ours_s, theirs_s, strict=True)]
    ours, theirs = statistics.median(ours_s), statistics.median(theirs_s)
    report.check(
        Check(
            name=f"PostgreSQL's image unpacked first: times `docker export | tar x`, median of {pairs} pairs",
            value=statistics.median(ratios),
            bound=TIMES_EXPORT,
            unit="×",
            rivals={"ours": f"{ours:.2f} s", "docker export | tar x": f"{theirs:.2f} s"},
        )
    )


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder beside the cache, on the same file system; those of benchmarks that were killed go."""
    below = kernel.cache() / "benchmark"
    below.mkdir(parents=True, exist_ok=True)
    with (below / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in below.glob("images-*"):
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix="images-", dir=below) as name:
            yield Path(name)


def _exported(image: str, folder: Path) -> None:
    folder.mkdir()
    labels = f"--label {RUN_LABEL}={secrets.token_hex(4)} --label {OWNER_LABEL}={runs.owner()}"  # for `clear_stale`
    script = (
        f"container=$(docker create {labels} {image} true) && docker export $container | tar x; status=$?; "
        f"docker rm --volumes $container >/dev/null; exit $status"
    )
    subprocess.run(["sh", "-c", script], check=True, cwd=folder, timeout=_DEADLINE_S)


def _measure_hosts(report: Report) -> None:
    """Hosts of one image whose files are there; each has a root file system and a program of its own."""
    memory = {}
    for hosts in _SIZES:
        bound_s = HOSTS_S.get(hosts)
        if report.quick and hosts > _QUICK_MOST:
            continue
        report.say(f"{hosts} hosts of one image")
        took_s = []
        for _ in range(_QUICK_ROUNDS if bound_s else 1):
            with tempfile.TemporaryDirectory(prefix="testbed-images-") as name:
                path = Path(name) / "compose.yaml"
                path.write_text(
                    f"services: {{a: {{image: '{engine_images.BASE}', command: sleep infinity, scale: {hosts}}}}}\n"
                )
                began = time.perf_counter()
                with LocalLab(path) as lab:
                    took_s.append(time.perf_counter() - began)
                    memory[hosts] = _memory(lab.agent.child.pid)
        if bound_s is not None:
            report.check(Check(name=f"{hosts} hosts of one image up", value=min(took_s), bound=bound_s, unit="s"))
    slopes = [(memory[more] - memory[fewer]) / (more - fewer) for fewer, more in pairwise(sorted(memory))]
    growth = ", ".join(f"{slope / 2**20:.2f} MiB" for slope in slopes)
    report.check(
        Check(
            name=f"memory of a further host's processes, {min(memory)} to {max(memory)} hosts: most over least, less 1",
            value=max(slopes) / min(slopes) - 1,
            bound=CONSTANT_WITHIN,
            unit="",
            bound_words=growth,
        )
    )


def _memory(keeper: int) -> float:
    """What a lab's processes have of their own, and their share of what they share: Pss of proc(5), in bytes."""
    total, left = 0.0, [keeper]
    while left:
        pid = left.pop()
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            left += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += next(float(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


if __name__ == "__main__":
    common.run("Services in the files of their images", measure)
