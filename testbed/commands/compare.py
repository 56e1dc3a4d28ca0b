"""`testbed compare`: a verdict on results that were written before."""

from __future__ import annotations

from pathlib import Path

import click

from testbed.commands.options import command, example
from testbed.commands.results import load_all
from testbed.commands.verdicts import (
    deliver,
    fail_on_option,
    json_option,
    markdown_option,
    quantile_option,
    report_option,
)
from testbed.errors import Problems, UserError
from testbed.judge import comparison
from testbed.versions.runs import as_run, unlike


@command()
@click.option("--across", is_flag=True, help="Compare what was measured on different machines, kernels or links, too.")
@quantile_option
@json_option
@markdown_option
@report_option
@fail_on_option
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("head", type=click.Path(path_type=Path))
@example("""testbed compare baseline.jsonl report/results.jsonl
             testbed compare report/ab/20260801-120000/base report/ab/20260801-120000/head""")
def compare(
    base: Path,
    head: Path,
    across: bool,
    quantiles: tuple[float, ...],
    as_json: bool,
    markdown: Path | None,
    report: Path | None,
    fail_on: str,
) -> int:
    """Judge the results HEAD against the results BASE: files, or folders of them; by pairs where seeds agree.

    Exit status 0 if nothing regressed, 1 if something did, 2 for wrong use or what cannot be compared, 3 if undecided.
    """
    problems, sessions = Problems(), []
    for place in (base, head):
        with problems.gathered():
            sessions.append(load_all(place))
    problems.tell()
    runs = [list(map(as_run, side)) for side in sessions]
    differences = unlike(*runs)
    if differences and not across:
        raise UserError(f"not compared, unless --across is given: {difference.how}" for difference in differences)
    judged = comparison.compare(
        *runs,
        quantiles=quantiles,
        across=[difference.what for difference in differences],
        problems=[session.cut for side in sessions for session in side if session.cut],
    )
    return deliver(
        judged, runs, base=str(base), head=str(head), as_json=as_json, markdown=markdown, report=report, fail_on=fail_on
    )


COMMANDS = (compare,)
