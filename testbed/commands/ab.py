"""`testbed ab`: two versions side by side in one run, until every cell is decided."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.live import Live
from rich.text import Text

from testbed.commands.console import ERR, say
from testbed.commands.options import command, example
from testbed.commands.verdicts import deliver, fail_on_option, json_option, markdown_option, quantile_option
from testbed.commands.virtual import virtual_time_option
from testbed.errors import InvalidValueError, Problems, UserError
from testbed.judge.changes import Change
from testbed.judge.comparison import ALPHA
from testbed.report import comparison as words
from testbed.text import shown
from testbed.units import format_time, parse_time
from testbed.versions import worktrees
from testbed.versions.arm import Arm
from testbed.versions.pairs import Pairing, PairingPlan, PairingProgress

_OURS = ("--testbed-seed", "--testbed-results", "--testbed-passes")
_MINUTES = re.compile(r"([\d.]+)m")
"""As people write them; in an impairment an ``m`` alone could be anything."""
_MOST_UNDECIDED = 3
_INTERRUPTED, _STATUS_INTERRUPTED = "interrupted", 130


@command()
@virtual_time_option
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
    as_json: bool, markdown: Path | None, fail_on: str, pytest_args: tuple[str, ...],
) -> int:  # fmt: skip
    """Run tests on two versions side by side, in pairs of the same losses, and say what regressed.

    Exit status 0 if nothing regressed, 1 if something did, 2 for wrong use or an unfit machine, 3 if undecided.
    """
    budget_s = _checked(revision, base_images, head_images, aa=aa, budget=budget, words=pytest_args)
    begun = datetime.now(UTC)
    folder = (keep or Path("report", "ab", begun.strftime("%Y%m%d-%H%M%S"))).absolute()
    seed = secrets.randbelow(1 << 31) if seed is None else seed
    with ExitStack() as undo:
        base, head = versions(undo, revision, base_images, head_images, dirty=dirty)
        make_folders(folder, "base", "head", "warm-up")
        plan = PairingPlan(
            folder=folder,
            seed=seed,
            budget_s=budget_s,
            most_pairs=most_pairs,
            alpha=ALPHA,
            quantiles=quantiles,
            about={"base": base.name, "head": head.name, "pytest": pytest_args, "started": begun.isoformat()},
        )
        arms = [
            Arm(
                name=version.name,
                folder=version.folder,
                words=(*version.words, *pytest_args),
                log=folder / f"{side}.log",
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
    say(f"{ended}; all results are in {near(folder)}: testbed compare {near(folder)}/base {near(folder)}/head")
    status = deliver(
        pairs.comparison,
        pairs.runs,
        base=base.name,
        head=head.name,
        as_json=as_json,
        markdown=markdown,
        report=folder / "index.html",
        fail_on=fail_on,
    )
    say(f"the report is {near(folder)}/index.html")
    return _STATUS_INTERRUPTED if ended == _INTERRUPTED else status


@dataclass(frozen=True, kw_only=True)
class Version:
    """One of the two: its name, its folder, and the images that it runs."""

    name: str
    folder: Path
    images: tuple[str, ...] = ()

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


def versions(
    undo: ExitStack, revision: str | None, base_images: tuple[str, ...], head_images: tuple[str, ...], *, dirty: bool
) -> tuple[Version, Version]:
    """Base and head; base's worktree is removed by ``undo``. Raises UserError."""
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
    changed = " with changes" if repository.changed else ""
    base_name, head_name = ("".join(f", {image}" for image in images) for images in (base_images, head_images))
    named = "" if commit.startswith(revision) else f"{revision}, "
    return (
        Version(name=f"base ({named}{commit[:8]}{base_name})", folder=folder, images=base_images),
        Version(name=f"head ({repository.commit[:8]}{changed}{head_name})", folder=here, images=head_images),
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
