"""What the plugin imports at each start of pytest in a project without a stack."""

from __future__ import annotations

import sys

import pytest

import testbed

OF_LABS = {"click", "docker", "requests", "rich", "tenacity", "urllib3", "yaml"}
OF_TESTBED = {
    "testbed",
    "testbed.pytest.plugin",
    "testbed.errors",
    "testbed.text",
    "testbed.compose",
    "testbed.compose.options",
    "testbed.pytest",
    "testbed.evidence",
    "testbed.evidence.verdict",
    *(
        f"testbed.pytest.{name}"
        for name in ("markers", "results", "running", "declared", "scopes", "stacks", "state", "workers")
    ),
}
TELL = """
import pathlib, sys
def pytest_sessionfinish():
    pathlib.Path(__file__).with_name("imported").write_text("\\n".join(sys.modules))
"""


@pytest.mark.parametrize(
    "arguments",
    [(), ("-n", "1"), ("--collect-only",), ("--junitxml", "found.xml"), ("--lab", "compose", "--testbed-seed", "1")],
    ids=" ".join,
)
def test_a_project_without_a_stack_imports_no_lab_and_no_library(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.delenv("COMPOSE_FILE", raising=False)
    pytester.makeconftest(TELL)  # with -n 1 the controller and then the worker write it, or the other way round
    pytester.makepyfile("import pytest\ndef test_fails(): pytest.fail('so')\ndef test_passes(tmp_path): pass")
    result = pytester.runpytest_subprocess(*arguments)
    if "--collect-only" not in arguments:
        result.assert_outcomes(failed=1, passed=1)
    imported = set((pytester.path / "imported").read_text().split("\n"))
    assert {name for name in imported if name.partition(".")[0] in OF_LABS} == set()
    assert {name for name in imported if name.partition(".")[0] == "testbed"} == OF_TESTBED


def test_every_public_name_is_there_when_it_is_asked_for() -> None:
    own_names = {name: getattr(testbed, name).__name__.rpartition(".")[2] for name in testbed.__all__}
    assert {name: own for name, own in own_names.items() if own != name} == {"topologies": "drawings"}
    assert set(testbed.__all__) <= set(dir(testbed))
    with pytest.raises(AttributeError, match="module 'testbed' has no attribute 'ComposeLap'"):
        _ = testbed.ComposeLap  # type: ignore[attr-defined]
    assert "testbed.backends.docker.lab" in sys.modules
