"""Run a program in a carried kernel that has this machine's files: there netem is the machine's own kernel's.

That is how the host engine is tested and measured on a machine whose kernel has no netem. See `testbed.agent.machine`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import testbed.agent
from testbed import kernel
from testbed.errors import EnvironmentUnfitError

_MEMORY = "3G"  # an upper limit: what is not used is not taken


def run(
    argv: Sequence[str], *, cwd: Path, writable: Sequence[Path], say: Callable[[str], None], stdout: int | None = None,
    parameters: Sequence[str] = (),
) -> int:  # fmt: skip
    """Run a program on a machine of a carried kernel, and pass on what it prints; the program's exit status.

    ``writable``: the folders of this machine that it may write, by absolute paths. ``stdout``: a descriptor that it
    prints to. ``parameters``: more for the kernel's command line. The machine has this one's time, one processor, no
    network but its own loopback, and root for its user. It ends with this process, however that ends.

    Raises EnvironmentUnfitError where no kernel can be got, or it does not start.
    """
    root = kernel.ensure_root(say)
    asked = {
        "root": str(root), "memory": _MEMORY, "python": os.path.realpath(sys.executable),
        "agent": str(Path(testbed.agent.__file__).parent.parent),
        "argv": list(argv), "parameters": list(parameters), "cwd": str(cwd),
        "writable": [str(each) for each in writable],
        "environment": {**os.environ, "HOME": "/run", "XDG_CACHE_HOME": str(root.parent.parent)},
    }  # fmt: skip
    with (
        os.fdopen(os.memfd_create("log"), "r+b") as log,
        os.fdopen(os.memfd_create("status"), "r+b") as status,
    ):
        told = (log.fileno(), status.fileno())
        start = testbed.agent.command("machine", "--log", str(told[0]), "--status", str(told[1]))
        subprocess.run(start, input=json.dumps(asked).encode(), stdout=stdout, pass_fds=told, check=False)
        status.seek(0)
        if ended := status.read():
            return int(ended)
        log.seek(0)
        raise EnvironmentUnfitError(
            f"the machine of a carried kernel did not get to its end; its last lines: {_last(log.read())}"
        )


def _last(console: bytes) -> str:
    """What a kernel said at last, but for the trace of a panic."""
    said, panic, _trace = console.decode(errors="replace").partition("Kernel panic")
    return " | ".join(deque(filter(None, map(str.strip, [*said.splitlines(), panic])), maxlen=8)) or "none"
