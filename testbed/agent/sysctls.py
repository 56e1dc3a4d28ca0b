"""Settings of network namespaces, by their sysctl(8) names: quick however many namespaces there are."""

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
_NAMESPACES_A_PROC = 64


class Sysctls:
    """The way to the settings of many network namespaces: a /proc that is new every now and then.

    Each way into /proc/sys of a namespace is as long as there are namespaces that were there before, for a file system
    keeps their entries of one name in one chain (fs/proc/proc_sysctl.c, proc_sys_compare); each mount has its own
    (since Linux 5.8).
    """

    def __init__(self) -> None:
        self._taken = 0

    def __enter__(self) -> Self:
        _FRESH_PROC.mkdir(exist_ok=True)
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._taken:
            kernelcalls.unmount(_FRESH_PROC)

    def set(self, values: Mapping[str, str]) -> None:
        """Set these in the network namespace that we are in. Raises Refused."""
        if self._taken % _NAMESPACES_A_PROC == 0:
            if self._taken:
                kernelcalls.unmount(_FRESH_PROC)
            kernelcalls.mount("proc", _FRESH_PROC, "proc", kernelcalls.MS_NOSUID | kernelcalls.MS_NODEV)
        self._taken += 1
        set_sysctls(values, proc_sys=_FRESH_PROC / "sys")


def set_sysctls(values: Mapping[str, str], *, but_not: Container[str] = (), proc_sys: Path = _PROC_SYS) -> None:
    """Set these, without those of ``but_not``, in the network namespace that we are in. Raises Refused."""
    by_folder: dict[str, dict[str, str]] = {}
    for name, value in values.items():
        if name not in but_not:
            # net.ipv4, net.ipv6, …: one way in for all of it, see above.
            folder = "/".join(name.split(".")[:2])
            by_folder.setdefault(folder, {})[name] = value
    for folder, those in by_folder.items():
        try:
            place = os.open(proc_sys / folder, os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            place = -1
        try:
            for name, value in those.items():
                _set_sysctl(place, name, value)
        finally:
            if place >= 0:
                os.close(place)


def _set_sysctl(folder: int, name: str, value: str) -> None:
    """Set one below the folder of its first two words."""
    try:
        if folder < 0:
            raise FileNotFoundError
        file = os.open("/".join(name.split(".")[2:]), os.O_WRONLY, dir_fd=folder)
        try:
            os.write(file, value.encode())
        finally:
            os.close(file)
    except FileNotFoundError:
        if not name.startswith("net.ipv6."):  # a kernel without IPv6 has none to switch off
            raise Refused(f"sysctl {name}: this kernel has none of that name in a network namespace") from None
    except OSError as error:
        raise Refused(f"sysctl {name}={value}: {error.strerror}") from None
