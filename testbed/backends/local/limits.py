"""The resources that hosts need, compared with the machine's limits before anything is started."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

NAMESPACES = ("net", "pid", "mnt", "uts", "ipc")
_DESCRIPTORS_A_HOST = 5
"""The agent holds one of each namespace."""
_PIPES_A_PROGRAM = 3
_PROCESSES_A_HOST = 2
"""The one that holds its namespaces, and its program."""
_SPARE = 64
_HOST_BYTES = 300 * 1024
"""A namespace with a cable; `benchmarks/scale.py` measures it."""
_PROGRAM_BYTES = 10 * 2**20
"""A Python and its file system."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The limits of this machine for this user."""

    namespaces: Mapping[str, int]
    """``user.max_*_namespaces``, by kind."""
    descriptors: int
    """A process may have open (RLIMIT_NOFILE, hard)."""
    pids: int
    """``kernel.pid_max``."""
    processes: int | None
    """This user may have (RLIMIT_NPROC, hard); None for root, whom it does not bind."""
    memory_bytes: int
    """Available without swapping."""

    @classmethod
    def look(cls, proc: Path = Path("/proc")) -> Machine:
        """The limits by the kernel, now."""
        hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        bound = os.geteuid() != 0 and hard != resource.RLIM_INFINITY
        available = next(
            line for line in (proc / "meminfo").read_text().splitlines() if line.startswith("MemAvailable:")
        )
        return cls(
            namespaces={kind: int((proc / "sys/user" / f"max_{kind}_namespaces").read_text()) for kind in NAMESPACES},
            descriptors=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
            pids=int((proc / "sys/kernel/pid_max").read_text()),
            processes=hard if bound else None,
            memory_bytes=int(available.split()[1]) * 1024,
        )


def shortages(machine: Machine, *, hosts: int, programs: int) -> Iterator[str]:
    """Each resource that is too small for so many hosts and programs, with the way to raise it."""
    for kind, most in machine.namespaces.items():
        needed = hosts + 1
        if most < needed:
            setting = f"user.max_{kind}_namespaces"
            yield f"{needed:,} {kind} namespaces; {setting} is {most:,}: sysctl {setting}={needed * 2}"
    needed = max(hosts * _DESCRIPTORS_A_HOST, programs * _PIPES_A_PROGRAM) + _SPARE
    if machine.descriptors < needed:
        limit = f"the limit is {machine.descriptors:,}"
        yield f"{needed:,} open files in one process; {limit}: ulimit -Hn {needed * 2} (as root)"
    needed = programs * _PROCESSES_A_HOST + _SPARE
    if machine.pids < needed * 2:  # the machine has its own
        yield f"{needed:,} processes; kernel.pid_max is {machine.pids:,}: sysctl kernel.pid_max={needed * 4}"
    if machine.processes is not None and machine.processes < needed:
        yield f"{needed:,} processes; this user may have {machine.processes:,}: ulimit -Hu {needed * 2} (as root)"
    wanted = hosts * _HOST_BYTES + programs * _PROGRAM_BYTES
    if machine.memory_bytes < wanted:
        yield f"{wanted / 2**30:.1f} GiB of memory; {machine.memory_bytes / 2**30:.1f} GiB are free"


def room_for_programs(hosts: int) -> None:
    """Let this process open three pipes for the program of each host, if the soft limit is below that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hosts * _PIPES_A_PROGRAM * 2 + 1024
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )
