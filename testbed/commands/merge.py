"""`testbed merge`: the results, JUnit files, packets and reports of several runs as those of one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from testbed.commands.console import OUT
from testbed.commands.options import command, example
from testbed.commands.results import DEFAULT_FILE
from testbed.errors import Problems, UserError
from testbed.evidence import merging, stored
from testbed.evidence.stored import Session
from testbed.reading import read_text
from testbed.report import junit, page, run
from testbed.report.files import is_results, load
from testbed.text import several
from testbed.writing import make_room, write_whole

_JUNIT, _PAGE, _CAPTURES = "junit.xml", "index.html", "captures"
_MOST_BYTES = 1 << 30


@command()
@click.option(
    "--into",
    type=click.Path(path_type=Path),
    default=DEFAULT_FILE.parent,
    show_default=True,
    metavar="FOLDER",
    help="Where results.jsonl, index.html, junit.xml and captures/ are written.",
)
@click.argument("inputs", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="RESULT...")
@example("testbed merge shard-1 shard-2 shard-3 --into report")
def merge(into: Path, inputs: tuple[Path, ...]) -> int:
    """Merge the results of shards (pytest --testbed-shard), or of runs that share no test, into those of one run.

    RESULT is a folder in which a run left its results, JUnit file and captures, or a results file or a JUnit file.
    Exit status 1 if a shard is missing or its run broke off; the rest is merged all the same.
    """
    problems = Problems()
    results, units = _files(inputs, problems)
    target = into / DEFAULT_FILE.name
    if any(path.resolve() in (target.resolve(), (into / _JUNIT).resolve()) for path in (*results, *units)):
        problems.append(f"{into} is an input, too, and would be overwritten; say --into ANOTHER-FOLDER")
    loaded: dict[Path, Session] = {}
    for path in results:
        with problems.gathered():
            loaded[path] = load(path)
    sessions: list[Session] = []
    if not problems:
        with problems.gathered():
            sessions = merging.in_order([*loaded.values()])
    problems.tell()
    paths = {session.name: path for path, session in loaded.items()}
    unit = junit.merged(_in_order(units, [paths[session.name] for session in sessions])) if units else None
    packets: dict[Path, Path] = {}
    lost: list[str] = []

    def place(session: Session, path: str) -> str:
        source = _captured(paths[session.name], path)
        if source is None:
            lost.append(path)
            return path
        packets[source] = into / _CAPTURES / Path(path).parent.name / Path(path).name
        return str(packets[source])

    text = "".join(f"{line}\n" for line in merging.merged(sessions, place=place))
    whole = stored.read(text.splitlines(keepends=True), name=target.name)
    below = Path.cwd()
    try:
        make_room(target, below)
        for source, new in packets.items():
            write_whole(new, source.read_bytes(), below=below)
        write_whole(target, text, below=below)
        if unit is not None:
            write_whole(into / _JUNIT, unit, below=below)
        if whole.tests:
            write_whole(into / _PAGE, page.render(run.page(whole)), below=below)
    except OSError as error:
        raise UserError(f"{into} cannot be written: {error.strerror or error}; say --into FOLDER") from None
    OUT.print(str(target), markup=False, soft_wrap=True)
    if lost:
        click.echo(f"testbed: not beside the results, so not merged: {several(lost)}", err=True)
    missing = merging.missing(sessions)
    for reason in missing:
        click.echo(f"testbed: {reason}", err=True)
    return 1 if missing else 0


def _files(inputs: tuple[Path, ...], problems: list[str]) -> tuple[list[Path], list[Path]]:
    """The results files and the JUnit files that these folders and files are."""
    results: dict[Path, None] = {}
    units: dict[Path, None] = {}
    for path in inputs:
        if not path.exists():
            problems.append(f"{path}: no such file or folder")
            continue
        files = sorted(path.rglob("*.jsonl")) + sorted(path.rglob("*.xml")) if path.is_dir() else [path]
        own = [file for file in files if is_results(file)]
        xml = [file for file in files if file.suffix == ".xml"]
        if not own and not xml:
            what = "has no results of testbed and no JUnit file in it" if path.is_dir() else "is neither"
            problems.append(f"{path}: {what}; give results.jsonl, the file of --junitxml, or their folder")
        results |= dict.fromkeys(own)
        units |= dict.fromkeys(xml)
    if not results and not problems:
        problems.append("no results file among these: JUnit files alone say nothing of links")
    return [*results], [*units]


def _in_order(units: list[Path], results: list[Path]) -> Mapping[str, str]:
    """The texts of JUnit files, in the order of the results that they lie next to."""

    def place(unit: Path) -> int:
        parents = {*unit.resolve().parents}
        shared = [len(parents & {*result.resolve().parents}) for result in results]
        return shared.index(max(shared))

    texts: dict[str, str] = {}
    problems = Problems()
    for unit in sorted(units, key=place):
        with problems.gathered():
            texts[str(unit)] = read_text(unit, most_bytes=_MOST_BYTES)
    problems.tell()
    return texts


def _captured(results: Path, path: str) -> Path | None:
    """Where a file of packets is, whose path begins where pytest was started: beside the results, or above them."""
    # An artefact keeps `report`, or only what is in it.
    names = [Path(path), *(Path(*Path(path).parts[left:]) for left in range(1, len(Path(path).parts) - 1))]
    for name in names:
        for folder in results.resolve().parents[:3]:
            if not name.is_absolute() and ".." not in name.parts and (folder / name).is_file():
                return folder / name
    return None


COMMANDS = (merge,)
