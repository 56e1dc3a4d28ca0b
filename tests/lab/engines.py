"""Tests that run once more on an engine of another kind, beside the machine's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from testbed import ComposeLab
from tests.lab.conftest import HERE
from tests.lab.ownengines import engines, images_of


@contextmanager
def engine_beside(stack: ComposeLab, start: str, *programs: str) -> Iterator[dict[str, str]]:
    """The environment for an engine that this script starts, which has the images of a stack; needs root."""
    if missing := [program for program in programs if shutil.which(program) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with tempfile.TemporaryDirectory(prefix="testbed-engine-") as folder:
        os.chmod(folder, 0o711)  # noqa: S103  # its users look for their containers' roots below it
        with engines(Path(folder), 1, start=start) as (engine,):
            engine.load(images_of(stack))
            yield {**os.environ, "DOCKER_HOST": engine.url}


def findings(environment: dict[str, str]) -> dict[str, str]:
    """What the doctor finds there: a line for each name."""
    argv = [sys.executable, "-c", "from testbed.commands import doctor; print(*doctor.examine(print), sep='\\n')"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    return {
        name: line
        for line in done.stdout.splitlines()
        for name in ("Docker engine", "carried kernel")
        if f"name='{name}'" in line
    }


def passes(environment: dict[str, str], *arguments: str, lab: str = "compose") -> None:
    """Run tests of tests/lab there, all of which must pass."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--lab", lab, "-p", "no:cacheprovider", *arguments],
        cwd=HERE.parents[1],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout
