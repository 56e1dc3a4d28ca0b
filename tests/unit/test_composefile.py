"""A Compose file read without Compose: variables, short forms, lines; equal to what Compose reads."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed import reading
from testbed.compose import composefile, places
from testbed.compose.command import Composer, with_images
from testbed.compose.options import find_compose_file
from testbed.compose.problems import NeedsComposeError
from testbed.compose.variables import interpolate
from testbed.errors import EnvironmentUnfitError, InvalidComposeError

ROOT = Path(__file__).parents[2]


def read(folder: Path, text: str, **environment: str) -> composefile.ComposeFile:
    path = folder / "compose.yaml"
    path.write_text(text, encoding="utf-8")
    file = composefile.read(path, environment=environment)
    file.problems.raise_if_any()
    return file


# --- variables (Compose reference, Interpolation) ----------------------------------------------------

VARIABLES = {"A": "a", "EMPTY": ""}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$A", "a"), ("${A}", "a"), ("x$A.y", "xa.y"), ("$$A", "$A"), ("$NONE", ""), ("${NONE}", ""),
        ("${NONE:-d}", "d"), ("${EMPTY:-d}", "d"), ("${EMPTY-d}", ""), ("${NONE-d}", "d"), ("${A:-d}", "a"),
        ("${A:+y}", "y"), ("${EMPTY:+y}", ""), ("${EMPTY+y}", "y"), ("${NONE+y}", ""),
        ("${NONE:-${A}b}", "ab"), ("${NONE:-${NONE:-c}}", "c"), ("${A:?must}", "a"), ("${EMPTY?must}", ""),
        ("${NONE:-}", ""), ("${NONE:-a:b-c}", "a:b-c"), ("5 $ each", "5 $ each"), ("$1", "$1"), ("a$", "a$"),
    ],
)  # fmt: skip
def test_a_variable_is_put_in_its_place(text: str, value: str) -> None:
    assert interpolate(text, VARIABLES) == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("${NONE:?where to}", "variable NONE is not set: where to"),
        ("${EMPTY:?}", "variable EMPTY is not set"),
        ("${A", "without its closing brace"),
        ("${1}", "is no variable"),
        ("${A:=d}", "is no variable"),
        ("${}", "is no variable"),
    ],
)
def test_what_is_no_variable_is_told(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match="|".join([problem.replace("$", r"\$")])):
        interpolate(text, VARIABLES)


@given(st.text())
def test_a_text_whose_dollars_are_doubled_is_itself(text: str) -> None:
    assert interpolate(text.replace("$", "$$"), VARIABLES) == text


@given(st.text(alphabet="${}:-?+AB_ \n"))
def test_every_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):  # and by no other exception
        assert isinstance(interpolate(text, VARIABLES), str)


# --- as Compose has it -------------------------------------------------------------------------------

SHORT_FORMS = """
name: shop
services:
  web:
    build: .
    command: python3 -m http.server "80 80"
    environment: [A=1, "B=x=y", C]
    depends_on: [db]
    ports: ["8080:80", "127.0.0.1:9000-9001:90-91/udp", "53", {target: 7, published: 70}]
    volumes: ["./data:/data:ro", "cache:/cache", /scratch]
    sysctls: [net.core.somaxconn=1024]
    healthcheck: {test: exit 0, interval: 1m30s, retries: 2}
    networks: {lan: {aliases: [www], ipv4_address: 10.1.0.9}, back: }
    ulimits: {nofile: 99, nproc: {soft: 1, hard: 2}}
    extra_hosts: ["away:192.0.2.1"]
    tmpfs: /var/cache
    deploy: {replicas: 2}
    stop_signal: SIGINT
  db:
    build: {context: ./db, dockerfile: D, args: [V=2, T=true]}
    environment: {N: 5, T: true, E: "", Q: "${UNSET:-q}"}
    sysctls: {net.ipv4.ip_forward: 1}
  rare: {image: nobody/none, profiles: [rarely]}
networks:
  lan: {ipam: {config: [{subnet: 10.1.0.0/24}]}}
  back:
volumes: {cache: }
"""

# What a local lab reads of a service, and how it may differ in form.
_SAME = (
    "build", "command", "entrypoint", "environment", "networks", "depends_on", "healthcheck", "sysctls", "ulimits",
    "volumes", "stop_signal", "working_dir", "hostname", "tmpfs", "scale", "deploy",
)  # fmt: skip


def plain(key: str, value: Any) -> Any:
    """A value without the defaults that Compose writes out."""
    match key:
        case "build":
            return {
                name: value[name]
                for name in ("context", "dockerfile", "args")
                if name in value and value[name] != "Dockerfile"
            }
        case "deploy":
            return {"replicas": value.get("replicas")}
        case "depends_on":
            return {name: how["condition"] for name, how in value.items()}
        case "volumes":
            names = ("type", "source", "target", "read_only")
            return [{name: item[name] for name in names if name in item} for item in value]
        case _:
            return value


@pytest.mark.parametrize(
    "name", ["short", "compose.yaml", *sorted(p.name for p in (ROOT / "tests/lab/stacks").glob("*.yaml"))]
)
def test_compose_reads_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("THREE", "SCALED"):  # tests of these stacks set them, and Compose would read them
        monkeypatch.delenv(variable, raising=False)
    if name == "short":
        path = tmp_path / "compose.yaml"
        path.write_text(SHORT_FORMS, encoding="utf-8")
    else:
        path = ROOT / name if name == "compose.yaml" else ROOT / "tests/lab/stacks" / name
    try:
        theirs = Composer([path], project="x").config()
    except EnvironmentUnfitError as error:
        pytest.skip(str(error))
    ours = composefile.read(path, environment={}).config
    assert sorted(ours["services"]) == list(theirs["services"]), "which Compose sorts"
    for service, body in theirs["services"].items():
        for key in _SAME:
            seen = ours["services"][service].get(key)
            assert json.dumps(plain(key, seen or None) if seen else None, sort_keys=True) == json.dumps(
                plain(key, body[key]) if body.get(key) else None, sort_keys=True
            ), f"{service}.{key}"
        ports = [
            (port["target"], port.get("published", ""), port.get("protocol", "tcp"), port.get("host_ip"))
            for port in ours["services"][service]["ports"]
        ]
        assert ports == [
            (port["target"], port.get("published", ""), port["protocol"], port.get("host_ip"))
            for port in body.get("ports", [])
        ]
    assert list(ours["networks"]) == list(theirs["networks"])


def test_a_dot_env_file_gives_variables_and_the_environment_goes_before_it(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("# words\nA=file\nexport B='two words'\nC=c # not this\n", encoding="utf-8")
    file = read(tmp_path, "services: {s: {build: ., environment: {A: $A, B: $B, C: $C}}}\n", A="environment")
    assert file.config["services"]["s"]["environment"] == {"A": "environment", "B": "two words", "C": "c"}


def test_a_service_of_a_profile_that_is_not_active_is_left_out(tmp_path: Path) -> None:
    text = "services: {a: {build: .}, b: {build: ., profiles: [rare]}}\n"
    assert list(read(tmp_path, text).config["services"]) == ["a"]
    assert list(read(tmp_path, text, COMPOSE_PROFILES="other,rare").config["services"]) == ["a", "b"]


def test_every_part_knows_its_line(tmp_path: Path) -> None:
    file = read(tmp_path, SHORT_FORMS)
    place = file.problems.place
    assert place(("services", "web", "ports", 2)) == (file.path, 9)
    assert place(("services", "db", "environment", "Q")) == (file.path, 21)
    assert place(("services", "db", "nothing", "of", "it")) == (file.path, 19)
    assert place(("nothing",)) is None


def test_anchors_and_merges_are_followed(tmp_path: Path) -> None:
    file = read(tmp_path, "x-a: &a {build: ., init: true}\nservices: {b: *a, c: {<<: *a, init: false}}\n")
    assert file.config["services"]["b"]["init"] is True
    assert file.config["services"]["c"]["init"] is False


@pytest.mark.parametrize("what", ["include: [other.yaml]", "services: {a: {extends: b}}"])
def test_what_compose_alone_can_read_is_left_to_it(what: str, tmp_path: Path) -> None:
    services = "" if what.startswith("services") else "\nservices: {a: {build: .}}"
    with pytest.raises(NeedsComposeError, match=what.partition(":")[0] if services else "extends"):
        read(tmp_path, what + services)


def test_every_problem_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidComposeError) as refused:
        read(tmp_path, 'services:\n  a:\n    build: .\n    ports: ["eighty"]\n  b: 5\n  c:\n    volumes: [5]\n')
    problems = [problem.partition("compose.yaml:")[2] for problem in refused.value.problems]
    assert problems == [
        "4: service 'a': port 'eighty': write \"8080:80\" or \"127.0.0.1:8080:80\"",
        "5: service 'b': 5: write a mapping, as in {image: NAME, command: [PROGRAM]}",
        "7: service 'c': volumes: 5: must be a text; put it in quotes: '5'",
    ]


@pytest.mark.parametrize("text", ["", "services:", "- a", "services: [", "services: {a: {build: '${X:?needed}'}}"])
def test_what_is_no_compose_file_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidComposeError, match=r"compose\.yaml:[12]: "):
        read(tmp_path, text)


def test_variables_are_nested_no_deeper_than_is_meant(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("A=1\nB=" + "${N:-" * 1200 + "}" * 1200 + "\n", encoding="utf-8")
    with pytest.raises(InvalidComposeError, match=r"\.env:2: .* variables nested more than 100 deep"):
        read(tmp_path, "services: {a: {build: .}}\n")


# --- files of variables ------------------------------------------------------------------------------


def test_a_raw_file_of_variables_is_taken_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "e").write_bytes(b"\xef\xbb\xbf# c\r\n\n A='x' # y\r\nB=\"$A\"\\n \nC=\nD\nE==${Z\nNONE\n")
    file = read(tmp_path, "services: {a: {build: ., env_file: [{path: e, format: raw}]}}\n", A="not this", D="given")
    assert file.config["services"]["a"]["environment"] == {
        "A": "'x' # y",
        "B": '"$A"\\n ',
        "C": "",
        "D": "given",
        "E": "=${Z",
    }


@pytest.mark.parametrize(
    ("how", "line", "part"),
    [("raw", "=x", "''"), *((how, *case) for how in ("raw", "''") for case in (("A B=x", "'A B'"), ("A=x\0y", "NUL")))],
)
def test_what_is_wrong_with_a_file_of_variables_is_told(how: str, line: str, part: str, tmp_path: Path) -> None:
    (tmp_path / "e").write_text(f"N=1\n{line}\n", encoding="utf-8")
    with pytest.raises(InvalidComposeError) as refused:
        read(tmp_path, f"services: {{a: {{build: ., env_file: [{{path: e, format: {how}}}]}}}}\n")
    (problem,) = refused.value.problems
    assert problem.startswith(f"{tmp_path}/e:2: ")
    assert part in problem


def test_a_text_of_the_environment_that_no_program_can_be_given_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidComposeError, match=r"compose\.yaml:2: service 'a': environment\.X: '\\udcff'"):
        read(tmp_path, "services:\n  a: {build: ., environment: {X: }}\n", X="\udcff")


def unreadable(path: Path) -> bytes:
    raise reading.UnreadableError(path, "cannot be read: Permission denied")


def denied(*_: object, **__: object) -> bytes:
    raise PermissionError(13, "Permission denied")


def test_a_file_in_a_closed_folder_is_told_and_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "stat", denied)  # what exists() and the like ask; Python 3.11 tells of all but absence
    with pytest.raises(
        InvalidComposeError, match=r"compose\.yaml:2: service 'a': env_file '.*closed/e' does not exist"
    ):
        read(tmp_path, "services:\n  a: {build: ., env_file: closed/e}\n")
    assert find_compose_file(tmp_path) == tmp_path / "compose.yaml"


def test_files_of_variables_that_cannot_be_read_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "compose.yaml").write_text("services:\n  a: {build: ., env_file: e}\n", encoding="utf-8")
    text = (tmp_path / "compose.yaml").read_bytes()
    for name in (".env", "e"):
        (tmp_path / name).write_text("A=1\n", encoding="utf-8")
    monkeypatch.setattr(reading, "read_bytes", lambda path, **_: text if path.suffix == ".yaml" else unreadable(path))
    file = composefile.read(tmp_path / "compose.yaml", environment={})
    with pytest.raises(InvalidComposeError) as refused:
        file.problems.raise_if_any()
    assert list(refused.value.problems) == [
        f"{tmp_path}/.env: cannot be read: Permission denied",
        f"{tmp_path}/compose.yaml:2: service 'a': env_file '{tmp_path}/e' cannot be read: Permission denied",
    ]


# --- where the parts of merged files stand -----------------------------------------------------------


def test_files_that_name_each_other_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    numbers = range(1, 20)
    there = [f"  x{n}: {{extends: {{file: sub/b.yaml, service: y{n}}}}}" for n in numbers]
    back = [f"  y{n}: {{extends: {{file: ../a.yaml, service: z}}}}" for n in numbers]
    (tmp_path / "a.yaml").write_text("\n".join(["services:", *there, "  z:\n    image: x\n"]), encoding="utf-8")
    (tmp_path / "sub" / "b.yaml").write_text("\n".join(["include: [../a.yaml]\nservices:", *back]), encoding="utf-8")
    results: list[Path] = []
    text_of = places.compose_text

    def text(path: Path) -> str:
        results.append(path)
        return text_of(path)

    monkeypatch.setattr(places, "compose_text", text)
    config = {"services": {f"x{n}": {"image": "x", "privileged": True} for n in numbers}}
    file = composefile.of_compose(tmp_path / "a.yaml", config, [tmp_path / "a.yaml"], environment={})
    assert file.problems.place(("services", "x7", "image")) == (tmp_path / "a.yaml", 22)
    assert len(results) == 2


def test_services_that_extend_each_other_without_end_are_followed_once(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    lines = [f"  s{n}: {{extends: s{(n + 1) % 1500}}}" for n in range(1500)]
    path.write_text("\n".join(["services:", *lines]), encoding="utf-8")
    assert places.Places({}).of_service(path, "s0")[()] == (path, 2)


def test_services_can_be_given_other_images_in_place_of_what_is_built() -> None:
    config: dict[str, Any] = {
        "name": "shop",
        "services": {"api": {"build": ".", "pull_policy": "build"}, "db": {"image": "postgres"}},
    }
    changed = with_images(config, {"api": "shop/api:1.5"})
    assert changed == {"name": "shop", "services": {"api": {"image": "shop/api:1.5"}, "db": {"image": "postgres"}}}
    assert "build" in config["services"]["api"], "what was given is as it was"
    assert with_images(config, {}) == config
    with pytest.raises(InvalidComposeError, match=r"an image for service 'apy': unknown; did you mean 'api'\?"):
        with_images(config, {"apy": "x", "db": "postgres:17"})
