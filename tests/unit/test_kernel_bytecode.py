"""Compiled modules for virtual time: where they are laid, and when they are made again."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.kernel import bytecode


def written(compiled: Path, module: Path) -> None:
    """What Python writes with PYTHONPYCACHEPREFIX."""
    file = compiled / module.relative_to("/").with_suffix(".cpython-311.pyc")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"compiled")


def test_a_module_lies_where_python_looks_for_it_and_folders_keep_their_attributes(tmp_path: Path) -> None:
    compiled, layer, project = tmp_path / "new/compiled", tmp_path / "new/layer", tmp_path / "project"
    (project / "package").mkdir(parents=True)
    (project / "package").chmod(0o710)
    (tmp_path / "link").symlink_to(project)
    layer.mkdir(parents=True)
    written(compiled, project / "package/module.py")
    written(compiled, tmp_path / "link/package/other.py")
    written(compiled, tmp_path / "gone/module.py")
    written(compiled, tmp_path / "new/test_imports.py")
    bytecode.lay_out(compiled, layer)
    laid = layer / project.relative_to("/") / "package"
    assert sorted(path.name for path in (laid / "__pycache__").iterdir()) == [
        "module.cpython-311.pyc",
        "other.cpython-311.pyc",
    ]
    assert laid.stat().st_mode & 0o777 == 0o710
    assert [path.name for path in (layer / tmp_path.relative_to("/")).iterdir()] == ["project"]


def test_modules_are_compiled_once_and_a_failure_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(bytecode, "_IMPORTS", "import nothing_of_this_name\n")
    messages: list[str] = []
    monkeypatch.setattr(bytecode, "_KEPT_S", 0.0)
    installation, _ = bytecode.digests()
    for number in range(5):
        (tmp_path / "testbed" / f"bytecode-{installation}-{number}").mkdir(parents=True)
    layer = bytecode.ensure(messages.append)
    assert "nothing_of_this_name" in messages[-1] or "error" in messages[-1]
    assert layer.is_dir()
    assert bytecode.ensure(messages.append) == layer
    assert len(messages) == 2
    assert layer in layer.parent.iterdir()
    assert len([*layer.parent.iterdir()]) == 1 + bytecode.OLDER_KEPT
