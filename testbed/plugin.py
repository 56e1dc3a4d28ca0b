"""The pytest plugin: its hooks and fixtures; what they do is in `testbed.pytest`.

Nothing here needs an engine until a test that uses ``lab`` or ``stack`` is set up; collection needs Compose
alone, and only where a test carries one of our markers.

Every pytest start on a machine with testbed imports this module, most of them in projects that have no stack. So it
imports at once what is small; labs, and all that needs a library, are imported where a hook or a fixture needs them.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from testbed.errors import EnvironmentUnfitError, ServiceFailedError, TestbedError, UserError
from testbed.pytest import markers, running, state, workers
from testbed.pytest.results import ResultsFile

if TYPE_CHECKING:
    from testbed.labs.lab import Lab


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    state.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers; settle the seed."""
    config.stash[running.RESULTS] = {}
    worker = workers.worker_of(config)
    if worker is not None:
        workers.die_with(worker["testbed_controller"])
        if worker["testbed_lab"] is not None:
            config.stash[state.CHOSEN] = worker["testbed_lab"]
    given = config.getoption("--testbed-seed") if worker is None else worker["testbed_seed"]
    config.stash[state.SEED] = int.from_bytes(os.urandom(4)) if given is None else given
    if worker is None:
        config.pluginmanager.register(ResultsFile(config), "testbed-results-file")
    config.addinivalue_line(
        "markers",
        'impair(link, profile | delay="40ms", loss="2%", …): impair a link during the test: "a -> b" one way, '
        '"a <-> b" both ways; stackable. Words: see `testbed profiles --words`. prove=True: probe it first.',
    )
    config.addinivalue_line(
        "markers",
        'impair_each(link, "profile", …): run the test once under each profile (without names: under every one).',
    )
    config.stash[state.PROBLEMS] = []


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist what all of them must know."""
    workers.tell_worker(node)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Hear from a worker of pytest-xdist what was wrong."""
    workers.hear_worker(node)


def pytest_report_header(config: pytest.Config) -> str:
    """Say which stack, which lab and, if it was not said on the command line, why that one; and which engine."""
    file = config.getoption("--compose-file") or "as Compose finds it"
    lab = config.getoption("--lab")
    if lab == "auto" and state.has_stack(config):
        lab = "{} ({})".format(*state.chosen(config))
    return f"testbed: stack {file}, lab {lab}, netem {config.getoption('--netem')}, seed {config.stash[state.SEED]}"


# --- collection -----------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test of each profile that ``impair_each`` names."""
    markers.one_each(metafunc)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Check every marker of the chosen tests; end the run with all problems if there are any."""
    markers.check(session)


# --- fixtures -------------------------------------------------------------------------------------


@pytest.fixture
def profile(request: pytest.FixtureRequest) -> str | None:
    """The profile that ``impair_each`` runs this test under."""
    return getattr(request, "param", None)


@pytest.fixture(scope="session")
def stack(pytestconfig: pytest.Config) -> Iterator[Lab]:
    """The stack, up for the whole session, as a lab: for set-up that tests share. `lab` heals its links."""
    lab = state.lab_of(pytestconfig)
    failed = None
    try:
        lab.up()
    except TestbedError as error:
        failed = f"the stack is not up: {error}"
        if pytestconfig.getoption("--lab") == "auto" and (found := state.chosen(pytestconfig))[0] == "local":
            failed += f"\n(the local lab was chosen because {found[1]})"
        if isinstance(error, UserError | EnvironmentUnfitError | ServiceFailedError):
            pytestconfig.stash[state.UNFIT] = failed.removeprefix("the stack is not up: ")
    if failed:  # out of the handler, or pytest would print the error twice
        pytest.fail(failed, pytrace=False)
    yield lab
    lab.down()


@pytest.fixture
def lab(request: pytest.FixtureRequest, stack: Lab) -> Iterator[Lab]:
    """The stack, with this test's impairments in force and no others; healed afterwards."""
    with running.impaired(request.node, stack):
        yield stack


@pytest.fixture(autouse=True)
def _impaired(request: pytest.FixtureRequest) -> None:
    """See to it that a marked test gets its impairments even if it does not ask for ``lab``."""
    if request.node.stash.get(markers.WANTED, {}):
        request.getfixturevalue("lab")


# --- running and reporting ------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Begin its links' sequences and timelines with the test's body, and read back after it that all is still in force.

    Else its result does not count.
    """
    if running.RUNNING in item.stash:
        item.stash[running.RUNNING].begin_body()
    try:
        result = yield
    except (Exception, pytest.fail.Exception):  # pytest.fail's is none of the former
        running.verify(item)
        raise
    running.verify(item)
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report a test whose impairment was not in force as INVALID. The outermost: `xfail` would make it a success."""
    report = yield
    running.judge(item, call, report)
    return report


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
    if state.UNFIT in config.stash:
        terminalreporter.section("testbed could not start the stack", red=True)
        terminalreporter.write_line(config.stash[state.UNFIT])
    problems = config.stash[state.PROBLEMS]
    if problems and workers.worker_of(config) is None and config.pluginmanager.has_plugin("dsession"):
        markers.tell_problems(config, problems)  # which workers have told, and could not print


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Exit status 2 where the machine or the Compose file or the markers, not a test, are at fault."""
    unfit = session.config.stash.get(state.UNFIT, None)
    if unfit is not None or session.config.stash[state.PROBLEMS]:
        session.exitstatus = state.WRONG_USE
    if unfit is not None and workers.worker_of(session.config) is not None:
        session.config.workeroutput[workers.TOLD_UNFIT] = unfit  # type: ignore[attr-defined]  # xdist's
