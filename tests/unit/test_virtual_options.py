"""What ``pytest --virtual-time`` refuses, all at once and before a kernel is looked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_nothing.py").write_text("def test_nothing():\n    raise SystemExit\n")
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder), "PATH": str(folder)}
    environment.pop("PYTEST_ADDOPTS", None)
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--virtual-time", *arguments]
    return subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def test_all_that_does_not_go_together_is_told_at_once(tmp_path: Path) -> None:
    done = run(
        tmp_path, "--lab", "compose", "--netem=carried", "--tx=popen", "--virtual-time-spin", "3", "--testbed-seed", "x"
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "testbed: --testbed-seed='x': not a whole number",
        "--lab 'compose': --virtual-time has --lab local alone; leave --lab out, or leave --virtual-time out",
        "--netem 'carried': --virtual-time has --netem host alone; leave --netem out, or leave --virtual-time out",
        "--tx: kernels with a simulated clock are of this machine; write -n NUMBER",
        '--virtual-time-spin=3: a duration needs a unit; write --virtual-time-spin="3ms" or "3s"',
    ]


def test_without_a_kernel_and_what_builds_one_nothing_runs(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no kernel with a simulated clock can be built: missing here: apt-get, " in done.stderr
    assert "without --virtual-time tests run in real time" in done.stderr


def test_a_command_refuses_the_same_and_a_report_folder_that_would_hide_the_project(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "testbed.commands.cli", "paper", "--virtual-time"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PATH": str(tmp_path)}
    words = ["--lab", "compose", "--netem", "carried", "--report", "."]
    done = subprocess.run([*argv, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "testbed: --lab 'compose': --virtual-time has --lab local alone; leave --lab out, or leave --virtual-time out",
        "--netem 'carried': --virtual-time has --netem host alone; leave --netem out, or leave --virtual-time out",
        "--report '.': in virtual time this folder is empty at first; name another",
    ]
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "no kernel with a simulated clock can be built: missing here: apt-get, " in done.stderr
