"""`testbed clean`: what it lists, what it leaves alone, what it removes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from testbed import kernel
from testbed.backends.docker import images
from testbed.commands import clean
from testbed.commands.cli import cli

_AGENT, _OLD, _BUSY = "testbed/netem:2222", "testbed/netem:1111", "testbed/shop-api:3333"


class FakeEngine:
    """An engine with three images of ours, of which a container uses one, and two that were built from ours."""

    def __init__(self) -> None:
        self.removed: list[str] = []

    def labelled_images(self, label: str) -> list[dict[str, Any]]:
        return [
            {"RepoTags": tags, "Size": 10_000_000, "Created": 1000.0, "Labels": {label: (tags or [_AGENT])[0][-4:]}}
            for tags in ([_AGENT], [_OLD], [_BUSY, "shop/api:3333"], None)
        ] + [{"RepoTags": ["testbed/shop-api:mine"], "Labels": {label: "3333"}}]

    def remove_image(self, tag: str) -> str | None:
        if tag == _BUSY:
            return "a container uses it"
        self.removed.append(tag)
        return None


@pytest.fixture
def on_engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    fake = FakeEngine()
    monkeypatch.setattr(clean, "Engine", lambda: fake)
    monkeypatch.setattr(images, "netem_tag", lambda: _AGENT)
    return fake


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with results, a folder of the user's own beside them, and a cache of kernels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "report" / "captures" / "a_test").mkdir(parents=True)
    (tmp_path / "report" / "results.jsonl").write_text('{"schema": "testbed-results/2"}\n')
    (tmp_path / "report" / "coverage").mkdir()
    for name in ("kernel-bookworm-x86_64-1", "bytecode-1-2", "mine"):
        (kernel.cache() / name).mkdir(parents=True)
    (kernel.root_folder() / "usr").mkdir(parents=True)
    return tmp_path


def run(*arguments: str) -> tuple[int, list[str]]:
    done = CliRunner().invoke(cli, ["clean", "--json", *arguments], standalone_mode=False)
    assert done.exception is None, done.exception
    text = done.stdout[: done.stdout.rindex("]") + 1] if "]" in done.stdout else "[]"
    return int(done.return_value), [thing["name"] for thing in json.loads(text)]


def test_what_the_next_run_needs_and_what_is_not_ours_is_not_listed(folder: Path, on_engine: FakeEngine) -> None:
    status, names = run()
    ours = [_OLD, _BUSY, "kernel-bookworm-x86_64-1", "bytecode-1-2", "report/results.jsonl", "report/captures"]
    assert (status, sorted(names)) == (0, sorted(ours))
    assert not on_engine.removed, "it is only listed"
    assert (folder / "report" / "captures").exists()
    assert run("images", "--all")[1] == [_AGENT, _OLD, _BUSY]
    assert run("kernels", "--older-than", "1min")[1] == []


def test_it_is_removed_and_what_is_in_use_stays_and_is_told(folder: Path, on_engine: FakeEngine) -> None:
    old = kernel.cache() / "kernel-bookworm-x86_64-1"
    program = Path(shutil.copy("/bin/sleep", old / "linux"))
    with subprocess.Popen([program, "60"]) as process:
        until = time.monotonic() + 20
        while os.readlink(f"/proc/{process.pid}/exe") != str(program):
            assert time.monotonic() < until
        status, _ = run("--yes")
        process.kill()
    assert status == 1, "two are in use"
    assert on_engine.removed == [_OLD]
    assert sorted(path.name for path in kernel.cache().iterdir()) == sorted(
        ["kernel-bookworm-x86_64-1", "bytecode-1-2", "mine", kernel.root_folder().name]
    )
    assert [path.name for path in (folder / "report").iterdir()] == ["coverage"]
    assert run("kernels", "--yes")[0] == 0
    assert sorted(path.name for path in kernel.cache().iterdir()) == sorted(["mine", kernel.root_folder().name])


def test_results_of_another_program_are_left_alone(folder: Path, on_engine: FakeEngine) -> None:
    (folder / "report" / "results.jsonl").write_text('{"schema": "other/1"}\n')
    assert run("results")[1] == []
    assert not on_engine.removed
