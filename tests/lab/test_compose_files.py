"""Several Compose files, merged as Compose does it, from the command line and from the environment; both labs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.conftest import ROOT

_BASE = f"""
services:
  a:
    build: {{context: {ROOT / "images"}, dockerfile: client/Dockerfile}}
    x-testbed: {{local: {{}}}}
    init: true
    command: [sleep, infinity]
"""


@pytest.mark.parametrize("text", ["-f twice", "COMPOSE_FILE"])
def test_the_later_file_adds_to_the_former(kind: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(_BASE)
    (tmp_path / "extra.yaml").write_text("services: {a: {environment: {MODE: test}}}\n")
    named = ["-f", "base.yaml", "-f", "extra.yaml"] if text == "-f twice" else []
    environment = {} if named else {"COMPOSE_FILE": f"base.yaml{os.pathsep}extra.yaml"}
    argv = ["exec", "--lab", kind, *named, "a", "--", "printenv", "MODE"]
    done = subprocess.run(
        [sys.executable, "-m", "testbed.commands.cli", *argv],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, done.stdout) == (0, "test\n"), done.stderr
