"""`scripts/test` in CI: it ends with 0 if each of its three parts does, and not otherwise. The parts are stand-ins."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_PARTS = ("pytest", "scripts/ordinary", "scripts/in-carried")
_STAND_IN = """#!/bin/sh
echo "$0 $*" >>"$RAN"
for part in pytest scripts/ordinary scripts/in-carried; do
  case "$0 $1" in *"/$part "* | *" $part") [ "$FAILS" != "$part" ] || exit 3 ;; esac
done
"""


@pytest.mark.parametrize("fails", ["", *_PARTS])
def test_the_exit_status_is_that_of_the_parts(tmp_path: Path, fails: str) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "test", tmp_path / "scripts" / "test")
    for program in (".venv/bin/python", ".venv/bin/pytest", ".venv/bin/testbed", "bin/id"):
        path = tmp_path / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\necho 0\n" if program == "bin/id" else _STAND_IN)
        path.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "CI": "true", "FAILS": fails, "RAN": str(tmp_path / "ran"),
    }  # fmt: skip
    done = subprocess.run(
        [tmp_path / "scripts" / "test"], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == (3 if fails else 0), done.stderr
    ran = (tmp_path / "ran").read_text()
    assert "bin/pytest -n 4" in ran, "for root with an engine"
    assert all(f"python {part} " in ran for part in _PARTS[1:]), "what comes after a part that failed runs, too"
