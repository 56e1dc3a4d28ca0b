"""Commands on links: impair, prove, cut and heal them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import click

from testbed.backends.docker.lab import ComposeLab
from testbed.commands.console import OUT
from testbed.commands.labs import NOT_UP, chosen_lab, taken_up
from testbed.commands.options import (
    command,
    compose_file_option,
    example,
    lab_option,
    netem_option,
    reject_option,
    running_lab_option,
    up_deadline_option,
)
from testbed.commands.words import asked_of
from testbed.errors import UserError
from testbed.evidence.verdict import Verdict
from testbed.judge.statistics import ALPHA
from testbed.lab.lab import Lab
from testbed.report import evidence
from testbed.spec.impairment import CLEAN
from testbed.spec.links import LinkRef
from testbed.text import shortened, shown


@command()
@compose_file_option
@running_lab_option
@click.argument("link")
@click.argument("what", nargs=-1, required=True, metavar="PROFILE | WORD=VALUE… | STEPS")
@example("""testbed impair "client <-> server" lossy
             testbed impair "client -> server" delay=40ms jitter=5ms loss=2%
             testbed impair "client -> server" "[{delay: 40ms}, {at: 5s, outage: 2s}, {repeat: 10s}]"
             testbed impair "client -> server" trace=traces/tunnel.csv""")
def impair(compose_file: tuple[Path, ...], link: str, what: tuple[str, ...]) -> int:
    """Impair LINK of the running stack, with a profile, with words or with a list of steps, and read it back."""
    lab = taken_up(compose_file, lambda lab: asked_of(lab, link, what))
    try:
        asked = asked_of(lab, link, what)
        for applied in lab.impair(asked.link, asked.profile, **asked.words):
            OUT.print(
                f"{applied.link}: {shortened(applied.describe())}   ({shortened(applied.command)})",
                markup=False,
                soft_wrap=True,
            )
            for line in applied.asked.realised:
                OUT.print(f"    warning: {line}", markup=False, soft_wrap=True)
    finally:
        lab.leave()
    return 0


@command()
@compose_file_option
@lab_option
@netem_option
@up_deadline_option
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.option("--seconds", type=click.FloatRange(0.1, 600), default=2.5, show_default=True,
              help="How long probes are sent in each direction. More time finds smaller differences.")  # fmt: skip
@click.option("--alpha", type=click.FloatRange(1e-12, 0.1), default=ALPHA, show_default=True,
              help="Probability that a link that is as asked fails.")  # fmt: skip
@click.option("--tolerance", type=click.FloatRange(0.001, 1),
              help="Relative error to detect in a share: 0.5 for half too many. Refused if that takes longer than "
                   "--seconds.")  # fmt: skip
@click.argument("link")
@click.argument("what", nargs=-1, metavar="[PROFILE | WORD=VALUE…]")
@example("""testbed prove "client <-> server" lossy
             testbed prove "client -> server" delay=40ms jitter=5ms loss=2%
             testbed prove --tolerance 0.2 --seconds 30 "client -> server" loss=2%""")
def prove(
    compose_file: tuple[Path, ...], kind: str, netem: str, up_deadline: str, as_json: bool, seconds: float,
    alpha: float, tolerance: float | None, link: str, what: tuple[str, ...],
) -> int:  # fmt: skip
    """Impair LINK and prove it: read the kernel back, send probes, show asked, kernel and seen side by side.

    If `testbed up` started a stack, it is used, and the link stays impaired; without PROFILE or words the link is
    proven as it is. Else a stack is started for this command. Exit status 1 if the link is not as asked.
    """
    lab = chosen_lab(kind, compose_file, netem, up_deadline=up_deadline)
    asked = asked_of(lab, link, what) if what else None
    refs = lab.topology.links(link)
    known = asked.wanted if asked is not None else {}
    wanted = {ref: known.get(ref, CLEAN) for ref in refs}
    lab.prober.plan(wanted, alpha=alpha, most_s=seconds, tolerance=tolerance)
    with ExitStack() as undo:
        if isinstance(lab, ComposeLab) and lab.take_up():
            undo.callback(lab.leave)
        elif asked is None:
            raise UserError(f"{NOT_UP}; or say what the link is to be impaired with: testbed prove {shown(link)} lossy")
        else:
            undo.enter_context(lab)
        now = wanted if asked is not None else {ref: lab.prober.asked(ref) for ref in refs}
        lab.prober.plan(now, alpha=alpha, most_s=seconds, tolerance=tolerance)  # here it may be cut
        if asked is not None:
            lab.impair(asked.link, asked.profile, **asked.words)
        for ref in refs:
            held = lab.verifier.held_now(ref)
            if held is None or not held.found:  # what is not there is told as it was found
                lab.prober.probe(ref, alpha=alpha, most_s=seconds, tolerance=tolerance)
        found = [lab.prober.proven(ref) for ref in refs]
    if as_json:
        OUT.print_json(json.dumps([each.as_json() for each in found]))
    else:
        for each in found:
            for line in evidence.lines(each, explained=True):
                OUT.print(line, markup=False, soft_wrap=True)
    return 1 if any(each.read_back is Verdict.FAILS or each.probe is Verdict.FAILS for each in found) else 0


@command()
@compose_file_option
@running_lab_option
@reject_option
@click.argument("link")
@example("""testbed cut "client <-> server"
             testbed cut --reject "client -> server tcp/8888" """)
def cut(compose_file: tuple[Path, ...], link: str, *, reject: bool) -> int:
    """Cut LINK of the running stack: all its packets are lost, silently, until `testbed heal`."""
    return _cut(
        compose_file, lambda lab: lab.topology.links(link), lambda lab: lab.cut(link, reject=reject), reject=reject
    )


def _cut(
    compose_file: tuple[Path, ...], check: Callable[[Lab], object], cut_links: Callable[[Lab], Iterable[LinkRef]], *,
    reject: bool,
) -> int:  # fmt: skip
    lab = taken_up(compose_file, check)
    try:
        for ref in cut_links(lab):
            OUT.print(f"{ref}: cut, {'rejecting' if reject else 'silently'}", markup=False)
    finally:
        lab.leave()
    return 0


@command()
@compose_file_option
@running_lab_option
@reject_option
@click.argument("group")
@click.argument("others", nargs=-1, required=True, metavar="GROUP…")
@example("""testbed partition client server
             testbed partition --reject a,b c,d e""")
def partition(compose_file: tuple[Path, ...], group: str, others: tuple[str, ...], *, reject: bool) -> int:
    """Cut every link between hosts of different groups of the running stack, both ways, until `testbed heal`.

    A group is one host, or several with commas between them; hosts in no group keep all their links.
    """
    groups = [[host.strip() for host in each.split(",")] for each in (group, *others)]
    return _cut(
        compose_file, lambda lab: lab.topology.links_between(*groups),
        lambda lab: lab.partition(*groups, reject=reject), reject=reject,
    )  # fmt: skip


@command()
@compose_file_option
@running_lab_option
@reject_option
@click.argument("host")
@example("testbed isolate server")
def isolate(compose_file: tuple[Path, ...], host: str, *, reject: bool) -> int:
    """Cut every link of HOST of the running stack, both ways, until `testbed heal`."""
    return _cut(
        compose_file, lambda lab: lab.topology.links_around(host), lambda lab: lab.isolate(host, reject=reject),
        reject=reject,
    )  # fmt: skip


@command()
@compose_file_option
@running_lab_option
@click.option("--up", required=True, metavar="TIME", help="How long the link is up.")
@click.option("--down", required=True, metavar="TIME", help="How long the link is down.")
@click.option("--reject", is_flag=True, help="While it is cut, answer lost packets as `testbed cut --reject` does.")
@click.argument("link")
@example("""testbed flap --up 2s --down 500ms "client <-> server" """)
def flap(compose_file: tuple[Path, ...], up: str, down: str, link: str, *, reject: bool) -> int:
    """Have LINK of the running stack go up and down until `testbed heal`. Its impairment stays."""
    lab = taken_up(compose_file, lambda lab: lab.check_flap(link, up=up, down=down))
    try:
        lab.flap(link, up=up, down=down, reject=reject)
        for ref in lab.topology.links(link):
            OUT.print(f"{ref}: flapping, up {up}, down {down}, {'rejecting' if reject else 'silently'}", markup=False)
    finally:
        lab.leave()
    return 0


@command()
@compose_file_option
@running_lab_option
@click.argument("link", required=False)
@example("""testbed heal "client -> server"
             testbed heal""")
def heal(compose_file: tuple[Path, ...], link: str | None) -> int:
    """Take the impairment off LINK, or off every link, and end its cut."""
    lab = taken_up(compose_file, lambda lab: lab.topology.links(link) if link else None)
    try:
        refs = lab.topology.links(link) if link else tuple(dict.fromkeys([*lab.ports.impaired, *lab.ports.cut]))
        for ref in refs:
            lab.impairer.clear(ref)
            lab.mend_link(ref)
            OUT.print(f"{ref}: healed", markup=False)
        lab.release()
    finally:
        lab.leave()
    return 0


COMMANDS = (impair, prove, cut, partition, isolate, flap, heal)
