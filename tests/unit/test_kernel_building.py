"""The cache of kernels with a simulated clock, and what is refused; a build itself is a matter of tests/lab."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from testbed.commands.cli import cli
from testbed.errors import EnvironmentUnfitError, UserError
from testbed.kernel import building

KERNEL = b"\x7fELF a kernel"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(building.OWN_KERNEL, raising=False)
    (tmp_path / "testbed").mkdir()
    return tmp_path / "testbed"


def put(folder: Path, source: str, *, recipe: str | None = None) -> Path:
    """A build in the cache; returns the kernel's path."""
    build = folder / f"virtual-{recipe or building.recipe()}-{source.replace(' ', '-')}"
    build.mkdir()
    kernel = build / "linux"
    kernel.write_bytes(KERNEL)
    kernel.chmod(0o755)
    described = {"source": source, "sha256": hashlib.sha256(KERNEL).hexdigest(), "seconds": 180.0}
    (build / "kernel.json").write_text(json.dumps(described))
    return kernel


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["kernel", *arguments], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done.return_value, done.stdout


def test_without_a_build_there_is_none() -> None:
    assert building.find() is None
    assert run("path") == (1, "")
    assert run("status", "--json") == (1, "null\n")


def test_the_newest_source_is_chosen_by_its_numbers(folder: Path) -> None:
    put(folder, "linux-source-6.12 6.12.117-1")
    newest = put(folder, "linux-source-7.2 7.2.13-1")
    put(folder, "linux-source-7.2 7.2.12-1")
    chosen = building.find()
    assert chosen is not None
    assert (chosen.path, chosen.source) == (newest, "linux-source-7.2 7.2.13-1")
    assert run("path") == (0, f"{newest}\n")
    assert run("build") == (0, f"{newest}\n")  # which finds it there, and fetches nothing


def test_seven_ten_is_newer_than_seven_two(folder: Path) -> None:
    for source in (
        "linux-source-7.2 7.2.13-1",
        "linux-source-7.10 7.10.12-1",
        "linux-source-7.10 7.10.9-1",
        "linux-source-6.12 6.12.117-1",
    ):
        put(folder, source)
    chosen = building.find()
    assert chosen is not None
    assert chosen.source == "linux-source-7.10 7.10.12-1"


def test_a_build_that_says_nothing_any_more_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a program in place of unshare, whose child holds its output open."""
    (tmp_path / "unshare").write_text("#!/bin/sh\necho compiling\nsleep 50\n")
    (tmp_path / "unshare").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(building, "_BUILD_DEADLINE_S", 0.6)
    began = time.monotonic()
    message = r"`make linux` did not end within 0\.01 minutes; its last lines: compiling"
    with pytest.raises(EnvironmentUnfitError, match=message):
        building.in_root(tmp_path, ["make", "linux"])
    assert time.monotonic() - began < 40


@pytest.mark.parametrize(
    "damage",
    [
        lambda kernel: kernel.write_bytes(KERNEL[:-3]),
        lambda kernel: kernel.write_bytes(KERNEL + b"x"),
        lambda kernel: kernel.chmod(0o644),
        lambda kernel: kernel.unlink(),
        lambda kernel: (kernel.parent / "kernel.json").write_text('{"source": "linux'),
        lambda kernel: (kernel.parent / "kernel.json").write_text("[]"),
        lambda kernel: (kernel.parent / "kernel.json").unlink(),
    ],
    ids=["cut off", "longer", "not a program", "gone", "description cut off", "no description", "description gone"],
)
def test_a_build_that_is_not_whole_is_not_used(folder: Path, damage: Callable[[Path], object]) -> None:
    damage(put(folder, "linux-source-7.2 7.2.13-1"))
    assert building.find() is None


def test_a_build_of_another_recipe_is_not_used_but_is_removed(folder: Path) -> None:
    put(folder, "linux-source-7.2 7.2.13-1", recipe="0" * 12)
    (folder / "build-left").mkdir()
    (folder / "kernel-trixie-x86_64-4").mkdir()
    assert building.find() is None
    run("remove")
    assert sorted(path.name for path in folder.iterdir()) == ["build.lock", "kernel-trixie-x86_64-4"]


def test_all_that_is_missing_for_a_build_is_one_error(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(
        shutil, "which", lambda tool, **_: None if tool in ("apt-get", "unshare") else f"/usr/bin/{tool}"
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**8))
    with pytest.raises(EnvironmentUnfitError) as caught:
        building.build(print)
    assert "missing here: apt-get, unshare (" in str(caught.value)
    assert f"{folder} has 0.1 GB free, and a build takes 4.5 GB" in str(caught.value)
    assert "TESTBED_KERNEL=FILE" in str(caught.value)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (None, "No such file"),
        ("#!/bin/sh\nexit 3\n", "status 3"),
        ("#!/bin/sh\necho CONFIG_HOSTFS=y\n", "it was not built with CONFIG_64BIT, CONFIG_ADVISE_SYSCALLS"),
        ("#!/bin/sh\ncat {options}\n", "its random numbers do not follow"),
    ],
    ids=["no file", "no kernel", "other options", "not seeded"],
)
def test_a_kernel_of_ones_own_that_would_not_do_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str | None, reason: str
) -> None:
    own = tmp_path / "linux"
    (tmp_path / "options").write_text("\n".join(building.configuration()))
    if program is not None:
        own.write_text(program.format(options=tmp_path / "options"))
        own.chmod(0o755)
    monkeypatch.setenv(building.OWN_KERNEL, str(own))
    with pytest.raises(UserError, match=reason) as caught:
        building.find()
    assert str(caught.value).startswith(f"TESTBED_KERNEL='{own}': ")


def test_a_kernel_of_ones_own_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    put(folder, "linux-source-7.2 7.2.13-1")
    (tmp_path / "options").write_text("\n".join(building.configuration()))
    own = tmp_path / "linux"
    own.write_text(
        f"#!/bin/sh\n# {building.SEED_VARIABLE}\n[ $1 = --version ] && echo 7.3.1 || cat {tmp_path}/options\n"
    )
    own.chmod(0o755)
    monkeypatch.setenv(building.OWN_KERNEL, str(own))
    chosen = building.find()
    assert chosen is not None
    assert (chosen.path, chosen.source, chosen.own) == (own, "7.3.1", True)
