"""The digest of a project's files, which says whether a replay has the same."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from testbed.pytest import machine


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository that ignores where packages are installed."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("venv/\n")
    (tmp_path / "test_it.py").write_text("one")
    (tmp_path / "venv" / "package").mkdir(parents=True)
    (tmp_path / "venv" / "package" / "module.py").write_text("one")
    return tmp_path


@pytest.mark.parametrize("root", [".", "venv/package"], ids=["project", "installed package"])
def test_another_content_is_another_revision(project: Path, root: str) -> None:
    before = machine.revision(project / root, without=())
    (file,) = (project / root).glob("*.py")
    file.write_text("two")
    assert machine.revision(project / root, without=()) != before
    file.write_text("one")
    assert machine.revision(project / root, without=()) == before
    assert machine.revision(project / root, without=[file]) != before


def test_what_cannot_be_read_ends_nothing(project: Path) -> None:
    os.symlink("nowhere", project / "dangling")
    os.symlink("loop", project / "loop")
    os.mkfifo(project / "fifo")
    os.makedirs(os.fsencode(project) + b"/caf\xe9")
    Path(os.fsdecode(os.fsencode(project) + b"/caf\xe9/\xff.py")).write_text("odd")
    assert machine.revision(project, without=()) is not None


def test_too_many_files_have_no_revision(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_MOST_FILES", 1)
    assert machine.revision(project, without=()) is None
