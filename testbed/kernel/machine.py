"""Run a program on a machine whose kernel is a carried one, with netem, and whose files are this machine's.

So the host engine can be tested and measured on a machine whose kernel has no netem. See `testbed.agent.machine`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import testbed.agent
from testbed import kernel
from testbed.errors import EnvironmentUnfitError
from testbed.kernel.processor import OneProcessor
from testbed.kernel.progress import LOOK_EVERY_S, usages

_MEMORY = "3G"  # an upper limit: what is not used is not taken


def run(
    argv: Sequence[str],
    *,
    cwd: Path,
    writable: Sequence[Path],
    say: Callable[[str], None],
    stdout: int | None = None,
    parameters: Sequence[str] = (),
) -> int:
    """Run a program on such a machine, and relay its output; returns the program's exit status.

    ``writable``: absolute paths of folders of this machine that the program may write. ``stdout``: a descriptor for its
    output. ``parameters``: additions to the kernel's command line. The machine has this machine's time, one processor,
    only a loopback interface, and runs the program as root. It ends with this process, however that ends.

    Raises EnvironmentUnfitError if no kernel can be fetched, or it does not start.
    """
    root = kernel.ensure_root(say)
    machine = {
        "root": str(root),
        "memory": _MEMORY,
        "python": os.path.realpath(sys.executable),
        "agent": str(Path(testbed.agent.__file__).parent.parent),
        "argv": list(argv),
        "parameters": list(parameters),
        "cwd": str(cwd),
        "writable": list(map(str, writable)),
        "environment": {**os.environ, "HOME": "/run", "XDG_CACHE_HOME": str(root.parent.parent)},
    }
    with (
        os.fdopen(os.memfd_create("description"), "r+b") as description,
        os.fdopen(os.memfd_create("log"), "r+b") as log,
        os.fdopen(os.memfd_create("status"), "r+b") as status,
    ):
        description.write(json.dumps(machine).encode())
        description.seek(0)
        files = (log.fileno(), status.fileno())
        command = testbed.agent.command("machine", "--log", str(files[0]), "--status", str(files[1]))
        process = subprocess.Popen(command, stdin=description, stdout=stdout, pass_fds=files)
        try:
            processor = OneProcessor(process.pid)
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK_EVERY_S)
                processor.check(usages())
        finally:
            process.kill()
            process.wait()
        status.seek(0)
        if exit_status := status.read():
            return int(exit_status)
        log.seek(0)
        raise EnvironmentUnfitError(
            f"the machine of a carried kernel did not run to its end; its last lines: {_last_lines(log.read())}"
        )


def _last_lines(console: bytes) -> str:
    """The last lines on a kernel's console, without the trace of a panic."""
    before, panic, _trace = console.decode(errors="replace").partition("Kernel panic")
    return " | ".join(deque(filter(None, map(str.strip, [*before.splitlines(), panic])), maxlen=8)) or "none"
