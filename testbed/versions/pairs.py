"""Pairs of runs of two versions, until every cell is decided or the budget is spent; each run's results are kept.

Of a pair both runs have the same seed, and a coin draws which is first. A pair with an INVALID test is thrown away
whole. Before the first pair each version runs once without being counted: images are built, caches are filled.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testbed.errors import UserError
from testbed.judge.cells import Pair, Run
from testbed.judge.comparison import Comparison, compare
from testbed.text import shortened
from testbed.units import format_time
from testbed.versions.arm import Arm, BudgetSpentError
from testbed.versions.arms import Arms, seed_of
from testbed.versions.runs import read, unlike
from testbed.writing import LineFile

SCHEMA = "testbed-ab/1"


@dataclass(frozen=True, kw_only=True)
class PairingPlan:
    """What is to be done, and how long at the most."""

    folder: Path
    seed: int
    budget_s: float
    most_pairs: int | None
    alpha: float
    to_the_end: bool = False
    """Whether pairs are run until the budget is spent, although every cell is decided."""
    quantiles: Sequence[float] = ()
    """Quantiles of metrics with several samples per run to judge, too."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What the two versions are, for whoever reads the folder later."""


@dataclass(frozen=True, kw_only=True)
class PairingProgress:
    """How far it has come."""

    pairs: int
    thrown_away: int
    spent_s: float
    budget_s: float
    pair_s: float
    """What a pair takes."""
    comparison: Comparison

    @property
    def affordable(self) -> int:
        """Pairs that the rest of the budget allows."""
        return max(math.floor((self.budget_s - self.spent_s) / self.pair_s), 0) if self.pair_s > 0 else 0


class Pairing:
    """Runs them; what is known so far is there at any time, also after an interrupt."""

    def __init__(self, plan: PairingPlan, *, base: Arm, head: Arm, tell: Callable[[PairingProgress], None]) -> None:
        self._plan = plan
        self.arms = Arms({"base": base, "head": head})
        self._tell = tell
        self._kept: list[Pair] = []
        self._coin = random.Random(f"{plan.seed} coin")  # noqa: S311  # a fair coin that can be drawn again
        self._comparison = self._compare(brief=True)

    def run(self, say: Callable[[str], None]) -> str:
        """Run pairs; why they ended. Raises ArmError, EnvironmentUnfitError, UserError for too small a budget."""
        plan = self._plan
        lines = LineFile(plan.folder / "ab.jsonl", below=plan.folder)
        lines.append(json.dumps({"schema": SCHEMA, "seed": plan.seed, "alpha": plan.alpha, **plan.about}))
        try:
            pair_s = self._warm_up(say)
            return self._pairs(lines, pair_s)
        finally:
            lines.close()

    def _warm_up(self, say: Callable[[str], None]) -> float:
        """Start both, see that they can be compared, and run each once. The seconds that a pair takes."""
        base, head = self.arms.by_name["base"], self.arms.by_name["head"]
        for arm in (base, head):
            say(f"{arm.name}: collecting its tests")
            arm.start()
        if not set(base.tests) & set(head.tests):
            raise UserError(
                f"{base.name} has none of the tests of {head.name}: there is, for example, {base.tests[0]} in base, "
                f"{head.tests[0]} in head"
            )
        self.arms.separate(say)
        taken_s, runs = 0.0, []
        for name, arm in self.arms.by_name.items():
            say(f"{arm.name}: a run to warm up")
            file = self._file("warm-up", name)
            with self.arms.first_run(name) as until:
                taken_s += arm.run(seed=self._plan.seed, results=file, until=until)
            if not file.is_file():
                raise UserError(
                    f"{arm.name}: no test uses `lab` or a marker of testbed, so there is nothing to compare"
                )
            runs.append(read(file))
        if differences := unlike(*([run] for run in runs)):
            raise UserError(f"not compared: {difference.how}" for difference in differences)
        if taken_s > self._plan.budget_s:
            raise UserError(
                f"--budget {format_time(self._plan.budget_s)}: too small for one pair, which takes about "
                f"{format_time(round(taken_s, 1))} here; the results of the warm-up are in {self._plan.folder}"
            )
        return taken_s

    def _pairs(self, lines: LineFile, pair_s: float) -> str:
        """Until there is a reason to end, which is returned."""
        plan, begun, number = self._plan, time.monotonic(), 0
        until = begun + plan.budget_s
        while True:
            if plan.most_pairs is not None and number >= plan.most_pairs:
                return f"after {number} pairs, as asked"
            if time.monotonic() + pair_s > until:
                return "the budget is spent"
            number += 1
            order = ("base", "head") if self._coin.random() < 0.5 else ("head", "base")  # a fair coin
            seed = seed_of(f"{plan.seed} pair {number}")
            entry: dict[str, Any] = {"pair": number, "seed": seed, "first": order[0]}
            try:
                runs = {name: self._one(name, number, seed, until, entry) for name in order}
            except BudgetSpentError:
                lines.append(json.dumps({**entry, "thrown_away": "not over when the budget was spent"}))
                return "the budget is spent"
            pair = Pair(base=runs["base"], head=runs["head"])
            reason = None if (test := pair.invalid) is None else f"{test.id}: {shortened(test.reason or '')}"
            lines.append(json.dumps({**entry, "thrown_away": reason}))
            self._kept.append(pair)
            pair_s = entry["base_s"] + entry["head_s"]
            self._comparison = self._compare(brief=True)
            self._tell(
                PairingProgress(
                    pairs=number,
                    thrown_away=len(self._comparison.thrown_away),
                    spent_s=time.monotonic() - begun,
                    budget_s=plan.budget_s,
                    pair_s=pair_s,
                    comparison=self._comparison,
                )
            )
            if not self._comparison.base_runs:
                self.arms.take(reason, "pairs")
            if (
                not plan.to_the_end
                and self._comparison.base_runs
                and not self._comparison.waiting
                and self._comparison.judged
            ):
                return "every cell is decided"

    def _one(self, name: str, number: int, seed: int, until: float, entry: dict[str, Any]) -> Run:
        arm, file = self.arms.by_name[name], self._file(name, f"{number:04}")
        try:
            entry[f"{name}_s"] = arm.run(seed=seed, results=file, until=until)
        except BudgetSpentError:
            arm.close()
            raise
        return read(file)

    def _file(self, folder: str, name: str) -> Path:
        return self._plan.folder / folder / f"{name}.jsonl"

    @property
    def runs(self) -> tuple[list[Run], list[Run]]:
        """Base's and head's, of the pairs that were run."""
        return [pair.base for pair in self._kept], [pair.head for pair in self._kept]

    @property
    def comparison(self) -> Comparison:
        """What all pairs so far say."""
        return self._compare(brief=False)

    def _compare(self, *, brief: bool) -> Comparison:
        base, head = [pair.base for pair in self._kept], [pair.head for pair in self._kept]
        return compare(base, head, alpha=self._plan.alpha, quantiles=self._plan.quantiles, brief=brief)
