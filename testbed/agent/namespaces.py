"""The agent of a local lab, in namespaces of its own.

There are three processes. The *keeper* stays in the machine's process namespace and watches the lab's owner. If the
owner dies, the keeper kills the *first process* of our process namespace, and with it the kernel kills all other
processes there: the agent proper, programs, carried kernels. Mounts, bridges, taps and files vanish as well.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
from pathlib import Path

from . import kernelcalls, protocol, subordinate
from .helpers import Helpers
from .hosts import Hosts
from .ports import AttachedPorts
from .processes import reap_until
from .programs import Programs
from .rootfs import SCRATCH
from .tickets import Tickets

UNFIT = 3
"""Exit status if the machine does not permit namespaces; the reason is on stderr."""


def serve(*, tag: str, passing: int, owner: int | None) -> int:
    """Serve until stdin closes or the owner dies.

    ``passing``: the descriptor of the socket for `Tickets`; ``owner``: the owner's pidfd.
    """
    try:
        users = enter()
    except OSError as error:
        os.write(2, f"{error}\n".encode())
        return UNFIT
    first = os.fork()
    if first == 0:
        _be_first(tag, passing, owner, may_change_user=users)
    for descriptor in (0, 1, passing):
        os.close(descriptor)
    return _keep(first, owner)


def enter() -> bool:
    """Create new namespaces for our children; returns whether these have users besides root."""
    users = True
    try:
        kernelcalls.unshare(kernelcalls.NEWPID)
    except PermissionError:
        users = subordinate.become_root()
        kernelcalls.unshare(kernelcalls.NEWPID)
    kernelcalls.unshare(kernelcalls.NEWNS | kernelcalls.NEWNET | kernelcalls.NEWIPC | kernelcalls.NEWUTS)
    return users


def _keep(first: int, owner: int | None) -> int:
    """Wait for the first process; end it when the owner is gone."""
    child = os.pidfd_open(first)
    watched = [child] if owner is None else [child, owner]
    with contextlib.suppress(InterruptedError):
        ready, _, _ = select.select(watched, [], [])
        if child not in ready:
            signal.pidfd_send_signal(child, signal.SIGKILL)
    _, status = os.waitpid(first, 0)
    return max(os.waitstatus_to_exitcode(status), 0)


def _be_first(tag: str, passing: int, owner: int | None, *, may_change_user: bool) -> None:
    """Be the first process of the namespace: start the agent, reap orphans, and end with the agent."""
    status = 70  # EX_SOFTWARE
    try:
        kernelcalls.die_with_parent()
        if owner is not None:
            os.close(owner)
        _furnish()
        agent = os.fork()
        if agent == 0:
            status = _serve(tag, passing, may_change_user=may_change_user)
            os._exit(status)
        for descriptor in (0, 1, passing):
            os.close(descriptor)
        status = reap_until(agent)
    except OSError as error:
        os.write(2, f"{error}\n".encode())
        status = UNFIT
    finally:
        os._exit(status)


def _furnish() -> None:
    """Make the agent's own mounts. Without /proc tc computes wrong delays."""
    kernelcalls.mount("none", "/", "", kernelcalls.MS_REC | kernelcalls.MS_PRIVATE)
    kernelcalls.mount("proc", "/proc", "proc", kernelcalls.MS_NOSUID | kernelcalls.MS_NODEV | kernelcalls.MS_NOEXEC)
    kernelcalls.mount("sysfs", "/sys", "sysfs", kernelcalls.MS_NOSUID | kernelcalls.MS_NODEV | kernelcalls.MS_NOEXEC)
    # Executable: UML maps its memory from a file here.
    kernelcalls.mount("tmpfs", SCRATCH, "tmpfs", kernelcalls.MS_NOSUID | kernelcalls.MS_NODEV, "mode=1777")
    os.environ["TMPDIR"] = str(SCRATCH)


def _serve(tag: str, passing: int, *, may_change_user: bool) -> int:
    os.setsid()
    with socket.socket(fileno=passing) as descriptors:
        ports = AttachedPorts(tag=tag, files_in=str(SCRATCH), own_net=True)
        hosts, tickets = Hosts(), Tickets(descriptors)
        programs, helpers = Programs(hosts, tickets, may_change_user=may_change_user), Helpers(hosts, tickets)

        def reap(_number: int, _frame: object) -> None:
            helpers.reap()
            programs.reap()

        signal.signal(signal.SIGCHLD, reap)

        def carry_from(*, root: str) -> None:
            """Take the kernel to carry, and its programs, from this folder; see `carried.CarriedKernel`."""
            if ports.carried_root is None:
                for name in ("proc", "dev", SCRATCH.name):
                    kernelcalls.bind(f"/{name}", Path(root, name))
                ports.carry_from(Path(root))

        operations = {"carry_from": carry_from}
        for part in (ports, hosts, programs, helpers):
            operations |= part.operations()
        protocol.serve(operations, sys.stdin.buffer, sys.stdout.buffer)
    return 0  # nothing needs to be put back: all of it ends with this process
