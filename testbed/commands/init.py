"""`testbed init`: write a first test of the stack, a CI job that tests and compares, or a resolver as a service."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from string import Template

import click

from testbed.backends.choice import decide, lab_type
from testbed.commands.console import say, write
from testbed.commands.options import command, compose_file_option, example
from testbed.compose.peers import Peers, most_connected
from testbed.errors import Problems, UserError
from testbed.resources import resource
from testbed.spec.topology import Topology
from testbed.text import shown
from testbed.writing import make_room, write_whole

_GITHUB = Path(".github", "workflows", "testbed.yml")
_GITLAB, _INCLUDED = Path(".gitlab-ci.yml"), Path(".gitlab", "testbed.yml")
_TEST, _PROFILE = Path("tests", "test_network.py"), "office.yaml"
_JOBS = {_GITHUB, _GITLAB, _INCLUDED}
_UNKNOWN_PORT = 80
_RESOLVER = Path("resolver")
_RESOLVER_AS_SERVICE = """add to the Compose file, with any address that is free (then also in resolver/resolv.conf):
services:
  names: {build: resolver, networks: {default: {ipv4_address: 10.53.0.53}}}
  YOURS: {volumes: ["./resolver/resolv.conf:/etc/resolv.conf:ro"], depends_on: {names: {condition: service_healthy}}}
networks:
  default: {ipam: {config: [{subnet: 10.53.0.0/24}]}}
then: @pytest.mark.impair("YOURS <-> names udp/53", delay="40ms", loss="5%")"""


def job(service: str) -> str:
    """The text of the job for a CI service, ``github`` or ``gitlab``."""
    return resource(f"testbed/commands/ci/{service}.yml").read_text(encoding="utf-8")


def first_test(peers: Peers, topology: Topology) -> str:
    """The text of a test module for two services."""
    template = Template(resource("testbed/commands/first/test_network.txt").read_text(encoding="utf-8"))
    unknown = f"{_UNKNOWN_PORT}  # correct it: the Compose file does not say where `{peers.server}` listens"
    return template.substitute(
        client=peers.client,
        server=peers.server,
        client_host=topology.services[peers.client].hosts[0],
        server_host=topology.services[peers.server].hosts[0],
        port=unknown if peers.port is None else peers.port,
        function=re.sub(r"\W", "_", f"{peers.client}_reaches_{peers.server}"),
    )


def resolver_files() -> dict[Path, str]:
    """What an image of a name server is built of, and the resolv.conf of those who ask it."""
    ours = resource("images/resolver")
    names = ("Dockerfile", "names.py", "resolv.conf")
    return {_RESOLVER / name: (ours / name).read_text(encoding="utf-8") for name in names}


@command()
@compose_file_option
@click.option(
    "--ci", "service", type=click.Choice(["github", "gitlab"]), help="Write the job for a CI service instead."
)
@click.option("--resolver", is_flag=True, help="Write a name server to run as a service instead.")
@click.option("--stdout", is_flag=True, help="Print the test or the job, and write no file.")
@example("""testbed init
             testbed init --ci github
             testbed init --ci gitlab --stdout
             testbed init --resolver""")
def init(compose_file: tuple[Path, ...], service: str | None, resolver: bool, stdout: bool) -> int:
    """Write a first test of your stack, with --ci a CI job, or with --resolver a name server.

    The test is about the two services of the Compose file that talk most: tests/test_network.py, with a profile of
    your own, netem/office.yaml, and a CI job if the repository is GitHub's or GitLab's by its files.

    The job runs pytest, compares with the merge base, and keeps reports, captures and baselines. Run this at the top of
    a repository. It writes .github/workflows/testbed.yml, or .gitlab-ci.yml; if there is one already,
    .gitlab/testbed.yml, and tells the line that includes it. No file is overwritten.

    The resolver is a folder to build a service of. Programs that ask it send their DNS packets over a link.
    """
    if resolver and (service is not None or stdout):
        raise UserError("--resolver writes the folder resolver/ and nothing else: leave out --ci and --stdout")
    if resolver:
        _write(resolver_files(), "or keep what is there")
        say(_RESOLVER_AS_SERVICE)
        return 0
    if service is not None:
        files = {_path_of_job(service): job(service)}
        instead = f"or print the job and merge the two by hand: testbed init --ci {service} --stdout"
    else:
        files = _first_files(compose_file)
        instead = "or print the test: testbed init --stdout"
    if stdout:
        sys.stdout.write(next(iter(files.values())))
        return 0
    _write(files, instead)
    if _INCLUDED in files:
        say(f"{_GITLAB} is left as it is; add to it: include: [{{local: {_INCLUDED}}}]")
    if _JOBS & files.keys():
        say("in the job's line of pip, say where testbed comes from and add what your tests need; then commit it")
    if service is None:
        options = "".join(f" --compose-file {shlex.quote(str(path))}" for path in compose_file)
        say(f"next: pytest {_TEST}{options}")
    return 0


def _path_of_job(service: str) -> Path:
    if service == "github":
        return _GITHUB
    return _INCLUDED if _exists(_GITLAB) else _GITLAB


def _first_files(compose_file: tuple[Path, ...]) -> dict[Path, str]:
    """The first test, and what goes with it and is not there yet. Raises UserError if no two services can talk."""
    kind, _ = decide("auto")
    lab = lab_type(kind)(list(compose_file) or None, say=say, warn=say)
    topology = lab.topology
    peers = most_connected(lab.services)
    if peers is None:
        raise UserError(
            f"the Compose file has no two services on one network ({shown(', '.join(topology.services))}), and so no "
            "link to test"
        )
    say(f"`{peers.client}` and `{peers.server}` talk most by the Compose file")
    files = {_TEST: first_test(peers, topology)}
    profile = Path(os.path.relpath(lab.netem_folder)) / _PROFILE
    if not _exists(profile):
        files[profile] = resource(f"testbed/commands/first/{_PROFILE}").read_text(encoding="utf-8")
    if Path(".github").is_dir() and not _exists(_GITHUB):
        files[_GITHUB] = job("github")
    elif _exists(_GITLAB) and not _exists(_INCLUDED):
        files[_INCLUDED] = job("gitlab")
    return files


def _write(files: Mapping[Path, str], instead: str) -> None:
    """Write all of them, or none if one cannot be. Raises UserError with every problem."""
    here, problems = Path.cwd(), Problems()

    def attempt(path: Path, step: Callable[[], None]) -> None:
        try:
            step()
        except OSError as error:
            problems.append(f"{path} cannot be written: {error.strerror or error}; {instead}")

    top = next((parent for parent in here.parents if (parent / ".git").exists()), None)
    for path in files:
        if path in _JOBS and not (here / ".git").exists() and top is not None:
            problems.append(f"{here} is inside the repository {top}; CI reads {path} at its top: cd {top}")
        if _exists(path):
            problems.append(f"{path} is there already, and is not overwritten: remove it, {instead}")
    problems.tell()  # before a folder is made
    with ExitStack() as undo:
        for folder in sorted({folder for path in files for folder in path.parents if not folder.exists()}):
            undo.callback(_remove_if_empty, folder)
        for path in files:
            attempt(path, partial(make_room, path, here))
        problems.tell()
        for path, text in files.items():
            attempt(path, partial(write_whole, path, text, below=here))
            problems.tell()
            undo.callback(path.unlink)
        undo.pop_all()
    for path in files:
        write(str(path))


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # it was not made, or something is in it
        folder.rmdir()


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()


COMMANDS = (init,)
