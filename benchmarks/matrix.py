"""How long a matrix takes on many engines, and what it costs: simulated from the durations in a results file.

    python benchmarks/matrix.py report/results.jsonl --cells 10000 --engines 1,2,4,8,16,32 --workers 4

Each cell takes what a measured one took (by a fixed seed). Each worker brings a stack up and takes it down, as
measured. Images reach one engine after the other. The longest cell is first, and a worker begins a cell when it has
ended the one before. What limits a row is the largest of four bounds: the work divided by the workers, the longest
cell, the images of the last engine, and the time in which an engine itself is busy (``--engine-s`` for each cell).
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.evidence import stored
from testbed.evidence.stored import Session

_HOUR_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a run took."""

    cells_s: Sequence[float]
    """Each test, from its set-up to its tear-down, without stacks."""
    stack_s: float
    """To bring a stack up and to take it down, for a worker."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a matrix would take."""

    wall_s: float
    machines_s: float
    """All engines, from the first cell to the last one."""
    busy_ratio: float
    """Share of the workers' time in which cells run."""
    limit: str
    """What it cannot be quicker than."""


def measured(session: Session) -> Measured:
    """The durations of a run. Those of stacks are divided by the workers that had one."""
    stacks = [float(attempt.content.get("stacks_s", 0.0)) for test in session.tests for attempt in test.attempts]
    up = [value for value in stacks if value > 0]
    return Measured(
        cells_s=[test.elapsed_s for test in session.tests],
        stack_s=2 * sum(up) / len(up) if up else 0.0,  # a worker's first test has the way up, its last the way down
    )


def simulate(
    cells_s: Sequence[float],
    *,
    stack_s: float,
    engines: int,
    workers: int,
    image_s: float,
    first_s: float,
    engine_s: float,
) -> Estimate:
    """The matrix on so many engines with so many workers each.

    ``image_s``: to send an engine its images. ``first_s``: before any worker begins, as to collect the tests.
    ``engine_s``: for each cell, in which an engine can do nothing else.
    """
    free = [
        (first_s + stack_s / 2 + engine * image_s, number) for engine in range(engines) for number in range(workers)
    ]
    heapq.heapify(free)
    end_s = 0.0
    for cell_s in sorted(cells_s, reverse=True):
        begin_s, number = heapq.heappop(free)
        end_s = max(end_s, begin_s + cell_s)
        heapq.heappush(free, (begin_s + cell_s, number))
    wall_s = max(end_s + stack_s / 2, len(cells_s) / engines * engine_s)
    bounds = {
        "work": sum(cells_s) / (engines * workers),
        "longest cell": max(cells_s),
        "images": (engines - 1) * image_s,
        "engine": len(cells_s) / engines * engine_s,
    }
    return Estimate(
        wall_s=wall_s,
        machines_s=engines * wall_s,
        busy_ratio=sum(cells_s) / (wall_s * engines * workers),
        limit=max(bounds, key=lambda name: bounds[name]),
    )


def main() -> int:
    """Print a row for each number of engines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--cells", type=int, help="number of cells (default: those measured, each once)")
    parser.add_argument("--engines", default="1,2,3", help="numbers of engines (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="per engine (default: %(default)s)")
    parser.add_argument("--image-s", type=float, default=0.0, help="seconds to send one engine its images")
    parser.add_argument("--first-s", type=float, default=0.0, help="seconds before any cell begins")
    parser.add_argument("--engine-s", type=float, default=0.0, help="seconds of a cell in which the engine is busy")
    parser.add_argument("--hourly", type=float, default=0.0, help="price of one machine for an hour")
    options = parser.parse_args()
    with options.results.open(encoding="utf-8") as lines:
        base = measured(stored.read(lines, name=str(options.results)))
    cells_s = list(base.cells_s)
    if options.cells is not None:
        cells_s = random.Random(1).choices(cells_s, k=options.cells)  # noqa: S311  # no secret
    write = sys.stdout.write
    write(f"{len(cells_s)} cells, {sum(cells_s) / _HOUR_S:.2f} h in all, the longest {max(cells_s):.1f} s\n")
    write("engines     hours  machine-hours    price  busy  limited by\n")
    for engines in map(int, options.engines.split(",")):
        row = simulate(
            cells_s,
            stack_s=base.stack_s,
            engines=engines,
            workers=options.workers,
            image_s=options.image_s,
            first_s=options.first_s,
            engine_s=options.engine_s,
        )
        hours = row.machines_s / _HOUR_S
        write(f"{engines:7} {row.wall_s / _HOUR_S:9.3f} {hours:14.2f} {hours * options.hourly:8.2f}")
        write(f" {row.busy_ratio:5.0%}  {row.limit}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
