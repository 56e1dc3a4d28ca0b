"""Two versions in virtual time: each runs under the same seeds, in a kernel of its own that sees the same files.

The kernels differ in nothing but the version. So a version that is compared with itself is identical to the last bit,
and what differs is the version's. See `testbed.judge.exact`.
"""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testbed.errors import UserError
from testbed.judge.cells import Run
from testbed.kernel import virtual
from testbed.units import format_time
from testbed.versions.arm import ArmError
from testbed.versions.inside import results_name
from testbed.versions.runs import read, unlike
from testbed.writing import to_append

_SEEN = "results"
"""The name of the folder of results inside."""
_SPIN_LIMIT_S = 60.0
_NO_GIT = {"GIT_DIR": "/nowhere"}
"""To git, a worktree is not what a checkout is, and takes another time. Which commit a version is, is known outside."""


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What is to be run."""

    folder: Path
    """For results: one folder for each version below it."""
    seeds: Sequence[int]
    words: Sequence[str]
    """Of pytest."""
    fresh: bool
    """Whether pytest starts anew for each seed."""
    budget_s: float
    """Of this machine's time."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """A version."""

    label: str
    """For messages, such as ``base (main, 1a2b3c4d)``."""
    instead: Mapping[Path, Path]
    """Folders that it sees in place of others, by those."""


def results_of(folder: Path, side: str) -> Path:
    """The results files of ``base`` or ``head``."""
    return folder / side / _SEEN


@dataclass
class _Heard(io.RawIOBase):
    """What a version says of its runs."""

    progress: Callable[[], None]
    seeds: list[int] = field(default_factory=list)
    """Those whose runs have ended."""
    tests: list[str] = field(default_factory=list)
    problem: str = ""
    _begun: bytes = b""

    def write(self, data: Any) -> int:
        """Take a part of it."""
        *lines, self._begun = (self._begun + bytes(data)).split(b"\n")
        for line in lines:
            self._take(json.loads(line))
        return len(data)

    def _take(self, message: Mapping[str, Any]) -> None:
        self.tests = message.get("tests", self.tests)
        self.problem = message.get("problem", self.problem)
        if "seed" in message:
            self.seeds.append(message["seed"])
            self.progress()


class Campaign:
    """The runs of both."""

    def __init__(
        self,
        plan: Simulated,
        *,
        base: Side,
        head: Side,
        environment: Mapping[str, str],
        say: Callable[[str], None],
    ) -> None:
        self._plan = plan
        self._sides = {"base": base, "head": head}
        self._environment = environment
        self._say = say
        self._heard = {name: _Heard(self._tell) for name in self._sides}
        self._ended = threading.Event()
        self._told = 0

    def _tell(self) -> None:
        done = min(len(answers.seeds) for answers in self._heard.values())
        if done > self._told:
            self._told = done
            self._say(f"{done} of {len(self._plan.seeds)} seeds")

    def run(self) -> str:
        """Run both, at the same time; why they ended. An interrupt keeps the runs that have ended.

        Raises UserError, ArmError where the tests of one cannot be run, EnvironmentUnfitError.
        """
        plan = self._plan
        virtual.prepare(self._say)
        with ThreadPoolExecutor(len(self._sides)) as pool:
            futures = [pool.submit(self._one, name) for name in self._sides]
            try:
                done, left = wait(futures, timeout=plan.budget_s, return_when=FIRST_EXCEPTION)
            finally:
                self._ended.set()  # of kernels that have ended by themselves it changes nothing
        for future in done:
            future.result()
        if not any(self.runs):
            raise UserError(
                f"--budget {format_time(plan.budget_s)}: too small for one run of each version"
                if left
                else "no test uses `lab` or a marker of testbed, so there is nothing to compare"
            )
        return "the budget is spent" if left else f"after {len(plan.seeds)} seeds"

    def _one(self, name: str) -> None:
        """The runs of one version. Raises ArmError, and what `virtual.run` raises."""
        plan, side, answers = self._plan, self._sides[name], self._heard[name]
        seen, log = plan.folder / _SEEN, plan.folder / f"{name}.log"
        what = {
            "words": [*virtual.LAB_OPTIONS, "--testbed-capture", "never", *plan.words],
            "seeds": [*plan.seeds],
            "results": str(seen),
            "fresh": plan.fresh,
        }
        with to_append(log, below=plan.folder) as stderr:
            status = virtual.run(
                [sys.executable, "-m", "testbed.versions.inside", json.dumps(what)],
                seed=plan.seeds[0],
                cwd=Path.cwd(),
                outputs=virtual.Outputs(folders=[seen], into=plan.folder / name),
                environment={**self._environment, **_NO_GIT},
                say=self._say,
                stdout=answers,  # type: ignore[arg-type]  # it is only written to
                stderr=stderr,
                spin_limit_s=_SPIN_LIMIT_S,
                instead=side.instead,
                stop=self._ended,
            )
        if status:
            raise ArmError(f"{side.label}: {answers.problem or f'its runs ended with status {status}: see {log}'}")

    @property
    def runs(self) -> tuple[list[Run], list[Run]]:
        """Base's and head's, of the seeds that both have run. Raises UserError where they cannot be compared."""
        ended = [answers.seeds for answers in self._heard.values()]
        names = [results_name(seed) for seed in self._plan.seeds if all(seed in seeds for seeds in ended)]
        base, head = (
            [read(file) for name in names if (file := results_of(self._plan.folder, side) / name).is_file()]
            for side in self._sides
        )
        if base and head and (differences := unlike(base, head)):
            raise UserError(f"not compared: {difference.how}" for difference in differences)
        return base, head
