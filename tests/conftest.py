"""What all tests share."""

from __future__ import annotations

from typing import Any

import pytest

pytest_plugins = ["pytester"]
_SECOND_TRIES = 3
"""The most tests of a run that may fail at first: more are no accident."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is for another kind of lab than the one that ``--lab`` asks for.

    A test of real links has a second try: the machine may stop for longer than any of its bounds.
    """
    lab = config.getoption("--lab")

    def fits(item: pytest.Item) -> bool:
        return isinstance(item, pytest.Function) and (
            not hasattr(item, "callspec") or item.callspec.params.get("kind", lab) == lab
        )

    if lab != "auto":
        config.hook.pytest_deselected(items=[item for item in items if not fits(item)])
        items[:] = filter(fits, items)
    if not config.pluginmanager.has_plugin("rerunfailures"):
        return
    real = [config.rootpath / "tests" / room for room in ("lab", "paper")]
    for item in items:
        if any(map(item.path.is_relative_to, real)):
            item.add_marker(pytest.mark.flaky(reruns=1))


def _second_tries(config: pytest.Config) -> list[Any]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return [] if reporter is None else reporter.stats.get("rerun", [])


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Why tests that had a second try failed at first: each is a fault to be mended."""
    reports = _second_tries(config)
    for report in reports:
        terminalreporter.section(f"failed at first: {report.nodeid}", yellow=True)
        terminalreporter.write_line(report.longreprtext)
        for title, content in report.sections:
            terminalreporter.write_line(f"--- {title}\n{content}")
    if len(reports) > _SECOND_TRIES:
        terminalreporter.write_line(f"{len(reports)} tests had a second try. More than {_SECOND_TRIES} fail the run.")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run of many second tries fails."""
    if len(_second_tries(session.config)) > _SECOND_TRIES and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
