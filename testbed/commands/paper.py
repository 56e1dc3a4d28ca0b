"""Commands on the paper: its demonstration, and the tests of its claims."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from testbed import paper as the_paper
from testbed.backends.choice import decide
from testbed.commands.console import OUT, say, see_room, write
from testbed.commands.labs import OwnStack, own_stack_options
from testbed.commands.options import command, example
from testbed.commands.virtual import Again, virtual_time_option
from testbed.evidence.verdict import Verdict
from testbed.kernel.variables import is_inside
from testbed.paper import demo as demonstration
from testbed.paper.demopage import demo_page
from testbed.paper.demotable import LiveDemo, print_server_output, print_undelivered
from testbed.paper.outcomes import ClaimOutcome
from testbed.writing import write_whole


def _report_option(default: Path, help_text: str) -> Callable[[Any], Any]:
    path = click.Path(path_type=Path, file_okay=False)
    return click.option(
        "--report", "folder", type=path, default=default, show_default=True, metavar="FOLDER", help=help_text
    )


@command()
@virtual_time_option
@own_stack_options
@click.option("--messages", type=click.IntRange(1, 1000), default=20, show_default=True, help="Messages per profile.")
@_report_option(Path("report"), "Where demo.json and index.html go.")
@click.argument("profiles", nargs=-1)
@example("""testbed demo
             testbed demo --messages 50 clean latency awful""")
def demo(
    stack: OwnStack,
    messages: int,
    folder: Path,
    profiles: tuple[str, ...],
) -> int:
    """Run the paper's client and server across the stack under each of PROFILES.

    Without PROFILES: clean lan latency lossy lossy-latency awful. Exit status 1 if a message was lost: the server did
    not print it, and no kernel still holds it. Messages that TCP is still sending at the end are listed separately.
    """
    lab = stack.lab()
    demonstration.check(lab, profiles or demonstration.PROFILES)  # before anything is started
    see_room(folder, "demo.json", "index.html")
    with lab, LiveDemo(OUT) as live:
        run = demonstration.run(lab, profiles or demonstration.PROFILES, messages=messages, see=live.update)
    print_undelivered(OUT, run)
    print_server_output(OUT, run)
    write_whole(folder / "demo.json", json.dumps(run.as_json(), indent=1), below=Path.cwd())
    write_whole(folder / "index.html", demo_page(run), below=Path.cwd())
    write(f"\nWritten: {folder / 'index.html'} (every message a point), {folder / 'demo.json'}")
    return 1 if run.lost else 0


def _in_kernels(again: Again, arguments: Mapping[str, Any]) -> int:
    """Each claim in a kernel of its own: its outcome is the same with and without the others."""
    claims = the_paper.chosen(arguments["only"].split(","))
    folder, as_json = again.folder, arguments["as_json"]
    outcomes: dict[str, ClaimOutcome] = {}
    see_room(folder, *the_paper.WRITTEN)
    shares = the_paper.shares(claims)
    with again.shared([("--only", ",".join(share)) for share in shares]) as written:
        of = {name: folder for share, folder in zip(shares, written, strict=True) for name in share}
        for claim in claims:
            inputs, theirs = the_paper.read(of[claim.id].result())
            outcomes[claim.id] = theirs[claim.id]
            the_paper.take_evidence(of[claim.id].result(), folder, theirs[claim.id])
            _tell(claim.id, outcomes, folder, inputs, as_json=as_json)
    return _tell_all(claims, outcomes, folder, as_json=as_json)


@command()
@partial(virtual_time_option, run_again=_in_kernels)
@own_stack_options
@click.option("--only", default="", metavar="C2,C6", help="Only these claims.")
@click.option("--quick", is_flag=True, help="Try fewer conditions; takes a minute or two.")
@click.option("--again", is_flag=True, help="Repeat claims whose outcome FOLDER already has.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcomes as JSON.")
@_report_option(Path("report", "paper"), "Where claims.json, pages and evidence go.")
@example("""testbed paper --quick
             testbed paper --only C2,C6""")
def paper(
    stack: OwnStack,
    only: str,
    quick: bool,
    again: bool,
    as_json: bool,
    folder: Path,
) -> int:
    """Put the paper's claims to the test, and write a report.

    Each outcome is written to FOLDER at once. The next run keeps it, unless the experiments or the lab have changed.
    Exit status 1 if a claim could not be decided (INVALID). A claim that BREAKS is a finding, not a failure.
    """
    claims = the_paper.chosen(only.split(","))
    inputs = the_paper.inputs(decide(stack.kind)[0], netem=stack.netem, quick=quick)
    outcomes = {} if again and not only else the_paper.kept(folder, inputs)
    todo = [claim for claim in claims if again or claim.id not in outcomes]
    for claim in todo:
        outcomes.pop(claim.id, None)
    see_room(folder, *the_paper.WRITTEN)
    if len(todo) < len(claims):
        say(f"{len(claims) - len(todo)} of {len(claims)} claims are decided already, in {folder}; --again repeats them")
    if todo:
        with stack.lab() as lab:
            for number, claim in enumerate(todo, 1):
                count = "" if is_inside() else f"[{number}/{len(todo)}] "
                say(f"{count}{claim.id} {claim.name}: {claim.text}")
                outcome = the_paper.examine(claim, lab, folder, quick=quick, say=say, earlier=outcomes)
                outcomes[claim.id] = outcome
                _tell(claim.id, outcomes, folder, inputs, as_json=as_json)
    the_paper.write_report(folder, outcomes, inputs)
    return _tell_all(claims, outcomes, folder, as_json=as_json)


def _tell(
    name: str,
    outcomes: Mapping[str, ClaimOutcome],
    folder: Path,
    inputs: Mapping[str, object],
    *,
    as_json: bool,
) -> None:
    """Write and print the outcome of a claim, which was just found."""
    the_paper.keep(folder, outcomes, inputs)
    the_paper.write_report(folder, outcomes, inputs)
    if not as_json:
        write(f"{name:<4}{outcomes[name].finding.of('claim'):<13} {outcomes[name].sentence}")


def _tell_all(
    claims: Sequence[the_paper.Claim], outcomes: Mapping[str, ClaimOutcome], folder: Path, *, as_json: bool
) -> int:
    """Print all outcomes; returns the exit status."""
    decided = {claim.id: outcomes[claim.id] for claim in claims}
    if as_json:
        OUT.print_json(json.dumps({name: outcome.as_json() for name, outcome in decided.items()}))
    else:
        table = Table("claim", "", "verdict", "took")
        for name, outcome in decided.items():
            table.add_row(name, the_paper.CLAIMS[name].text, outcome.finding.of("claim"), f"{outcome.took_s:.0f} s")
        OUT.print(table)
        write(f"Written: {folder / 'index.html'}, and the evidence beside it")
    return 1 if any(outcome.finding is Verdict.INVALID for outcome in decided.values()) else 0


COMMANDS = (demo, paper)
