"""Sysctls of network namespaces, at a cost that does not grow with the number of namespaces."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Self

from . import kernelcalls
from .protocol import Refused
from .rootfs import SCRATCH

_FRESH_PROC = SCRATCH / "proc"
_PROC_SYS = Path("/proc/sys")
_NAMESPACES_PER_PROC = 64


class Sysctls:
    """Sets sysctls of many network namespaces through a /proc that is mounted anew now and then.

    The cost of a path below /proc/sys grows with the number of namespaces that used the mount before, because entries
    of the same name share one hash chain (fs/proc/proc_sysctl.c, proc_sys_compare). Since Linux 5.8 each mount has its
    own chains.
    """

    def __init__(self) -> None:
        self._used = 0

    def __enter__(self) -> Self:
        _FRESH_PROC.mkdir(exist_ok=True)
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._used:
            kernelcalls.unmount(_FRESH_PROC)

    def set(self, values: Mapping[str, str]) -> None:
        """Set these in the current network namespace. Raises Refused."""
        if self._used % _NAMESPACES_PER_PROC == 0:
            if self._used:
                kernelcalls.unmount(_FRESH_PROC)
            kernelcalls.mount("proc", _FRESH_PROC, "proc", kernelcalls.MS_NOSUID | kernelcalls.MS_NODEV)
        self._used += 1
        set_sysctls(values, proc_sys=_FRESH_PROC / "sys")


def set_sysctls(values: Mapping[str, str], *, but_not: Container[str] = (), proc_sys: Path = _PROC_SYS) -> None:
    """Set these, except those in ``but_not``, in the current network namespace. Raises Refused."""
    by_folder: dict[str, dict[str, str]] = {}
    for name, value in values.items():
        if name not in but_not:
            # net.ipv4, net.ipv6, …: one path lookup for all of a folder, see above.
            folder = "/".join(name.split(".")[:2])
            by_folder.setdefault(folder, {})[name] = value
    for folder, group in by_folder.items():
        try:
            descriptor = os.open(proc_sys / folder, os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            descriptor = -1
        try:
            for name, value in group.items():
                _set_sysctl(descriptor, name, value)
        finally:
            if descriptor >= 0:
                os.close(descriptor)


def _set_sysctl(folder: int, name: str, value: str) -> None:
    """Set one sysctl, relative to the folder of the first two parts of its name."""
    try:
        if folder < 0:
            raise FileNotFoundError
        file = os.open("/".join(name.split(".")[2:]), os.O_WRONLY, dir_fd=folder)
        try:
            os.write(file, value.encode())
        finally:
            os.close(file)
    except FileNotFoundError:
        if not name.startswith("net.ipv6."):  # a kernel without IPv6 need not switch it off
            raise Refused(f"sysctl {name}: this kernel has no such sysctl in a network namespace") from None
    except OSError as error:
        raise Refused(f"sysctl {name}={value}: {error.strerror}") from None
