"""The pytest plugin: its hooks and fixtures; the other modules of `testbed.pytest` implement them.

An engine is needed only from the set-up of a test that uses ``lab`` or ``stack``. Collection needs Compose, and only
where a test has one of our markers.

Every pytest start on a machine with testbed imports this module, mostly in projects without a stack. So it imports
small modules only; hooks and fixtures import labs, and whatever needs a library, where they need them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from testbed.evidence.verdict import Verdict
from testbed.pytest import declared, markers, results, running, scopes, state, workers
from testbed.pytest import stacks as which

if TYPE_CHECKING:
    from testbed.lab.lab import Lab


_INVALID = Verdict.INVALID.of("test")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    state.add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """With --virtual-time: run the session in kernels whose clocks are simulated, not here. Or show our help."""
    if config.getoption("--testbed-help"):
        from testbed.pytest import helping

        pytest_configure(config)  # which declares the markers
        sys.stdout.write(f"{helping.text(config, {f.__name__: f for f in (lab, stack, stacks, profile, at_most)})}\n")
        return 0
    if not config.getoption("--virtual-time"):
        return None
    from testbed.kernel.variables import is_inside

    if is_inside():
        from testbed.pytest import inside

        inside.take(config)
        return None
    from testbed.pytest import virtual

    return virtual.run_again(config)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers; settle the seed."""
    worker = workers.worker_of(config)
    if worker is not None:
        workers.die_with(worker["testbed_controller"])
        if worker["testbed_lab"] is not None:
            config.stash[state.CHOSEN] = worker["testbed_lab"]
        config.stash[state.DURATIONS] = worker.get("testbed_durations", {})
        if (place := worker.get("testbed_engine")) is not None:
            from testbed.pytest import onengine

            onengine.move(config, place)
    config.stash[state.SEED] = state.check_options(config) if worker is None else worker["testbed_seed"]
    if config.getoption("--testbed-engines") and config.getoption("--lab") == "swarm":
        from testbed.pytest import onengine

        onengine.span(config)
    elif config.getoption("--testbed-engines") and worker is None:
        from testbed.pytest import engines

        config.pluginmanager.register(engines.Engines(config), state.ENGINES)
    if worker is None:
        config.pluginmanager.register(results.ResultsFile(config), results.NAME)
    for marker in declared.MARKERS:
        config.addinivalue_line("markers", marker)
    config.stash[state.PROBLEMS] = []
    config.stash[state.WARNED] = {}
    if state.is_told(config):
        from testbed.pytest import passes

        passes.listen(config)
        return
    share = config.stash.get(state.SHARE, None)
    if share is not None:
        from testbed.pytest.inside import Worker

        config.pluginmanager.register(Worker(config, share))
    if (worker is None or share is not None) and (several := state.seeds_of(config)) is not None:
        from testbed.pytest import seeds

        seeds.register(config, several)
    if config.getoption("--virtual-time"):
        from testbed.pytest import trails

        trails.configure(config)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Send a worker of pytest-xdist what all of them must share."""
    workers.tell_worker(node)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the problems of a worker of pytest-xdist."""
    workers.hear_worker(node)


def pytest_report_header(config: pytest.Config) -> str:
    """The stack, the lab (with why, where it was chosen automatically), netem, the seed; where programs are from."""
    file = " and ".join(config.getoption("--compose-file")) or "as Compose finds it"
    lab = config.getoption("--lab")
    if lab == "auto" and state.has_stack(config):
        lab = "{} ({})".format(*state.chosen(config))
    origins = state.origins(config)
    head = f"testbed: stack {file}, lab {lab}, netem {config.getoption('--netem')}, seed {config.stash[state.SEED]}"
    return f"{head}\ntestbed: {origins}" if origins else head


# --- collection -----------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test for each stack of ``stack_each``, and for each profile of ``impair_each``."""
    markers.one_per_profile(metafunc, markers.one_per_stack(metafunc))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None, object, object]:
    """Have each stack come up once; leave out what other shards run."""
    collected = [*items]
    result = yield
    which.together(items)
    if config.getoption("--testbed-shard"):
        from testbed.pytest import shards

        shards.keep(config, items, collected)
    return result


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keep each test's id at collection."""
    item.stash[markers.ID] = item.nodeid


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Check the markers of the selected tests; end the run with all problems if there are any."""
    markers.read(session)
    state.check_images(session.config)
    results.prepare(session)
    markers.refuse(session)


# --- fixtures -------------------------------------------------------------------------------------


@pytest.fixture
def profile(request: pytest.FixtureRequest) -> str | None:
    """The profile that ``impair_each`` runs this test under."""
    return getattr(request, "param", None)


@pytest.fixture
def at_most(pytestconfig: pytest.Config) -> Callable[..., int]:
    """``at_most(20, "messages")`` is 20. While ``--testbed-seeds`` makes a failure smaller, it may be less."""
    return lambda count, name="": running.work(pytestconfig, count, name)


@pytest.fixture(scope="session")
def _testbed_stack(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> Iterator[Lab]:
    """The lab of a test's stack, up until a test has another stack; or not up, and `state.fail_if_not_up` says so."""
    lab = state.lab_of(pytestconfig, getattr(request, "param", which.OWN))
    is_up = state.bring_up(pytestconfig, lab)
    yield lab
    if is_up:
        with state.timed(pytestconfig):
            lab.down()


@pytest.fixture(scope="session")
def stack(pytestconfig: pytest.Config, _testbed_stack: Lab) -> Lab:
    """The stack, up for the whole session, for set-up that tests share. The next test with `lab` heals its links."""
    state.fail_if_not_up(pytestconfig, _testbed_stack)
    return _testbed_stack


@pytest.fixture(scope="session")
def stacks(pytestconfig: pytest.Config) -> Iterator[Callable[..., Lab]]:
    """``stacks("other/compose.yaml", profiles=["debug"])``: another stack, up until the session ends.

    All of them are up together, beside the one of `lab`. Several files add up, as with ``docker compose``.
    """
    with ExitStack() as undo:
        yield state.Together(pytestconfig, undo).up


@pytest.fixture
def lab(request: pytest.FixtureRequest, stack: Any) -> Iterator[Lab]:
    """The stack, with the impairments of this test in force and no others. Healed after the test.

    If you define a fixture ``stack`` that gives a testbed lab, that lab is used. Any other ``stack`` is ignored.
    """
    from testbed.lab.lab import Lab

    own = stack if isinstance(stack, Lab) else request.getfixturevalue(which.SESSION_LAB)
    if own is not stack:
        state.fail_if_not_up(request.config, own)
    with running.impaired(request.node, own):
        yield own


@pytest.fixture(autouse=True)
def _testbed_links(request: pytest.FixtureRequest) -> Iterator[None]:
    """Impair the links of a marked test before its own fixtures run, whatever fixtures it uses."""
    with running.links_of_markers(request):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Have the markers of a class, a module or the session in force for its fixtures."""
    with scopes.impaired(fixturedef, request):
        return (yield)


# --- running and reporting ------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Begin an attempt: a test may be run again."""
    running.begin(item)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Begin the links' sequences and timelines with the test's body; read back after it that all is still in force.

    If it is not, the result does not count.
    """
    running.play(item)
    try:
        result = yield
    except (Exception, pytest.fail.Exception):  # pytest.fail's is a BaseException
        running.verify(item)
        raise
    running.verify(item)
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report a test whose impairment was not in force as INVALID. Outermost, or `xfail` would make it a success."""
    report = yield
    if state.ENGINE_LOST not in item.config.stash:
        running.judge(item, call, report)
    return report


def pytest_report_teststatus(
    report: pytest.CollectReport | pytest.TestReport,
) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
    """INVALID is an outcome of its own; an attempt that a re-run plugin repeats is named by that plugin."""
    if getattr(report, "testbed_verdict", None) == _INVALID and report.outcome == "failed":
        return _INVALID, "I", ("INVALID", {"red": True})
    return None


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The evidence of each INVALID test; warnings of links; why the stack did not start."""
    invalid = terminalreporter.stats.get(_INVALID, [])
    if invalid:
        terminalreporter.section("INVALID: the impairment was not in force, or nothing met it", red=True)
        for report in invalid:
            terminalreporter.write_line(f"{report.nodeid}: {report.testbed_reason}")
            for text in getattr(report, "testbed_sections", ()):
                terminalreporter.write_line(text)
    tellers = [
        plugin.notable for name in (state.ENGINES, results.NAME) if (plugin := config.pluginmanager.get_plugin(name))
    ]
    if notable := [*config.stash[state.WARNED], *(line for lines in tellers for line in lines)]:
        terminalreporter.section("testbed: warnings", yellow=True)
        for line in notable:
            terminalreporter.write_line(line)
    if (not_up := state.why_not_up(config)) is not None:
        terminalreporter.section("testbed could not start the stack", red=True)
        terminalreporter.write_line(not_up)
    problems = config.stash[state.PROBLEMS]
    elsewhere = any(map(config.pluginmanager.has_plugin, ("dsession", state.KERNELS)))
    if problems and workers.worker_of(config) is None and elsewhere:
        markers.tell_problems(config, problems)  # of the workers, which cannot print


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Exit status 2 where the machine, the Compose file or the markers are at fault, and no test."""
    if session.config.stash.get(state.UNFIT, False) or session.config.stash[state.PROBLEMS]:
        session.exitstatus = state.WRONG_USE
    workers.tell_controller(session.config)
    if session.config.getoption("--testbed-shard"):
        from testbed.pytest import shards

        if session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and shards.may_be_empty(session.config):
            session.exitstatus = pytest.ExitCode.OK
