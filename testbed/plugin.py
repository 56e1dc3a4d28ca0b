"""The pytest plugin: options, fixtures, markers. The only module that knows pytest.

Nothing here needs an engine until a test that uses ``lab`` or ``stack`` is set up; collection needs Compose
alone, and only where a test carries one of our markers.

Every pytest start on a machine with testbed imports this module, most of them in projects that have no stack. So it
imports at once what is small; labs, and all that needs a library, are imported where a hook or a fixture needs them.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from testbed.errors import (
    EnvironmentUnfitError,
    ImpairmentNotAppliedError,
    InvalidComposeError,
    LabError,
    ServiceFailedError,
    TestbedError,
    UserError,
)
from testbed.labs.options import LAB_CHOICES, NETEM_CHOICES, find_compose_file

if TYPE_CHECKING:
    from testbed.labs.keeping import KeptCaptures
    from testbed.labs.lab import Lab
    from testbed.model.impairment import Impairment, Profile
    from testbed.model.results import TestResult
    from testbed.model.timeline import Timeline
    from testbed.model.topology import LinkRef

_WRONG_USE = 2
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_DEFAULT_RESULTS = Path("report", "results.json")
_CAPTURE_CHOICES = ("on-failure", "always", "never")
_OPTIONS = (("--testbed-capture", _CAPTURE_CHOICES[0]), ("--testbed-results", str(_DEFAULT_RESULTS)))
"""Options that change no network, and what they are by themselves."""

_LAB: pytest.StashKey[Lab] = pytest.StashKey()
_CHOSEN: pytest.StashKey[tuple[str, str]] = pytest.StashKey()
_RUNNING: pytest.StashKey[Lab] = pytest.StashKey()
_UNFIT: pytest.StashKey[str] = pytest.StashKey()
_PROBLEMS: pytest.StashKey[list[str]] = pytest.StashKey()
_FILES: pytest.StashKey[tuple[Mapping[str, Profile], Mapping[str, Path]]] = pytest.StashKey()
_WANTED: pytest.StashKey[dict[LinkRef, tuple[Impairment | Timeline, str]]] = pytest.StashKey()
"""What the markers of a test ask of each link, and the name of the profile that says so."""
_SEED: pytest.StashKey[int] = pytest.StashKey()
_CAPTURES: pytest.StashKey[KeptCaptures] = pytest.StashKey()
_LOST: pytest.StashKey[list[str]] = pytest.StashKey()
_PROVE: pytest.StashKey[set[LinkRef]] = pytest.StashKey()
_RESULTS: pytest.StashKey[dict[str, TestResult]] = pytest.StashKey()
_TOLD_UNFIT, _TOLD_PROBLEMS = "testbed_unfit", "testbed_problems"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    group = parser.getgroup("testbed", "network regression testing")
    group.addoption(
        "--compose-file", metavar="FILE", help="the stack under test (default: as Compose finds it: compose.yaml, …)"
    )
    group.addoption(
        "--compose-profile", metavar="NAME", action="append", default=[], help="activate a Compose profile; repeatable"
    )
    group.addoption(
        "--lab", choices=LAB_CHOICES, default="auto",
        help="where the stack runs: containers of an engine (compose), namespaces of this machine (local), or compose "
        "where an engine answers and local elsewhere (default: auto)",
    )  # fmt: skip
    group.addoption(
        "--netem", choices=NETEM_CHOICES, default="auto",
        help="who executes netem: this kernel, a kernel that testbed brings, or whichever is there (default: auto)",
    )  # fmt: skip

    group.addoption(
        "--testbed-seed", metavar="N", type=int,
        help="derive the seeds of random impairments from N and each test's id (default: drawn, and printed)",
    )  # fmt: skip
    group.addoption(
        "--testbed-capture", choices=_CAPTURE_CHOICES, default=_CAPTURE_CHOICES[0],
        help="keep the packets at each impaired port as pcapng files in report/captures/ (default: of failed tests)",
    )  # fmt: skip
    group.addoption(
        "--testbed-results", metavar="FILE", default=str(_DEFAULT_RESULTS),
        help="where the results of tests with a lab are written, as JSON (default: %(default)s)",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers; settle the seed."""
    config.stash[_RESULTS] = {}
    worker = _worker_of(config)
    if worker is not None:
        _die_with(worker["testbed_controller"])
        if worker["testbed_lab"] is not None:
            config.stash[_CHOSEN] = worker["testbed_lab"]
    given = config.getoption("--testbed-seed") if worker is None else worker["testbed_seed"]
    config.stash[_SEED] = int.from_bytes(os.urandom(4)) if given is None else given
    if worker is None:
        config.pluginmanager.register(_ResultsFile(config), "testbed-results-file")
    config.addinivalue_line(
        "markers",
        'impair(link, profile | delay="40ms", loss="2%", …): impair a link during the test: "a -> b" one way, '
        '"a <-> b" both ways; stackable. Words: see `testbed profiles --words`. prove=True: probe it first.',
    )
    config.addinivalue_line(
        "markers",
        'impair_each(link, "profile", …): run the test once under each profile (without names: under every one).',
    )
    config.stash[_PROBLEMS] = []


def _worker_of(config: pytest.Config) -> dict[str, Any] | None:
    """What pytest-xdist's controller told this process, if it is one of its workers."""
    told: dict[str, Any] | None = getattr(config, "workerinput", None)
    return told


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give all of pytest-xdist's workers the same seed and lab: which one runs a test must not change its network.

    And tell those that are our children who we are: see `_die_with`.
    """
    node.workerinput["testbed_seed"] = node.config.stash[_SEED]
    node.workerinput["testbed_lab"] = _chosen(node.config) if _has_stack(node.config) else None
    spec = node.gateway.spec
    ours = spec.popen and not (spec.python or spec.via)
    node.workerinput["testbed_controller"] = os.getpid() if ours else None


def _die_with(controller: int | None) -> None:
    """Have the kernel kill this worker with its controller, and with the worker its lab goes.

    By itself it would first end its test, and wait for seconds that somebody asks for more.
    """
    if controller is None or sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != controller:  # it was killed before we asked for that
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Hear from one of pytest-xdist's workers what was wrong with the markers, the machine or the Compose file."""
    told = getattr(node, "workeroutput", {})
    if _TOLD_UNFIT in told:
        node.config.stash[_UNFIT] = told[_TOLD_UNFIT]
    node.config.stash[_PROBLEMS] = told.get(_TOLD_PROBLEMS, node.config.stash[_PROBLEMS])


def pytest_report_header(config: pytest.Config) -> str:
    """Say which stack, which lab and, if it was not said on the command line, why that one; and which engine."""
    file = config.getoption("--compose-file") or "as Compose finds it"
    lab = config.getoption("--lab")
    if lab == "auto" and _has_stack(config):
        lab = "{} ({})".format(*_chosen(config))
    return f"testbed: stack {file}, lab {lab}, netem {config.getoption('--netem')}, seed {config.stash[_SEED]}"


def _has_stack(config: pytest.Config) -> bool:
    """Whether there is a Compose file. A project without one is none of ours: no engine is asked for its sake."""
    if config.getoption("--compose-file") or os.environ.get("COMPOSE_FILE"):
        return True
    return any(find_compose_file(folder) for folder in (config.invocation_params.dir, config.rootpath))


def _chosen(config: pytest.Config) -> tuple[str, str]:
    """The kind of lab, and why; settled once."""
    from testbed.labs.choice import decide

    if _CHOSEN not in config.stash:
        config.stash[_CHOSEN] = decide(config.getoption("--lab"))
    return config.stash[_CHOSEN]


def _lab_of(config: pytest.Config) -> Lab:
    """The session's lab: known from the start, up only when a test needs it."""
    from testbed.labs.choice import make_lab

    if _LAB not in config.stash:
        file = config.getoption("--compose-file")
        config.stash[_LAB] = make_lab(
            _chosen(config)[0],
            (config.invocation_params.dir / file) if file else _default_file(config),
            netem=config.getoption("--netem"),
            compose_profiles=config.getoption("--compose-profile"),
            say=_sayer(config),
        )
    return config.stash[_LAB]


def _files_of(config: pytest.Config) -> tuple[Mapping[str, Profile], Mapping[str, Path]]:
    """Profiles and tables. What is wrong with their files is told once, of the files, and hides no marker's problem."""
    from testbed.links.profiles import as_far_as_read

    if _FILES not in config.stash:
        lab, problems = _lab_of(config), config.stash[_PROBLEMS]
        config.stash[_FILES] = (
            as_far_as_read(lambda: lab.profiles, problems), as_far_as_read(lambda: lab.tables, problems)
        )  # fmt: skip
    return config.stash[_FILES]


def _default_file(config: pytest.Config) -> Path | None:
    """None where Compose finds a file by itself; else the one at pytest's root, for runs from a subfolder."""
    for folder in (config.invocation_params.dir, config.rootpath):
        if (found := find_compose_file(folder)) is not None:
            return None if folder == Path.cwd() else found
    return None


def _sayer(config: pytest.Config) -> Callable[[str], None]:
    terminal = config.pluginmanager.get_plugin("terminalreporter")

    def say(text: str) -> None:
        capture = config.pluginmanager.get_plugin("capturemanager")
        if terminal is None or capture is None or config.get_verbosity() < 0:
            return
        with capture.global_and_fixture_disabled():  # what a fixture prints goes to the test's report otherwise
            terminal.ensure_newline()
            terminal.write_line(f"testbed: {text}")

    return say


# --- collection -----------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test of each profile that ``impair_each`` names."""
    marks = list(metafunc.definition.iter_markers("impair_each"))
    if not marks:
        return
    problems = metafunc.config.stash[_PROBLEMS]
    where = metafunc.definition.nodeid
    names: tuple[Any, ...] = ()
    if len(marks) > 1:
        problems.append(f"{where}: impair_each stands twice; one test runs under one list of profiles")
    elif not marks[0].args or marks[0].kwargs or not all(isinstance(word, str) for word in marks[0].args):
        given = [*map(repr, marks[0].args), *(f"{word}={value!r}" for word, value in marks[0].kwargs.items())]
        problems.append(
            f'{where}: impair_each({", ".join(given)}): write impair_each("client <-> server", "clean", "lossy")'
        )
    else:
        names = marks[0].args[1:]
        if not names:
            try:
                names = tuple(_files_of(metafunc.config)[0])
            except UserError as error:
                problems += [f"{where}: {problem}" for problem in error.problems]
    if "profile" not in metafunc.fixturenames:
        metafunc.fixturenames.append("profile")
    metafunc.parametrize("profile", names, indirect=True, ids=str)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Check every marker of the chosen tests; end the run with all problems if there are any."""
    problems = session.config.stash[_PROBLEMS]
    for item in session.items:
        try:
            item.stash[_WANTED] = _wanted(item)
        except (EnvironmentUnfitError, InvalidComposeError) as error:  # the same for every test
            problems.append(str(error))
            break
        except UserError as error:
            problems += [f"{item.nodeid}: {problem}" for problem in error.problems]
    if not problems:
        return
    unique = list(dict.fromkeys(problems))
    if _worker_of(session.config) is not None:  # one that exits is replaced by another; one without tests is at its end
        session.items.clear()
        session.config.workeroutput[_TOLD_PROBLEMS] = unique  # type: ignore[attr-defined]  # xdist's
        return
    told = _tell_problems(session.config, unique)
    pytest.exit(f"{len(unique)} problem(s) in testbed's markers; {told}", returncode=_WRONG_USE)


def _tell_problems(config: pytest.Config, problems: list[str]) -> str:
    """Print what is wrong with the markers, or return it, where nothing can be printed."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None:
        return "\n".join(problems)
    terminal.section("testbed: the tests ask for what cannot be", red=True)
    for problem in problems:
        terminal.write_line(problem, red=True)
    return "nothing was started"


def _wanted(item: pytest.Item) -> dict[LinkRef, tuple[Impairment | Timeline, str]]:
    """What a test's markers ask of each link. Raises UserError with every problem."""
    wanted: dict[LinkRef, tuple[Impairment | Timeline, str]] = {}
    item.stash[_PROVE] = set()
    said_by: dict[LinkRef, str] = {}
    problems: list[str] = []
    for said, link, profile, words in _asked(item, problems):
        from testbed.labs.lab import impairments_of, profile_name, unprovable

        lab = _lab_of(item.config)
        topology = lab.topology
        profiles, tables = _files_of(item.config)
        prove = words.pop("prove", False)
        if not isinstance(prove, bool):
            problems.append(f"{said}: prove={prove!r}: must be True or False")
            continue
        try:
            asked = impairments_of(topology, profiles, link, profile, words, side=lab.side, tables=tables)
        except UserError as error:
            problems += [f"{said}: {problem}" for problem in error.problems]
            continue
        problems += [f"{said}: {problem}" for problem in (unprovable(asked) if prove else ())]
        for ref, impairment in asked.items():
            if ref in said_by:
                problems.append(f"{ref} is impaired twice, by {said_by[ref]} and by {said}; a link has one impairment")
            wanted[ref], said_by[ref] = (impairment, profile_name(profile)), said
            if prove:
                item.stash[_PROVE].add(ref)
    if problems:
        raise UserError(problems)
    return wanted


def _asked(item: pytest.Item, problems: list[str]) -> Iterator[tuple[str, str, Any, dict[str, Any]]]:
    """Each marker of a test as its own text, link, profile and words."""
    for mark in item.iter_markers("impair"):
        given = [*map(repr, mark.args), *(f"{word}={value!r}" for word, value in mark.kwargs.items())]
        said = f"impair({', '.join(given)})"
        if not 1 <= len(mark.args) <= 2 or not isinstance(mark.args[0], str):
            problems.append(f'{said}: write impair("client -> server", "lossy") or impair("a -> b", delay="40ms")')
            continue
        yield said, mark.args[0], mark.args[1] if len(mark.args) == 2 else None, dict(mark.kwargs)
    for mark in item.iter_markers("impair_each"):
        callspec = getattr(item, "callspec", None)
        if callspec is not None and isinstance(callspec.params.get("profile"), str):
            profile = callspec.params["profile"]
            yield f"impair_each({mark.args[0]!r}, {profile!r})", mark.args[0], profile, {}


# --- fixtures -------------------------------------------------------------------------------------


@pytest.fixture
def profile(request: pytest.FixtureRequest) -> str | None:
    """The profile that ``impair_each`` runs this test under."""
    return getattr(request, "param", None)


@pytest.fixture(scope="session")
def stack(pytestconfig: pytest.Config) -> Iterator[Lab]:
    """The stack, up for the whole session, as a lab: for set-up that tests share. `lab` heals its links."""
    lab = _lab_of(pytestconfig)
    failed = None
    try:
        lab.up()
    except TestbedError as error:
        failed = f"the stack is not up: {error}"
        if pytestconfig.getoption("--lab") == "auto" and (chosen := _chosen(pytestconfig))[0] == "local":
            failed += f"\n(the local lab was chosen because {chosen[1]})"
        if isinstance(error, UserError | EnvironmentUnfitError | ServiceFailedError):
            pytestconfig.stash[_UNFIT] = failed.removeprefix("the stack is not up: ")
    if failed:  # out of the handler, or pytest would print the error twice
        pytest.fail(failed, pytrace=False)
    yield lab
    lab.down()


@pytest.fixture
def lab(request: pytest.FixtureRequest, stack: Lab) -> Iterator[Lab]:
    """The stack, with this test's impairments in force and no others; healed afterwards."""
    from testbed.labs import keeping
    from testbed.model.timeline import LateStepWarning, late_in_words, steps_in_words

    node: pytest.Item = request.node
    stack.heal()  # of what a test that uses `stack` alone may have put there
    stack.begin(f"{request.config.stash[_SEED]}:{node.nodeid}")
    node.stash[_RUNNING] = stack
    if (mode := request.config.getoption("--testbed-capture")) != "never":
        folder = request.config.rootpath / "report" / "captures" / keeping.file_name(node.nodeid)
        node.stash[_CAPTURES] = captures = keeping.KeptCaptures(stack, folder)
        stack.on_applied = captures.on_impaired
    try:
        for ref, (impairment, name) in node.stash.get(_WANTED, {}).items():
            applied = stack.arm(ref, impairment, profile=name)
            node.user_properties.append((f"impaired {ref}", f"{impairment.describe()} ({stack.netem_engine} engine)"))
            node.user_properties.append((f"tc {ref}", applied.command))
        for ref in sorted(node.stash.get(_PROVE, ())):
            stack.prove(f"{ref.src} -> {ref.dst} {ref.traffic}".strip() + f" on {ref.network}")
        yield stack
    finally:
        _end_captures(node, save=mode == "always")
        _keep(node, stack)
        stack.end()
        for ref, steps in stack.stepped.items():
            node.user_properties.append((f"timeline {ref}", steps_in_words(steps)))
            if late := late_in_words(steps):
                warnings.warn(LateStepWarning(f"{ref}: {late}"), stacklevel=1)
        for record in stack.records:
            node.user_properties.append((record.name, f"{record.value:g} {record.unit} ({record.better} is better)"))


def _end_captures(item: pytest.Item, *, save: bool) -> str:
    """End what is captured for a test, and keep it or not; what to say of it. Says so too if it cannot be had."""
    captures = item.stash.get(_CAPTURES, None)
    if captures is None:
        return ""
    del item.stash[_CAPTURES]
    item.stash[_RUNNING].on_applied = lambda _ref: None
    try:
        if not save:
            captures.drop()
            return ""
        said = [str(path) for path in captures.save()]
        item.stash[_LOST] = captures.losses
        if captures.failed:
            said.append(f"not kept: {captures.failed}")
    except (LabError, OSError) as error:
        said = [f"not kept: {error}"]
    item.user_properties += [("capture", line) for line in said]
    return "\n".join(said)


@pytest.fixture(autouse=True)
def _impaired(request: pytest.FixtureRequest) -> None:
    """See to it that a marked test gets its impairments even if it does not ask for ``lab``."""
    if request.node.stash.get(_WANTED, {}):
        request.getfixturevalue("lab")


# --- running and reporting ------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Begin its timelines with the test, and read back after it that its impairments are still in force.

    Else its result does not count.
    """
    if _RUNNING in item.stash:
        item.stash[_RUNNING].play()
    try:
        result = yield
    except (Exception, pytest.fail.Exception):  # pytest.fail's is none of the former
        _verify(item)
        raise
    _verify(item)
    return result


def _verify(item: pytest.Item) -> None:
    if _RUNNING in item.stash:
        item.stash[_RUNNING].verify()


def _keep(item: pytest.Item, lab: Lab) -> None:
    """Keep what was found of the test's links, for the results file and JUnit."""
    result = _result_of(item)
    result.links, result.replay = tuple(lab.evidence), _replay(item).splitlines()[0]
    result.records = [vars(record) for record in lab.records]
    for link in lab.evidence:
        levels = f"read-back {link.read_back}, counters {link.counters}, probe {link.probe}"
        item.user_properties.append((f"proof {link.link}", levels))
        for check in link.checks:
            seen = f"asked {check.asked}, kernel {check.kernel}, seen {check.seen}: {check.verdict}"
            item.user_properties.append((f"{link.link} {check.field}", seen))
        item.user_properties += [(f"{link.link} warning", warning) for warning in link.warnings]


def _result_of(item: pytest.Item) -> TestResult:
    from testbed.model.results import TestResult

    return item.config.stash[_RESULTS].setdefault(item.nodeid, TestResult(id=item.nodeid))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report a test whose impairment was not in force as INVALID, whatever it was expected to do.

    The outermost: `xfail` would turn it into a success.
    """
    report = yield
    if call.excinfo is not None and call.excinfo.errisinstance(ImpairmentNotAppliedError):
        report.outcome, report.longrepr = "failed", f"INVALID: {call.excinfo.value}"
        vars(report).pop("wasxfail", None)
        report.testbed_invalid = True  # type: ignore[attr-defined]  # reports carry plugins' words this way
    if report.failed and _RUNNING in item.stash:
        if kept := _end_captures(item, save=True):
            report.sections.append(("testbed: what passed the impaired ports, before and after", kept))
        if links := item.stash[_RUNNING].evidence:
            from testbed.report import evidence

            seen = "\n".join(line for link in links for line in evidence.lines(link))
            report.sections.append(("testbed: asked, kernel, seen", seen))
        report.sections.append(("testbed: to run it again under the same network", _replay(item)))
    if _RUNNING in item.stash or item.nodeid in item.config.stash[_RESULTS]:
        result = _result_of(item)
        invalid = getattr(report, "testbed_invalid", False)
        result.add("invalid" if invalid else report.outcome, None if report.passed else report.longreprtext)
        result.duration_s = report.duration if report.when == "call" else result.duration_s
        if report.when == "teardown":  # all is known by now; with pytest-xdist, the report alone reaches the controller
            vars(report).update(
                testbed_result=result.as_json(),
                testbed_netem=getattr(item.config.stash.get(_LAB, None), "netem_engine", None),
            )
    return report


def _replay(item: pytest.Item) -> str:
    """The command that repeats a test under the same network, and what was put on its links."""
    lab, config = item.stash[_RUNNING], item.config
    path, *inside = item.nodeid.split("::")  # as pytest's root has it; the line is for where pytest was started
    path = os.path.relpath(config.rootpath / path, config.invocation_params.dir)
    words = ["pytest", "::".join([path, *inside]), "--testbed-seed", str(config.stash[_SEED])]
    words += ["--netem", lab.netem_engine, "--lab", _chosen(config)[0]]
    if file := config.getoption("--compose-file"):
        words += ["--compose-file", file]
    for name in config.getoption("--compose-profile"):
        words += ["--compose-profile", name]
    for option, usual in _OPTIONS:
        said: str = config.getoption(option)
        if said != usual:
            words += [option, said]
    links = [f"{each.link}: {each.describe()}" for each in lab.history]
    unseeded = [] if lab.seedable else ["(unseeded: this kernel's netem takes no seed; --netem carried does)"]
    lost = item.stash.get(_LOST, None) or _counted_losses(
        lab, captured=config.getoption("--testbed-capture") != "never"
    )
    return "\n".join([shlex.join(words), *links, *unseeded, *lost])


def _counted_losses(lab: Lab, *, captured: bool) -> Iterator[str]:
    """What each link lost, where no capture tells which packets these were."""
    which = "" if captured else "; which, --testbed-capture on-failure tells"
    for each in lab.evidence:
        if each.tally is not None and each.tally.dropped_packets:
            yield (f"{each.link}: lost {each.tally.dropped_packets} of {each.tally.arrived_packets} packets{which}")


def pytest_report_teststatus(
    report: pytest.CollectReport | pytest.TestReport,
) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
    """INVALID is an outcome of its own."""
    if getattr(report, "testbed_invalid", False):
        return "invalid", "I", ("INVALID", {"red": True})
    return None


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say of each INVALID test what was asked and what was found; and what the machine lacks."""
    invalid = terminalreporter.stats.get("invalid", [])
    if invalid:
        terminalreporter.section("INVALID: the impairment was not in force", red=True)
        for report in invalid:
            terminalreporter.write_line(f"{report.nodeid}: {str(report.longrepr).removeprefix('INVALID: ')}")
            for title, text in report.sections:
                if title.startswith("testbed: "):
                    terminalreporter.write_line(text)
    if _UNFIT in config.stash:
        terminalreporter.section("testbed could not start the stack", red=True)
        terminalreporter.write_line(config.stash[_UNFIT])
    if _worker_of(config) is None and config.pluginmanager.has_plugin("dsession") and config.stash[_PROBLEMS]:
        _tell_problems(config, config.stash[_PROBLEMS])  # which workers have told, and could not print


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Exit status 2 where the machine or the Compose file or the markers, not a test, are at fault."""
    unfit = session.config.stash.get(_UNFIT, None)
    if unfit is not None or session.config.stash[_PROBLEMS]:
        session.exitstatus = _WRONG_USE
    if unfit is not None and _worker_of(session.config) is not None:
        session.config.workeroutput[_TOLD_UNFIT] = unfit  # type: ignore[attr-defined]  # xdist's


class _ResultsFile:
    """Gathers each test's result as it is reported, and writes them at the end; one a session, whoever runs tests."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._started = datetime.now(UTC)
        self._tests: list[Mapping[str, Any]] = []
        self._netem: str | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what a test's last report brings."""
        if (found := getattr(report, "testbed_result", None)) is not None:
            self._tests.append(found)
            self._netem = getattr(report, "testbed_netem", self._netem)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the file, if a test had a lab; and say in JUnit's, which is written by now, what is INVALID."""
        self._mark_invalid(self._config.getoption("xmlpath", None))
        if not self._tests:
            return
        import json

        from testbed.model.results import session_json

        found = session_json(
            self._tests,
            started=self._started.isoformat(timespec="seconds"),
            duration_s=(datetime.now(UTC) - self._started).total_seconds(),
            seed=self._config.stash[_SEED],
            netem=self._netem,
            exit_status=int(session.exitstatus),
        )
        path = self._config.invocation_params.dir / self._config.getoption("--testbed-results")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=1), encoding="utf-8")
        except OSError as error:  # the tests were run all the same; their results must not be lost with a traceback
            _sayer(self._config)(f"results were not written to {path}: {error.strerror}; say --testbed-results FILE")

    def _mark_invalid(self, path: str | None) -> None:
        """In the JUnit file, if there is one to be written."""
        # As pytest's own junitxml takes the option.
        said = Path(os.path.expandvars(path)).expanduser() if path is not None else None
        file = self._config.invocation_params.dir / said if said is not None else None
        if file is not None and file.is_file():
            from testbed.report.junit import invalid_as_error

            file.write_text(invalid_as_error(file.read_text(encoding="utf-8")), encoding="utf-8")
