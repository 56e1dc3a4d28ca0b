"""A file that testbed reads itself is planned like the same file read by Compose; both refuse, or neither."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

import pytest

from testbed import LocalLab
from testbed.backends.local import lab, localplan
from testbed.backends.local.blueprint import LabPlan
from testbed.compose import composefile, shellwords
from testbed.compose.command import Composer, unset
from testbed.errors import InvalidComposeError
from testbed.spec.topology import Topology
from tests.unit.fakes import FakeImages


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compose: None) -> Path:
    for name in [name for name in os.environ if name.startswith("COMPOSE_")]:
        monkeypatch.delenv(name)
    place = tmp_path / "My Project"
    (place / "app").mkdir(parents=True)
    monkeypatch.setattr(lab, "MachinesImages", lambda _say: FakeImages())
    monkeypatch.chdir(place)
    return place


def plans(folder: Path, text: str, *, project: str = "") -> tuple[LabPlan | str, LabPlan | str]:
    """What our own reader plans of a file, and what is planned of Compose's output; or what each refuses."""
    path = folder / "compose.yaml"
    path.write_text(text, encoding="utf-8")

    def own() -> composefile.ComposeFile:
        return composefile.read(path, environment=os.environ)

    def theirs() -> composefile.ComposeFile:
        composer = Composer([path], project="")
        composer.project = project
        return composefile.of_compose(path, composer.config(), [path], environment=os.environ)

    results: list[LabPlan | str] = []
    for read in (own, theirs):
        try:
            file = read()
            results.append(localplan.make(file, Topology.from_compose(file.config), FakeImages()))
        except InvalidComposeError as error:
            results.append(str(error))
    return results[0], results[1]


def service(words: str, others: str = "") -> str:
    return f"services:\n  a: {{image: python, command: [sleep, '1'], {words}}}\n{others}"


SAME = {
    "an empty Dockerfile": "services: {a: {build: {context: ., dockerfile: '${UNSET}'}}}\n",
    "an empty build": "services: {a: {build: ''}}\n",
    "an empty subnet": service("networks: [lan]", "networks: {lan: {ipam: {config: [{subnet: '${UNSET}'}]}}}\n"),
    "an empty driver": service("networks: [lan]", "networks: {lan: {driver: '', ipam: {driver: ''}}}\n"),
    "an external network that nobody uses": service("", "networks: {proxy: {external: true}}\n"),
    "a driver that nobody uses": service("networks: [b]", "networks: {a: {driver: overlay}, b: }\n"),
    "a subnet that nobody uses": service("", "networks: {a: {ipam: {config: [{subnet: 172.18.0.0/16}]}}}\n"),
    "an empty address": service("networks: {lan: {ipv4_address: ''}}", "networks: {lan: }\n"),
    "a range for one port": service("ports: ['6005-6015:80', '127.0.0.1:7000-7001:81', '5000-5000:82']"),
    "ranges": service("ports: ['8000-8001:80-81', '70-71']"),
    "the project's name": service("environment: {N: '${COMPOSE_PROJECT_NAME}-x'}"),
    "a name with capitals": service("environment: {N: '$COMPOSE_PROJECT_NAME'}", "name: My-App\n"),
    "a name that begins otherwise": service("environment: {N: '$COMPOSE_PROJECT_NAME'}", "name: _a.B/c\n"),
    "services with capitals": "services: {ABC: {image: python, command: [x]}, abc: {image: python, command: [y]}}\n",
    "empty words": service("hostname: '', user: '', working_dir: '', domainname: ''"),
    "an empty command": service("entrypoint: '', x-testbed: {local: {}}"),
}


@pytest.mark.parametrize("what", SAME)
def test_both_plan_the_same(what: str, folder: Path) -> None:
    own, theirs = plans(folder, SAME[what])
    assert isinstance(own, LabPlan), own
    assert isinstance(theirs, LabPlan), theirs
    assert own.networks == theirs.networks
    assert own.services == theirs.services


def test_the_environment_names_the_project_for_both(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, refused in (("other", False), ("Other", True)):
        monkeypatch.setenv("COMPOSE_PROJECT_NAME", name)
        own, theirs = plans(folder, service("environment: {N: $COMPOSE_PROJECT_NAME}", "name: mine\n"))
        assert (isinstance(own, str), isinstance(theirs, str)) == (refused, refused)
        if isinstance(own, LabPlan) and isinstance(theirs, LabPlan):
            assert own.services["a"].environment["N"] == theirs.services["a"].environment["N"] == "other"


BOTH_REFUSE = {
    "container_name: '${UNSET}'": "container_name ''",
    "volumes: ['${UNSET}:/code']": "volume ':/code': nothing between",
    "volumes: ['/x:${UNSET}']": "volume '/x:': nothing",
    "extra_hosts: ['h:${UNSET}']": "'' is no address",
    "ports: ['70-71:80-82']": "as many ports outside as inside",
    "command: 'a (b)'": "quote it",
    "command: 'a \\'": "backslash",
}


@pytest.mark.parametrize("words", BOTH_REFUSE)
def test_both_refuse(words: str, folder: Path) -> None:
    own, theirs = plans(folder, f"services: {{a: {{image: python, x-testbed: {{local: {{}}}}, {words}}}}}\n")
    assert isinstance(own, str)
    assert BOTH_REFUSE[words] in own
    assert isinstance(theirs, str)


COMMANDS = (
    "python3 -m http.server 80 && echo done > /dev/null", "echo a|b", "a; b", "a >f", 'echo "x && y"', "echo # c",
    "a && b", r"a\&b", "a &", "<x", "a`b`", "$$(x)", "$$(x y)z", "echo a#b", "#b", "a'#'b", "x||y", "a\nb",
    "x 2>/dev/null", "a 2>&1 b", "", " ", 'a "" b', "a ''", r"a\tb\nc", r"'a\tb'", r'"a\"b"', "a '`' b", "`a b` c",
    "é 'ü ß'", "x a2>f", "\"a'b\"", "'a\"b'", "a\r\nb", r"\ a", "a > b", "a'b'\"c\"d",
    "`a'b c'd` e", "`\"`\"`", "1é>x y", "`(a b)`", "a$$b $$(c'd)",
)  # fmt: skip


def _more_commands() -> Iterator[str]:
    """Of what means something in a command, in any order; those that we take."""
    random = Random(1)  # noqa: S311  # inputs, the same in each run
    pieces = [*" \t\n'\"`$()\\>&;1aé#", "$(", "\\t", "2>", "''", '""']
    while True:
        command = "".join(random.choices(pieces, k=random.randint(2, 9)))
        try:
            shellwords.split(command)
        except ValueError:
            continue
        yield command.replace("$", "$$")


def test_a_command_in_one_text_is_taken_apart_alike(folder: Path) -> None:
    commands = [*COMMANDS, *islice(_more_commands(), 500)]
    lines = [f"  s{number:03}: {{image: x, command: {_quoted(command)}}}" for number, command in enumerate(commands)]
    (folder / "compose.yaml").write_text("\n".join(["services:", *lines]), encoding="utf-8")
    config = Composer([folder / "compose.yaml"], project="x").config()["services"]
    theirs = [[word.replace("$$", "$") for word in config[name]["command"] or ()] for name in sorted(config)]
    assert [shellwords.split(command.replace("$$", "$")) for command in commands] == theirs


def _quoted(text: str) -> str:
    inside = (
        text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
    )
    return f'"{inside}"'


@pytest.mark.parametrize(
    "text",
    [
        service("") + "---\nservices: {a: {command: [sleep, '2']}}\n",
        "services:\n  a: {image: python, command: [sleep, '2'], ports: !reset ['80:80']}\n",
        "services:\n  a: {image: python, command: !override [sleep, '2']}\n",
    ],
    ids=["documents", "reset", "override"],
)
def test_what_changes_what_stands_before_it_is_left_to_compose(text: str, folder: Path) -> None:
    (folder / "compose.yaml").write_text(text)
    plan = LocalLab().plan
    assert plan.services["a"].argv == ("sleep", "2")
    assert plan.services["a"].published == ()


@pytest.mark.parametrize("ours", [True, False], ids=["own", "Compose"])
def test_a_variable_that_is_not_set_is_told_once(ours: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SET", "")
    text = service("environment: {A: '$NOT_SET', B: '${NOT_SET}', C: '${D:-x}$SET', E: '${F+x}', G: '${H:-$NOR_THIS}'}")
    (folder / "compose.yaml").write_text(text if ours else text + "---\nservices: {}\n")
    messages: list[str] = []
    stack = LocalLab(say=messages.append)
    for _ in range(2):
        assert stack.topology.hosts == ("a",)
    assert sorted(messages) == [unset("NOR_THIS"), unset("NOT_SET")]


def test_a_host_of_a_compose_profile_that_is_not_active_is_told_with_it(folder: Path) -> None:
    text = "services:\n  a: {image: python, command: [x]}\n  b: {image: python, command: [x], profiles: [debug, ci]}\n"
    for more in ("", "---\nservices: {}\n"):
        (folder / "compose.yaml").write_text(text + more)
        assert LocalLab().topology.unknown_host("b") == (
            "belongs to the Compose profile 'debug' or 'ci', which is not active; activate it: --compose-profile debug"
        )
        active = LocalLab(compose_profiles=["ci"]).topology
        assert active.hosts == ("a", "b")


@pytest.mark.parametrize("variable", [None, "", "ci", " ci , debug", "ci,", "*"])
@pytest.mark.parametrize("lines", [[], ["debug"]])
def test_the_profiles_that_are_active_are_those_of_compose(
    lines: list[str], variable: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is not None:
        monkeypatch.setenv("COMPOSE_PROFILES", variable)
    profiles = {
        "a": "",
        "b": ", profiles: [ci]",
        "c": ", profiles: [debug]",
        "d": ", profiles: ['']",
        "e": ", profiles: []",
    }
    rows = [f"  {name}: {{image: python, command: [x]{more}}}" for name, more in profiles.items()]
    path = folder / "compose.yaml"
    path.write_text("\n".join(["services:", *rows]))
    own = composefile.read(path, environment=os.environ, profiles=lines).config
    theirs = Composer([path], project="x", profiles=lines).config()
    assert own["services"].keys() == theirs["services"].keys()


def test_a_range_takes_the_first_port_that_is_free(folder: Path) -> None:
    import socket

    from testbed.backends.local.blueprint import Published
    from testbed.backends.local.publishing import listener_at

    with socket.create_server(("127.0.0.1", 0)) as taken:
        first = taken.getsockname()[1]
        published = Published(host_ip="127.0.0.1", port=first, last=min(first + 50, 65535), target=80)
        with listener_at(published) as listener:
            assert first < listener.getsockname()[1] <= first + 50
        with pytest.raises(OSError, match="in use"):
            listener_at(Published(host_ip="127.0.0.1", port=first, target=80))


@pytest.mark.parametrize("how", ["scale: 99999999", "deploy: {replicas: 99999999}", "scale: 9999999999999999"])
def test_more_hosts_than_any_machine_has_are_refused_before_they_are_counted_out(how: str, folder: Path) -> None:
    own, theirs = plans(folder, service(how))
    for refusal in (own, theirs):
        assert isinstance(refusal, str)
        assert "of them 'a'; a lab has at most 10000" in refusal or "deploy" in refusal or "scale" in refusal
