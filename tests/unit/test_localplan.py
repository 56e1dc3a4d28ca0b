"""The local lab's plan of a Compose file: addresses, names, programs; and all refusals at once, with their lines."""

from __future__ import annotations

import errno
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testbed.agent import kernelcalls
from testbed.backends.local import localplan, settings
from testbed.backends.local.blueprint import LabPlan, Published
from testbed.backends.local.images import Images, MachinesImages
from testbed.compose import composefile
from testbed.errors import InvalidComposeError
from testbed.images.settings import HealthCheck, Settings
from testbed.spec.topology import Topology
from tests.unit.fakes import FakeImages


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "main.py").write_text("pass\n", encoding="utf-8")
    return tmp_path


def plan(folder: Path, text: str, settings: Settings | None = None, images: Images | None = None) -> LabPlan:
    path = folder / "compose.yaml"
    path.write_text(text, encoding="utf-8")
    file = composefile.read(path, environment={})
    images = images or FakeImages(settings, lacks=["redis:7"])
    return localplan.make(file, Topology.from_compose(file.config), images)


def problems(folder: Path, text: str, images: Images | None = None) -> list[str]:
    with pytest.raises(InvalidComposeError) as refused:
        plan(folder, text, images=images)
    return [problem.partition("compose.yaml:")[2] for problem in refused.value.problems]


def addresses(made: LabPlan) -> dict[str, list[str]]:
    return {
        host.name: [str(address) for interface in host.interfaces for address in interface.addresses]
        for host in made.hosts
    }


# --- addresses and names ---------------------------------------------------------------------------


def test_addresses_are_given_in_order_around_those_that_are_named(folder: Path) -> None:
    made = plan(
        folder,
        """
services:
  a: {build: app, scale: 2, networks: [lan]}
  b: {build: app, networks: {lan: {ipv4_address: 10.0.0.3}}}
  c: {build: app, networks: [lan, back]}
networks:
  lan: {ipam: {config: [{subnet: 10.0.0.0/29, gateway: 10.0.0.2}]}}
  back: {}
""",
    )
    assert addresses(made) == {
        "a[1]": ["10.0.0.1/29"],
        "a[2]": ["10.0.0.4/29"],
        "b": ["10.0.0.3/29"],
        "c": ["172.18.0.2/16", "10.0.0.5/29"],
    }
    assert [interface.name for interface in made.hosts[3].interfaces] == ["eth0", "eth1"]
    assert made.hosts[2].interfaces[0].mac == "02:42:0a:00:00:03"


def test_a_chosen_subnet_keeps_clear_of_those_that_are_named(folder: Path) -> None:
    made = plan(
        folder,
        """
services: {a: {build: app, networks: [one, two]}}
networks:
  one: {ipam: {config: [{subnet: 172.18.4.0/24}]}}
  two: {}
""",
    )
    assert [str(network.subnets[0]) for network in made.networks] == ["172.18.4.0/24", "172.19.0.0/16"]


def test_a_host_knows_the_names_on_its_own_networks_and_no_others(folder: Path) -> None:
    made = plan(
        folder,
        """
name: shop
services:
  a: {build: app, networks: {lan: {aliases: [www]}}, extra_hosts: ["away:192.0.2.9"], hostname: alpha}
  b: {build: app, scale: 2, networks: [lan]}
  c: {build: app, networks: [back]}
networks: {lan: {}, back: {}}
""",
    )
    lines = made.hosts_file(made.hosts[0]).splitlines()
    assert lines == [
        "127.0.0.1 localhost",
        "::1 localhost ip6-localhost ip6-loopback",
        "172.19.0.2 alpha",
        "192.0.2.9 away",
        "172.19.0.2 a shop-a-1 www alpha",
        "172.19.0.3 b shop-b-1",
        "172.19.0.4 b shop-b-2",
    ]


def test_the_link_local_address_is_made_of_the_mac_address(folder: Path) -> None:
    made = plan(folder, "services: {a: {build: app, networks: [lan]}}\nnetworks: {lan: {enable_ipv6: true}}\n")
    (interface,) = made.hosts[0].interfaces
    assert interface.mac == "02:42:ac:12:00:02"
    assert [*map(str, interface.addresses)] == ["172.18.0.2/16", "fd00:0:0:1::2/64"]
    # RFC 4291, appendix A: the universal bit is turned over, FFFE stands in the middle.
    assert interface.link_local == ("fe80::42:acff:fe12:2",)


# --- services --------------------------------------------------------------------------------------


def test_a_service_runs_what_its_image_says_unless_the_compose_file_says_otherwise(folder: Path) -> None:
    made = plan(
        folder,
        """
services:
  a: {build: app}
  b: {build: app, command: [python3, other.py], stop_signal: TERM, environment: {X: 1}, ports: ["8080:80"]}
  c: {image: shop/c, command: [x], working_dir: /srv/c, x-testbed: {local: {path: app}}}
""",
        Settings(workdir="/app", stop_signal="SIGINT", command=("python3", "main.py")),
    )
    a, b, c = (made.services[name] for name in "abc")
    assert (a.argv, a.workdir, a.folders, a.stop_signal) == (("python3", "main.py"), "/app", (), "SIGINT")
    assert a.image is not None
    assert (b.argv, b.stop_signal, b.environment["X"]) == (("python3", "other.py"), "SIGTERM", "1")
    assert b.published == (Published(host_ip="127.0.0.1", port=8080, target=80),)
    assert (c.argv, c.binds, c.python) == (("x",), ((str(folder / "app"), "/srv/c", True),), True)


def test_programs_of_several_folders_are_shown_in_one(folder: Path) -> None:
    (folder / "more").mkdir()
    (folder / "more" / "tool.py").touch()
    service = "image: none, command: [x], x-testbed: {local: {path: [app, more]}}"
    a = plan(folder, f"services: {{a: {{{service}}}}}\n").services["a"]
    assert a.binds == ((str(folder / "app"), "/app", True), (str(folder / "more/tool.py"), "/app/tool.py", True))
    (problem,) = problems(folder, "services: {a: {image: none, x-testbed: {local: {path: [app, nowhere]}}}}\n")
    assert problem.endswith("x-testbed.local.path 'nowhere': " + str(folder / "nowhere") + " is no folder")


@pytest.mark.parametrize(
    ("text", "argv"),  # as docker inspect shows what `docker compose create` makes of them
    [
        ("", ["/bin/echo", "E", "C"]),
        ("entrypoint: []", ["C"]),
        ('entrypoint: ""', ["C"]),
        ("entrypoint: [/bin/echo, F]", ["/bin/echo", "F"]),
        ("entrypoint: [/bin/echo, F], command: []", ["/bin/echo", "F"]),
        ("command: []", ["/bin/echo", "E", "C"]),
        ('command: ""', ["/bin/echo", "E", "C"]),
        ("entrypoint: [], command: [/bin/echo, X]", ["/bin/echo", "X"]),
    ],
)
def test_an_entrypoint_and_a_command_replace_the_images_as_the_engine_does_it(
    folder: Path, text: str, argv: list[str]
) -> None:
    image = Settings(entrypoint=("/bin/echo", "E"), command=("C",))
    assert plan(folder, f"services: {{a: {{build: app, {text}}}}}\n", image).services["a"].argv == tuple(argv)


def test_a_health_check_for_the_shell_is_given_to_the_images(folder: Path) -> None:
    image = Settings(shell=("/bin/bash", "-c"), command=("x",))  # noqa: S604  # no subprocess
    made = plan(folder, "services: {a: {build: app, healthcheck: {test: exit 0}}}\n", image).services["a"]
    assert made.health_check is not None
    assert made.health_check.test == ("/bin/bash", "-c", "exit 0")


def test_services_come_after_those_that_they_depend_on(folder: Path) -> None:
    made = plan(
        folder,
        """
services:
  a: {build: app, depends_on: [b, c]}
  b: {build: app, depends_on: {c: {condition: service_healthy}}}
  c: {build: app}
""",
    )
    assert list(made.services) == ["c", "b", "a"]
    assert made.services["b"].depends_on == {"c": "service_healthy"}


# --- refusals --------------------------------------------------------------------------------------


def test_all_that_cannot_be_honoured_is_told_at_once_with_its_line(folder: Path) -> None:
    listed = problems(
        folder,
        """
services:
  a:
    image: redis:7
  b:
    build: app
    privileged: true
    restart: sometimes
    sysctls: {kernel.msgmax: 1}
    deploy: {nonsense: 1}
    ports: ["53:53/sctp"]
    ulimits: {nofiles: 5}
  c:
    build: nowhere
    networks: [lam, lan]
  d: {build: app, depends_on: [e], volumes: ["vol:/x"]}
networks:
  lan: {driver: macvlan}
volumes:
  vol: {driver: nfs}
""",
    )
    told_lines = [(int(line), text) for line, _, text in (problem.partition(": ") for problem in listed)]
    expected = [
        (4, "`image: redis:7` is not found"),
        (7, "`privileged: True`"),
        (8, "restart: 'sometimes': write"),
        (9, "sysctl 'kernel.msgmax'"),
        (10, "`deploy: nonsense`"),
        (11, "TCP and UDP ports"),
        (12, "ulimit 'nofiles': unknown; did you mean 'nofile'?"),
        (15, "network 'lam': unknown; did you mean 'lan'?"),
        (16, "depends on 'e'"),
        (18, "driver 'macvlan'"),
        (20, "`driver: nfs`"),
    ]
    assert [line for line, _ in told_lines] == [line for line, _ in expected]
    for (_, text), (_, part) in zip(told_lines, expected, strict=True):
        assert part in text


def test_every_clash_of_addresses_is_told(folder: Path) -> None:
    listed = problems(
        folder,
        """
services:
  a: {build: app, networks: {lan: {ipv4_address: 10.0.0.1}}}
  b: {build: app, networks: {lan: {ipv4_address: 10.0.0.5}}}
  c: {build: app, networks: {lan: {ipv4_address: 10.0.0.5}}}
  d: {build: app, networks: {lan: {ipv4_address: 10.0.1.5}}}
  e: {build: app, scale: 2, networks: {lan: {ipv4_address: 10.0.0.6}}}
  f: {build: app, networks: {lan: {ipv4_address: ten}, other: }}
networks:
  lan: {ipam: {config: [{subnet: 10.0.0.0/24}]}}
  other: {ipam: {config: [{subnet: 10.0.0.128/25}]}}
""",
    )
    expected = [
        "3: service 'a': 10.0.0.1 is the gateway of network 'lan'",
        "5: service 'c': 10.0.0.5 is taken by 'b'",
        "6: service 'd': 10.0.1.5 is not in network 'lan' (10.0.0.0/24)",
        "7: service 'e': one address for 2 replicas",
        "8: service 'f': 'ten' is no IPv4 address",
        "11: networks 'lan' and 'other' overlap: 10.0.0.0/24 and 10.0.0.128/25",
    ]
    assert listed == expected


def test_a_subnet_that_is_too_small_is_told(folder: Path) -> None:
    (problem,) = problems(
        folder,
        """
services: {a: {build: app, scale: 6, networks: [lan]}}
networks: {lan: {ipam: {config: [{subnet: 10.0.0.0/29}]}}}
""",
    )
    assert "10.0.0.0/29 has no address left" in problem


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("timeout: 0s, interval: 0s, start_period: 0s, retries: 0", {}),
        ("timeout: 2s, retries: 4", {"timeout_s": 2.0, "retries": 4}),
    ],
)
@pytest.mark.parametrize("image", [{}, {"retries": 7, "timeout_s": 9.0}])
def test_nought_in_a_health_check_is_the_images_or_the_default(
    folder: Path, text: str, given: dict[str, float], image: dict[str, float]
) -> None:
    check = HealthCheck(test=("x",), **image)  # type: ignore[arg-type]  # names numbers
    service = f"{{build: app, healthcheck: {{test: [CMD, y], {text}}}}}"
    made = plan(folder, f"services: {{a: {service}}}\n", Settings(command=("x",), health_check=check))
    base = replace(check, test=("y",))
    assert made.services["a"].health_check == replace(base, **given)  # type: ignore[arg-type]  # names numbers


def test_a_health_check_of_none_is_none_whatever_follows(folder: Path) -> None:
    made = plan(folder, 'services: {a: {build: app, healthcheck: {test: ["NONE", "x"]}}}\n')
    assert made.services["a"].health_check is None


def test_addresses_are_compared_as_such_however_they_are_written(folder: Path) -> None:
    made = plan(
        folder,
        """
services:
  a: {build: app, networks: [lan]}
  b: {build: app, networks: {lan: {ipv6_address: "fd00:0::2"}}}
networks:
  lan: {ipam: {config: [{subnet: 10.0.0.0/24}, {subnet: "fd00::/64", gateway: "fd00:0::1"}]}}
""",
    )
    assert [*map(str, made.networks[0].gateways)] == ["10.0.0.1/24", "fd00::1/64"]
    assert addresses(made) == {"a": ["10.0.0.2/24", "fd00::3/64"], "b": ["10.0.0.3/24", "fd00::2/64"]}


def test_the_capabilities_are_those_that_the_agent_knows() -> None:
    assert set(kernelcalls.CAPABILITIES) == settings.CAPABILITIES


def test_a_circle_of_dependencies_is_told(folder: Path) -> None:
    (problem,) = problems(folder, "services: {a: {build: app, depends_on: [b]}, b: {build: app, depends_on: [a]}}\n")
    assert "depend on each other in a circle" in problem


@pytest.mark.parametrize(
    ("local", "part"),
    [
        ("{pat: app}", "x-testbed.local.pat: unknown; did you mean 'path'?"),
        ("{path: none}", "is no folder"),
        ("yes", "write {path"),
    ],
)
def test_a_wrong_word_under_x_testbed_is_told(folder: Path, local: str, part: str) -> None:
    (problem,) = problems(folder, f"services: {{a: {{image: x, command: [y], x-testbed: {{local: {local}}}}}}}\n")
    assert part in problem


# --- what lies where -------------------------------------------------------------------------------


def test_what_the_machine_has_below_its_tmp_is_nothing_to_a_host(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as there:
        service = f"{{image: python, x-testbed: {{local: {{}}}}, working_dir: {there}}}"
        a = plan(folder, f"services: {{a: {service}}}\n").services["a"]
    assert a.folders == (there,)


def test_a_place_that_nobody_may_look_at_is_as_good_as_empty(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look: Any = os.stat

    def stat(path: Any, *args: Any, **kwargs: Any) -> Any:
        if str(path).startswith("/closed/"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return look(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", stat)
    a = plan(
        folder,
        "services: {a: {image: python, x-testbed: {local: {}}, working_dir: /closed/w, tmpfs: [/closed/t], "
        "volumes: ['vol:/closed/v']}}\nvolumes: {vol: }\n",
    ).services["a"]
    assert a.folders == ("/closed/t", "/closed/w")
    (problem,) = problems(
        folder, "services: {a: {image: python, command: [x], volumes: [{type: bind, source: /closed/b, target: /b}]}}\n"
    )
    assert "'/closed/b' does not exist" in problem


@pytest.mark.parametrize("name", ["..", ".", ".data", "-data", "_x"])
def test_a_volume_with_a_name_that_is_a_path_is_refused(folder: Path, name: str) -> None:
    listed = problems(
        folder,
        f"services:\n  a:\n    image: python\n    command: [x]\n"
        f"    volumes: [{{type: volume, source: '{name}', target: /v}}]\nvolumes: {{'{name}': }}\n",
    )
    assert any(f"volume {name!r}: write letters" in problem for problem in listed), listed


def test_a_volume_without_a_name_has_one_that_no_volume_can_have(folder: Path) -> None:
    a = plan(
        folder, "services: {a: {image: python, command: [x], volumes: [/own, 'a-0:/v']}}\nvolumes: {a-0: }\n"
    ).services["a"]
    assert a.volumes == ((":0", "/own", False), ("a-0", "/v", False))


@pytest.mark.parametrize("local", ["", "x-testbed: {local: {}}, "])
def test_a_user_beyond_all_numbers_is_refused(folder: Path, local: str) -> None:
    (problem,) = problems(folder, f"services: {{a: {{image: python, {local}command: [x], user: '5000000000'}}}}\n")
    assert "user '5000000000': 5000000000 is above 2147483647" in problem


# --- images ----------------------------------------------------------------------------------------


def test_an_image_of_a_usual_name_that_is_nowhere_is_refused_and_not_this_machines_programs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    monkeypatch.setenv("PATH", "")
    images = MachinesImages(print)
    for name in ("python", "debian:trixie-slim"):
        (problem,) = problems(folder, f"services: {{a: {{image: '{name}', command: [x]}}}}\n", images)
        assert problem.startswith(f"1: service 'a': `image: {name}` is not found: no Docker engine answers at ")
        for part in (
            "neither podman nor buildah is installed",
            "the service names no archive",
            f"docker pull {name}",
            "`x-testbed: {local: {image: ./image.tar}}`",
            "`x-testbed: {local: {path: FOLDER}}`",
            "--lab compose",
        ):
            assert part in problem


def test_what_nothing_builds_is_refused_with_both_ways_and_with_all_other_problems(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    monkeypatch.setenv("PATH", "")
    text = (
        "services:\n  a: {build: app, user: '5000000000'}\n  b: {build: app, x-testbed: {local: {}}}\n"
        "  c: {build: app, user: of-the-image, working_dir: /etc/passwd}\n"
    )
    images = MachinesImages(print)
    building, user, third = problems(folder, text, images)
    assert third.startswith("4: service 'c': `build:`"), (
        "and what an unknown image might have is not asked of the machine"
    )
    assert building.startswith("2: service 'a': `build:` is a builder's work: no Docker engine answers at ")
    assert "neither podman nor buildah is installed (apt-get install buildah)" in building
    assert "5000000000" in user
