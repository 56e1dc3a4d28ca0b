"""The test that `testbed init` writes of a stack: it passes as it is, and fails over a dead link."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from tests.lab.conftest import cli, run, stack_from_anywhere


def test_it_runs_under_four_networks_and_fails_over_a_dead_link(kind: str, tmp_path: Path) -> None:
    compose, listens = stack_from_anywhere(), "command: [python3, paper_server.py]"
    assert listens in compose
    (tmp_path / "compose.yaml").write_text(compose.replace(listens, f"{listens}\n    expose: [8888]"))
    done = cli("init", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = tmp_path / "tests/test_network.py"
    text = written.read_text()
    written.write_text(text.replace('"office")', '"office", "blackhole")').replace("timeout 20", "timeout 3"))
    options = ["-q", f"--lab={kind}", "--testbed-lateness=warn", "-p", "no:cacheprovider"]
    printed = run([sys.executable, "-m", "pytest", *options], cwd=tmp_path, may=(1,), env=os.environ)
    assert re.findall(r"^FAILED .*\[(.*)\]", printed, re.MULTILINE) == ["blackhole"], printed
    assert "1 failed, 4 passed" in printed
