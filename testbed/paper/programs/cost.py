"""``cost.py STRUCTURE``: resident memory in KiB and CPU seconds of the server of that structure and its children."""

import os
import sys
from pathlib import Path

memory_kb, ticks = 0, 0
for process in Path("/proc").iterdir():
    try:
        words = (process / "cmdline").read_text().split("\0")
        if "server.py" in words and sys.argv[1] in words:
            memory_kb += int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    except OSError:
        continue  # no process, or one that has ended meanwhile
print(memory_kb, ticks / os.sysconf("SC_CLK_TCK"))
