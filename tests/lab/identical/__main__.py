"""Write the digests of the suite's packets anew: ``python -m tests.lab.identical``."""

import json
import sys
import tempfile
from pathlib import Path

from testbed.kernel import building
from tests.lab import identical

with tempfile.TemporaryDirectory() as folder:
    digests = identical.run(Path(folder, "project"))
content = {
    "kernel": building.ensure(print).source,
    "digests": {place: one_way.as_json() for place, one_way in digests.items()},
}
identical.COMMITTED.write_text(f"{json.dumps(content, indent=1)}\n", encoding="utf-8")
packets = sum(len(one_way.times_us) for one_way in digests.values())
sys.stdout.write(f"{identical.COMMITTED}: {packets} packets\n")
