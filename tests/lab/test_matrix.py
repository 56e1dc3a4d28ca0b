"""The tests of one session on several engines, each as on a machine of its own; by hand, as root.

The engines have no network, so that images come from one another alone.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Tree

import pytest

from testbed import ComposeLab
from testbed.lab.waiting import await_condition
from tests.lab.conftest import stack_from_anywhere, users_environment
from tests.lab.ownengines import OwnEngine, engines, images_of

LABS = ("compose",)

pytestmark = [pytest.mark.by_hand, pytest.mark.timeout(3000)]

_CELLS = int(os.environ.get("CELLS", "60"))
_SUITE = """
import pytest

CONNECT = "import socket; s = socket.socket(); print(s.connect_ex(('server', 9)))"

@pytest.mark.parametrize("cell", range(int({cells})))
@pytest.mark.impair("client -> server", delay="{delay}")
def test_cell(lab, cell):
    assert lab.host("client").run(["python3", "-c", CONNECT], timeout="120s").stdout == "111\\n"
"""


@pytest.fixture
def three(stack: ComposeLab, tmp_path: Path) -> Iterator[list[OwnEngine]]:
    """Three engines, the first of which has the images of the paper's stack."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("dockerd", "setpriv", "unshare"))):
        pytest.skip("needs root, dockerd and util-linux")
    images = images_of(stack)
    with engines(tmp_path, 3) as started:
        started[0].load(images)
        yield started


class Run:
    """A session of pytest in a folder of its own."""

    def __init__(self, folder: Path, delay: str, *options: str) -> None:
        folder.mkdir()
        self.folder = folder
        (folder / "compose.yaml").write_text(stack_from_anywhere())
        (folder / "test_cells.py").write_text(_SUITE.format(cells=_CELLS, delay=delay))
        argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--lab", "compose", "--testbed-seed", "1"]
        argv += ["--testbed-lateness", "warn", "--testbed-capture", "never", "--junitxml", "report/junit.xml", *options]
        self.begin = time.monotonic()
        with (folder / "output").open("wb") as output:
            self.process = subprocess.Popen(
                argv, cwd=folder, env=users_environment(), stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return (self.folder / "output").read_text()

    def wait(self) -> float:
        """Wait for its end; how long it took, in seconds."""
        assert self.process.wait(2000) == 0, self.output[-6000:]
        return time.monotonic() - self.begin

    def results(self) -> list[dict[str, Any]]:
        """The tests in its results so far."""
        file = self.folder / "report" / "results.jsonl"
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        contents = [json.loads(line) for line in lines if line.endswith("\n")]
        return [content["test"] for content in contents if "test" in content]


def _urls(started: list[OwnEngine]) -> str:
    return ",".join(engine.url for engine in started)


def test_three_engines_take_well_below_the_time_of_one_and_images_are_sent_once(
    three: list[OwnEngine], tmp_path: Path
) -> None:
    took_s = {}
    for count in (3, 2, 1):  # the first one sends the images
        run = Run(tmp_path / f"on{count}", "8s", "-n", str(count), "--testbed-engines", _urls(three[:count]))
        took_s[count] = run.wait()
        tests = run.results()
        assert Counter(test["outcome"] for test in tests) == {"passed": _CELLS}
        assert {test["engine"] for test in tests} == {engine.url for engine in three[:count]}
        sent = [line for line in run.output.splitlines() if " from unix://" in line]
        sys.stderr.write(f"{count} engines: {took_s[count]:.1f} s\n")
        assert len(sent) == (4 if count == 3 else 0)  # the agent's image and the stack's, to two engines
        shutil.copy(run.folder / "report" / "results.jsonl", tmp_path / f"{count}.jsonl")
    assert took_s[3] <= 0.4 * took_s[1]


def test_when_an_engine_dies_each_cell_has_one_result_and_says_where_it_ran(
    three: list[OwnEngine], tmp_path: Path
) -> None:
    run = Run(tmp_path / "run", "4s", "-n", "3", "--testbed-engines", _urls(three))
    try:
        await_condition(
            lambda: Counter(test["engine"] for test in run.results()),
            lambda counts: counts[three[1].url] >= 1 or run.process.poll() is not None,
            deadline_s=600,
        )
        three[1].lose_power()
        run.wait()
    finally:
        run.process.send_signal(signal.SIGTERM)
    tests = run.results()
    assert Counter(test["id"] for test in tests) == {f"test_cells.py::test_cell[{n}]": 1 for n in range(_CELLS)}
    assert {test["outcome"] for test in tests} == {"passed"}
    unit = Tree.parse(run.folder / "report" / "junit.xml")  # noqa: S314  # ours
    names = Counter(test.get("name") for test in unit.iter("testcase"))
    assert {*names.values()} == {1}
    assert len(names) == _CELLS
    back = [test for test in tests if test["given_back_by"]]
    assert back
    assert {tuple(test["given_back_by"]) for test in back} == {(three[1].url,)}
    assert three[1].url not in {test["engine"] for test in back}
    assert f"engine {three[1].url} does not answer any more" in run.output
