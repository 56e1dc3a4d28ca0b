"""How often `testbed ab` is wrong: faults that it misses, and false alarms.

On the local lab: six faults planted together in a small shop, each with a metric of its own, and the same version
against itself; in turns on four links. Simulated: ten thousand comparisons of a version with itself, drawn from what
was recorded, with stalls, looked at after each pair. Beside it, on the same runs, what a threshold on means (10 %) and
an unpaired Mann-Whitney test (p < 0.05) say. With ``--quick`` the faults once on one link, and fewer simulated.

The whole takes hours of lab time, so several labs are up at once. ``--keep FOLDER`` keeps the result of each
comparison; those that are there are not made again, so it can be stopped at any time, and run in parts (``--part``).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import click

from benchmarks import common
from benchmarks.common import BenchmarkError, Check, Report
from testbed.judge import betting
from testbed.judge import cells as cells_
from testbed.judge.changes import Change
from testbed.judge.comparison import compare
from testbed.judge.paired import change_of
from testbed.report import comparison as words
from testbed.versions.runs import read
from testbed.writing import write_whole

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FAULTS = {
    "more bytes": ("bytes", "5 % more bytes on the wire"),
    "slow sender": ("goodput", "10 % less goodput (a sleep in the sender)"),
    "slow server": ("response", "10 ms in the server"),
    "Nagle": ("two writes", "Nagle left on (write, write, read)"),
    "not acknowledged": ("acknowledged", "2 % of messages never acknowledged"),
    "truncated": ("received", "recv(1024) truncates a message"),
}
"""Each fault, the metric that shows it, and what it is."""
_SHOP = Path(__file__).parent / "shop"
_SIMULATED, _SIMULATED_QUICK, _SIMULATED_PAIRS = 10_000, 500, 48
_BUDGET, _LONG = "3min", "60min"
_PAIRS = 20
"""Of a comparison of a version with itself: a few more than the fewest that could be called anything."""
_IN_A_ROW = 5
"""Such comparisons that one run of `testbed ab` makes: of the first 20 pairs, of the next 20, …"""
_WHOLE = "whole"
"""Of the name of the verdict on such a run, which it ends at by itself."""
_STALL_S, _STALLS = 1.0, 0.05
_ALPHA, _MEANS, _P = 0.01, 0.10, 0.05
_WITHIN_S = 3600
_ENDS_WITHIN_S = 60

Cell = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Comparisons of one kind."""

    what: str
    words: tuple[str, ...]
    """Of `testbed ab`."""
    tests: tuple[str, ...]
    """Each comparison is of one of them, in turns: the next link."""
    count: int
    in_a_row: int = 1
    """Comparisons that one `testbed ab` makes, each of the next `_PAIRS` pairs."""


_LINKS = tuple(f"test_links.py::test_{link}" for link in ("delay", "loss", "rate", "jitter"))
PARTS = {
    "faults": Part(what="six faults", words=("--base", "base", "--budget", _BUDGET), tests=_LINKS, count=20),
    "connects": Part(
        what="many short connections over a lossy link, twice",
        words=("--aa", "--pairs", f"{_PAIRS}", "--budget", _LONG),
        tests=("test_connects.py",),
        count=20,
    ),
    "itself": Part(
        what="the same version twice",
        words=("--aa", "--pairs", f"{_PAIRS * _IN_A_ROW}", "--budget", _LONG),
        tests=_LINKS,
        count=100,
        in_a_row=_IN_A_ROW,
    ),
}
_QUICK = {"faults": Part(what="six faults, once", words=PARTS["faults"].words, tests=_LINKS[:1], count=1)}
SIMULATED = "simulated"


def measure(report: Report) -> None:
    """Run everything, or the parts that are asked for. Raises BenchmarkError if a comparison does not come about."""
    parts = _QUICK if report.quick else PARTS
    chosen = report.options["part"] or (*parts, SIMULATED)
    with _folder(report.options["keep"]) as folder:
        made = {name: _made(name, part, folder, report) for name, part in parts.items() if name in chosen}
        if planted := made.get("faults", []):
            _faults(report, planted)
        for name in ("connects", "itself"):
            if same := made.get(name, []):
                _false_alarms(report, parts[name].what, same)
        if wholes := [_read(file) for file in folder.glob(f"*-{_WHOLE}.json") if "itself" in made]:
            _false_alarms(report, "the same version twice, until all is decided", wholes)
        if SIMULATED in chosen:
            kept = [_read(file) for name in parts for file in sorted(folder.glob(f"{name}-*[0-9].json"))]
            _simulated(report, [cell for document in kept for cell in document["cells"]])


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="testbed-power-") as name:
        yield Path(name)


# --- comparisons, several at once --------------------------------------------------------------------


def _made(name: str, part: Part, folder: Path, report: Report) -> list[dict[str, Any]]:
    """The verdict of each of a part's comparisons; those that are not kept yet are made."""
    files = [folder / f"{name}-{number:03}.json" for number in range(part.count)]
    runs = [files[first : first + part.in_a_row] for first in range(0, part.count, part.in_a_row)]
    while missing := {
        number: left for number, run in enumerate(runs) if (left := [file for file in run if not file.is_file()])
    }:
        _make(part, missing, report)
    documents = [_read(file) for file in files]
    for what, values in (
        ("seconds for each", [document["seconds"] for document in documents]),
        ("pairs in each", [document["base_runs"] for document in documents]),
        ("load of the machine", [document["load"] for document in documents]),
    ):
        report.note(f"{part.what}: {what}: {min(values):.0f} to {max(values):.0f}, median {median(values):.0f}")
    commits = dict.fromkeys(document["commit"] for document in documents)
    report.note(f"{part.what}: testbed at {', '.join(commits)}")
    return documents


def _read(file: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return document


def _make(part: Part, missing: Mapping[int, Sequence[Path]], report: Report) -> None:
    """Make these, by the number of the run that does; one that does not come about does not keep the others from it."""
    running: list[subprocess.Popen[str]] = []
    problems = []
    with (
        tempfile.TemporaryDirectory(prefix="testbed-shop-") as place,
        ThreadPoolExecutor(report.options["at_once"]) as pool,
    ):
        futures = [
            pool.submit(_compared, part, number, files, Path(place), running) for number, files in missing.items()
        ]
        try:
            for done in as_completed(futures):
                try:
                    report.say(done.result())
                except BenchmarkError as error:
                    problems.append(str(error))
                    report.say(str(error))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running:
                process.terminate()
            raise
    if problems:
        raise BenchmarkError("; ".join(problems))


def _compared(part: Part, number: int, files: Sequence[Path], place: Path, running: list[subprocess.Popen[str]]) -> str:
    """Run `testbed ab` once in a repository of its own, and keep its verdicts; a line about them."""
    name = files[0].stem
    shop, results = repository(place / name), place / f"{name}-results"
    plugins = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest"]  # a start with the latter takes twice as long
    pytest = ["--lab", "local", "--testbed-lateness", "warn", *plugins, part.tests[number % len(part.tests)]]
    argv = [sys.executable, "-m", "testbed.commands.cli", "ab", *part.words, "--keep", str(results), "--json", "--"]
    environment = {key: value for key, value in os.environ.items() if key != "GITHUB_STEP_SUMMARY"}
    began = time.monotonic()
    with subprocess.Popen(
        [*argv, *pytest], cwd=shop, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        running.append(process)
        try:
            out, err = process.communicate(timeout=_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.communicate(timeout=_ENDS_WITHIN_S)
            raise BenchmarkError(f"{name}: not over after {_WITHIN_S} s") from None
    if process.returncode not in (0, 1, 3):
        raise BenchmarkError(f"{name}: testbed ab: exit status {process.returncode}: {err[-2000:]}")
    whole = json.loads(out)
    documents = [whole] if part.in_a_row == 1 else [*_in_a_row(results, len(files))]
    if not documents:
        raise BenchmarkError(f"{name}: all is decided before there are {_PAIRS} pairs")
    about = {
        "seconds": round((time.monotonic() - began) / len(documents)),
        "load": os.getloadavg()[1],
        "commit": _commit(),
    }
    kept = dict(zip(files, documents, strict=False))
    if part.in_a_row > 1:
        kept[files[0].with_name(f"{name}-{_WHOLE}.json")] = whole
    for file, document in kept.items():
        write_whole(file, json.dumps({**document, **about}), below=file.parent)
    shutil.rmtree(shop)
    shutil.rmtree(results)
    outcomes = ", ".join(f"{document['change']} in {document['base_runs']} pairs" for document in documents)
    return f"{name}: {outcomes}; {about['seconds']} s each"


def _in_a_row(results: Path, most: int) -> Iterator[Mapping[str, Any]]:
    """The verdicts on the first pairs, on the next, and so on, as far as there are as many as it takes."""
    sides = [[read(file) for file in sorted((results / side).glob("*.jsonl"))] for side in ("base", "head")]
    for number in range(min(most, *(len(side) // _PAIRS for side in sides))):
        base, head = (side[number * _PAIRS : (number + 1) * _PAIRS] for side in sides)
        yield words.as_json(compare(base, head))


def _commit() -> str:
    git = ["git", "-C", str(common.ROOT), "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    return subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()


def repository(folder: Path) -> Path:
    """The shop as it is, tagged ``base``; checked out with all faults planted."""
    shutil.copytree(_SHOP, folder, ignore=shutil.ignore_patterns("__pycache__", "report"))

    def git(*words: str) -> None:
        who = ["-c", "user.name=power", "-c", "user.email=power@localhost"]
        subprocess.run(["git", *who, "-C", str(folder), *words], check=True, capture_output=True)

    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", "base")
    git("tag", "base")
    file = folder / "faults.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("= ()", f"= {tuple(FAULTS)!r}"), encoding="utf-8")
    git("commit", "-q", "-a", "-m", "faults")
    return folder


# --- the three judges --------------------------------------------------------------------------------


def ours(cell: Cell) -> bool:
    """Whether `testbed ab` says that it regressed, and on which link."""
    return bool(cell["change"] == "regressed" and "client" in cell["links"])


def by_means(cell: Cell) -> bool:
    """Whether the mean of head is worse by more than a tenth."""
    base, head = fmean(cell["base"]), fmean(cell["head"])
    return _worse(cell, head - base) > _MEANS * abs(base)


def by_ranks(cell: Cell) -> bool:
    """Whether an unpaired Mann-Whitney test says so, for the worse."""
    from scipy.stats import mannwhitneyu

    if len({*cell["base"], *cell["head"]}) == 1:
        return False
    worse = _worse(cell, fmean(cell["head"]) - fmean(cell["base"])) > 0
    return worse and float(mannwhitneyu(cell["head"], cell["base"]).pvalue) < _P


def _worse(cell: Cell, difference: float) -> float:
    return difference if cell["better"] == "lower" else -difference


JUDGES: Mapping[str, Callable[[Cell], bool]] = {
    "testbed ab": ours,
    "means, 10 %": by_means,
    "Mann-Whitney, p < 0.05": by_ranks,
}


# --- what is found -----------------------------------------------------------------------------------


def _faults(report: Report, planted: Sequence[Mapping[str, Any]]) -> None:
    for metric, what in FAULTS.values():
        cells = [
            next(cell for cell in document["cells"] if cell["metric"] == metric and cell["part"] in ("", "median"))
            for document in planted
        ]
        shares = {name: fmean(map(judge, cells)) for name, judge in JUDGES.items()}
        report.check(
            Check(
                name=f"{what}: found within {_BUDGET}, metric and link named, in the share of {len(cells)} runs",
                value=shares["testbed ab"],
                bound=0.95,
                unit="",
                at_least=True,
                rivals=_told(shares),
            )
        )


def _false_alarms(report: Report, what: str, same: Sequence[Mapping[str, Any]]) -> None:
    shares = {
        name: fmean(any(map(judge, comparison["cells"])) for comparison in same) for name, judge in JUDGES.items()
    }
    cells = fmean(len(comparison["cells"]) for comparison in same)
    pairs = [comparison["base_runs"] for comparison in same]
    report.check(
        Check(
            name=f"{what}: {len(same)} comparisons of {cells:.0f} cells in {min(pairs)} to {max(pairs)} pairs, "
            "with a false alarm",
            value=shares["testbed ab"],
            bound=_ALPHA,
            unit="",
            rivals=_told(shares),
        )
    )


def _told(shares: Mapping[str, float]) -> dict[str, str]:
    return {name: f"{share:.1%}" for name, share in shares.items() if name != "testbed ab"}


# --- simulated ---------------------------------------------------------------------------------------


def _simulated(report: Report, recorded: Sequence[Cell]) -> None:
    """A version against itself, drawn from measured values of each metric."""
    import numpy as np

    values: dict[tuple[str, str, str], list[float]] = {}
    kinds: dict[tuple[str, str, str], Cell] = {}
    for cell in recorded:
        key = (cell["test"], cell["metric"], cell["part"].split(" ")[0])  # the first pair set the limit of a tail
        values.setdefault(key, []).extend(cell["base"])
        kinds[key] = cell
    rounds = _SIMULATED_QUICK if report.quick else _SIMULATED
    draw = np.random.default_rng(1)
    alarms = {name: np.zeros(rounds, dtype=np.bool_) for name in JUDGES}
    log_threshold = math.log(len(values) / _ALPHA)
    for key, known in values.items():
        base, head = (draw.choice(np.asarray(known), size=(rounds, _SIMULATED_PAIRS)) for _ in range(2))
        if kinds[key]["unit"] == "s":
            for side in (base, head):  # stalls in every other round
                side[1::2] += _STALL_S * (draw.random(side[1::2].shape) < _STALLS)
        for name, hits in _judged(kinds[key], base, head, log_threshold).items():
            alarms[name] |= hits
    report.check(
        Check(
            name=f"the same version twice, {rounds} simulated comparisons of {len(values)} cells, half with 5 % stalls "
            f"of 1 s, watched after each of {_SIMULATED_PAIRS} pairs: with a false alarm",
            value=float(alarms["testbed ab"].mean()),
            bound=_ALPHA,
            unit="",
            rivals=_told({name: float(hits.mean()) for name, hits in alarms.items()}),
        )
    )


def _judged(
    cell: Cell, base: NDArray[np.float64], head: NDArray[np.float64], log_threshold: float
) -> dict[str, NDArray[np.bool_]]:
    """What each judge makes of many comparisons, a row each."""
    import numpy as np
    from scipy.stats import mannwhitneyu

    worse = _worse(cell, 1) * (head.mean(axis=1) - base.mean(axis=1))
    with np.errstate(invalid="ignore"):
        p = np.nan_to_num(mannwhitneyu(head, base, axis=1).pvalue, nan=1.0)
    return {
        "testbed ab": _watched(cell, base, head, log_threshold),
        "means, 10 %": worse > _MEANS * np.abs(base.mean(axis=1)),
        "Mann-Whitney, p < 0.05": (worse > 0) & (p < _P),
    }


def _watched(
    cell: Cell, base: NDArray[np.float64], head: NDArray[np.float64], log_threshold: float
) -> NDArray[np.bool_]:
    """Whether any number of pairs would give "regressed": what the stopping rule can lead to.

    The e-values of all rows at once tell those that could be; of these the judge itself is asked.
    """
    import numpy as np

    kind = cells_.Kind(cell["kind"])
    scaled = [np.log(side) if kind is cells_.Kind.RATIO else side for side in (base, head)]
    margins = np.full(len(base), math.log1p(cell["least_effect"]))
    if kind is not cells_.Kind.RATIO:
        margins = cell["least_effect"] * np.concatenate((base, head), axis=1).mean(axis=1)
    evidence = betting.evidence(
        _worse(cell, 1) * (scaled[1] - scaled[0]), margins[:, None], signs_alone=kind is cells_.Kind.DIFFERENCE
    )
    regressed: NDArray[np.bool_] = evidence.above.max(axis=1) >= log_threshold - 1e-6
    known = {key: cell[key] for key in ("test", "metric", "links", "unit", "better", "least_effect", "decides")}
    for row in np.flatnonzero(regressed):
        made = cells_.Cell(**known, kind=kind, base=tuple(base[row].tolist()), head=tuple(head[row].tolist()))
        regressed[row] = change_of(made, log_threshold) is Change.REGRESSED
    return regressed


OPTIONS = (
    click.Option(["--keep"], type=click.Path(path_type=Path, file_okay=False),
                 help="Keep each comparison there; those that are there are not made again."),
    click.Option(["--part"], type=click.Choice([*PARTS, SIMULATED]), multiple=True, help="Only this; repeatable."),
    click.Option(["--at-once"], type=click.IntRange(min=1), default=2 * (os.cpu_count() or 1), show_default=True,
                 help="Comparisons that run at the same time."),
)  # fmt: skip

if __name__ == "__main__":
    common.run("How often testbed ab is wrong", measure, options=OPTIONS)
