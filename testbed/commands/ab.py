"""`testbed ab`: two versions side by side in one run, until every cell is decided."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import click
from rich.live import Live
from rich.text import Text

from testbed.backends.outside import images_of
from testbed.commands.console import ERR, say
from testbed.commands.options import command, example
from testbed.commands.verdicts import deliver, fail_on_option, json_option, markdown_option, quantile_option
from testbed.errors import InvalidValueError, Problems, UserError
from testbed.judge.cells import Run
from testbed.judge.changes import Change
from testbed.judge.comparison import ALPHA, Comparison, compare
from testbed.report import comparison as words
from testbed.text import shown
from testbed.units import format_time, parse_time
from testbed.versions import worktrees
from testbed.versions.arm import Arm
from testbed.versions.pairs import Pairing, PairingPlan, PairingProgress
from testbed.versions.simulated import Campaign, Side, Simulated, results_of

_OURS = ("--testbed-seed", "--testbed-results", "--testbed-passes")
_MINUTES = re.compile(r"([\d.]+)m")
"""As people write them; in an impairment an ``m`` alone could be anything."""
_MOST_UNDECIDED = 3
_SEEDS = 20
"""In virtual time, where no number is given: enough for a verdict on ten cells that differ under every one."""
_INTERRUPTED, _STATUS_INTERRUPTED = "interrupted", 130


@command()
@click.option(
    "--virtual-time",
    is_flag=True,
    help="Run each version in a kernel whose clock is simulated, under the same seeds: differences are the version's.",
)
@click.option("--base", "revision", metavar="REV", help="The git revision that this checkout is compared with.")
@click.option(
    "--base-image", "base_images", multiple=True, metavar="SERVICE=IMAGE", help="An image of base's; repeatable."
)
@click.option(
    "--head-image", "head_images", multiple=True, metavar="SERVICE=IMAGE", help="An image of head's; repeatable."
)
@click.option("--aa", is_flag=True, help="Compare this checkout with itself: what is then found is a false alarm.")
@click.option("--most-pairs", "--pairs", "most_pairs", type=click.IntRange(min=1), help="The most pairs that are run.")
@click.option("--budget", default="10m", show_default=True, metavar="TIME", help="How long pairs may be run.")
@click.option("--fresh", is_flag=True, help="A new stack, and a new pytest, for each run.")
@click.option("--dirty", is_flag=True, help="Compare this checkout although it has changes that are not committed.")
@click.option("--seed", type=click.IntRange(min=0), help="Draw coins and the pairs' seeds from it (default: drawn).")
@click.option("--keep", type=click.Path(path_type=Path), help="The folder for all results (default: report/ab/…).")
@quantile_option
@json_option
@markdown_option
@fail_on_option
@click.argument("pytest_args", nargs=-1, type=click.UNPROCESSED)
@example("""testbed ab --base main -- tests/test_upload.py
             testbed ab --base-image api=shop/api:1.4 --head-image api=shop/api:1.5 -- tests/
             testbed ab --aa --budget 1min -- tests/test_upload.py""")
def ab(
    revision: str | None, base_images: tuple[str, ...], head_images: tuple[str, ...], aa: bool, most_pairs: int | None,
    budget: str, fresh: bool, dirty: bool, seed: int | None, keep: Path | None, quantiles: tuple[float, ...],
    as_json: bool, markdown: Path | None, fail_on: str, pytest_args: tuple[str, ...], virtual_time: bool,
) -> int:  # fmt: skip
    """Run tests on two versions side by side, in pairs of the same losses, and say what regressed.

    With --virtual-time the budget is of this machine's time, and --pairs (20) is how many seeds, from --seed (1) on.

    Exit status 0 if nothing regressed, 1 if something did, 2 for wrong use or an unfit machine, 3 if undecided.
    """
    budget_s = _checked(
        revision, base_images, head_images, aa=aa, budget=budget, words=pytest_args, virtual_time=virtual_time
    )
    begun = datetime.now(UTC)
    folder = (keep or Path("report", "ab", begun.strftime("%Y%m%d-%H%M%S"))).absolute()
    with ExitStack() as undo:
        base, head = versions(undo, revision, base_images, head_images, dirty=dirty, alike=virtual_time)
        if virtual_time:
            first, count = 1 if seed is None else seed, most_pairs or _SEEDS
            sought = Simulated(
                folder=folder, seeds=range(first, first + count), words=pytest_args, fresh=fresh, budget_s=budget_s,
            )  # fmt: skip
            run = partial(_in_virtual_time, undo, sought, base, head, quantiles)
        else:
            plan = PairingPlan(
                folder=folder,
                seed=secrets.randbelow(1 << 31) if seed is None else seed,
                budget_s=budget_s,
                most_pairs=most_pairs,
                alpha=ALPHA,
                quantiles=quantiles,
                about={"base": base.name, "head": head.name, "pytest": pytest_args, "started": begun.isoformat()},
            )
            run = partial(_in_pairs, undo, plan, base, head, pytest_args, fresh=fresh)
        ended, comparison, runs = run()
    sides = " ".join(near(results_of(folder, side) if virtual_time else folder / side) for side in ("base", "head"))
    say(f"{ended}; all results are in {near(folder)}: testbed compare {sides}")
    status = deliver(
        comparison,
        runs,
        base=base.name,
        head=head.name,
        as_json=as_json,
        markdown=markdown,
        report=folder / "index.html",
        fail_on=fail_on,
    )
    say(f"the report is {near(folder)}/index.html")
    return _STATUS_INTERRUPTED if ended == _INTERRUPTED else status


_Found = tuple[str, Comparison, tuple[Sequence[Run], Sequence[Run]]]
"""Why it ended, what is said of the versions, and base's and head's runs."""


def _in_pairs(
    undo: ExitStack, plan: PairingPlan, base: Version, head: Version, words: Sequence[str], *, fresh: bool
) -> _Found:
    """Both side by side, until every cell is decided."""
    make_folders(plan.folder, "base", "head", "warm-up")
    arms = [
        Arm(
            name=version.name,
            folder=version.folder,
            words=(*version.words, *words),
            log=plan.folder / f"{side}.log",
            fresh=fresh,
        )
        for side, version in (("base", base), ("head", head))
    ]
    live = undo.enter_context(live_lines())
    pairs = Pairing(plan, base=arms[0], head=arms[1], tell=lambda progress: live.show([*progress_lines(progress)]))
    undo.callback(pairs.arms.close)
    try:
        ended = pairs.run(say)
    except KeyboardInterrupt:
        ended = _INTERRUPTED
    return ended, pairs.comparison, pairs.runs


def _in_virtual_time(
    undo: ExitStack, simulated: Simulated, base: Version, head: Version, quantiles: Sequence[float]
) -> _Found:
    """Each in a kernel of its own, in which it has the same place."""
    make_folders(simulated.folder, "base", "head")
    images = images_of((), profiles=(), images={}, say=say, undo=undo)
    campaign = Campaign(simulated, base=base.side(), head=head.side(), environment=images, say=say)
    try:
        ended = campaign.run()
    except KeyboardInterrupt:
        ended = _INTERRUPTED
    runs = campaign.runs
    return ended, compare(*runs, quantiles=quantiles), runs


@dataclass(frozen=True, kw_only=True)
class Version:
    """One of the two: its name, its folder, and the images that it runs."""

    name: str
    folder: Path
    images: tuple[str, ...] = ()
    top: tuple[Path, Path] | None = None
    """In a repository: the top of the user's checkout, and of this version's."""

    def side(self) -> Side:
        """As it is run in virtual time: at the place of the user's checkout."""
        return Side(label=self.name, instead=dict([self.top]) if self.top is not None else {})

    @property
    def words(self) -> list[str]:
        """What pytest is given for its images."""
        return [word for image in self.images for word in ("--testbed-image", image)]


def _checked(
    revision: str | None,
    base_images: Sequence[str],
    head_images: Sequence[str],
    *,
    aa: bool,
    budget: str,
    words: Sequence[str],
    virtual_time: bool,
) -> float:
    """The budget in seconds. Raises UserError with all that is wrong."""
    problems = Problems()
    given = {"--base": revision, "--base-image": base_images, "--head-image": head_images}
    others = [word for word, value in given.items() if value]
    if not others and not aa:
        problems.append("what head is compared with: say --base REV, --base-image SERVICE=IMAGE, or --aa for itself")
    if others and aa:
        problems.append(f"--aa compares this checkout with itself: leave out {' and '.join(others)}")
    for image in (*base_images, *head_images):
        if not all(image.partition("=")[::2]):
            problems.append(f"{shown(image)}: write SERVICE=IMAGE, as in api=shop/api:1.5")
    if virtual_time and (base_images or head_images):
        problems.append("--base-image and --head-image with --virtual-time: there is no engine inside; say --base REV")
    budget_s = 0.0
    with problems.gathered():
        budget_s = budget_of(budget)
    problems += words_of_ours("ab", words, _OURS)
    problems.tell()
    return budget_s


def budget_of(text: str) -> float:
    """A budget in seconds. Raises InvalidValueError."""
    budget_s = parse_time(_MINUTES.sub(r"\1min", text) if _MINUTES.fullmatch(text) else text, name="--budget")
    if budget_s <= 0:
        raise InvalidValueError(f"--budget {shown(text)}: must be more than 0")
    return budget_s


def words_of_ours(command_name: str, words: Sequence[str], ours: Sequence[str]) -> Iterator[str]:
    """A problem for each of pytest's words that a command gives itself, and for workers side by side."""
    for word in words:
        if any(word == option or word.startswith(f"{option}=") for option in ours):
            yield f"{word}: `testbed {command_name}` gives it to pytest itself; leave it out"
        elif word.startswith(("-n", "--numprocesses", "--dist")) and not word.startswith(("--no", "-no")):
            yield f"{word}: `testbed {command_name}` runs one test at a time; leave it out"
        elif word.startswith("--testbed-engines"):
            yield f"{word}: `testbed {command_name}` runs on one engine, which DOCKER_HOST names; leave it out"


def versions(
    undo: ExitStack,
    revision: str | None,
    base_images: tuple[str, ...],
    head_images: tuple[str, ...],
    *,
    dirty: bool,
    alike: bool = False,
) -> tuple[Version, Version]:
    """Base and head; base's worktree is removed by ``undo``. Raises UserError.

    ``alike``: head is a worktree, too, unless it has changes: a checkout has files that git does not know.
    """
    here = Path.cwd()
    if revision is None:
        base_name, head_name = (", ".join(images) or "this checkout" for images in (base_images, head_images))
        return (
            Version(name=f"base ({base_name})", folder=here, images=base_images),
            Version(name=f"head ({head_name})", folder=here, images=head_images),
        )
    repository = worktrees.checkout(here)
    worktrees.clear_stale(say)
    commit = worktrees.commit_of(repository, revision)
    if repository.changed and not dirty:
        raise UserError(
            f"this checkout has changes that are not committed, in {repository.changed[0]!r} and "
            f"{len(repository.changed)} files in all, so its results could not be told by a commit: commit or stash "
            f"them, or say --dirty"
        )
    folder = undo.enter_context(worktrees.worktree(repository, commit))
    head = here
    if alike and not repository.changed:
        head = undo.enter_context(worktrees.worktree(repository, repository.commit))
    changed = " with changes" if repository.changed else ""
    base_name, head_name = ("".join(f", {image}" for image in images) for images in (base_images, head_images))
    named = "" if commit.startswith(revision) else f"{revision}, "
    return (
        Version(
            name=f"base ({named}{commit[:8]}{base_name})",
            folder=folder,
            images=base_images,
            top=(repository.top, worktrees.top_of(repository, folder)),
        ),
        Version(
            name=f"head ({repository.commit[:8]}{changed}{head_name})",
            folder=head,
            images=head_images,
            top=(repository.top, worktrees.top_of(repository, head)),
        ),
    )


def make_folders(folder: Path, *names: str) -> None:
    """Make a folder for results, with these in it. Raises UserError if it is there already, or cannot be."""
    try:
        for name in names:
            (folder / name).mkdir(parents=True, exist_ok=False)
    except FileExistsError as error:
        raise UserError(f"{error.filename}: is there already; say --keep FOLDER with a new one") from None
    except OSError as error:
        raise UserError(f"no results in {folder}: {error.strerror or error}; say --keep FOLDER") from None


def near(folder: Path) -> str:
    """A path as one writes it from here."""
    return os.path.relpath(folder)


# --- progress ----------------------------------------------------------------------------------------


class LiveLines:
    """Progress on the terminal: redrawn where there is one, else the first two lines as one."""

    def __init__(self, live: Live | None) -> None:
        self._live = live

    def show(self, lines: Sequence[str]) -> None:
        """Tell how far it has come."""
        if self._live is None:
            say("; ".join(lines[:2]))
        else:
            self._live.update(Text("\n".join(lines)), refresh=True)


@contextmanager
def live_lines() -> Iterator[LiveLines]:
    """Progress on the terminal, as long as the block lasts."""
    if not ERR.is_terminal:
        yield LiveLines(None)
        return
    with Live(console=ERR, auto_refresh=False, transient=True) as live:
        yield LiveLines(live)


def progress_lines(progress: PairingProgress) -> Iterator[str]:
    """Pairs done, verdicts so far, what it would take to decide the rest."""
    compared = progress.comparison
    verdicts = [f"{len(cells)} {change}" for change in Change if (cells := compared.of(change))]
    thrown = f", {progress.thrown_away} thrown away" if progress.thrown_away else ""
    spent = f"{format_time(round(progress.spent_s))} of {format_time(progress.budget_s)}"
    yield (
        f"pair {progress.pairs}{thrown}: {', '.join(verdicts) or 'nothing to judge yet'}; {spent}, "
        f"{progress.affordable} more pairs fit"
    )
    for judged in sorted(compared.waiting, key=lambda judged: judged.more or 0, reverse=True)[:_MOST_UNDECIDED]:
        yield f"{judged.cell.test}: {judged.cell.name}: {words.effect(judged)}; {words.more_in_words(judged)}"
    for judged in compared.of(Change.REGRESSED):
        yield words.cell_line(judged)


COMMANDS = (ab,)
