"""How long a lab takes to come up, beside plain ``docker compose up --detach --wait`` of the same file.

Both start from images that are built; they take turns, and who begins changes each round.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import common
from benchmarks.common import BenchmarkError, Check, Report, timed
from testbed.backends.docker import images
from testbed.backends.docker.engine import OWNER_LABEL, RUN_LABEL, Engine
from testbed.backends.docker.lab import ComposeLab
from testbed.backends.docker.runs import owner, remove_run
from testbed.compose import command

TIMES_PLAIN, AND_S = 1.25, 3.0

_ROUNDS, _QUICK_ROUNDS = 5, 3
_DEADLINE_S = 120.0


def measure(report: Report) -> None:
    """Both, in turns; raises EnvironmentUnfitError if there is no engine or no Compose."""
    compose = command.find()
    report.say("a lab that does not count, for the images and the caches")
    with ComposeLab(common.STACK, say=report.say) as lab:
        netem = lab.netem_engine
        config, engine = _with_images(lab), lab.engine
    rounds = _QUICK_ROUNDS if report.quick else _ROUNDS
    report.say(f"{rounds} rounds of lab.up and plain docker compose up")
    ours_s: list[float] = []
    plain_s: list[float] = []
    for number in range(rounds):
        if number % 2:
            plain_s.append(_time_plain(engine, compose, config))
        ours_s.append(_time_lab())
        if not number % 2:
            plain_s.append(_time_plain(engine, compose, config))
    plain = median(plain_s)
    report.check(
        Check(
            name=f"lab.up of the paper's stack, {netem} netem, median of {rounds}",
            value=median(ours_s),
            bound=TIMES_PLAIN * plain + AND_S,
            unit="s",
            bound_words=f"{TIMES_PLAIN:g} × plain + {AND_S:g} s",
            rivals={"docker compose up -d --wait": f"{plain:.2f} s"},
        )
    )
    report.note(f"lab.up: {_each(ours_s)}; plain: {_each(plain_s)}.")


def _time_lab() -> float:
    started = time.perf_counter()
    with ComposeLab(common.STACK):
        return time.perf_counter() - started


def _time_plain(engine: Engine, compose: tuple[str, ...], config: Mapping[str, Any]) -> float:
    run_id = secrets.token_hex(4)
    with _additions(config, run_id) as additions:
        up = [
            *compose, "--project-name", f"testbed-{run_id}", "--file", str(common.STACK), "--file", str(additions),
            "up", "--detach", "--wait",
        ]  # fmt: skip
        try:
            return timed(lambda: _called(up))
        finally:
            remove_run(engine, run_id, owner())


def _called(argv: list[str]) -> None:
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, timeout=_DEADLINE_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"`{' '.join(argv)}`: no end after {_DEADLINE_S:g} s") from None
    if done.returncode:
        raise BenchmarkError(f"`{' '.join(argv)}` failed with status {done.returncode}:\n{done.stderr.strip()}")


def _with_images(lab: ComposeLab) -> dict[str, Any]:
    """The second Compose file's images, built by the lab, so that plain Compose builds nothing."""
    services: dict[str, dict[str, Any]] = {name: {} for name in lab.topology.services}
    for name, service in lab.topology.services.items():
        if service.build is None or service.image is not None:
            continue
        repository, digest = images.service_image(service.build, name)
        services[name]["image"] = f"{repository}:{digest or 'latest'}"
    return {"services": services, "networks": {name: {} for name in lab.topology.networks}}


@contextmanager
def _additions(config: Mapping[str, Any], run_id: str) -> Iterator[Path]:
    """The second Compose file, with a run's labels: if this run is killed, the next lab removes its objects."""
    labels = {RUN_LABEL: run_id, OWNER_LABEL: owner()}
    labelled = {
        kind: {name: {**body, "labels": labels} for name, body in bodies.items()} for kind, bodies in config.items()
    }
    with tempfile.TemporaryDirectory(prefix="testbed-up-") as folder:
        path = Path(folder) / "additions.yaml"
        path.write_text(json.dumps(labelled), encoding="utf-8")  # JSON is YAML
        yield path


def _each(seconds: list[float]) -> str:
    return ", ".join(f"{second:.2f}" for second in seconds) + " s"


if __name__ == "__main__":
    common.run("A lab's start beside plain Compose", measure)
