"""Whether the simulated clock of a kernel goes on; and if not, which of its programs burns the processor.

The clock is a variable of the kernel, read in its memory: any other question would be an event for the kernel, and make
a difference. Each program of a User-Mode Linux is a process of this machine, a child of the kernel's.
"""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_VARIABLE = b"time_travel_time"
LOOK_EVERY_S = 1.0
"""How often to look at all processes."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_SYMBOLS_TYPE, _FIXED_ADDRESSES = 2, 2


@dataclass(frozen=True, kw_only=True)
class Spinning:
    """A program that was ended because the clock stood still."""

    clock_s: float
    """Where the clock stood, seconds since the epoch."""
    processor_s: float
    """Processor time that was burnt meanwhile."""

    def __str__(self) -> str:
        return (
            f"a program spun: {self.processor_s:.0f} s of processor time at {self.clock_s:.6f} s of the simulated "
            "clock, without reading it or waiting; the program was ended (SIGFPE)"
        )


@dataclass(frozen=True, kw_only=True)
class Usage:
    """A process: what started it, its processor time in seconds, and where it is."""

    parent: int
    processor_s: float
    ended_s: float
    """Processor time of those that it started, which have ended."""
    processor: int
    """The number of the processor that it was on last."""
    running: bool
    """Whether it runs, or could."""


def address_of(name: bytes, kernel: bytes) -> int | None:
    """The address of a variable of a program that is loaded at fixed addresses, from its ELF file; or None."""
    head = _HEADER.unpack_from(kernel)
    if head[0][:4] != b"\x7fELF" or head[1] != _FIXED_ADDRESSES:
        return None
    offset, size, count = head[6], head[11], head[12]
    sections = [_SECTION.unpack_from(kernel, offset + number * size) for number in range(count)]
    for section in sections:
        if section[1] != _SYMBOLS_TYPE:
            continue
        names = sections[section[6]][4]
        for place in range(section[4], section[4] + section[5], _SYMBOL.size):
            symbol = _SYMBOL.unpack_from(kernel, place)
            start = names + symbol[0]
            if kernel.startswith(name + b"\0", start):
                return int(symbol[4])
    return None


class Progress:
    """Watches a kernel below a process of ours."""

    def __init__(self, parent: int, kernel: Path, *, limit_s: float) -> None:
        """``limit_s``: processor time that may be burnt while the clock stands still."""
        self._parent, self._file, self._limit_s = parent, kernel, limit_s
        self._address = address_of(_VARIABLE, kernel.read_bytes())
        self._clock_ns: int | None = None
        self._since: dict[int, Usage] = {}

    def check(self, everyone: Mapping[int, Usage]) -> Spinning | None:
        """End the program that spins, if one does by now; ``everyone``: all processes, as they are now."""
        if self._address is None:
            return None
        processes = family(self._parent, everyone)
        kernel = next((pid for pid in processes if runs(pid, self._file)), None)
        clock_ns = None if kernel is None else _read(kernel, self._address)
        if clock_ns is None or clock_ns != self._clock_ns:
            self._clock_ns, self._since = clock_ns, processes
            return None
        burnt = {
            pid: usage.processor_s - (self._since[pid].processor_s if pid in self._since else 0.0)
            for pid, usage in processes.items()
        }
        total_s = sum(burnt.values())
        programs = [pid for pid, usage in processes.items() if usage.parent == kernel]
        if total_s < self._limit_s or not programs:
            return None
        os.kill(max(programs, key=lambda pid: burnt[pid]), signal.SIGFPE)
        self._clock_ns, self._since = None, {}
        return Spinning(clock_s=clock_ns / 1e9, processor_s=total_s)


def usages() -> dict[int, Usage]:
    """All processes of this machine (proc(5), ``/proc/PID/stat``)."""
    return {
        pid: Usage(
            parent=int(fields[1]),
            processor_s=(int(fields[11]) + int(fields[12])) / _TICKS_PER_S,
            ended_s=(int(fields[13]) + int(fields[14])) / _TICKS_PER_S,
            processor=int(fields[36]),
            running=fields[0] == "R",
        )
        for pid, fields in _stats()
    }


def family(parent: int, everyone: Mapping[int, Usage]) -> dict[int, Usage]:
    """Of all processes one and those below it, in order of their numbers."""
    below = {parent}
    while new := {pid for pid, usage in everyone.items() if usage.parent in below} - below:
        below |= new
    return {pid: everyone[pid] for pid in sorted(below & everyone.keys())}


def _stats() -> Iterator[tuple[int, list[str]]]:
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with suppress(OSError), open(f"{entry.path}/stat", encoding="utf-8", errors="replace") as file:
                yield int(entry.name), file.read().rpartition(")")[2].split()


def runs(pid: int, program: Path) -> bool:
    """Whether a process runs a program."""
    with suppress(OSError):
        return os.path.samefile(f"/proc/{pid}/exe", program)
    return False


def _read(pid: int, address: int) -> int | None:
    """A number of 64 bits in a process's memory; None if this process may not read it, or it has ended."""
    with suppress(OSError), open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return int.from_bytes(memory.read(8), "little")
    return None
