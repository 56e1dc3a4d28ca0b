"""Commands on links: impair, prove, cut and heal them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import click

from testbed.commands.console import OUT, write
from testbed.commands.labs import NOT_UP, OwnStack, own_stack_options, running, running_or_own
from testbed.commands.options import (
    command,
    compose_file_option,
    example,
    reject_option,
    running_lab_option,
)
from testbed.commands.words import link_request
from testbed.evidence.verdict import Verdict
from testbed.judge.statistics import ALPHA
from testbed.lab.cutter import check_flap
from testbed.lab.lab import Lab
from testbed.lab.wanted import notes
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
    with running(compose_file, lambda lab: link_request(lab, link, what)) as lab:
        request = link_request(lab, link, what)
        for applied in request.impair(lab):
            write(f"{applied.link}: {shortened(applied.describe())}   ({shortened(applied.command)})")
            for line in applied.impairment.realised:
                write(f"    warning: {line}")
        for line in notes(request.wanted, machine_is_ours=lab.machine_is_ours):
            write(f"note: {line}")
    return 0


@command()
@own_stack_options
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 600),
    default=2.5,
    show_default=True,
    help="How long probes are sent in each direction. More time detects smaller differences.",
)
@click.option(
    "--alpha",
    type=click.FloatRange(1e-12, 0.1),
    default=ALPHA,
    show_default=True,
    help="Probability that a link that is as asked fails.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0.001, 1),
    help="Relative error to detect in a share (0.5 = 50 %). Refused if that takes longer than --seconds.",
)
@click.argument("link")
@click.argument("what", nargs=-1, metavar="[PROFILE | WORD=VALUE…]")
@example("""testbed prove "client <-> server" lossy
             testbed prove "client -> server" delay=40ms jitter=5ms loss=2%
             testbed prove --tolerance 0.2 --seconds 30 "client -> server" loss=2%""")
def prove(
    stack: OwnStack,
    as_json: bool,
    seconds: float,
    alpha: float,
    tolerance: float | None,
    link: str,
    what: tuple[str, ...],
) -> int:
    """Impair LINK and prove it: read the kernel back, send probes, show asked, kernel and seen side by side.

    If `testbed up` started a stack, it is used, and the link stays impaired; without PROFILE or words the link is
    proven as it is. Else a stack is started for this command. Exit status 1 if the link is not as asked.
    """
    lab = stack.lab()
    request = link_request(lab, link, what) if what else None
    refs = lab.topology.links(link)
    impairments = {ref: request.wanted.get(ref, CLEAN) if request is not None else CLEAN for ref in refs}
    shared = request.shared if request is not None else ()
    lab.prober.plan(impairments, alpha=alpha, most_s=seconds, tolerance=tolerance, shared=shared)
    none_to_prove = f"{NOT_UP}; or say what the link is to be impaired with: testbed prove {shown(link)} lossy"
    with running_or_own(lab, unless="" if request is not None else none_to_prove):
        now = impairments if request is not None else {ref: lab.prober.asked(ref) for ref in refs}
        lab.prober.plan(now, alpha=alpha, most_s=seconds, tolerance=tolerance)  # a running stack's link may be cut
        if request is not None:
            request.impair(lab)
        for ref in refs:
            held = lab.verifier.held_now(ref)
            if held is None or not held.differences:  # a link that is not as asked is reported without probing
                lab.prober.probe(ref, alpha=alpha, most_s=seconds, tolerance=tolerance)
        links = [lab.prober.proven(ref) for ref in refs]
    if as_json:
        OUT.print_json(json.dumps([proven.as_json() for proven in links]))
    else:
        for proven in links:
            for line in evidence.lines(proven, explained=True):
                write(line)
    return 1 if any(Verdict.FAILS in (proven.read_back, proven.probe) for proven in links) else 0


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
    compose_file: tuple[Path, ...],
    check: Callable[[Lab], object],
    cut_links: Callable[[Lab], Iterable[LinkRef]],
    *,
    reject: bool,
) -> int:
    with running(compose_file, check) as lab:
        for ref in cut_links(lab):
            write(f"{ref}: cut, {_how(reject)}")
    return 0


def _how(reject: bool) -> str:
    return "rejecting" if reject else "silently"


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
    groups = [[host.strip() for host in names.split(",")] for names in (group, *others)]
    return _cut(
        compose_file,
        lambda lab: lab.topology.links_between(*groups),
        lambda lab: lab.partition(*groups, reject=reject),
        reject=reject,
    )


@command()
@compose_file_option
@running_lab_option
@reject_option
@click.argument("host")
@example("testbed isolate server")
def isolate(compose_file: tuple[Path, ...], host: str, *, reject: bool) -> int:
    """Cut every link of HOST of the running stack, both ways, until `testbed heal`."""
    return _cut(
        compose_file,
        lambda lab: lab.topology.links_around(host),
        lambda lab: lab.isolate(host, reject=reject),
        reject=reject,
    )


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
    with running(compose_file, lambda lab: check_flap(lab.topology, link, up=up, down=down)) as lab:
        lab.flap(link, up=up, down=down, reject=reject)
        for ref in lab.topology.links(link):
            write(f"{ref}: flapping, up {up}, down {down}, {_how(reject)}")
    return 0


@command()
@compose_file_option
@running_lab_option
@click.argument("link", required=False)
@example("""testbed heal "client -> server"
             testbed heal""")
def heal(compose_file: tuple[Path, ...], link: str | None) -> int:
    """Take the impairment off LINK, or off every link, and end its cut."""
    with running(compose_file, lambda lab: lab.topology.links(link) if link else None) as lab:
        refs = lab.topology.links(link) if link else tuple(dict.fromkeys([*lab.ports.impaired, *lab.ports.cut]))
        for ref in refs:
            lab.impairer.clear(ref)
            lab.lifecycle.mend_link(ref)
            write(f"{ref}: healed")
        lab.lifecycle.release()
    return 0


COMMANDS = (impair, prove, cut, partition, isolate, flap, heal)
