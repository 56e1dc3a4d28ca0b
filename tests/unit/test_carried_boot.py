"""A carried kernel that is not up in time, by a program in its place."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from testbed.agent import carried
from testbed.agent.protocol import Refused


def test_of_a_kernel_that_is_not_up_in_time_its_state_and_its_last_lines_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "linux.uml").write_text("#!/bin/sh\necho $$ >$PIDS\necho Failed to mount the root\nexec sleep 60\n")
    (tmp_path / "linux.uml").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("PIDS", str(tmp_path / "pid"))
    monkeypatch.setattr(carried, "_BOOT_DEADLINE_S", 2.0)
    with pytest.raises(Refused) as refused:
        carried.CarriedKernel(name="late")
    assert re.search(
        r"did not answer in time.*; after 0\.\d s of processor time it is in state S, .*: Failed to mount the root$",
        str(refused.value),
    )
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists(), "it was ended"
