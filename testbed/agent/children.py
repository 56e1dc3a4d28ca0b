"""Child processes of the local lab's agent: forking them, delaying their reaping, and a host's first process."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

from . import kernelcalls


def fork(work: Callable[[], None]) -> int:
    """Fork a child that does the work and ends; returns its process number."""
    pid = os.fork()
    if pid:
        return pid
    status = 70  # EX_SOFTWARE
    gc.disable()  # it would copy the parent's memory, to free next to nothing
    try:
        work()
        status = 0
    except BaseException:  # noqa: BLE001  # a child must never continue in the parent's code
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


@contextlib.contextmanager
def unreaped() -> Iterator[None]:
    """Block SIGCHLD, so that no child is reaped and no process number is used again."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def hold() -> NoReturn:
    """Be a host's first process: keep its namespaces alive, and reap orphans."""
    kernelcalls.close_from(3)
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1):
        os.dup2(null, standard)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while True:
        signal.sigwait({signal.SIGCHLD})
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
