"""What is written of all tests of a session: the results, line by line and at the close; in JUnit's what is INVALID."""

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
from testbed.pytest.state import NOT_UP, PROBLEMS, SEED, WRONG_USE, told_at_close
from testbed.text import several

if TYPE_CHECKING:
    from testbed.writing import Lines

_ONE_MORE = "say --testbed-results FILE"


def _file(config: pytest.Config) -> Path:
    said: str = config.getoption("--testbed-results")
    return config.invocation_params.dir / said


def _lines_file(config: pytest.Config) -> Path:
    file = _file(config)
    return file.with_name(f"{file.name}l" if file.suffix == ".json" else f"{file.name}.jsonl")


def prepare(session: pytest.Session) -> None:
    """Before tests that need a lab: see that results can be written, and take away what an earlier run has written.

    Whatever becomes of this run, its results must not be taken for those.
    """
    config = session.config
    if config.option.collectonly or not any(map(needs_lab, session.items)):
        return
    from testbed import writing

    below = config.invocation_params.dir
    try:
        for path in (_file(config), _lines_file(config)):
            writing.make_room(path, below)
        _file(config).unlink(missing_ok=True)
    except OSError as error:
        config.stash[PROBLEMS].append(f"results cannot be written to {_file(config)}: {_why(error)}; {_ONE_MORE}")


def _why(error: OSError) -> str:
    return error.strerror or str(error)


class ResultsFile:
    """Writes each test's result as it is reported, and all of them at the close; one a session, whoever runs tests."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._started = datetime.now(UTC)
        self._tests: dict[str, Mapping[str, Any]] = {}
        self._netem: str | None = None
        self._lines: Lines | None = None
        self._unwritten = ""
        """Why lines could not be written any more."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write what a test's last report brings."""
        found = getattr(report, "testbed_result", None)
        if found is None and str(report.when) == "???":  # pytest-xdist's of a worker that died: it may have had a lab
            from testbed.evidence.results import Attempt, TestResult

            lost = Attempt(seed=self._config.stash[SEED], outcome=Verdict.FAILS, reason=report.longreprtext)
            found = TestResult(id=report.nodeid, attempts=[lost]).as_json()
        if found is not None:
            self._tests.pop(found["id"], None)
            self._tests[found["id"]] = found
            self._netem = getattr(report, "testbed_netem", None) or self._netem
            self._append({"test": found})

    def _append(self, said: Mapping[str, Any]) -> None:
        from testbed.evidence.results import LINES_SCHEMA, as_text
        from testbed.writing import Lines

        if self._unwritten:
            return
        try:
            if self._lines is None:
                self._lines = Lines(_lines_file(self._config), below=self._config.invocation_params.dir)
                head = {"schema": LINES_SCHEMA, "started": self._begun, "seed": self._config.stash[SEED]}
                self._lines.append(as_text(head))
            self._lines.append(as_text(said))
        except OSError as error:
            self._unwritten = f"results are not written to {_lines_file(self._config)} any more: {_why(error)}"

    @property
    def _begun(self) -> str:
        return self._started.isoformat(timespec="seconds")

    @property
    def notable(self) -> Iterator[str]:
        """What is to be said of tests whatever their outcome: warnings of their links, and that they are flaky."""
        for test in self._tests.values():
            if test["flaky"]:
                earlier = [each["outcome"] for each in test["earlier_attempts"]]
                yield f"{test['id']}: flaky: {', '.join(earlier)}, then passed"
            links: dict[str, dict[str, None]] = {}
            for link in test["links"]:
                for warning in link["warnings"]:
                    links.setdefault(" ".join(warning.split()), {})[link["link"]] = None
            for warning, (*named,) in links.items():  # an isolated host has a dozen links, a carried kernel all of them
                yield f"{test['id']}: {several(named)}: {warning}"

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the file, if a test had a lab; and say in JUnit's, which is written by now, what is INVALID."""
        try:
            self._mark_invalid(self._config.getoption("xmlpath", None))
        except OSError as error:
            told_at_close(self._config, f"testbed: INVALID tests are failures in the JUnit file: {_why(error)}")
        config = self._config
        problems, not_up = config.stash[PROBLEMS], config.stash.get(NOT_UP, None)
        concerned = bool(self._tests or problems or not_up)
        if not concerned and (int(session.exitstatus) not in _CUT_SHORT or not _is_ours(_file(config))):
            return
        if config.option.collectonly:
            return
        from testbed import writing
        from testbed.evidence.results import as_text, session_json

        found = session_json(
            self._tests.values(),
            started=self._begun,
            duration_s=(datetime.now(UTC) - self._started).total_seconds(),
            seed=config.stash[SEED],
            netem=self._netem,
            exit_status=int(session.exitstatus),
            problems=list(dict.fromkeys(problems)),
            not_up=not_up,
        )
        self._append({"end": {key: value for key, value in found.items() if key not in ("schema", "tests")}})
        if self._lines is not None:
            self._lines.close()
        unwritten = [self._unwritten] if self._unwritten else []
        try:
            writing.write_whole(_file(config), as_text(found, indent=1), below=config.invocation_params.dir)
        except OSError as error:  # the tests were run all the same; their results must not be lost with a traceback
            unwritten.append(f"results are not written to {_file(config)}: {_why(error)}")
        if unwritten:
            for each in unwritten if not problems else ():  # else this is among them
                told_at_close(config, f"testbed: {each}; {_ONE_MORE}")
            session.exitstatus = WRONG_USE

    def _mark_invalid(self, path: str | None) -> None:
        """In the JUnit file, if there is one and something in it is to be changed. Raises OSError."""
        # As pytest's own junitxml takes the option.
        said = Path(os.path.expandvars(path)).expanduser() if path is not None else None
        file = self._config.invocation_params.dir / said if said is not None else None
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


_CUT_SHORT = (2, 3, 4)
"""Exit statuses of pytest's that say that tests may not have been run: interrupted, internal error, wrong use."""


def _is_ours(path: Path) -> bool:
    """Whether there is a results file of ours, which says what is true no more."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and str(said.get("schema", "")).startswith("testbed-results/")
