"""Real services on the local lab, in the files of their images, beside plain Compose in one run.

Redis, nginx, PostgreSQL, Mosquitto and a Python web service: up, impaired, a request each, down; `docker compose up
--wait` of the same file. Beside that: the first unpacking of an image and `docker export | tar x` of it, and many
hosts of one image.
"""

from __future__ import annotations

import shlex
import statistics
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks import common
from benchmarks.common import BenchmarkError, Check, Report, timed
from testbed import kernel
from testbed.backends.docker import images as engine_images
from testbed.backends.docker.engine import Engine
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
DELAY_S = 0.05
_REQUESTS = {
    "redis": "redis-cli -h redis ping",
    "nginx": "curl -fs http://nginx -o /dev/null",
    "postgres": "psql -h postgres -U postgres -Atc 'select 1'",
    "mosquitto": "mosquitto_pub -h mosquitto -t topic -m text -q 1",
    "web": "curl -fs http://web:8000",
}
_ROUNDS, _QUICK_ROUNDS = 5, 2
_DEADLINE_S = 300.0


def measure(report: Report) -> None:
    """All of it. Raises EnvironmentUnfitError if there is no engine, or no local lab."""
    engine = Engine()
    rounds = _QUICK_ROUNDS if report.quick else _ROUNDS
    whole_s, local_s, compose_s = [], [], []
    report.say("building the services' images, and unpacking them")
    with LocalLab(SERVICES, say=report.say):
        pass
    for number in range(rounds):
        report.say(f"round {number + 1} of {rounds}")
        began = time.perf_counter()
        with LocalLab(SERVICES) as lab:
            local_s.append(time.perf_counter() - began)
            _use(lab)
        whole_s.append(time.perf_counter() - began)
        began = time.perf_counter()
        with ComposeLab(SERVICES):
            compose_s.append(time.perf_counter() - began)
    compose, local = statistics.median(compose_s), statistics.median(local_s)
    report.check(
        Check(
            name=f"five services up: times faster than on the engine, median of {rounds}",
            value=compose / local,
            bound=TIMES_COMPOSE,
            unit="×",
            at_least=True,
            rivals={"local lab": f"{local:.2f} s", "Compose lab (`docker compose up`)": f"{compose:.2f} s"},
        )
    )
    report.note(f"up, five links impaired, a request each, down: {statistics.median(whole_s):.2f} s on the local lab")
    _measure_unpacking(report, engine)
    for hosts, bound_s in HOSTS_S.items():
        if hosts == min(HOSTS_S) or not report.quick:
            _measure_hosts(report, hosts, bound_s)


def _use(lab: Lab) -> None:
    """Impair the way to every service, and have the client ask each; a request must take at least the delay."""
    for service in _REQUESTS:
        lab.link(f"client -> {service}").impair(Impairment(delay_s=DELAY_S))
    for service, request in _REQUESTS.items():
        result = lab.host("client").run(shlex.split(request), timeout="60s")
        if not result.ok:
            raise BenchmarkError(f"{service}: `{request}` ended with {result.exit_code}: {result.stderr}")
        if result.duration_s < DELAY_S:
            raise BenchmarkError(
                f"{service}: `{request}` took {result.duration_s:g} s, less than the delay of its link"
            )


def _measure_unpacking(report: Report, engine: Engine) -> None:
    """The largest of the images, new in a cache of its own; and what the engine's export and tar do of it."""
    lab = LocalLab(SERVICES)
    plan = lab.plan.services["postgres"].image
    if plan is None:
        raise BenchmarkError("postgres has no image")
    inspection = engine.image(plan.id)
    if inspection is None:
        raise BenchmarkError(f"the engine has no image {plan.id}")
    ours_s, theirs_s = [], []
    for _ in range(_QUICK_ROUNDS):
        with tempfile.TemporaryDirectory(prefix="testbed-images-", dir=kernel.cache()) as name, ExitStack() as undo:
            image = of_engine(engine, inspection, plan.name, report.say)
            store = Cache(Path(name) / "cache")
            ours_s.append(timed(lambda: store.hold(image.content, image.name, image.unpack, undo)))  # noqa: B023
            theirs_s.append(timed(lambda: _exported(plan.id, Path(name))))
    ours, theirs = statistics.median(ours_s), statistics.median(theirs_s)
    report.check(
        Check(
            name=f"PostgreSQL's image unpacked first: times `docker export | tar x`, median of {len(ours_s)}",
            value=ours / theirs,
            bound=TIMES_EXPORT,
            unit="×",
            rivals={"ours": f"{ours:.2f} s", "docker export | tar x": f"{theirs:.2f} s"},
        )
    )


def _exported(image: str, folder: Path) -> None:
    name = f"{engine_images.NETEM_REPOSITORY.partition('/')[0]}-export-{folder.name}"
    script = (
        f"docker create --name {name} {image} true >/dev/null && mkdir x && docker export {name} | tar x -C x; "
        f"status=$?; docker rm --volumes {name} >/dev/null; exit $status"
    )
    subprocess.run(["sh", "-c", script], check=True, cwd=folder, timeout=_DEADLINE_S)


def _measure_hosts(report: Report, hosts: int, bound_s: float) -> None:
    """Hosts of one image whose files are there; each has a root file system and a program of its own."""
    with tempfile.TemporaryDirectory(prefix="testbed-images-") as name:
        path = Path(name) / "compose.yaml"
        path.write_text(
            f"services: {{a: {{image: '{engine_images.BASE}', command: sleep infinity, scale: {hosts}}}}}\n"
        )
        took_s = []
        for _ in range(_QUICK_ROUNDS):
            began = time.perf_counter()
            with LocalLab(path):
                took_s.append(time.perf_counter() - began)
    report.check(Check(name=f"{hosts} hosts of one image up", value=min(took_s), bound=bound_s, unit="s"))


if __name__ == "__main__":
    common.run("Services in the files of their images", measure)
