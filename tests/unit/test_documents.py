"""How examples are found in a page, which blocks are refused, and how output is compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import documents
from tests.lab.documents import Command, File, NotRun, Script, Step, Test

ROOT = Path(__file__).parents[2]


@pytest.fixture
def steps(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Step, ...]:
    """The examples of a page with this text."""
    (tmp_path / "page.md").write_text(request.param)
    return documents.read(tmp_path / "page.md", tmp_path).steps


_KINDS = """
```python
# tests/test_it.py
def test_it(lab): ...
```
```python
def test_it(lab): ...
```
```python
with LocalLab() as lab: ...
```
```text
# a/trace.csv
time_s
```
<!-- not run: it is for macOS -->
```console
$ brew install
```
```console
$ testbed up \\
  --netem host  # exit status 2
no netem
$ testbed down
```
```{include} else.md
```
"""


@pytest.mark.parametrize("steps", [_KINDS], indirect=True)
def test_examples_are_in_order_and_of_their_kind(steps: tuple[Step, ...]) -> None:
    assert steps == (
        File(path="tests/test_it.py", text="# tests/test_it.py\ndef test_it(lab): ...\n"),
        Test(text="def test_it(lab): ...\n"),
        Script(text="with LocalLab() as lab: ...\n"),
        File(path="a/trace.csv", text="time_s\n"),
        NotRun(reason="it is for macOS", text="$ brew install\n"),
        Command(line="testbed up   --netem host", status=2, shown=("no netem",)),
        Command(line="testbed down"),
    )


@pytest.mark.parametrize(
    "block",
    [
        "```sh\ntestbed up\n```\n",
        "```\ntestbed up\n```\n",
        "```text\n$ testbed up\n```\n",
        "```console\ntestbed up\n```\n",
        "```yaml\nforward: {}\n```\n",
        "  ```python\n  def test_it(lab): ...\n  ```\n",
    ],
)
def test_a_block_that_nobody_would_run_is_refused(tmp_path: Path, block: str) -> None:
    (tmp_path / "page.md").write_text(block)
    with pytest.raises(ValueError, match=r"page\.md: "):
        documents.read(tmp_path / "page.md", tmp_path)


_PRINTED = """testbed: starting
up, as run 3f2a9c07 (carried netem): a, b
FAILED tests/test_it.py::test_it - AssertionError
========== 1 failed, 2 passed in 91.08s (0:01:31) ==========
"""


@pytest.mark.parametrize(
    ("shown", "missing"),
    [
        (("up, as run 00aa17ff (carried netem): a, b", "=== 1 failed, 2 passed in 5.1s ==="), None),
        (("FAILED tests/test_it.py::test_it …",), None),
        (("up, as run 00aa17ff (host netem): a, b",), "up, as run 00aa17ff (host netem): a, b"),
        (("=== 1 failed in 5.1s ===",), "=== 1 failed in 5.1s ==="),
        (("FAILED tests/test_it.py::test_it …", "testbed: starting"), "testbed: starting"),
    ],
)
def test_what_a_command_prints_is_compared_but_for_numbers(shown: tuple[str, ...], missing: str | None) -> None:
    assert Command(line="pytest", shown=shown).missing(_PRINTED) == missing


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
