"""A test of real links has a second try in our own suite: one is told with its failure, and many fail the run."""

from __future__ import annotations

from pathlib import Path

import pytest

_CONFTEST = (Path(__file__).parents[1] / "conftest.py").read_text()
_TESTS = """
import pytest
tries = []

@pytest.mark.parametrize("number", range({count}))
def test_late(number):
    tries.append(number)
    assert tries.count(number) == 2, "the machine stood still"
"""


def _run(pytester: pytest.Pytester, room: str, count: int, *arguments: str) -> pytest.RunResult:
    pytester.makeconftest("")
    folder = pytester.path / "tests" / room
    folder.mkdir(parents=True)
    (pytester.path / "tests" / "conftest.py").write_text(_CONFTEST.replace('pytest_plugins = ["pytester"]', ""))
    (folder / "test_it.py").write_text(_TESTS.format(count=count))
    return pytester.runpytest("--rootdir", pytester.path, *arguments)


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "xdist"])
@pytest.mark.parametrize(("count", "status"), [(3, 0), (4, 1)])
def test_few_second_tries_are_told_and_many_fail(
    pytester: pytest.Pytester, workers: tuple[str, ...], count: int, status: int
) -> None:
    result = _run(pytester, "lab", count, *workers)
    assert result.ret == status
    result.stdout.fnmatch_lines(["*failed at first: tests/lab/test_it.py::test_late?0?*", "*the machine stood still*"])
    assert ("4 tests had a second try. More than 3 fail the run." in result.outlines) == (status == 1)
    assert result.parseoutcomes() == {"passed": count, "rerun": count}


@pytest.mark.parametrize(("room", "arguments"), [("unit", ()), ("lab", ("-p", "no:rerunfailures"))])
def test_others_have_one_try(pytester: pytest.Pytester, room: str, arguments: tuple[str, ...]) -> None:
    result = _run(pytester, room, 1, *arguments)
    assert result.ret == 1
    assert result.parseoutcomes() == {"failed": 1}
