"""`testbed init`: what the first test and the jobs have, where they are written, and what is never overwritten."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from testbed.commands.cli import cli
from testbed.commands.init import job
from testbed.errors import UserError
from testbed.netem.profiles import load_profiles

SERVICES = ("github", "gitlab")
_EXPRESSION = re.compile(r"\$\{\{.*?\}\}")


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def init(*words: str) -> tuple[str, str]:
    """Output and errors."""
    done = CliRunner().invoke(cli, ["init", *words], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done.stdout, done.stderr


def github() -> dict[str, Any]:
    (job_,) = yaml.safe_load(job("github"))["jobs"].values()
    assert isinstance(job_, dict)
    return job_


def gitlab() -> dict[str, Any]:
    (job_,) = yaml.safe_load(job("gitlab")).values()
    assert isinstance(job_, dict)
    return job_


def scripts(service: str) -> list[str]:
    """Each command of a job."""
    lines = [step["run"] for step in github()["steps"] if "run" in step] if service == "github" else gitlab()["script"]
    assert all(isinstance(line, str) for line in lines), "a `: ` makes an object of a line that is not quoted"
    return list(lines)


def commands(service: str) -> Iterator[list[str]]:
    """The words of each command of testbed's, up to the first that the shell has to fill in."""
    for line in "\n".join(scripts(service)).splitlines():
        for match in re.finditer(r"\btestbed ((?:images|doctor|ab|baseline)\b[^)|\n]*)", line):
            yield match[1].split()


# --- what is written ---------------------------------------------------------------------------------


def test_a_job_for_github_has_what_github_asks_for() -> None:
    whole = yaml.safe_load(job("github"))
    assert set(whole) == {"name", True, "permissions", "jobs"}  # `on` is true in YAML 1.1
    assert "pull_request" in whole[True]
    assert whole["permissions"] == {"contents": "read"}
    work = github()
    assert set(work) == {"runs-on", "timeout-minutes", "steps"}
    uses = {step["uses"]: step for step in work["steps"] if "uses" in step}
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", name) for name in uses)
    (checkout,) = (step for name, step in uses.items() if "checkout" in name)
    assert checkout["with"]["fetch-depth"] == 0
    (upload,) = (step for name, step in uses.items() if "upload-artifact" in name)
    assert upload["if"] == "always()", "of a run that failed, too"
    assert upload["with"]["path"].split() == ["report", "baselines"]
    assert work["steps"][-1] is upload
    ids = {step["id"] for step in work["steps"] if "id" in step}
    assert set(re.findall(r"steps\.(\w+)\.", job("github"))) == ids


def test_a_job_for_gitlab_has_what_gitlab_asks_for() -> None:
    work = gitlab()
    assert set(work) == {"image", "services", "variables", "rules", "timeout", "cache", "script", "artifacts"}
    assert work["variables"]["GIT_DEPTH"] == "0"
    assert work["artifacts"]["when"] == "always"
    assert work["artifacts"]["paths"] == ["report", "baselines"]
    (cached,) = work["cache"]["paths"]
    assert any(f"--archive {cached}/" in line for line in scripts("gitlab"))


@pytest.mark.parametrize("service", SERVICES)
def test_every_line_of_a_script_is_for_a_shell_and_every_command_is_ours(service: str) -> None:
    for line in scripts(service):
        assert not _EXPRESSION.search(line), "what a branch is named must not become part of a script"
        subprocess.run(["bash", "-n", "-c", line], check=True)
    named = list(commands(service))
    assert [words[0] for words in named if "--names" not in words] == ["images", "doctor", "ab", "baseline"]
    for words in named:
        command: Any = cli
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        options = {option for param in command.params for option in param.opts}
        assert {word for word in words if word.startswith("--")} <= options, words


# --- where -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("service", "path"), [("github", ".github/workflows/testbed.yml"), ("gitlab", ".gitlab-ci.yml")]
)
def test_a_job_is_written_where_the_service_reads_it(repository: Path, service: str, path: str) -> None:
    assert init("--ci", service)[0] == f"{path}\n"
    assert (repository / path).read_text() == job(service)


def test_beside_a_file_for_gitlab_there_is_one_to_include(repository: Path) -> None:
    own = repository / ".gitlab-ci.yml"
    own.write_text("build: {script: [make]}\n")
    out, err = init("--ci", "gitlab")
    assert out == ".gitlab/testbed.yml\n"
    line = re.search(r"add to it: (.*)", err)
    assert line is not None
    assert yaml.safe_load(line[1]) == {"include": [{"local": ".gitlab/testbed.yml"}]}
    assert own.read_text() == "build: {script: [make]}\n"
    assert (repository / ".gitlab/testbed.yml").read_text() == job("gitlab")


@pytest.mark.parametrize("service", SERVICES)
def test_nothing_is_overwritten(repository: Path, service: str) -> None:
    paths = [".github/workflows/testbed.yml"] if service == "github" else [".gitlab-ci.yml", ".gitlab/testbed.yml"]
    for path in paths:
        (repository / path).parent.mkdir(parents=True, exist_ok=True)
        (repository / path).write_text("mine\n")
    with pytest.raises(UserError, match=rf"^{re.escape(paths[-1])} is there already.* --ci {service} --stdout$"):
        init("--ci", service)
    assert [(repository / path).read_text() for path in paths] == ["mine\n"] * len(paths)
    assert init("--ci", service, "--stdout")[0] == job(service)


def test_a_folder_in_a_repository_is_refused_and_the_top_named(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "sub").mkdir()
    monkeypatch.chdir(repository / "sub")
    with pytest.raises(UserError, match=f"cd {re.escape(str(repository))}$"):
        init("--ci", "github")
    assert list((repository / "sub").iterdir()) == []


def test_nothing_is_written_through_a_link(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (repository / ".github").symlink_to(elsewhere)
    with pytest.raises(UserError, match=r"symbolic link.*--stdout"):
        init("--ci", "github")
    assert list(elsewhere.iterdir()) == []


# --- the first test --------------------------------------------------------------------------------

_COMPOSE = """
services:
  api: {image: shop/api, scale: 2, environment: {DB_URL: "postgres://shop@db-main/shop"}}
  db-main: {image: shop/db}
"""


@pytest.fixture
def stack(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("testbed.commands.init.decide", lambda _kind: ("local", "as this test wants it"))
    (repository / "compose.yaml").write_text(_COMPOSE)
    return repository


def test_a_first_test_is_about_two_hosts_that_talk(stack: Path) -> None:
    out, err = init()
    assert out.split() == ["tests/test_network.py", "netem/office.yaml"]
    assert "`api` and `db-main` talk most" in err
    assert "next: pytest tests/test_network.py\n" in err
    text = (stack / "tests/test_network.py").read_text()
    names: dict[str, Any] = {}
    exec(compile(text, "test_network.py", "exec"), names)  # noqa: S102  # it is the text that is tested
    (mark,) = names["test_api_reaches_db_main"].pytestmark
    assert (mark.name, mark.args) == ("impair_each", ("api[1] <-> db-main", "clean", "latency", "lossy", "office"))
    subprocess.run(["sh", "-n", "-c", names["CONNECT"]], check=True)
    assert "'exec 3<>/dev/tcp/db-main/5432'" in names["CONNECT"]
    assert load_profiles(stack / "netem")["office"].description == "an office, 8 Mbit/s down and 1 Mbit/s up"


def test_a_port_that_the_file_does_not_tell_is_to_be_corrected(stack: Path) -> None:
    (stack / "compose.yaml").write_text("services: {a: {image: x, depends_on: [b]}, b: {image: x}}")
    init()
    line = 'SERVER, PORT = "b", 80  # correct it: the Compose file does not say where `b` listens\n'
    assert line in (stack / "tests/test_network.py").read_text()


@pytest.mark.parametrize(
    ("there", "job_"), [(".github/x", ".github/workflows/testbed.yml"), (".gitlab-ci.yml", ".gitlab/testbed.yml")]
)
def test_a_repository_of_a_ci_service_gets_its_job_too(stack: Path, there: str, job_: str) -> None:
    (stack / there).parent.mkdir(exist_ok=True)
    (stack / there).write_text("")
    assert init()[0].split() == ["tests/test_network.py", "netem/office.yaml", job_]


def test_a_profile_and_a_job_that_are_there_are_left_and_a_test_that_is_there_is_refused(stack: Path) -> None:
    for name in ("netem/office.yaml", ".github/workflows/testbed.yml"):
        (stack / name).parent.mkdir(parents=True, exist_ok=True)
        (stack / name).write_text("mine\n")
    assert init()[0].split() == ["tests/test_network.py"]
    (stack / "netem/office.yaml").unlink()
    with pytest.raises(UserError, match=r"^tests/test_network.py is there already.*: testbed init --stdout$"):
        init()
    assert not (stack / "netem/office.yaml").exists(), "all of it, or nothing"
    assert init("--stdout")[0] == (stack / "tests/test_network.py").read_text()


def test_every_file_that_is_there_is_told_at_once(stack: Path) -> None:
    job_ = stack / ".gitlab/testbed.yml"
    for path in (stack / "tests/test_network.py", stack / ".gitlab-ci.yml"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine\n")
    (stack / ".git").rmdir()
    (stack.parent / ".git").mkdir()
    try:
        with pytest.raises(UserError) as refused:
            init()
    finally:
        (stack.parent / ".git").rmdir()
    assert [problem.partition(" ")[0] for problem in refused.value.problems] == ["tests/test_network.py", str(stack)]
    assert not job_.exists()


def test_nothing_is_written_if_one_file_cannot_be(stack: Path) -> None:
    (stack / "netem").write_text("a file")
    with pytest.raises(UserError, match=r"netem/office.yaml cannot be written: "):
        init()
    assert not (stack / "tests").exists(), "nor is a folder left"


def test_two_services_without_a_common_network_have_no_link_to_test(stack: Path) -> None:
    (stack / "compose.yaml").write_text("services: {a: {image: x}, b: {image: x, network_mode: none}}")
    with pytest.raises(UserError, match=r"no two services on one network \('a, b'\)"):
        init()


def test_a_resolver_is_a_folder_to_build_and_what_to_add_to_the_compose_file(repository: Path) -> None:
    printed, hints = init("--resolver")
    assert printed.split() == ["resolver/Dockerfile", "resolver/names.py", "resolver/resolv.conf"]
    added = yaml.safe_load(hints.partition("\n")[2].rpartition("\nthen: ")[0])
    (pool,) = added["networks"]["default"]["ipam"]["config"]
    address = added["services"]["names"]["networks"]["default"]["ipv4_address"]
    assert ip_address(address) in ip_network(pool["subnet"])
    assert f"nameserver {address}\n" in (repository / "resolver/resolv.conf").read_text()
    with pytest.raises(UserError, match=r"resolver/names\.py is there already, and is not overwritten"):
        init("--resolver")
    with pytest.raises(UserError, match="leave out --ci and --stdout"):
        init("--resolver", "--stdout")
