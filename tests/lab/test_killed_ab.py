"""kill -9 of `testbed ab` in the middle of a test: both versions' pytest and all that they started end with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from testbed.backends.docker.engine import Engine
from testbed.lab.waiting import await_condition
from tests.lab.test_local_death import alive, missing, relatives

_TEST = """
import pathlib, pytest

@pytest.mark.impair("client -> server", delay="10ms")
def test_that_is_killed(lab):
    pathlib.Path("impaired").write_text(lab.run_id)
    lab.host("client").run(["sleep", "120"], timeout="120s")
"""
_WITHIN_S = 20
"""Five where nothing else runs."""


def test_of_a_killed_ab_nothing_is_left(project: Path, kind: str) -> None:
    (project / "test_killed.py").write_text(_TEST)
    argv = [sys.executable, "-m", "testbed.commands.cli", "ab", "--aa", "--", "-p", "no:cacheprovider", "--lab", kind]
    with subprocess.Popen([*argv, "test_killed.py"], cwd=project, stderr=subprocess.PIPE, text=True) as process:
        try:
            impaired = project / "impaired"
            await_condition(lambda: impaired.exists() or process.poll() is not None, bool, deadline_s=90)
            assert process.poll() is None, process.communicate()
            wanted = [b"--testbed-passes", *([b"sleep\x00120"] if kind == "local" else [])]
            everyone = await_condition(
                lambda: relatives(process.pid) - {process.pid}, lambda pids: not missing(wanted, pids), deadline_s=10
            )
        finally:
            process.kill()

    def left() -> dict[str, object]:
        containers = Engine().listing(testbed_stack=str(project / "compose.yaml")) if kind == "compose" else []
        return {"processes": alive(everyone), "containers": [row["Names"] for row in containers]}

    await_condition(left, lambda seen: not any(seen.values()), deadline_s=_WITHIN_S)
