"""What `testbed ab` and `testbed compare` do with a comparison: print it, write it, and end with a status."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click

from testbed.commands.console import OUT
from testbed.errors import UserError
from testbed.evidence.results import as_text
from testbed.judge.cells import Run
from testbed.judge.comparison import Comparison
from testbed.report import compared, page
from testbed.report import comparison as words
from testbed.writing import to_append, write_whole

quantile_option = click.option(
    "--quantile",
    "quantiles",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    multiple=True,
    metavar="Q",
    help="Also judge this quantile of metrics with 5/(1-Q) samples a run or more, as in 0.9; repeatable.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the verdicts as JSON.")
markdown_option = click.option(
    "--markdown", type=click.Path(path_type=Path), metavar="FILE", help="Also write a summary for a pull request."
)
report_option = click.option(
    "--report", type=click.Path(path_type=Path), metavar="FILE", help="Also write a report as a page of HTML."
)
fail_on_option = click.option(
    "--fail-on",
    type=click.Choice(["regressed", "undecided", "never"]),
    default="undecided",
    show_default=True,
    help="What ends with a status other than 0: what regressed alone, what is undecided too, or nothing.",
)


def deliver(
    comparison: Comparison, runs: Sequence[Sequence[Run]], *, base: str, head: str, as_json: bool,
    markdown: Path | None, report: Path | None, fail_on: str,
) -> int:  # fmt: skip
    """Print a comparison, write its summaries, and return the exit status. Raises UserError if one cannot be written.

    ``runs``: base's and head's, whose samples the report shows. In a GitHub job the summary is added to the job's page,
    too.
    """
    if as_json:
        OUT.print_json(as_text({"base": base, "head": head, **words.as_json(comparison)}))
    else:
        words.print_comparison(OUT, comparison)
    text = words.markdown(comparison, base=base, head=head)
    try:
        if report is not None:
            base_runs, head_runs = runs
            content = compared.page(comparison, base=base, head=head, base_runs=base_runs, head_runs=head_runs)
            write_whole(report, page.render(content), below=Path.cwd())
        summarize(text, markdown)
    except OSError as error:
        raise UserError(f"the summary cannot be written: {error.strerror or error}: {error.filename}") from None
    return words.exit_status(comparison, fail_on)


def summarize(text: str, markdown: Path | None) -> None:
    """Write a summary into a file, and add it to the page of a GitHub job. Raises OSError."""
    if markdown is not None:
        write_whole(markdown, text, below=Path.cwd())
    if step := os.environ.get("GITHUB_STEP_SUMMARY"):
        with to_append(Path(step), below=Path(step).parent) as file:
            file.write(f"{text}\n".encode())
