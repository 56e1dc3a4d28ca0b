"""The jobs that `testbed init` writes: their commands run in order, in a fresh clone of a small repository.

Different from CI: the wheel of this checkout stands in place of pip's line, the services' own steps (checkout, caches,
uploads) are checked but not run, and `ab` runs one pair.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from testbed.backends.docker.engine import INPUTS_LABEL, Engine, tar_archive
from testbed.errors import ImageBuildError
from tests.lab.conftest import HERE, run, users_environment

LABS = ("compose",)  # what the jobs cache is an engine's
_PIP = re.compile(r"pip install 'pytest-testbed\[compose\] @ git\+https://\S+'")
_BUDGET = "--budget 10m"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@dataclass
class Runner:
    """A CI runner: a clone, and the environment that the service gives."""

    clone: Path
    commands: Path
    env: dict[str, str]

    def run(self, script: str) -> str:
        """Run a script as the services do: it ends with the first command that fails."""
        script = script.replace(_BUDGET, "--most-pairs 1")
        env = {
            **users_environment(),
            "PATH": f"{self.commands}:{os.environ['PATH']}",
            "PYTEST_ADDOPTS": "--testbed-lateness=warn",
            **self.env,
        }
        return run(["bash", "-eo", "pipefail", "-c", f"exec 2>&1; {script}"], cwd=self.clone, env=env)


def _git(folder: Path, *words: str) -> str:
    return run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(folder), *words]).strip()


def _clone(service: str, commands: Path, folder: Path) -> Path:
    """A clone of a repository with the job on ``main``; ``before`` has none yet, ``change`` has a commit more."""
    origin, clone = folder / "origin", folder / "clone"
    shutil.copytree(HERE / "repository", origin, ignore=shutil.ignore_patterns("__pycache__"))
    _git(origin, "init", "-q", "-b", "main")
    _commit(origin, "A server and its test")
    _git(origin, "branch", "before")
    run([str(commands / "testbed"), "init", "--ci", service], cwd=origin)
    _commit(origin, "The job")
    _git(origin, "checkout", "-q", "-b", "change")
    (origin / "README").write_text("It greets.\n")
    _commit(origin, "Say what it does")
    _git(origin, "checkout", "-q", "main")
    run(["git", "clone", "-q", origin.as_uri(), str(clone)])
    return clone


def _commit(folder: Path, text: str) -> None:
    _git(folder, "add", "-A")
    _git(folder, "commit", "-q", "-m", text)


def _leaves_everything(clone: Path) -> None:
    for name in ("report/results.jsonl", "report/index.html", "report/junit.xml"):
        assert (clone / name).is_file(), name
    assert len(list(clone.glob("report/ab/*/index.html"))) == 1
    assert len(list(clone.glob("baselines/main/*.jsonl"))) == 1


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that the services cache; half a gigabyte, so it does not stay."""
    folder = tmp_path_factory.mktemp("runner") / "testbed"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_the_commands_for_github_run_in_a_fresh_clone(
    kind: str, installed: Path, tmp_path: Path, archive: Path
) -> None:
    """Those for a pull request and those for a push."""
    clone = _clone("github", installed, tmp_path)
    _git(clone, "checkout", "-q", "--detach", "origin/main")  # GitHub checks the merge out
    _git(clone, "merge", "-q", "--no-ff", "-m", "merge", "origin/change")
    output, summary = tmp_path / "output", tmp_path / "summary.md"
    env = {
        "CI": "true",
        "GITHUB_ACTIONS": "true",
        "GITHUB_BASE_REF": "main",
        "GITHUB_OUTPUT": str(output),
        "GITHUB_STEP_SUMMARY": str(summary),
        "RUNNER_TEMP": str(archive.parent),
    }
    runner = Runner(clone, installed, env)
    steps = yaml.safe_load((clone / ".github/workflows/testbed.yml").read_text())["jobs"]["testbed"]["steps"]
    first, *scripts = [step["run"] for step in steps if "run" in step]
    assert _PIP.fullmatch(first)
    printed = [runner.run(script) for script in scripts]
    assert any("1 passed" in text for text in printed)
    assert re.fullmatch(r"key=[0-9a-f]{16}\n", output.read_text())
    assert (archive / "images.tar").is_file()
    assert "greeting" in summary.read_text()
    _leaves_everything(clone)
    (compare,) = (script for script in scripts if "testbed ab" in script)
    runner.env["GITHUB_BASE_REF"] = "before"
    assert "has no such job" in runner.run(compare)


def test_the_commands_for_gitlab_run_in_a_fresh_clone(
    kind: str, installed: Path, tmp_path: Path, archive: Path
) -> None:
    """Those for a merge request and those for the default branch."""
    clone = _clone("gitlab", installed, tmp_path)
    _git(clone, "checkout", "-q", "--detach", "origin/change")
    base = "CI_MERGE_REQUEST_DIFF_BASE_SHA"
    env = {
        "CI": "true",
        "GITLAB_CI": "true",
        "CI_DEFAULT_BRANCH": "main",
        "CI_COMMIT_BRANCH": "main",
        base: _git(clone, "merge-base", "HEAD", "origin/main"),
    }
    runner = Runner(clone, installed, env)
    first, *scripts = yaml.safe_load((clone / ".gitlab-ci.yml").read_text())["testbed"]["script"]
    assert _PIP.fullmatch(first)
    if archive.exists():
        archive.rename(clone / ".testbed")  # from the cache, and back
    try:
        printed = runner.run("\n".join(scripts))  # in one shell, as GitLab does
    finally:
        (clone / ".testbed").rename(archive)
    assert "1 passed" in printed
    assert "greeting" in (clone / "report" / "ab.md").read_text()
    _leaves_everything(clone)
    (compare,) = (script for script in scripts if "testbed ab" in script)
    runner.env[base] = _git(clone, "rev-parse", "origin/before")
    assert "has no such job" in runner.run(compare)
    del runner.env[base]
    assert "no merge request" in runner.run(compare)


def test_an_image_comes_back_from_its_archive(kind: str, tmp_path: Path) -> None:
    engine, name, labels = Engine(), f"testbed-tests/archived-{os.getpid()}", {INPUTS_LABEL: "archived"}
    context = tar_archive({"Dockerfile": b"FROM scratch\nCOPY it /\n", "it": os.urandom(8)})
    for _ in engine.build(context, tag=f"{name}:1", dockerfile="Dockerfile", labels=labels):
        pass
    try:
        engine.save(f"{name}:1", tmp_path / "image.tar")
        engine.remove_image(f"{name}:1")
        assert engine.image_labels(f"{name}:1") is None
        engine.load(tmp_path / "image.tar")
        assert engine.image_labels(f"{name}:1") == labels
        (tmp_path / "image.tar").write_text("no archive")
        with pytest.raises(ImageBuildError, match=r"image\.tar: the engine does not load it: "):
            engine.load(tmp_path / "image.tar")
    finally:
        engine.remove_image(f"{name}:1")
