"""What is written of all tests of a session: the results file, and in JUnit's what is INVALID."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from testbed.pytest.state import SEED, sayer


class ResultsFile:
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
            seed=self._config.stash[SEED],
            netem=self._netem,
            exit_status=int(session.exitstatus),
        )
        path = self._config.invocation_params.dir / self._config.getoption("--testbed-results")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=1), encoding="utf-8")
        except OSError as error:  # the tests were run all the same; their results must not be lost with a traceback
            sayer(self._config)(f"results were not written to {path}: {error.strerror}; say --testbed-results FILE")

    def _mark_invalid(self, path: str | None) -> None:
        """In the JUnit file, if there is one to be written."""
        # As pytest's own junitxml takes the option.
        said = Path(os.path.expandvars(path)).expanduser() if path is not None else None
        file = self._config.invocation_params.dir / said if said is not None else None
        if file is not None and file.is_file():
            from testbed.report.junit import invalid_as_error

            file.write_text(invalid_as_error(file.read_text(encoding="utf-8")), encoding="utf-8")
