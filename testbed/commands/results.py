"""Commands on the results of runs that have ended."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from testbed.commands.console import OUT
from testbed.commands.options import command, example
from testbed.errors import InvalidValueError, Problems
from testbed.evidence import results as written
from testbed.evidence.stored import Session
from testbed.report.files import load
from testbed.report.results import print_session
from testbed.resources import resource

DEFAULT_FILE = Path("report", "results.jsonl")
_SUFFIX = ".jsonl"


def load_all(path: Path) -> list[Session]:
    """The session of a file, or the sessions of every ``.jsonl`` file in a folder and below, by their begin.

    Raises InvalidValueError with every problem of all files.
    """
    if not path.is_dir():
        return [load(path)]
    files = sorted(path.rglob(f"*{_SUFFIX}"))
    if not files:
        raise InvalidValueError(f"{path}: no {_SUFFIX} file in this folder; pytest writes {DEFAULT_FILE}")
    sessions: list[Session] = []
    problems = Problems()
    for file in files:
        with problems.gathered():
            sessions.append(load(file))
    problems.tell()
    return sorted(sessions, key=lambda session: session.started)


def as_json(session: Session) -> dict[str, object]:
    """A session as one object: the head, the tests, the end."""
    return {
        "schema": written.SCHEMA,
        "started": session.started,
        "seed": session.seed,
        "machine": session.machine,
        "tests": [test.last.content for test in session.tests],
        "end": session.end,
        "incomplete": session.incomplete or None,
    }


@command()
@click.option("--json", "as_object", is_flag=True, help="Print the session as one JSON object.")
@click.option("--schema", "show_schema", is_flag=True, help="Print the JSON Schema of a line of a results file.")
@click.argument("file", type=click.Path(path_type=Path), default=DEFAULT_FILE)
@example("""testbed results
             testbed results out/network.jsonl --json""")
def results(as_object: bool, show_schema: bool, file: Path) -> int:
    """Show the results of a pytest run: its tests, their outcomes, links and metrics.

    FILE is what pytest wrote (default: report/results.jsonl). Of a run that was killed, shows what it had. Exit status
    2 if the file is no results file, or breaks off.
    """
    if show_schema:
        sys.stdout.write(resource("testbed/evidence/" + written.SCHEMA_FILE).read_text(encoding="utf-8"))
        return 0
    session = load(file)
    if as_object:
        sys.stdout.write(f"{json.dumps(as_json(session), indent=1)}\n")
    else:
        print_session(OUT, session)
    if session.cut:
        raise InvalidValueError(session.cut)
    if session.incomplete:
        click.echo(f"testbed: {session.incomplete}: was it killed?", err=True)
    return 0


COMMANDS = (results,)
