"""`testbed doctor --noise`: the smallest effect that this machine can find with these tests, before anybody waits."""

from __future__ import annotations

import math
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from testbed.commands.console import say
from testbed.judge.comparison import ALPHA, Comparison
from testbed.judge.foresight import findable
from testbed.text import visible
from testbed.units import format_time
from testbed.versions.arm import Arm
from testbed.versions.pairs import Pairing, PairingPlan, PairingProgress

PAIRS = (15, 30, 60, 120)
BUDGET_S = 60.0


def measure(words: Sequence[str]) -> tuple[Comparison, float]:
    """Run the tests against themselves for a minute; what came of it, and how long a pair takes; seconds."""
    seen: list[PairingProgress] = []
    with tempfile.TemporaryDirectory(prefix="testbed-noise-") as name:
        folder = Path(name)
        plan = PairingPlan(
            folder=folder,
            seed=secrets.randbelow(1 << 31),
            budget_s=BUDGET_S,
            most_pairs=None,
            alpha=ALPHA,
            to_the_end=True,
        )
        arms = [
            Arm(name=side, folder=Path.cwd(), words=words, log=folder / f"{side}.log", fresh=False)
            for side in ("base", "head")
        ]
        pairs = Pairing(plan, base=arms[0], head=arms[1], tell=seen.append)
        try:
            pairs.run(say)
        finally:
            pairs.arms.close()
    return pairs.comparison, seen[-1].pair_s if seen else math.nan


def effects(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """Of each metric that a comparison waits for: its spread from pair to pair, and the smallest effects found."""
    for judged in comparison.judged:
        cell = judged.cell
        if cell.decides and not cell.of_outcome:
            smallest = {pairs: findable(cell, pairs, alpha=ALPHA, cells=len(comparison.judged)) for pairs in PAIRS}
            yield {
                "test": cell.test,
                "metric": cell.name,
                "links": cell.links,
                "spread": cell.spread,
                "findable": smallest,
            }


def show(console: Console, comparison: Comparison, pair_s: float) -> None:
    """Print that, a line per metric."""
    heads = [f"{pairs} pairs\n{format_time(round(pairs * pair_s))}" for pairs in PAIRS]
    table = Table("test", "metric", "links", "spread\npair to pair", *heads)
    for row in effects(comparison):
        cells = ["—" if effect is None else _percent(effect) for effect in row["findable"].values()]
        table.add_row(*map(visible, (row["test"], row["metric"], row["links"], _percent(row["spread"]), *cells)))
    console.print(table)
    console.print(
        f"The smallest effects that so many pairs find in nine of ten comparisons; from {comparison.base_runs} pairs "
        f"of these tests against themselves on this machine now (load {os.getloadavg()[0]:.1f}), with false alarms at "
        f"most {ALPHA:.0%} over {len(comparison.judged)} cells.",
        markup=False,
        soft_wrap=True,
    )


def _percent(value: float) -> str:
    return f"{value:.1%}"
