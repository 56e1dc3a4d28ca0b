"""What is written of all tests of a session: the results, line by line; in JUnit's what is INVALID."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from testbed.evidence.verdict import Verdict
from testbed.pytest.markers import needs_lab
from testbed.pytest.state import DIVISION, ENGINES, PROBLEMS, SEED, WRONG_USE, is_told, told_at_close, why_not_up
from testbed.pytest.workers import hear_division, worker_of
from testbed.text import several

if TYPE_CHECKING:
    from testbed.writing import LineFile

NAME = "testbed-results-file"
"""Of the plugin that writes them."""
_ONE_MORE = "say --testbed-results FILE"


def file_of(config: pytest.Config) -> Path:
    """The results file of a session."""
    path: str = config.getoption("--testbed-results")
    return config.invocation_params.dir / path


def _page(file: Path) -> Path:
    """Where the report of a results file is: beside it, ``index.html`` of ``results.jsonl``, else of the same name."""
    return file.with_name("index.html") if file.name == _USUAL_NAME else file.with_suffix(".html")


def prepare(session: pytest.Session) -> None:
    """Before tests that need a lab: see that results can be written, and take away what an earlier run has written.

    Whatever becomes of this run, its results must not be taken for those.
    """
    config = session.config
    if (worker_of(config) or {}).get("testbed_replaces"):
        return  # the others have results by now
    if (
        config.option.collectonly
        or is_told(config)
        or not (DIVISION in config.stash or any(map(needs_lab, session.items)))
    ):
        return  # one that is told has a file of its own for each pass, and the usual one is another run's
    make_room(config)


def make_room(config: pytest.Config) -> None:
    """Take an earlier run's results away; note a problem if new ones cannot be written."""
    from testbed import writing

    below = config.invocation_params.dir
    try:
        for path in (file_of(config), _page(file_of(config))):
            writing.make_room(path, below)
            path.unlink(missing_ok=True)
    except OSError as error:
        config.stash[PROBLEMS].append(f"results cannot be written to {file_of(config)}: {_why(error)}; {_ONE_MORE}")


def _why(error: OSError) -> str:
    return error.strerror or str(error)


def of_lost(report: pytest.TestReport, seed: int) -> dict[str, Any]:
    """The result of a test whose process died."""
    from testbed.evidence.results import Attempt, TestResult

    lost = Attempt(seed=seed, outcome=Verdict.FAILS, reason=report.longreprtext)
    return TestResult(id=report.nodeid, attempts=[lost]).as_json()


class ResultsFile:
    """Writes each test's result as it is reported; one a session, whoever runs tests."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._started = datetime.now(UTC)
        self._tests: dict[str, Mapping[str, Any]] = {}
        self._lab: Mapping[str, Any] = {}
        """What is known of the lab on which the last test ran."""
        self._machine: Mapping[str, Any] = {}
        """What the file says of the machine."""
        self._lines: LineFile | None = None
        self._own: Mapping[str, Any] = {}
        """This machine's facts, once they are needed."""
        self._unwritten = ""
        """Why lines could not be written any more."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write what a test's last report brings."""
        result = getattr(report, "testbed_result", None)
        if result is None and str(report.when) == "???":  # pytest-xdist's of a worker that died: it may have had a lab
            result = of_lost(report, self._config.stash[SEED])
        if result is not None:
            if (engines := self._config.pluginmanager.get_plugin(ENGINES)) is not None:
                result = {**result, **engines.of(report.node.gateway.id, report.nodeid)}
            self._tests.pop(result["id"], None)
            self._tests[result["id"]] = result
            self._lab = getattr(report, "testbed_lab", None) or self._lab
            hear_division(self._config, getattr(report, "testbed_shard", None))
            self._append({"test": result})

    def _append(self, content: Mapping[str, Any]) -> None:
        from testbed.evidence.results import as_text, head
        from testbed.writing import LineFile

        if self._unwritten:
            return
        try:
            if self._lines is None:
                from testbed.pytest.machine import fingerprint

                self._own = fingerprint(self._config.invocation_params.dir)
                self._lines = LineFile(file_of(self._config), below=self._config.invocation_params.dir)
                self._machine = self._whole_machine()
                division = self._config.stash.get(DIVISION, None)
                first = head(
                    started=self._begun,
                    seed=self._config.stash[SEED],
                    machine=self._machine,
                    shard=None if division is None else division.as_json(),
                )
                self._lines.append(as_text(first))
            elif (machine := self._whole_machine()) != self._machine:
                self._machine = machine
                self._lines.append(as_text({"machine": machine}))
            self._lines.append(as_text(content))
        except OSError as error:
            self._unwritten = f"results are not written to {file_of(self._config)} any more: {_why(error)}"

    def _whole_machine(self) -> dict[str, Any]:
        """The facts of the machine and of the lab on it."""
        versions = {**self._own["versions"], **self._lab.get("versions", {})}
        known = {key: fact for key, fact in self._lab.items() if fact is not None}
        return {**self._own, **known, "versions": versions}

    @property
    def _begun(self) -> str:
        return self._started.isoformat(timespec="seconds")

    @property
    def notable(self) -> Iterator[str]:
        """What is to be said of tests whatever their outcome: warnings of their links, and that they are flaky."""
        for test in self._tests.values():
            if test["flaky"]:
                earlier = [attempt["outcome"] for attempt in test["earlier_attempts"]]
                yield f"{test['id']}: flaky: {', '.join(earlier)}, then passed"
            links: dict[str, dict[str, None]] = {}
            for link in test["links"]:
                for warning in link["warnings"]:
                    links.setdefault(" ".join(warning.split()), {})[link["link"]] = None
            for warning, (*named,) in links.items():  # an isolated host has a dozen links, a carried kernel all of them
                yield f"{test['id']}: {several(named)}: {warning}"

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the last line, if a test had a lab; and say in JUnit's, which is written by now, what is INVALID."""
        try:
            self._mark_invalid(self._config.getoption("xmlpath", None))
        except OSError as error:
            told_at_close(self._config, f"testbed: INVALID tests are failures in the JUnit file: {_why(error)}")
        config = self._config
        problems, not_up = config.stash[PROBLEMS], why_not_up(config)
        concerned = bool(self._tests or problems or not_up or DIVISION in config.stash)
        if not concerned and (int(session.exitstatus) not in _CUT_SHORT or not _is_there(file_of(config))):
            return
        if config.option.collectonly:
            return
        from testbed.evidence.results import end

        content = end(
            duration_s=(datetime.now(UTC) - self._started).total_seconds(),
            exit_status=int(session.exitstatus),
            problems=list(dict.fromkeys(problems)),
            not_up=not_up,
        )
        self._append(content)
        if self._lines is not None:
            self._lines.close()
        if self._unwritten:  # the tests were run all the same; their results must not be lost with a traceback
            if not problems:  # else this is among them
                told_at_close(config, f"testbed: {self._unwritten}; {_ONE_MORE}")
            session.exitstatus = WRONG_USE
        elif self._tests and not is_told(config):  # who tells it writes one page of all passes
            self._write_page(session)

    def _write_page(self, session: pytest.Session) -> None:
        """Write the report of what the file says. A report that cannot be written is told; no result is lost by it."""
        try:
            _write_page(self._config)
        except OSError as error:
            page = _page(file_of(self._config))
            told_at_close(self._config, f"testbed: the report is not written to {page}: {_why(error)}")
            session.exitstatus = WRONG_USE

    def _mark_invalid(self, path: str | None) -> None:
        """In the JUnit file, if there is one and something in it is to be changed. Raises OSError."""
        # As pytest's own junitxml takes the option.
        given = Path(os.path.expandvars(path)).expanduser() if path is not None else None
        file = self._config.invocation_params.dir / given if given is not None else None
        if (
            file is None
            or not file.is_file()
            or not any(test["outcome"] == Verdict.INVALID.of("test") for test in self._tests.values())
        ):
            return
        from testbed.report.junit import invalid_as_error
        from testbed.writing import write_whole

        written = invalid_as_error(file.read_text(encoding="utf-8"))
        write_whole(file, written, below=self._config.invocation_params.dir)


def _write_page(config: pytest.Config) -> None:
    """Write the report of what the results file says. Raises OSError."""
    from testbed.evidence import stored
    from testbed.report import page, run
    from testbed.writing import write_whole

    file = file_of(config)
    with file.open(encoding="utf-8") as lines:
        text = page.render(run.page(stored.read(lines, name=file.name)))
    write_whole(_page(file), text, below=config.invocation_params.dir)


def add(config: pytest.Config, additions: Mapping[str, Mapping[str, Any]]) -> None:
    """Add values to what the results file says of tests, by id, once the session is over. Raises OSError."""
    from testbed.evidence.results import as_text
    from testbed.writing import write_whole

    file, lines = file_of(config), []
    for line in file.read_text(encoding="utf-8").splitlines():
        content = json.loads(line)
        if "test" in content and (added := additions.get(content["test"]["id"])):
            line = as_text({"test": {**content["test"], **added}})
        lines.append(f"{line}\n")
    write_whole(file, "".join(lines), below=config.invocation_params.dir)
    _write_page(config)


_USUAL_NAME = "results.jsonl"
_CUT_SHORT = (2, 3, 4)
"""Exit statuses of pytest's that say that tests may not have been run: interrupted, internal error, wrong use."""


def _is_there(path: Path) -> bool:
    """Whether there is a results file of ours, which says what is true no more."""
    from testbed.report.files import is_results

    return is_results(path)
