"""What both kinds of machines do, a carried kernel's and the one with a simulated clock's, before and after the kernel.

Outside of the kernel: namespaces of its own, which end with whoever asked for it. In it: tools, the program, the end.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from . import kernelcalls
from .namespaces import UNFIT, enter
from .processes import reap_until

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
MOUNTS = {
    "/sys": "sysfs",
    "/dev/pts": "devpts",
    "/dev/shm": "tmpfs",  # noqa: S108  # the machine's own
    "/sys/fs/cgroup": "cgroup2",
    "/tmp": "tmpfs",  # noqa: S108
    "/var/tmp": "tmpfs",  # noqa: S108
}
"""What each machine has of its own."""
_TOOLS = Path("/var/tmp/testbed-tools")  # noqa: S108  # the machine's own; /run is the local lab's
_POWER_OFF = 0x4321FEDC  # linux/reboot.h


def in_namespaces(become_kernel: Callable[[], NoReturn]) -> int:
    """Become a kernel in namespaces of its own, and wait until it is off; returns its exit status, or UNFIT."""
    try:
        kernelcalls.die_with_parent()
        enter()
        child = os.fork()
        if child == 0:
            _be_first(become_kernel)
    except OSError as error:
        os.write(2, f"{error}\n".encode())
        return UNFIT
    _, wait_status = os.waitpid(child, 0)
    return max(os.waitstatus_to_exitcode(wait_status), 0)


def _be_first(become_kernel: Callable[[], NoReturn]) -> NoReturn:
    """The first process of a process namespace; the kernel is its child, because a first process cannot abort."""
    outcome = UNFIT
    try:
        kernelcalls.die_with_parent()
        kernel = os.fork()
        if kernel == 0:
            _become(become_kernel)
        outcome = reap_until(kernel)
    except OSError as error:
        os.write(2, f"{error}\n".encode())
    os._exit(outcome)


def _become(become_kernel: Callable[[], NoReturn]) -> NoReturn:
    try:
        kernelcalls.mount("none", "/", "", kernelcalls.MS_REC | kernelcalls.MS_PRIVATE)
        become_kernel()
    except OSError as error:
        os.write(2, f"{error}\n".encode())
    os._exit(UNFIT)


def be_first_and_power_off(work: Callable[[], None]) -> NoReturn:
    """Work as a kernel's first process, then power its machine off."""
    try:
        work()
    except Exception as error:  # noqa: BLE001  # nobody else could report it
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    os.sync()
    ctypes.CDLL(None).reboot(_POWER_OFF)
    os._exit(1)


def mount_own(mounts: Mapping[str, str]) -> None:
    """Mount file systems of these kinds at these places."""
    for target, kind in mounts.items():
        Path(target).mkdir(exist_ok=True)
        kernelcalls.mount(kind, target, kind, 0, "mode=1777" if kind == "tmpfs" else "")


def provide_tools(root: str | Path) -> None:
    """Provide a root file system's tc and ip: this machine's may be older than the kernel, and tc take no seed."""
    _TOOLS.mkdir()
    loader = f"{root}/lib64/ld-linux-x86-64.so.2 --library-path {root}/lib/x86_64-linux-gnu"
    for name in ("tc", "ip"):
        tool = _TOOLS / name
        tool.write_text(f'#!/bin/sh\nexec {loader} {root}/sbin/{name} "$@"\n', encoding="utf-8")
        tool.chmod(0o755)
    subprocess.run([_TOOLS / "ip", "link", "set", "lo", "up"], check=True)


def start(machine: Mapping[str, Any], *, stdout: int, stderr: int) -> subprocess.Popen[bytes]:
    """Start the machine's program: ``argv``, ``cwd`` and ``environment`` of its description."""
    environment = machine["environment"]
    return subprocess.Popen(
        machine["argv"],
        cwd=machine["cwd"],
        env={**environment, "PATH": f"{_TOOLS}:{environment.get('PATH', PATH)}"},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
    )
