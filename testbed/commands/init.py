"""`testbed init`: write a CI job that tests, compares with the merge base, and keeps reports and baselines."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from testbed.commands.console import say, write
from testbed.commands.options import command, example
from testbed.errors import UserError
from testbed.resources import resource
from testbed.writing import write_whole

_GITHUB = Path(".github", "workflows", "testbed.yml")
_GITLAB, _INCLUDED = Path(".gitlab-ci.yml"), Path(".gitlab", "testbed.yml")


def job(service: str) -> str:
    """The text of the job for a CI service, ``github`` or ``gitlab``."""
    return resource(f"testbed/commands/ci/{service}.yml").read_text(encoding="utf-8")


@command()
@click.option("--ci", "service", type=click.Choice(["github", "gitlab"]), required=True, help="The CI service.")
@click.option("--stdout", is_flag=True, help="Print the job, and write no file.")
@example("""testbed init --ci github
             testbed init --ci gitlab --stdout""")
def init(service: str, stdout: bool) -> int:
    """Write a CI job that runs pytest, compares with the merge base, and keeps reports, captures and baselines.

    Run it at the top of a repository. It writes .github/workflows/testbed.yml, or .gitlab-ci.yml; if there is one
    already, .gitlab/testbed.yml, and tells the line that includes it. No file is overwritten.
    """
    if stdout:
        sys.stdout.write(job(service))
        return 0
    here = Path.cwd()
    path = _GITHUB
    if service == "gitlab":
        path = _INCLUDED if _exists(_GITLAB) else _GITLAB
    if not (here / ".git").exists() and (top := next((p for p in here.parents if (p / ".git").exists()), None)):
        raise UserError(f"{here} is inside the repository {top}; CI reads {path} at its top: cd {top}")
    if _exists(path):
        raise UserError(
            f"{path} is there already, and is not overwritten: remove it, or print the job and merge the two by "
            f"hand: testbed init --ci {service} --stdout"
        )
    try:
        write_whole(path, job(service), below=here)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}; or print it: --stdout") from None
    write(str(path))
    if path == _INCLUDED:
        say(f"{_GITLAB} is left as it is; add to it: include: [{{local: {path}}}]")
    say("in its line of pip, say where testbed comes from and add what your tests need; then commit it")
    return 0


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()


COMMANDS = (init,)
