"""`testbed envelope`: the worst link under which a test still passes."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import click

from testbed.commands.ab import budget_of, live_lines, make_folders, near, versions, words_of_ours
from testbed.commands.console import OUT, say, write
from testbed.commands.options import command, example
from testbed.commands.verdicts import markdown_option, summarize
from testbed.commands.virtual import virtual_time_option
from testbed.errors import Problems, UserError
from testbed.evidence.results import as_text
from testbed.report import envelope as words
from testbed.report import page
from testbed.spec.axis import Axis
from testbed.text import shown
from testbed.units import format_ratio, format_time, parse_ratio
from testbed.versions.arm import Arm
from testbed.versions.searching import Envelope, Searching, SearchPlan, SearchProgress
from testbed.writing import write_whole

_OURS = ("--testbed-seed", "--testbed-results", "--testbed-passes", "--testbed-vary")
_CONFIDENCE = 0.95
_LEVELS, _COLUMNS = 31, 5
_WIDTH_OF_LEVELS = 10
"""The interval is narrow enough where it is one level of so many wide."""
_STATUS_OPEN, _STATUS_INTERRUPTED = 3, 130


@command()
@virtual_time_option
@click.option(
    "--vary",
    "varied",
    multiple=True,
    metavar="WORD=MILD..BAD",
    help="What gets worse, as in loss=0..30%. A second one: the worst of the first is found on each of its values.",
)
@click.option(
    "--probability", default="95%", show_default=True, metavar="SHARE", help="How often the test is to pass at least."
)
@click.option("--base", "revision", metavar="REV", help="Also search this git revision, and say which holds further.")
@click.option(
    "--levels",
    type=click.IntRange(2, 1000),
    default=_LEVELS,
    show_default=True,
    help="Values of the first word, its ends included.",
)
@click.option(
    "--columns",
    type=click.IntRange(2, 100),
    default=_COLUMNS,
    show_default=True,
    help="Values of the second word, its ends included.",
)
@click.option("--budget", default="10m", show_default=True, metavar="TIME", help="How long tests may be run.")
@click.option("--fresh", is_flag=True, help="A new stack, and a new pytest, for each run.")
@click.option("--dirty", is_flag=True, help="With --base: search this checkout although it has uncommitted changes.")
@click.option("--seed", type=click.IntRange(min=0), help="Draw the runs' seeds from it (default: drawn).")
@click.option(
    "--keep", type=click.Path(path_type=Path), help="The folder for all results (default: report/envelope/…)."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@markdown_option
@click.argument("pytest_args", nargs=-1, type=click.UNPROCESSED)
@example("""testbed envelope --vary loss=0..30% tests/test_upload.py
             testbed envelope --vary loss=0..30% --vary delay=0..400ms --budget 30m tests/test_upload.py
             testbed envelope --vary loss=0..30% --base main -- tests/test_upload.py -k large""")
def envelope(
    varied: tuple[str, ...], probability: str, revision: str | None, levels: int, columns: int, budget: str,
    fresh: bool, dirty: bool, seed: int | None, keep: Path | None, as_json: bool, markdown: Path | None,
    pytest_args: tuple[str, ...],
) -> int:  # fmt: skip
    """Find the worst link under which tests still pass, by runs on better and worse links.

    Exit status 0 if it is found, 2 for wrong use or an unfit machine, 3 if the budget is spent before it is known
    closely enough.
    """
    axes, share, budget_s = _checked(varied, (levels, columns), probability, budget, pytest_args)
    begun = datetime.now(UTC)
    folder = (keep or Path("report", "envelope", begun.strftime("%Y%m%d-%H%M%S"))).absolute()
    seed = secrets.randbelow(1 << 31) if seed is None else seed
    with ExitStack() as undo:
        if revision is None:
            named = {"head": ("this checkout", Path.cwd())}
        else:
            base, head = versions(undo, revision, (), (), dirty=dirty)
            named = {"head": (head.name, head.folder), "base": (base.name, base.folder)}
        make_folders(folder, *named)
        plan = SearchPlan(
            folder=folder, seed=seed, budget_s=budget_s, axis=axes[0], across=axes[1] if len(axes) > 1 else None,
            probability=share, alpha=round(1 - _CONFIDENCE, 9), width=max(levels // _WIDTH_OF_LEVELS, 1),
            about={
                "versions": {name: title for name, (title, _) in named.items()}, "pytest": pytest_args, "vary": varied,
                "probability": share, "confidence": _CONFIDENCE, "started": begun.isoformat(),
            },
        )  # fmt: skip
        arms = {
            name: Arm(name=title, folder=place, words=pytest_args, log=folder / f"{name}.log", fresh=fresh)
            for name, (title, place) in named.items()
        }
        live = undo.enter_context(live_lines())
        searching = Searching(
            plan, arms, tell=lambda progress: live.show([*_progress(progress, plan, searching.envelopes)])
        )
        undo.callback(searching.arms.close)
        interrupted = False
        try:
            ended = "found" if searching.run(say) else "the budget is spent before the answer is known closely enough"
        except KeyboardInterrupt:
            ended, interrupted = "interrupted", True
    titles = {name: title for name, (title, _) in named.items()}
    _deliver(plan, searching, named=titles, ended=ended, as_json=as_json, markdown=markdown)
    if interrupted:
        return _STATUS_INTERRUPTED
    return 0 if ended == "found" else _STATUS_OPEN


def _checked(
    varied: Sequence[str], counts: tuple[int, int], probability: str, budget: str, pytest_args: Sequence[str]
) -> tuple[list[Axis], float, float]:
    """The axes, the probability, and the budget in seconds. Raises UserError with all that is wrong."""
    problems = Problems()
    axes: list[Axis] = []
    share = budget_s = 0.0
    if not 1 <= len(varied) <= len(counts):
        problems.append(
            f"--vary is given {len(varied)} times: give one word that gets worse, or two, as in loss=0..30%"
        )
    for text, count in zip(varied, counts, strict=False):
        with problems.gathered():
            axes.append(Axis.parse(text, count))
    if len({axis.word for axis in axes}) < len(axes):
        problems.append(f"--vary {shown(varied[1])}: {axes[0].word} is varied already; give another word")
    with problems.gathered():
        share = parse_ratio(probability, name="--probability")
        if not 0 < share < 1:
            problems.append(f"--probability {shown(probability)}: must be above 0% and below 100%")
    with problems.gathered():
        budget_s = budget_of(budget)
    problems += words_of_ours("envelope", pytest_args, _OURS)
    problems.tell()
    return axes, share, budget_s


def _columns(plan: SearchPlan, envelopes: dict[str, Envelope]) -> Iterator[words.Column]:
    for version, envelope in envelopes.items():
        for number, (search, interval) in enumerate(zip(envelope.searches, envelope.intervals, strict=True)):
            failures = [failure for failure in envelope.failures if failure.column == number and failure.replays]
            mildest = min(failures, key=lambda failure: failure.level, default=None)
            yield words.Column(
                version=version,
                link="" if plan.across is None else plan.across.at(number),
                interval=interval,
                runs=[*zip(search.passed, search.failed, strict=True)],
                replay=None if mildest is None else mildest.replays[0],
            )


def _progress(progress: SearchProgress, plan: SearchPlan, envelopes: dict[str, Envelope]) -> Iterator[str]:
    """The last run, the time, and what is known so far."""
    invalid = f", {progress.invalid} INVALID" if progress.invalid else ""
    yield f"{progress.last}; {format_time(round(progress.spent_s))} of {format_time(plan.budget_s)}{invalid}"
    for column in _columns(plan, envelopes):
        where = f" {column.link}" if column.link else ""
        yield f"{column.version}{where}: {words.sentence(plan.axis, column.interval)}"


def _deliver(
    plan: SearchPlan, searching: Searching, *, named: dict[str, str], ended: str, as_json: bool, markdown: Path | None
) -> None:
    """Print what was found, and write it into the folder. Raises UserError if it cannot be written."""
    columns = [*_columns(plan, searching.envelopes)]
    document = {
        "ended": ended,
        "versions": named,
        "probability": plan.probability,
        "confidence": _CONFIDENCE,
        "seed": plan.seed,
        "invalid_runs": searching.invalid,
        **words.as_json(plan.axis, columns),
    }
    if as_json:
        OUT.print_json(as_text(document))
    else:
        for line in words.sentences(plan.axis, columns, probability=plan.probability, confidence=_CONFIDENCE):
            write(line)
    facts = [("ended", ended), ("seed", str(plan.seed)), ("runs that did not count", str(searching.invalid))]
    facts += [*named.items(), ("passes with", format_ratio(plan.probability))]
    text = words.markdown(
        plan.axis, columns, versions=named, ended=ended, probability=plan.probability, confidence=_CONFIDENCE
    )
    content = words.page_of(plan.axis, plan.across, columns, facts=facts, confidence=_CONFIDENCE)
    try:
        write_whole(plan.folder / "envelope.json", json.dumps(document, indent=2), below=plan.folder)
        write_whole(plan.folder / "index.html", page.render(content), below=plan.folder)
        summarize(text, markdown)
    except OSError as error:
        raise UserError(f"the result cannot be written: {error.strerror or error}: {error.filename}") from None
    say(f"{ended}; all results are in {near(plan.folder)}, the report is {near(plan.folder)}/index.html")


COMMANDS = (envelope,)
