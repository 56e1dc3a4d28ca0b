"""`testbed baseline`: results under a name, as files that can be committed or kept as a CI artefact."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
from rich import box
from rich.table import Table
from rich.text import Text

from testbed.commands.console import OUT, say
from testbed.commands.options import command, example
from testbed.commands.results import DEFAULT_FILE, load_all
from testbed.errors import InvalidValueError, UserError
from testbed.evidence.results import as_text
from testbed.evidence.results import end as end_line
from testbed.evidence.results import head as head_line
from testbed.evidence.stored import Session
from testbed.evidence.verdict import Verdict
from testbed.report.results import machine_rows, print_session
from testbed.text import several, shown, visible
from testbed.writing import write_whole

FOLDER = Path("baselines")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_folder_option = click.option(
    "--folder", type=click.Path(path_type=Path), default=FOLDER, show_default=True, help="Where baselines are kept."
)


@click.group()
@example("""testbed baseline save main
             testbed compare baselines/main report/results.jsonl""")
def baseline() -> None:
    """Keep results under a name, to compare later ones with."""


@command()
@_folder_option
@click.option("--replace", is_flag=True, help="Put it in the place of a baseline of the same name.")
@click.argument("name")
@click.argument("results", type=click.Path(path_type=Path), default=DEFAULT_FILE)
@example("testbed baseline save main report/results.jsonl")
def save(folder: Path, replace: bool, name: str, results: Path) -> int:
    """Save RESULTS, a results file or a folder of them, as the baseline NAME.

    RESULTS is by default report/results.jsonl. What programs printed is left out, so that the files stay small.
    """
    sessions = load_all(results)
    problems = [session.incomplete for session in sessions if session.incomplete]
    if not _NAME.fullmatch(name):
        problems.append(
            f"name {shown(name)}: must be letters, digits, '.', '_' and '-', and begin with one of the first"
        )
    elif (folder / name).exists() and not replace:
        problems.append(f"{folder / name} is there already; --replace puts this in its place")
    problems += [f"{session.name}: has no test" for session in sessions if not session.tests]
    if problems:
        raise UserError(problems)
    _write(folder / name, sessions)
    for warning in _doubts(sessions):
        say(f"warning: {warning}")
    OUT.print(str(folder / name), markup=False, soft_wrap=True)
    return 0


def _write(folder: Path, sessions: Sequence[Session]) -> None:
    """Each session as a file of its own; files of an earlier baseline go first."""
    try:
        for old in folder.glob("*.jsonl"):
            old.unlink()
        for number, session in enumerate(sessions, start=1):
            text = "".join(f"{line}\n" for line in _lines(session))
            write_whole(folder / f"{number:03}.jsonl", text, below=Path.cwd())
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}; say --folder FOLDER") from None


def _lines(session: Session) -> Iterator[str]:
    machine = session.tests[0].machine
    yield as_text(head_line(started=session.started, seed=session.seed, machine=machine))
    for test in session.tests:
        if test.machine != machine:
            machine = test.machine
            yield as_text({"machine": machine})
        runs = [
            {**run, "output": "", "output_left_out": run["output_left_out"] + len(run["output"])}
            for run in test.last.content["programs"]
        ]
        yield as_text({"test": {**test.last.content, "programs": runs, "captures": [], "packets": None}})
    yield as_text({"end": session.end} if session.end is not None else end_line(duration_s=0.0, exit_status=0))


def _doubts(sessions: Sequence[Session]) -> Iterator[str]:
    """What may make a baseline worse than it need be."""
    bad = [test.id for session in sessions for test in session.tests if test.last.outcome is not Verdict.HOLDS]
    if bad:
        yield f"not passed: {several(list(dict.fromkeys(bad)))}"
    if any((session.machine.get("git") or {}).get("dirty") for session in sessions):
        yield "measured with uncommitted changes: the commit does not tell what was measured"


@command()
@_folder_option
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.argument("name", required=False)
@example("""testbed baseline show
             testbed baseline show main""")
def show(folder: Path, as_json: bool, name: str | None) -> int:
    """List the baselines, or show the baseline NAME: its runs, their tests and metrics."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if name is not None and name not in names:
        known = f"there are: {', '.join(names)}" if names else "there is none; `testbed baseline save NAME` makes one"
        raise InvalidValueError(f"baseline {shown(name)}: not in {folder}; {known}")
    runs = {baseline: load_all(folder / baseline) for baseline in ([name] if name is not None else names)}
    if as_json:
        briefs = {baseline: [_brief(session) for session in sessions] for baseline, sessions in runs.items()}
        OUT.print_json(json.dumps(briefs))
    elif name is not None:
        for session in runs[name]:
            print_session(OUT, session)
    else:
        table = Table("baseline", "measured", "commit", "runs", "tests", "machine", box=box.SIMPLE_HEAD, pad_edge=False)
        for baseline, sessions in runs.items():
            facts = dict(machine_rows(sessions[0].machine))
            where = ", ".join(facts[key] for key in ("lab", "netem", "kernel", "processor") if key in facts)
            cells = (
                baseline,
                sessions[0].started,
                facts.get("commit", "—"),
                str(len(sessions)),
                str(_tests(sessions)),
                where,
            )
            table.add_row(*(Text(visible(cell)) for cell in cells))
        OUT.print(table)
    return 0


def _tests(sessions: Sequence[Session]) -> int:
    return len({test.id for session in sessions for test in session.tests})


def _brief(session: Session) -> dict[str, object]:
    return {
        "file": session.name,
        "started": session.started,
        "seed": session.seed,
        "machine": session.machine,
        "tests": [test.id for test in session.tests],
    }


baseline.add_command(save)
baseline.add_command(show)

COMMANDS = (baseline,)
