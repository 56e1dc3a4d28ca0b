"""The ``testbed`` command. Exit status: 0 good, 1 a negative verdict, 2 wrong use or an unfit machine."""

from __future__ import annotations

import inspect
import json
import re
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from testbed import paper as the_paper
from testbed.backends import terminal
from testbed.backends.choice import decide, make_lab
from testbed.backends.docker import images as image_store
from testbed.backends.docker.engine import Engine, NoEngineError
from testbed.backends.docker.lab import ComposeLab
from testbed.backends.docker.runs import clear_stale, foreigners, remove_run, runs
from testbed.commands import demo as demonstration
from testbed.commands import doctor as diagnosis
from testbed.compose.options import LAB_CHOICES, NETEM_CHOICES, UP_DEADLINE
from testbed.errors import (
    EnvironmentUnfitError,
    InvalidValueError,
    Problems,
    ServiceFailedError,
    TestbedError,
    UserError,
)
from testbed.evidence.verdict import Verdict
from testbed.judge.statistics import ALPHA
from testbed.lab.lab import Lab
from testbed.netem.profiles import find_profile, load_profiles, parse_yaml
from testbed.report import console as tables
from testbed.report import evidence
from testbed.report import profile as explained
from testbed.report.html import demo_page
from testbed.spec.features import WORDS
from testbed.spec.impairment import CLEAN, Impairment
from testbed.spec.timeline import Timeline
from testbed.spec.topology import LinkRef
from testbed.text import shortened, shown, visible
from testbed.writing import make_room, write_whole

# Where there is no terminal to ask, a table is not squeezed into 80 columns.
_OUT = Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else 150)
_ERR = Console(stderr=True, highlight=False, emoji=False)


# Values may hold blanks, as in gemodel=1% 25%; what comes before the next word's = is no part of them.
_BEFORE_A_WORD = re.compile(r"\s+(?=\w+=)")
_AFTER_A_SENTENCE = re.compile(r"(?<=\.) ")
_NOT_UP = "no stack of this Compose file is up; start it: testbed up"
_WITHOUT_ENGINE = "`testbed shell` and `testbed exec` with --lab local need none: theirs lasts as long as they run."


def main() -> None:
    """Run the command and exit with its status."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)  # through every `with`, as Ctrl-C
    try:
        status = cli(standalone_mode=False)
    except click.exceptions.Exit as exit_:
        status = exit_.exit_code
    except click.ClickException as error:
        _ERR.print(shortened(visible(_usage(error)), 2_000), markup=False, soft_wrap=True)
        status = 2
    except click.Abort:
        status = 130
    except NoEngineError as error:
        _ERR.print(f"testbed: {error} {_WITHOUT_ENGINE}", style="red", markup=False, soft_wrap=True)
        status = 2
    except (UserError, EnvironmentUnfitError, ServiceFailedError) as error:
        _ERR.print(f"testbed: {error}", style="red", markup=False, soft_wrap=True)
        status = 2
    except TestbedError as error:
        _ERR.print(f"testbed: {error}", style="red", markup=False, soft_wrap=True)
        status = 1
    sys.exit(status or 0)


def _usage(error: click.ClickException) -> str:
    """What is wrong with the command line, and how the command is used."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    usage = [context.get_usage(), f"Try '{context.command_path} -h' for help.", ""] if context is not None else []
    return "\n".join([*usage, f"Error: {error.format_message()}"])


def _end(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # taking down must not be cut short
    sys.exit(128 + number)


def _say(text: str) -> None:
    _ERR.print(f"testbed: {text}", style="dim", markup=False, soft_wrap=True)


def _example(text: str) -> Callable[[Any], Any]:
    """Put an example below a command's help."""

    def add(function: Any) -> Any:
        lines = "\n".join(f"  {line.strip()}" for line in text.strip().splitlines())
        described = inspect.cleandoc(function.__doc__)  # before 3.13 it has the source's indentation
        function.__doc__ = f"{described}\n\n\b\nExample:\n{lines}"
        return function

    return add


_compose_file = click.option(
    "--compose-file", "-f", type=click.Path(path_type=Path), multiple=True,
    help="The Compose file; repeatable: later files add to earlier ones (default: the file that Compose finds here).",
)  # fmt: skip
_compose_profile = click.option("--compose-profile", multiple=True, help="Activate a Compose profile; repeatable.")
_lab = click.option(
    "--lab", "kind", type=click.Choice(LAB_CHOICES), default="auto", show_default=True,
    help="Containers of an engine, namespaces of this machine, or auto: containers if an engine answers.",
)  # fmt: skip
_netem = click.option(
    "--netem", type=click.Choice(NETEM_CHOICES), default="auto", show_default=True,
    help="Who executes netem: this kernel, a kernel that testbed brings, or auto: this kernel if it has netem.",
)  # fmt: skip
_up_deadline = click.option(
    "--up-deadline",
    default=UP_DEADLINE,
    show_default=True,
    metavar="TIME",
    help="How long the stack may take to start.",
)
_reject = click.option(
    "--reject", is_flag=True, help="Answer lost packets with TCP resets and ICMP errors, as a firewall does."
)
_impair = click.option(
    "--impair", "impaired", multiple=True, metavar="LINK=PROFILE|WORDS",
    help='Impair a link first, as in "a -> b=lossy" or "a -> b=delay=5ms loss=1%"; repeatable.',
)  # fmt: skip


class _Command(click.Command):
    """A command whose summary in the list of all is its first sentence, not as much of it as fits on a line."""

    def get_short_help_str(self, limit: int = 0) -> str:  # noqa: ARG002  # click's
        """The first sentence."""
        return _AFTER_A_SENTENCE.split(" ".join((self.help or "").split()))[0]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="pytest-testbed")
@_example("""testbed demo
             testbed up && testbed impair "client <-> server" lossy && testbed show; testbed down""")
def cli() -> None:
    """Network regression testing for programs that run in containers."""


cli.command_class = _Command


@cli.command()
@_compose_file
@_lab
@_netem
@_up_deadline
@click.option("--messages", type=click.IntRange(1, 1000), default=20, show_default=True, help="Messages per profile.")
@click.option("--report", "folder", type=click.Path(path_type=Path, file_okay=False), default=Path("report"),
              show_default=True, help="Where demo.json and index.html go.")  # fmt: skip
@click.argument("profiles", nargs=-1)
@_example("""testbed demo
             testbed demo --messages 50 clean latency awful""")
def demo(
    compose_file: tuple[Path, ...], kind: str, netem: str, up_deadline: str, messages: int, folder: Path,
    profiles: tuple[str, ...],
) -> int:  # fmt: skip
    """Run the paper's client and server across the stack under each of PROFILES.

    Without PROFILES: clean lan latency lossy lossy-latency awful. Exit status 1 if a message was lost: the server did
    not print it, and no kernel still holds it. Messages that TCP is still sending at the end are listed apart.
    """
    wanted = _chosen(kind, compose_file, netem, up_deadline=up_deadline)
    demonstration.check(wanted, profiles or demonstration.PROFILES)  # before anything is started
    _see_room(folder, "demo.json", "index.html")
    with wanted as lab, tables.LiveDemo(_OUT) as live:
        run = demonstration.run(lab, profiles or demonstration.PROFILES, messages=messages, see=live.update)
    tables.print_undelivered(_OUT, run)
    tables.print_server_output(_OUT, run)
    write_whole(folder / "demo.json", json.dumps(run.as_json(), indent=1), below=Path.cwd())
    write_whole(folder / "index.html", demo_page(run), below=Path.cwd())
    _OUT.print(f"\nWritten: {folder / 'index.html'} (every message a point), {folder / 'demo.json'}", markup=False)
    return 1 if run.lost else 0


def _see_room(folder: Path, *names: str) -> None:
    """See that these files can be written. Raises UserError."""
    for name in names:
        try:
            make_room(folder / name, Path.cwd())
        except OSError as error:
            raise UserError(
                f"{folder / name} cannot be written: {error.strerror or error}; say --report FOLDER"
            ) from None


def _chosen(
    kind: str, compose_file: tuple[Path, ...], netem: str, compose_profiles: Sequence[str] = (),
    up_deadline: str = UP_DEADLINE,
) -> Lab:  # fmt: skip
    """The lab that was asked for, or that this machine allows; not up yet."""
    chosen, why = decide(kind)
    if chosen == "local" and kind == "auto":
        _say(f"a local lab: {why}")
    return make_lab(
        chosen, compose_file, netem=netem, compose_profiles=compose_profiles, up_deadline=up_deadline, say=_say
    )


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What the command line asks of a link, as `Lab.impair` takes it."""

    link: str
    profile: Any
    words: Mapping[str, Any]
    wanted: Mapping[LinkRef, Impairment | Timeline]


def _asked(lab: Lab, link: str, what: Sequence[str]) -> _Asked:
    """Read a link, and the profile, words or steps for it. Raises InvalidValueError with every problem of both."""
    problems = Problems()
    profile: Any = None
    words: dict[str, str] = {}
    wanted: Mapping[LinkRef, Impairment | Timeline] = {}
    with problems.gathered():
        profile, words = _profile_or_words(what, problems)
    with problems.gathered():
        if profile is None and not words:
            lab.topology.links(link)
        else:
            wanted = lab.wanted(link, profile, words)
    problems.tell()
    return _Asked(link=link, profile=profile, words=words, wanted=wanted)


def _profile_or_words(what: Sequence[str], problems: list[str]) -> tuple[Any, dict[str, str]]:
    """A profile's name or a list of steps, else words; of a word given twice the first. Raises InvalidValueError."""
    if len(what) == 1 and what[0].lstrip().startswith("["):
        try:
            return parse_yaml(what[0]), {}
        except InvalidValueError as error:
            raise InvalidValueError(f"{shown(what[0])}: {problem}" for problem in error.problems) from None
    words: dict[str, str] = {}
    names = [each for each in what if "=" not in each]
    for each in what:
        name, equals, value = each.partition("=")
        if equals and name in words:
            problems.append(f"{name} stands twice: {shown(words[name])} and {shown(value)}")
        elif equals:
            words[name] = value
    if len(names) > 1 or (names and words):
        raise InvalidValueError(f"{shown(' '.join(what))}: give one profile, or words such as delay=40ms, not both")
    return names[0] if names else None, words


@cli.command()
@_compose_file
@_compose_profile
@_lab
@_netem
@_up_deadline
@_impair
@click.argument("host")
@_example("""testbed shell client
             testbed shell --lab local --impair "client <-> server=lossy" client""")
def shell(
    compose_file: tuple[Path, ...], compose_profile: tuple[str, ...], kind: str, netem: str, up_deadline: str,
    impaired: tuple[str, ...], host: str,
) -> int:  # fmt: skip
    """Open a shell in HOST: of the running stack, or of one that lasts as long as the shell."""
    return _in_host(_chosen(kind, compose_file, netem, compose_profile, up_deadline), impaired, host, terminal.SHELL)


@cli.command("exec")
@_compose_file
@_compose_profile
@_lab
@_netem
@_up_deadline
@_impair
@click.argument("host")
@click.argument("argv", nargs=-1, required=True)
@_example("""testbed exec client -- python3 paper_client.py server""")
def execute(
    compose_file: tuple[Path, ...], compose_profile: tuple[str, ...], kind: str, netem: str, up_deadline: str,
    impaired: tuple[str, ...], host: str, argv: tuple[str, ...],
) -> int:  # fmt: skip
    """Run ARGV in HOST, and exit with its status: of the running stack, or of one that lasts as long as it runs."""
    return _in_host(_chosen(kind, compose_file, netem, compose_profile, up_deadline), impaired, host, argv)


def _in_host(lab: Lab, impaired: Sequence[str], host: str, argv: Sequence[str]) -> int:
    """Run a program in a host: of the stack that `testbed up` started, if one is up; else of one of its own."""
    wanted = _impaired_first(lab, impaired, host)
    with ExitStack() as undo:
        if isinstance(lab, ComposeLab) and lab.take_up():
            undo.callback(lab.leave)
        else:
            undo.enter_context(lab)
        place = lab.host(host)
        with ExitStack() as healed:  # nothing half-applied
            for asked in wanted:
                for applied in lab.impair(asked.link, asked.profile, **asked.words):
                    healed.callback(lab.impairer.clear, applied.link)
            healed.pop_all()
        return terminal.interact(place, argv)


def _impaired_first(lab: Lab, impaired: Sequence[str], host: str) -> list[_Asked]:
    """What each ``--impair`` asks. Raises InvalidValueError with every problem of all of them, and of the host."""
    problems = Problems()
    wanted: list[_Asked] = []
    if host not in lab.topology.hosts:
        problems.append(f"host {shown(host)}: {lab.topology.unknown_host(host)}")
    said_by: dict[LinkRef, str] = {}
    for each in impaired:
        link, _, said = (part.strip() for part in each.partition("="))  # a link has no =
        if not link or not said:
            problems.append(
                f"--impair {shown(each)}: {'which link?' if not link else 'what is it impaired with?'} "
                f'Write "a -> b=lossy", or words: "a -> b=delay=5ms loss=1%"'
            )
            continue
        with problems.gathered():
            what = [said] if said.startswith("[") else _BEFORE_A_WORD.split(said)
            wanted.append(_asked(lab, link, what))
            for ref in wanted[-1].wanted:
                if ref in said_by:
                    twice = f"by --impair {shown(said_by[ref])} and by --impair {shown(each)}"
                    problems.append(f"{ref} is impaired twice, {twice}; a link has one impairment")
                said_by[ref] = each
    problems.tell()
    return wanted


@cli.command()
@_compose_file
@_lab
@_netem
@_up_deadline
@click.option("--only", default="", metavar="C2,C6", help="Only these claims.")
@click.option("--quick", is_flag=True, help="Try fewer conditions; takes a minute or two.")
@click.option("--again", is_flag=True, help="Repeat claims whose outcome FOLDER already has.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcomes as JSON.")
@click.option("--report", "folder", type=click.Path(path_type=Path, file_okay=False), default=Path("report", "paper"),
              show_default=True, metavar="FOLDER", help="Where claims.json, pages and evidence go.")  # fmt: skip
@_example("""testbed paper --quick
             testbed paper --only C2,C6""")
def paper(
    compose_file: tuple[Path, ...],
    kind: str,
    netem: str,
    up_deadline: str,
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
    wanted = the_paper.chosen(only.split(","))
    chosen = decide(kind)[0]
    given = the_paper.inputs(chosen, netem=netem, quick=quick)
    known = {} if again and not only else the_paper.kept(folder, given)
    afresh = {claim.id for claim in wanted} if again else set()
    found = {name: outcome for name, outcome in known.items() if name not in afresh}
    todo = [claim for claim in wanted if claim.id not in found]
    _see_room(folder, *the_paper.WRITTEN)
    if len(todo) < len(wanted):
        _say(f"{len(wanted) - len(todo)} of {len(wanted)} claims are decided already, in {folder}; --again seeks anew")
    if todo:
        with _chosen(kind, compose_file, netem, up_deadline=up_deadline) as lab:
            for number, claim in enumerate(todo, 1):
                _say(f"[{number}/{len(todo)}] {claim.id} {claim.name}: {claim.text}")
                found[claim.id] = the_paper.examine(claim, lab, folder, quick=quick, say=_say, earlier=found)
                the_paper.keep(folder, found, given)
                the_paper.write_report(folder, found, given)
                if not as_json:
                    outcome = found[claim.id]
                    _OUT.print(
                        f"{claim.id:<4}{outcome.finding.of('claim'):<13} {outcome.sentence}",
                        markup=False,
                        soft_wrap=True,
                    )
    the_paper.write_report(folder, found, given)
    decided = {claim.id: found[claim.id] for claim in wanted}
    if as_json:
        _OUT.print_json(json.dumps({name: outcome.as_json() for name, outcome in decided.items()}))
    else:
        table = Table("claim", "", "verdict", "took")
        for name, outcome in decided.items():
            table.add_row(name, the_paper.CLAIMS[name].text, outcome.finding.of("claim"), f"{outcome.took_s:.0f} s")
        _OUT.print(table)
        _OUT.print(f"Written: {folder / 'index.html'}, and the evidence beside it", markup=False)
    return 1 if any(outcome.finding is Verdict.INVALID for outcome in decided.values()) else 0


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@_example("testbed doctor --json")
def doctor(as_json: bool) -> int:
    """Find out what this machine can do, what is missing, what that costs, and how to get it.

    Exit status 1 if a lab cannot run here.
    """
    findings = diagnosis.examine(_say)
    if as_json:
        _OUT.print_json(json.dumps([finding.as_json() for finding in findings]))
    else:
        tables.print_findings(_OUT, findings)
    return 0 if diagnosis.fit(findings) else 1


@cli.command()
@_compose_file
@_compose_profile
@_netem
@_up_deadline
@_example("testbed up --netem carried --up-deadline 10m")
def up(compose_file: tuple[Path, ...], compose_profile: tuple[str, ...], netem: str, up_deadline: str) -> int:
    """Bring the stack up, ready to be impaired; it stays until `testbed down`."""
    lab = ComposeLab(
        compose_file, netem=netem, compose_profiles=compose_profile, up_deadline=up_deadline, say=_say,
        outlives_us=True,
    )  # fmt: skip
    if lab.take_up():
        _OUT.print(f"already up, as run {lab.run_id}: {', '.join(lab.hosts)}", markup=False)
    else:
        lab.up()
        _OUT.print(f"up, as run {lab.run_id} ({lab.netem_engine} netem): {', '.join(lab.hosts)}", markup=False)
    lab.leave()
    return 0


@cli.command()
@_compose_file
@click.option("--stale", is_flag=True, help="Also remove what killed runs left, of any stack.")
@click.option("--all", "everything", is_flag=True, help="Remove every run of testbed on the engine, alive or not.")
@_example("""testbed down
             testbed down --stale""")
def down(compose_file: tuple[Path, ...], stale: bool, everything: bool) -> int:
    """Heal and remove the stack that `testbed up` started here."""
    if stale or everything:
        engine = Engine()
        problems: list[str] = []
        if everything:
            ids = []
            for run in runs(engine):
                remove_run(engine, run.id, run.owner)
                ids.append(run.id)
        else:
            ids, problems = clear_stale(engine, _say)
        for each in foreigners(engine):
            _say(f"left alone: {each}")
        _OUT.print(f"removed: {', '.join(ids) or ('nothing' if problems else 'nothing was left')}", markup=False)
        return 1 if problems else 0
    lab = ComposeLab(compose_file, say=_say)
    if lab.take_up():
        lab.down()
        ids = [lab.run_id]
    elif not (ids := lab.remove_left()):
        raise UserError(_NOT_UP)
    _OUT.print(f"down: run {', '.join(ids)}", markup=False)
    return 0


def _taken_up(compose_file: tuple[Path, ...], check: Callable[[ComposeLab], object] = lambda _lab: None) -> ComposeLab:
    """The running stack. ``check``: raises UserError where what is asked of it is wrong, whether it is up or not."""
    lab = ComposeLab(compose_file, say=_say)
    check(lab)
    if not lab.take_up():
        raise UserError(_NOT_UP)
    return lab


@cli.command()
@_compose_file
@click.argument("link")
@click.argument("what", nargs=-1, required=True, metavar="PROFILE | WORD=VALUE… | STEPS")
@_example("""testbed impair "client <-> server" lossy
             testbed impair "client -> server" delay=40ms jitter=5ms loss=2%
             testbed impair "client -> server" "[{delay: 40ms}, {at: 5s, outage: 2s}, {repeat: 10s}]"
             testbed impair "client -> server" trace=traces/tunnel.csv""")
def impair(compose_file: tuple[Path, ...], link: str, what: tuple[str, ...]) -> int:
    """Impair LINK of the running stack, with a profile, with words or with a list of steps, and read it back."""
    lab = _taken_up(compose_file, lambda lab: _asked(lab, link, what))
    try:
        asked = _asked(lab, link, what)
        for applied in lab.impair(asked.link, asked.profile, **asked.words):
            _OUT.print(f"{applied.link}: {applied.describe()}   ({applied.command})", markup=False, soft_wrap=True)
            for line in applied.asked.realised:
                _OUT.print(f"    warning: {line}", markup=False, soft_wrap=True)
    finally:
        lab.leave()
    return 0


@cli.command()
@_compose_file
@_netem
@_up_deadline
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
@_example("""testbed prove "client <-> server" lossy
             testbed prove "client -> server" delay=40ms jitter=5ms loss=2%
             testbed prove --tolerance 0.2 --seconds 30 "client -> server" loss=2%""")
def prove(
    compose_file: tuple[Path, ...], netem: str, up_deadline: str, as_json: bool, seconds: float, alpha: float,
    tolerance: float | None, link: str, what: tuple[str, ...],
) -> int:  # fmt: skip
    """Impair LINK and prove it: read the kernel back, send probes, show asked, kernel and seen side by side.

    If `testbed up` started a stack, it is used, and the link stays impaired; without PROFILE or words the link is
    proven as it is. Else a stack is started for this command. Exit status 1 if the link is not as asked.
    """
    lab = ComposeLab(compose_file, netem=netem, up_deadline=up_deadline, say=_say)
    asked = _asked(lab, link, what) if what else None
    refs = lab.topology.links(link)
    known = asked.wanted if asked is not None else {}
    wanted = {ref: known.get(ref, CLEAN) for ref in refs}
    lab.prober.plan(wanted, alpha=alpha, most_s=seconds, tolerance=tolerance)
    with ExitStack() as undo:
        if lab.take_up():
            undo.callback(lab.leave)
        elif asked is None:
            raise UserError(
                f"{_NOT_UP}; or say what the link is to be impaired with: testbed prove {shown(link)} lossy"
            )
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
        _OUT.print_json(json.dumps([each.as_json() for each in found]))
    else:
        for each in found:
            for line in evidence.lines(each, explained=True):
                _OUT.print(line, markup=False, soft_wrap=True)
    return 1 if any(each.read_back is Verdict.FAILS or each.probe is Verdict.FAILS for each in found) else 0


@cli.command()
@_compose_file
@_reject
@click.argument("link")
@_example("""testbed cut "client <-> server"
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
    lab = _taken_up(compose_file, check)
    try:
        for ref in cut_links(lab):
            _OUT.print(f"{ref}: cut, {'rejecting' if reject else 'silently'}", markup=False)
    finally:
        lab.leave()
    return 0


@cli.command()
@_compose_file
@_reject
@click.argument("group")
@click.argument("others", nargs=-1, required=True, metavar="GROUP…")
@_example("""testbed partition client server
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


@cli.command()
@_compose_file
@_reject
@click.argument("host")
@_example("testbed isolate server")
def isolate(compose_file: tuple[Path, ...], host: str, *, reject: bool) -> int:
    """Cut every link of HOST of the running stack, both ways, until `testbed heal`."""
    return _cut(
        compose_file, lambda lab: lab.topology.links_around(host), lambda lab: lab.isolate(host, reject=reject),
        reject=reject,
    )  # fmt: skip


@cli.command()
@_compose_file
@click.option("--up", required=True, metavar="TIME", help="How long the link is up.")
@click.option("--down", required=True, metavar="TIME", help="How long the link is down.")
@click.option("--reject", is_flag=True, help="While it is cut, answer lost packets as `testbed cut --reject` does.")
@click.argument("link")
@_example("""testbed flap --up 2s --down 500ms "client <-> server" """)
def flap(compose_file: tuple[Path, ...], up: str, down: str, link: str, *, reject: bool) -> int:
    """Have LINK of the running stack go up and down until `testbed heal`. Its impairment stays."""
    lab = _taken_up(compose_file, lambda lab: lab.check_flap(link, up=up, down=down))
    try:
        lab.flap(link, up=up, down=down, reject=reject)
        for ref in lab.topology.links(link):
            _OUT.print(f"{ref}: flapping, up {up}, down {down}, {'rejecting' if reject else 'silently'}", markup=False)
    finally:
        lab.leave()
    return 0


def _host_command(verb: str, done: str, help_text: str) -> None:
    """Add a command that does to a host of the running stack what `Host` does by the same name."""

    @cli.command(verb, help=f"{help_text}\n\n\b\nExample:\n  testbed {verb} server")
    @_compose_file
    @click.argument("host")
    def command(compose_file: tuple[Path, ...], host: str) -> int:
        lab = _taken_up(compose_file)
        try:
            getattr(lab.host(host), verb)()
            _OUT.print(f"{host}: {done}", markup=False)
        finally:
            lab.leave()
        return 0


_host_command("stop", "stopped", "Stop HOST of the running stack, until `testbed start`.")
_host_command("start", "started", "Start HOST and wait until it is healthy; its links are impaired as before.")
_host_command("restart", "restarted", "Stop HOST, start it again, and wait until it is healthy.")
_host_command("kill", "killed", "End HOST with SIGKILL, as a crash does.")
_host_command("pause", "paused", "Pause every process in HOST, until `testbed resume`.")
_host_command("resume", "resumed", "Resume a paused HOST.")


@cli.command()
@_compose_file
@click.argument("link", required=False)
@_example("""testbed heal "client -> server"
             testbed heal""")
def heal(compose_file: tuple[Path, ...], link: str | None) -> int:
    """Take the impairment off LINK, or off every link, and end its cut."""
    lab = _taken_up(compose_file, lambda lab: lab.topology.links(link) if link else None)
    try:
        refs = lab.topology.links(link) if link else tuple(dict.fromkeys([*lab.ports.impaired, *lab.ports.cut]))
        for ref in refs:
            lab.impairer.clear(ref)
            lab.mend_link(ref)
            _OUT.print(f"{ref}: healed", markup=False)
        lab.release()
    finally:
        lab.leave()
    return 0


@cli.command()
@_compose_file
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@_example("testbed show --json")
def show(compose_file: tuple[Path, ...], as_json: bool) -> int:
    """Show the running stack: hosts, each impaired link as asked and as the kernel has it, and each cut.

    Exit status 1 if a link is not as asked.
    """
    lab = _taken_up(compose_file)
    try:
        links = [
            {
                "link": str(ref), "network": ref.network, "asked": held.asked.words(),
                "kernel": held.netem, "differences": [str(each) for each in held.found],
                "realised": held.asked.realised,
            }
            for ref in lab.ports.impaired if (held := lab.verifier.held_now(ref)) is not None
        ]  # fmt: skip
        cuts = [lab.cutter.evidence(ref) for ref in lab.ports.cut]
        hosts = {name: list(host.addresses()) for name, host in lab.hosts.items()}
    finally:
        lab.leave()
    if as_json:
        found = {"run": lab.run_id, "engine": lab.netem_engine, "hosts": hosts, "links": links,
                 "cuts": [each.as_json() for each in cuts]}  # fmt: skip
        _OUT.print_json(json.dumps(found))
    else:
        tables.print_stack(
            _OUT, run_id=lab.run_id, engine=lab.netem_engine, hosts=hosts, links=links, cuts=len(cuts)
        )  # fmt: skip
        for each in cuts:
            for line in evidence.lines(each):
                _OUT.print(line, markup=False, soft_wrap=True)
    return (
        1 if any(each["differences"] for each in links) or any(each.read_back is Verdict.FAILS for each in cuts) else 0
    )


@cli.command()
@click.option("--words", is_flag=True, help="List the words of profiles and markers.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.argument("name", required=False)
@_example("""testbed profiles
             testbed profiles tunnel""")
def profiles(words: bool, as_json: bool, name: str | None) -> int:
    """List the profiles, or explain the profile NAME: its tc words, its delays and its timeline, drawn."""
    if words:
        if as_json:
            _OUT.print_json(json.dumps({word.name: word.help for word in WORDS.values()}))
            return 0
        table = Table("word", "meaning")
        for word in WORDS.values():
            table.add_row(word.name, word.help)
        _OUT.print(table)
        return 0
    known = load_profiles(Path("netem"))
    chosen = [find_profile(known, name)] if name is not None else [each for _, each in sorted(known.checked().items())]
    if as_json:
        found = [explained.profile_json(each) for each in chosen]
        _OUT.print_json(json.dumps(found if name is None else found[0]))
    elif name is None:
        tables.print_profiles(_OUT, known)
    else:
        explained.print_profile(_OUT, chosen[0])
    return 0


@cli.command()
@click.option("--check", is_flag=True, help="Change nothing; exit status 1 if an image is missing or out of date.")
@click.option("--base-reachable", is_flag=True, help="Exit status 1 if the base image is neither here nor pullable.")
@_example("testbed images")
def images(check: bool, base_reachable: bool) -> int:
    """Build or pull the images that every lab needs: the base image and the agent's."""
    engine = Engine()
    if base_reachable:
        return 0 if image_store.base_pullable(engine) else 1
    if check:
        return 0 if engine.image_labels(image_store.netem_tag()) is not None else 1
    image_store.ensure_base(engine, _say)
    _OUT.print(f"{image_store.BASE}\n{image_store.ensure_netem(engine, _say)}", markup=False)
    return 0


if __name__ == "__main__":
    main()
