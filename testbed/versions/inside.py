"""One version's runs in one kernel whose clock is simulated: a run per seed. See `testbed.versions.simulated`.

It is a program in that kernel. Its argument is what it does, as JSON; it prints a JSON line after each run, or
``{"problem": …}``.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from testbed.errors import TestbedError
from testbed.versions.arm import Arm

LOG = "pytest.log"


def results_name(seed: int) -> str:
    """The results file of a run."""
    return f"{seed:010d}.jsonl"


def main(what: dict[str, Any]) -> int:
    """Run all; the exit status."""
    results = Path(what["results"])
    arm = Arm(name="pytest", folder=Path.cwd(), words=what["words"], log=results / LOG, fresh=what["fresh"])
    try:
        arm.start()
        _tell(tests=arm.tests)
        for seed in what["seeds"]:
            arm.run(seed=seed, results=results / results_name(seed), until=math.inf)
            _tell(seed=seed)
    except TestbedError as error:
        _tell(problem=str(error))
        return 2
    finally:
        arm.close()
    return 0


def _tell(**words: object) -> None:
    sys.stdout.write(f"{json.dumps(words)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
