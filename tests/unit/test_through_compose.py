"""Files that only Compose can read: its output is planned like any other, and problems keep their lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed import ComposeLab, LocalLab
from testbed.backends.local import localplan
from testbed.backends.local.blueprint import Published
from testbed.compose import composefile
from testbed.errors import InvalidComposeError
from testbed.reading import yamltree
from testbed.spec.topology import Topology
from tests.unit.fakes import FakeImages


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("COMPOSE_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app").mkdir()
    return tmp_path


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name.replace('_', '.')}.yaml").write_text(text, encoding="utf-8")


_A = """
services:
  a:
    image: x
    command: [echo, "V=$${V}"]
    environment: {E: "a$$b", N: }
    x-testbed: {local: {path: app}}
"""
FILES: dict[str, dict[str, str]] = {
    "extends": {"compose": _A + "  b: {extends: a}\n"},
    "extends of a file": {
        "compose": "services: {a: {extends: {file: other.yaml, service: a}}, b: {extends: {file: other.yaml, "
        "service: a}}}\n",
        "other": _A,
    },
    "include": {
        "compose": "include: [other.yaml]\nservices: {b: {extends: {file: other.yaml, service: a}}}\n",
        "other": _A,
    },
    "secrets": {"compose": _A + "  b: {extends: a}\nsecrets: {s: {file: app}}\n"},
    "configs": {"compose": _A + "  b: {extends: a}\nconfigs: {s: {file: app}}\n"},
    "an override": {"compose": _A, "compose_override": "services: {b: {extends: {file: compose.yaml, service: a}}}\n"},
}


@pytest.mark.parametrize("what", FILES)
def test_what_compose_alone_reads_is_planned(what: str, folder: Path, compose: None) -> None:
    write(folder, **FILES[what])
    plan = LocalLab().plan
    for service in (plan.services["a"], plan.services["b"]):
        assert service.argv == ("echo", "V=${V}"), "Compose prints every dollar sign twice"
        assert service.environment == {"E": "a$b"}
        assert service.binds == ((str(folder / "app"), "/app", True),)


_UNSORTED = "services:\n  zeta: {image: python}\n  mid: {image: python}\n  alpha: {image: python}\n"


@pytest.mark.parametrize("files", [("one.yaml",), ("one.yaml", "two.yaml")])
@pytest.mark.parametrize("kind", [ComposeLab, LocalLab])
def test_hosts_are_in_the_order_of_the_files_which_compose_sorts(
    kind: type[ComposeLab] | type[LocalLab], files: tuple[str, ...], folder: Path, compose: None
) -> None:
    write(folder, one=_UNSORTED, two="services:\n  alpha: {init: true}\n  last: {image: python}\n")
    assert kind(files).topology.hosts == ("zeta", "mid", "alpha", *(["last"] if len(files) > 1 else []))


@pytest.mark.parametrize("where", ["environment", ".env"])
def test_the_files_of_compose_file_are_read(
    where: str, folder: Path, compose: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, one=_A, two="services:\n  a:\n    privileged: true\n")
    if where == "environment":
        monkeypatch.setenv("COMPOSE_FILE", "one.yaml:two.yaml")
    else:
        (folder / ".env").write_text("COMPOSE_FILE=one.yaml:two.yaml\n", encoding="utf-8")
    lab = LocalLab()
    with pytest.raises(InvalidComposeError) as refused:
        _ = lab.plan
    (problem,) = refused.value.problems
    assert problem.startswith("two.yaml:3: service 'a': `privileged: True`")


def test_problems_are_told_where_their_words_stand(folder: Path, compose: None) -> None:
    write(
        folder,
        compose="""
services:
  a:
    extends: {file: other.yaml, service: base}
    sysctls: {kernel.msgmax: 1}
  b:
    extends: a
    ulimits:
      nofiles: 3
""",
        compose_override="""
services:
  a:
    cap_add: [NET_FOO]
""",
        other="""
services:
  base:
    image: redis
""",
    )
    with pytest.raises(InvalidComposeError) as refused:
        _ = LocalLab().plan
    problems = [problem.replace(f"{folder}/", "").split(": ", 3)[:3] for problem in refused.value.problems]
    assert [(place, service) for place, service, _ in problems] == [
        ("compose.override.yaml:4", "service 'a'"),
        ("compose.yaml:5", "service 'a'"),
        ("compose.yaml:5", "service 'b'"),
        ("compose.yaml:9", "service 'b'"),
        ("other.yaml:4", "service 'a'"),
        ("other.yaml:4", "service 'b'"),
    ]


def test_a_place_that_is_not_known_is_not_made_up(tmp_path: Path) -> None:
    file = composefile.of_compose(tmp_path / "gone.yaml", {"services": {"a": {"image": "redis"}}}, [], environment={})
    with pytest.raises(InvalidComposeError) as refused:
        localplan.make(file, Topology.from_compose(file.config), FakeImages(lacks=["redis"]))
    assert refused.value.problems[0].startswith(f"{tmp_path}/gone.yaml: service 'a': `image: redis`")


def test_what_compose_cannot_read_is_refused_in_its_words(folder: Path, compose: None) -> None:
    write(folder, compose="services: {a: {extends: nosuch}}\n")
    with pytest.raises(InvalidComposeError, match="nosuch"):
        _ = LocalLab().plan


# What Compose 2.40.3 printed.
PRINTED = """
name: shop
services:
  a:
    command:
      - echo
      - V=$$V
    environment:
      E: a$$b
      N: null
    healthcheck:
      test:
        - CMD-SHELL
        - curl x
      interval: 1m30s
    image: python
    networks:
      default: null
    ports:
      - mode: ingress
        target: 80
        published: "8080"
        protocol: tcp
    stop_grace_period: 1m30s
    ulimits:
      nofile: 3
    volumes:
      - type: bind
        source: /tmp
        target: /x
        bind:
          create_host_path: true
      - type: volume
        source: data
        target: /d
        read_only: true
        volume: {}
networks:
  default:
    name: shop_default
volumes:
  data:
    name: shop_data
"""


def test_what_compose_prints_is_planned(tmp_path: Path) -> None:
    config = yamltree.parse(PRINTED).value
    file = composefile.of_compose(tmp_path / "compose.yaml", config, [], environment={})
    plan = localplan.make(file, Topology.from_compose(file.config), FakeImages())
    a = plan.services["a"]
    assert (a.argv, a.environment["E"], a.stop_grace_s) == (("echo", "V=$V"), "a$b", 90.0)
    assert "N" not in a.environment
    assert a.published == (Published(host_ip="127.0.0.1", port=8080, target=80),)
    assert (a.binds, a.volumes) == ((("/tmp", "/x", False),), (("data", "/d", True),))
    assert a.health_check is not None
    assert (a.health_check.test, a.health_check.interval_s) == (("/bin/sh", "-c", "curl x"), 90.0)
    assert a.limits == {"RLIMIT_NOFILE": (3, 3)}


def test_a_topology_may_stand_in_a_file_that_compose_reads(folder: Path, compose: None) -> None:
    write(
        folder,
        compose="""
x-testbed: {topology: {chain: 1, ends: [a, b]}}
services:
  a: {image: x, command: [x], x-testbed: {local: {}}}
  b: {extends: a}
""",
    )
    plan = LocalLab().plan
    assert sorted(host.name for host in plan.hosts) == ["a", "b", "r1"]
    assert plan.services["b"].argv == ("x",)


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_a_folder_as_compose_file_is_told(how: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "environment":
        monkeypatch.setenv("COMPOSE_FILE", ".")
    lab = LocalLab(".") if how == "argument" else LocalLab()
    with pytest.raises(InvalidComposeError, match=r"Compose file '\.' is a folder"):
        _ = lab.plan


def test_an_odd_character_is_told_in_what_compose_prints_too(folder: Path, compose: None) -> None:
    write(folder, compose=_A + '  b: {extends: a, user: "a\\0b"}\n')
    with pytest.raises(InvalidComposeError, match=r"services\.b\.user: 'a\\x00b': the character"):
        _ = LocalLab().plan
