"""Commands on a whole stack: bring it up, show it, take it down."""

from __future__ import annotations

import json
from pathlib import Path

import click

from testbed.backends.docker.engine import Engine
from testbed.backends.docker.lab import ComposeLab
from testbed.backends.docker.runs import clear_stale, foreigners, remove_run, runs
from testbed.commands.console import OUT, say, write
from testbed.commands.labs import NOT_UP, running
from testbed.commands.options import (
    command,
    compose_file_option,
    compose_profile_option,
    example,
    netem_option,
    running_lab_option,
    up_deadline_option,
)
from testbed.errors import UserError
from testbed.evidence.verdict import Verdict
from testbed.report import console as tables
from testbed.report import evidence
from testbed.versions.worktrees import clear_stale as clear_trees


@command()
@compose_file_option
@running_lab_option
@compose_profile_option
@netem_option
@up_deadline_option
@example("testbed up --netem carried --up-deadline 10min")
def up(compose_file: tuple[Path, ...], compose_profile: tuple[str, ...], netem: str, up_deadline: str) -> int:
    """Bring the stack up, ready to be impaired; it stays until `testbed down`."""
    lab = ComposeLab(
        compose_file,
        netem=netem,
        compose_profiles=compose_profile,
        up_deadline=up_deadline,
        say=say,
        outlives_us=True,
    )
    if lab.take_up():
        write(f"already up, as run {lab.run_id}: {', '.join(lab.hosts)}")
    else:
        lab.up()
        write(f"up, as run {lab.run_id} ({lab.netem_engine} netem): {', '.join(lab.hosts)}")
    lab.leave()
    return 0


@command()
@compose_file_option
@running_lab_option
@click.option(
    "--stale",
    is_flag=True,
    help="Also remove what killed runs left: stacks of any Compose file, worktrees of `testbed ab`.",
)
@click.option("--all", "everything", is_flag=True, help="Remove every run of testbed on the engine, alive or not.")
@example("""testbed down
             testbed down --stale""")
def down(compose_file: tuple[Path, ...], stale: bool, everything: bool) -> int:
    """Heal and remove the stack that `testbed up` started here."""
    if stale or everything:
        clear_trees(say)
        engine = Engine()
        problems: list[str] = []
        if everything:
            ids = []
            for run in runs(engine):
                remove_run(engine, run.id, run.owner)
                ids.append(run.id)
        else:
            ids, problems = clear_stale(engine, say)
        for foreigner in foreigners(engine):
            say(f"left alone: {foreigner}")
        write(f"removed: {', '.join(ids) or ('nothing' if problems else 'nothing was left')}")
        return 1 if problems else 0
    lab = ComposeLab(compose_file, say=say)
    if lab.take_up():
        lab.down()
        ids = [lab.run_id]
    elif not (ids := lab.stack.remove_left()):
        raise UserError(NOT_UP)
    write(f"down: run {', '.join(ids)}")
    return 0


@command()
@compose_file_option
@running_lab_option
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@example("testbed show --json")
def show(compose_file: tuple[Path, ...], as_json: bool) -> int:
    """Show the running stack: hosts, each impaired link as asked and as the kernel has it, and each cut.

    Exit status 1 if a link is not as asked.
    """
    with running(compose_file) as lab:
        held = {ref: lab.verifier.held_now(ref) for ref in lab.ports.impaired}
        cuts = [lab.cutter.evidence(ref) for ref in lab.ports.cut]
        hosts = {name: list(host.addresses()) for name, host in lab.hosts.items()}
    links = [
        {
            "link": str(ref),
            "network": ref.network,
            "asked": state.impairment.words(),
            "kernel": state.netem,
            "differences": [str(difference) for difference in state.differences],
            "realised": state.impairment.realised,
        }
        for ref, state in held.items()
        if state is not None
    ]
    if as_json:
        body = {"run": lab.run_id, "engine": lab.netem_engine, "hosts": hosts, "links": links}
        OUT.print_json(json.dumps({**body, "cuts": [cut.as_json() for cut in cuts]}))
    else:
        tables.print_stack(OUT, run_id=lab.run_id, engine=lab.netem_engine, hosts=hosts, links=links, cuts=len(cuts))
        for cut in cuts:
            for line in evidence.lines(cut):
                write(line)
    good = all(not link["differences"] for link in links) and all(cut.read_back is not Verdict.FAILS for cut in cuts)
    return 0 if good else 1


COMMANDS = (up, down, show)
