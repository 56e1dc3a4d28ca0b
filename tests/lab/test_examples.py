"""Each example passes as its reader would run it, and has a chapter and a figure."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.lab.conftest import ROOT, run

LABS = ("compose",)
EXAMPLES = sorted(file.parent.name for file in ROOT.glob("examples/*/compose.yaml"))

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("example", EXAMPLES)
def test_it_passes(kind: str, example: str, tmp_path: Path) -> None:
    folder = tmp_path / example
    shutil.copytree(ROOT / "examples" / example, folder, ignore=shutil.ignore_patterns("report", "__pycache__"))
    options = ["-p", "no:cacheprovider", "--rootdir=.", "--testbed-lateness=warn"]
    printed = run([sys.executable, "-m", "pytest", *options], cwd=folder)
    assert " passed" in printed


def test_each_has_a_chapter_with_a_figure_and_its_test() -> None:
    for example in EXAMPLES:
        chapter = (ROOT / "docs" / "examples" / f"{example}.md").read_text()
        assert f"]({example}.svg)" in chapter
        assert f"examples/{example}/test_" in chapter
        assert (ROOT / "docs" / "examples" / f"{example}.svg").is_file(), "scripts/figures draws it"
    assert {path.stem for path in ROOT.glob("docs/examples/*.md")} == {*EXAMPLES, "index"}
