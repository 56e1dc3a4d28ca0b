"""Other people's tools, in an environment of their own, and the programs that benchmarks run."""

from __future__ import annotations

import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.common import ROOT, BenchmarkError, Report
from testbed.errors import EnvironmentUnfitError

_VENV = ROOT / ".venv-bench"
_LOCK = ROOT / "scripts" / "requirements" / "bench.lock"


def programs(report: Report) -> Path:
    """The folder of the rivals' programs, installed from the lock on first use and after each change of it.

    Raises EnvironmentUnfitError where they cannot be installed.
    """
    want = f"{zlib.crc32(_LOCK.read_bytes()):08x} {sys.version}"
    stamp = _VENV / "locked"
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != want:
        report.say(f"installing the rivals into {_VENV.name} (once, about 15 s)")
        install = [
            str(_VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
            # The lock is complete; pip before 23.3 would look for what its packages require with extras.
            "--no-deps", "--require-hashes", "--requirement", str(_LOCK),
        ]  # fmt: skip
        try:
            called([sys.executable, "-m", "venv", "--clear", str(_VENV)], timeout_s=120)
            called(install, timeout_s=300)
        except BenchmarkError as error:
            raise EnvironmentUnfitError(f"the rivals are not measured. They could not be installed: {error}") from None
        stamp.write_text(want, encoding="utf-8")
    return _VENV / "bin"


def call(
    argv: Sequence[str], *, timeout_s: float = 30.0, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, with whatever status. Raises BenchmarkError if it does not end in time."""
    try:
        return subprocess.run(
            argv, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"`{' '.join(argv)}`: no end after {timeout_s:g} s") from None


def called(
    argv: Sequence[str], *, timeout_s: float = 30.0, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> str:
    """Run a program and return its stdout. Raises BenchmarkError if it fails."""
    done = call(argv, timeout_s=timeout_s, cwd=cwd, env=env)
    if done.returncode:
        raise BenchmarkError(
            f"`{' '.join(argv)}` failed with status {done.returncode}:\n{(done.stderr or done.stdout)[-3000:]}"
        )
    return done.stdout


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """The last line that a program printed, of stderr if there is one."""
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1] if lines else "it said nothing"
