"""Owners of the files of unpacked images, for a user without root who has subordinate ids."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import testbed.agent
from testbed.errors import ImageBuildError
from testbed.images.unpack import OwnedFile

_WORKS_FOR_S = 300.0


class SubordinateOwners:
    """Gives and removes files in a user namespace with further users; see `testbed.agent.subordinate`."""

    def give(self, root: Path, files: Sequence[OwnedFile]) -> int:
        """Give files below a folder their owners; returns how many have one that is not mapped."""
        rows = [(file.path, file.uid, file.gid, file.mode, file.capability.hex()) for file in files]
        return int(_ask({"root": str(root), "files": rows, "remove": ""}))

    def remove(self, folder: Path) -> None:
        """Remove a folder with files of such owners."""
        _ask({"root": "", "files": [], "remove": str(folder)})


@cache
def of_user() -> SubordinateOwners | None:
    """Those of this user; None for root, and for a user who has no subordinate ids or no newuidmap."""
    if os.geteuid() == 0 or _run({"root": "", "files": [], "remove": ""}).returncode:
        return None
    return SubordinateOwners()


def _ask(task: dict[str, Any]) -> str:
    done = _run(task)
    if done.returncode:
        raise ImageBuildError(f"owners of files cannot be given by newuidmap: {done.stderr.strip()[-500:]}")
    return done.stdout


def _run(task: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        testbed.agent.command("owners"),
        input=json.dumps(task),
        capture_output=True,
        text=True,
        check=False,
        timeout=_WORKS_FOR_S,
    )
