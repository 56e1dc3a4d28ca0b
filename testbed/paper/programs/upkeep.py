"""``upkeep.py PORT``: what the server on this port and its children take of memory and of the processor, as JSON.

Memory is the proportional set size (proc(5), smaps_rollup): what processes share is divided among them, so it adds up.
Processor time is that of the process's clock, to the nanosecond, ended threads included (clock_getcpuclockid(3)); of
children that have ended, /proc tells it in ticks, once for all of them.
"""

import json
import os
import sys
import time
from pathlib import Path

CPUCLOCK_SCHED = 2  # linux/posix-timers.h: the clock of process PID is (~PID << 3) | 2
ticks_per_s = os.sysconf("SC_CLK_TCK")
memory_bytes = processes = threads = 0
cpu_s = 0.0
for process in Path("/proc").iterdir():
    if not process.name.isdecimal():
        continue
    try:
        words = (process / "cmdline").read_text().split("\0")
        if "server.py" not in words or words[words.index("--port") + 1] != sys.argv[1]:
            continue
        rollup = (process / "smaps_rollup").read_text()
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        own_s = time.clock_gettime((~int(process.name) << 3) | CPUCLOCK_SCHED)
    except (OSError, ValueError):
        continue  # it has ended meanwhile, or has no port
    memory_bytes += 1024 * next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    cpu_s += own_s + sum(map(int, fields[13:15])) / ticks_per_s  # cutime, cstime
    processes += 1
    threads += int(fields[17])
print(json.dumps({"memory_bytes": memory_bytes, "cpu_s": cpu_s, "processes": processes, "threads": threads}))
