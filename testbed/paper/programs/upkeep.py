"""``upkeep.py PORT``: what the server on this port and its children take of memory and of the processor, as JSON.

Memory is the proportional set size (proc(5), smaps_rollup): what processes share is divided among them, so it adds up.
"""

import json
import os
import sys
from pathlib import Path

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
    except (OSError, ValueError):
        continue  # it has ended meanwhile, or has no port
    memory_bytes += 1024 * next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    cpu_s += sum(map(int, fields[11:15])) / ticks_per_s  # its own, and that of children that have ended
    processes += 1
    threads += int(fields[17])
print(json.dumps({"memory_bytes": memory_bytes, "cpu_s": cpu_s, "processes": processes, "threads": threads}))
