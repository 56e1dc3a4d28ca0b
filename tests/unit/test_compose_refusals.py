"""Every problem of a Compose file is reported once, all together, with its line and without a traceback.

The services of one file are each wrong in one way, so that a problem that hides another shows.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from testbed.backends.local import localplan
from testbed.backends.local.blueprint import LabPlan
from testbed.compose import composefile, shapes
from testbed.compose.command import find
from testbed.errors import EnvironmentUnfitError, InvalidComposeError
from testbed.spec.topology import Topology
from tests.unit.fakes import FakeImages


def plan(path: Path, text: str | bytes) -> LabPlan:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    file = composefile.read(path, environment={})
    return localplan.make(file, Topology.from_compose(file.config), FakeImages(lacks=["postgres"]))


def problems_of(path: Path, text: str | bytes) -> list[str]:
    with pytest.raises(InvalidComposeError) as refused:
        plan(path, text)
    return [problem.partition(f"{path}:")[2] for problem in refused.value.problems]


SERVICES = {
    f"shm_size: '{'9' * 400}'": "is no size; write 64m",
    f"volumes: [{{type: tmpfs, target: /x, tmpfs: {{size: '{'9' * 400}'}}}}]": "is no size; write 64m",
    "stop_signal: 99": "stop_signal: 99: must be a text",
    "stop_signal: SIGFOO": "'SIGFOO': is no signal",
    "stop_signal: '99'": "'99': is no signal",
    "stop_grace_period: 10x": "'10x' is not a duration",
    "ulimits: {nofile: {soft: 100}}": "ulimits.nofile: {'soft': 100}: needs `hard`",
    "ulimits: {nofile: many}": "ulimits.nofile: 'many': must be a whole number",
    "ulimits: {nofile: {soft: 5, hard: 3}}": "soft 5 is above hard 3",
    "ulimits: 5": "ulimits: 5: write {nofile: 1024}",
    "depends_on: z": "depends_on: 'z': write a list or a mapping",
    "depends_on: [nosuch]": "depends on 'nosuch': unknown",
    "depends_on: {z: {condition: healthy}}": "condition 'healthy' of 'z': unknown; did you mean",
    "healthcheck: foo": "healthcheck: 'foo': write",
    "healthcheck: {retries: many}": "healthcheck.retries: 'many'",
    "healthcheck: {interval: 5}": "healthcheck.interval: 5: must be a text",
    "healthcheck: {test: [curl, x]}": "healthcheck.test: ['curl', 'x']: write",
    "healthcheck: {test: [CMD]}": "healthcheck.test: ['CMD']: write",
    "environment: 5": "environment: 5: write",
    "environment: {A: [1]}": "environment.A: [1]: write a text or a number",
    "environment: {A=B: x}": "environment: 'A=B': a variable's name is not empty and has no =",
    "environment: [=x]": "environment: '': a variable's name is not empty and has no =",
    "env_file: [{path: compose.yaml, format: json}]": "env_file.format: 'json': must be raw",
    "env_file: nope": "nope' does not exist",
    "ports: 80": "ports: 80: write a list",
    "ports: [eighty]": "port 'eighty': write",
    "ports: ['99999:80']": "port '99999:80': ports go from 1 to 65535",
    "ports: ['8080:99999']": "port '8080:99999': ports go from 1 to 65535",
    "ports: ['0:0']": "ports go from 1 to 65535",
    "ports: ['80-82:90-91']": "as many ports outside as inside",
    "ports: [{published: 80}]": "needs `target`",
    "ports: [{target: http}]": "ports.target: 'http': must be a whole number",
    "ports: [{target: 80, published: '99999'}]": "ports go from 1 to 65535",
    "ports: ['127.0.0:80:80']": "'127.0.0' is no address",
    "ports: ['8090-8080:80']": "port '8090-8080:80': the range runs backwards",
    "ports: ['90-80:90-80']": "port '90-80:90-80': the range runs backwards",
    "ports: ['70-60']": "port '70-60': the range runs backwards",
    f"ports: ['{'9' * 5000}:80']": "ports go from 1 to 65535",
    f"ports: ['80:{'9' * 5000}']": "ports go from 1 to 65535",
    "ports: [{target: -80}]": "ports go from 1 to 65535",
    "ports: ['53:53/sctp']": "TCP and UDP ports, not sctp",
    "networks: lan": "networks: 'lan': write a list or a mapping",
    "networks: [nosuch]": "network 'nosuch': unknown",
    "networks: {lan: {aliases: foo}}": "networks.lan.aliases: 'foo': write a list",
    "networks: {lan: {priority: high}}": "networks.lan.priority: 'high'",
    "networks: {lan: {ipv4_address: 'fd00::5'}}": "'fd00::5' is no IPv4 address",
    "networks: {lan: {ipv6_address: 10.0.0.5}}": "'10.0.0.5' is no IPv6 address",
    "networks: {lan: {ipv6_address: 'fe80::5%eth0'}}": "'fe80::5%eth0' is no IPv6 address",
    "networks: {lan: {mac_address: '02:00:00'}}": "mac_address '02:00:00': write",
    "networks: {lan: {interface_name: a-name-that-is-too-long}}": "interface_name 'a-name-that-is-too-long': write",
    "networks: {lan: {link_local_ips: [169.254.1.1]}}": "`link_local_ips: ['169.254.1.1']`: a local lab",
    "networks: {lan: {driver_opts: {a: b}}}": "`driver_opts: {'a': 'b'}`: a local lab cannot honour it",
    "networks: {lan: {ipv4_address: 10.0.0.0}}": "10.0.0.0 is the network address of network 'lan'",
    "networks: {lan: {ipv4_address: 10.0.0.255}}": "10.0.0.255 is the broadcast address of network 'lan'",
    "deploy: 3": "deploy: 3: write {replicas: 2}",
    "deploy: {replicas: x}": "deploy.replicas: 'x'",
    "deploy: {replicas: -1}": "deploy.replicas: -1: must be a whole number from 0",
    "scale: lots": "scale: 'lots'",
    "scale: 2, deploy: {replicas: 3}": "scale 2 and deploy.replicas 3",
    "tty: 5": "tty: 5: must be true or false",
    "environment: ": "environment: nothing: write a mapping or a list",
    "depends_on: {z: {}}": "depends_on.z: {}: needs `condition`",
    "scale: 2, ports: ['8888:80']": "port 8888 of this machine for 2 replicas",
    "volumes: [{type: bind, source: /tmp}]": "needs `target`",
    "volumes: [{type: bind, target: /x}]": "needs `source`",
    "volumes: [{type: bind, source: /nosuch, target: /d}]": "'/nosuch' does not exist",
    "volumes: ['nosuchvol:/d']": "volume 'nosuchvol' is not under the file's own `volumes:`",
    "volumes: ['.:/']": "a volume at '/': a host of a local lab has its own there",
    "volumes: ['.:/d/../proc/x']": "a volume at '/d/../proc/x': a host of a local lab has its own",
    "volumes: ['.:/etc/hosts']": "a volume at '/etc/hosts': a local lab writes this file",
    "volumes: ['data:d']": "a volume at 'd': must be an absolute path",
    "tmpfs: /proc": "tmpfs '/proc': a host of a local lab has its own",
    "working_dir: /etc/passwd": "working_dir '/etc/passwd': it is a file on this machine",
    "working_dir: /etc/passwd/x": "working_dir '/etc/passwd/x': /etc/passwd is no folder",
    "working_dir: /proc/x": "working_dir '/proc/x': a host of a local lab has its own there",
    "volumes: ['data:/etc/passwd']": "it is a file on this machine",
    "volumes: ['/etc/passwd:/usr']": "it is a folder on this machine",
    "working_dir: foo": "working_dir 'foo': must be an absolute path",
    "working_dir: /, x-testbed: {local: {path: .}}": "working_dir '/', where x-testbed.local.path is shown",
    f"hostname: {'h' * 80}": "write at most 63",
    "container_name: twice, scale: 2": "one container_name, 'twice', for 2 replicas",
    "container_name: the_z": "container_name 'the_z' is taken by",
    "container_name: a b": "container_name 'a b'",
    "user: root:nosuch": "'nosuch' is not in this machine's /etc/group",
    "user: nosuch": "'nosuch' is not in this machine's /etc/passwd",
    "extra_hosts: [w]": "'' is no address",
    "cap_add: [NET_FOO]": "cap_add: 'NET_FOO': unknown",
    "sysctls: [net.x]": "sysctl 'net.x': needs a value",
    "sysctls: {kernel.msgmax: 1}": "sysctl 'kernel.msgmax'",
    "comand: x": "`comand:`: unknown; did you mean 'command'?",
    "privileged: yes": "`privileged: True`",
    "command: [echo, 5]": "command: 5: must be a text; put it in quotes: '5'",
    "hostname: 5": "hostname: 5: must be a text",
    "build: 5": "build: 5: must be a text",
    "image: 5": "image: 5: must be a text",
    "x-testbed: {local: {pth: .}}": "x-testbed.local.pth: unknown; did you mean 'path'?",
    "x-testbed: {local: yes}": "x-testbed.local: 'yes': write {path: FOLDER",
    "x-testbed: 5": "x-testbed: 5: write {router: true}",
    "x-testbed: {local: {path: nosuch}}": "x-testbed.local.path 'nosuch'",
}


def service(words: str) -> str:
    own = "" if "x-testbed" in words or words.startswith(("build", "image")) else ", x-testbed: {local: {}}"
    image = "" if words.startswith(("image", "build")) else ", image: x"
    command = "" if words.startswith("command") else ", command: [x]"
    return f"{{{words}{image}{command}{own}}}"


def test_every_wrong_service_is_told_of_once_and_on_its_line(tmp_path: Path) -> None:
    lines = ["  a: {image: python, container_name: the_z}"]
    lines += [f"  s{number:02}: {service(words)}" for number, words in enumerate(SERVICES)]
    lines += [
        "  z: {image: python}",
        "networks: {lan: {ipam: {config: [{subnet: 10.0.0.0/24}]}}}",
        "volumes: {data: }",
    ]
    text = "\n".join(["services:", *lines])
    seen: dict[int, list[str]] = {}
    for problem in problems_of(tmp_path / "compose.yaml", text):
        line, _, rest = problem.partition(": ")
        seen.setdefault(int(line), []).append(rest)
    for number, (words, part) in enumerate(SERVICES.items()):
        (problem,) = seen.pop(number + 3, ["nothing", words])
        assert problem.startswith(f"service 's{number:02}': ")
        assert part in problem, words
    assert not seen


SCALARS = {
    'build: "./a\\0b"': "'./a\\x00b': the character '\\x00' may not stand in it",
    'volumes: ["./a\\0b:/x"]': "'./a\\x00b:/x': the character",
    'working_dir: "/a\\0"': "'/a\\x00': the character",
    'environment: {A: "\\0"}': "'\\x00': the character",
    'environment: {"A\\0": b}': "key 'A\\x00': the character",
    'env_file: "nope\\0"': "'nope\\x00': the character",
    "environment: {A: !!float abc}": "'abc': tagged !!float, but is no number",
}


@pytest.mark.parametrize("words", SCALARS)
def test_a_scalar_that_nothing_can_be_given_is_told_of_once_and_on_its_line(words: str, tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path / "compose.yaml", f"services:\n  a: {service(words)}\n")
    assert problem.startswith("2: ")
    assert SCALARS[words] in problem


# Compose takes these: they are an engine's, a local lab's or our own to refuse.
NOT_COMPOSES = (
    "stop_signal: SIGFOO", "stop_signal: '99'", "ulimits: {nofile: {soft: 5", "healthcheck: {test: [CMD]}",
    "ports: [{target: 80, published: '99999'}]", "ports: ['53:53/sctp']", "networks: {lan: {ipv4",
    "networks: {lan: {ipv6", "networks: {lan: {mac_", "networks: {lan: {interface", "networks: {lan: {gw_",
    "networks: {lan: {link", "networks: {lan: {driver", "environment: {A=B", "environment: [=x]",
    "scale: 2, ports", "volumes: [{type: bind, source: /nosuch", "volumes: ['.:", "volumes: ['data:", "volumes: ['/etc",
    "tmpfs: /proc", "working_dir", "hostname: hhh", "user",
    "extra_hosts: ['x", "cap_add", "sysctls", "privileged", "x-testbed",
)  # fmt: skip


def test_what_compose_refuses_is_refused_for_it(tmp_path: Path) -> None:
    try:
        argv = find()
    except EnvironmentUnfitError as error:
        pytest.skip(str(error))
    taken = []
    for words in (words for words in SERVICES if not words.startswith(NOT_COMPOSES)):
        path = tmp_path / "compose.yaml"
        path.write_text(
            f"services:\n  a: {service(words)}\n  z: {{image: python, container_name: the_z}}\n"
            "networks: {lan: }\nvolumes: {data: }\n",
            encoding="utf-8",
        )
        done = subprocess.run([*argv, "-f", str(path), "config", "-q"], capture_output=True, check=False)
        if done.returncode == 0:
            taken.append(words)
    assert taken == []


TOP = {
    "networks: [lan]": "networks: ['lan']: write a mapping",
    "networks: {lan: {ipam: {config: [{subnet: 10.0.0.0/24, gateway: nope}]}}}": "gateway 'nope' is no address",
    "networks: {lan: {ipam: {config: [{subnet: 10.0.0.0/24, gateway: 10.9.0.1}]}}}": "in no subnet of its own",
    "networks: {lan: {ipam: {config: [{subnet: 10.0.0.0/24, gateway: 10.0.0.255}]}}}": "is the broadcast address",
    "networks: {lan: {ipam: {config: [{subnet: 10.0.0.0/24}, {subnet: 10.0.0.0/24}]}}}": "its subnets overlap: 10.0.0",
    "networks: {lan: {ipam: {config: [{subnet: 255.255.255.255/32}]}}}": "has no room for a gateway and a host",
    f"networks: {{lan: {{ipam: {{config: [{{subnet: '{'ffff:' * 7}ffff/128'}}]}}}}}}": "has no room for a gateway",
    "networks: {lan: {ipam: {config: [{subnet: 10.0.0.0/24, ip_range: 10.0.1.0/28}]}}}": "is not in 10.0.0.0/24",
    "networks: {lan: {ipam: {driver: other}}}": "`driver: other`: a local lab cannot honour it",
    "networks: {lan: {ipam: {options: {a: b}}}}": "`options: {'a': 'b'}`: a local lab cannot honour it",
    "networks: {lan: {enable_ipv4: false}}": "`enable_ipv4: false`: a local lab cannot honour it",
    f"networks: {{lan: {{driver_opts: {{com.docker.network.driver.mtu: '{'9' * 5000}'}}}}}}": "MTU '999",
    "networks: {lan: {driver_opts: {com.docker.network.driver.mtu: abc}}}": "MTU 'abc'",
    "networks: {lan: {enable_ipv6: perhaps}}": "network 'lan': enable_ipv6: 'perhaps': must be true or false",
    "networks: {lan: {foo: 1}}": "network 'lan': foo: unknown",
    "volumes: [v]": "volumes: ['v']: write a mapping",
    "volumes: {v: 5}": "volume 'v': 5: write a mapping",
    "x-testbed: {toplogy: {star: 3}}": "x-testbed.toplogy: unknown; did you mean 'topology'?",
    "servces: {}": "servces: unknown; did you mean 'services'?",
    "name: 5": "name: 5: must be a text",
    "name: '_-ß'": "name: '_-ß': a project's name has letters or digits",
}


@pytest.mark.parametrize("words", TOP)
def test_what_is_wrong_outside_the_services_is_told(words: str, tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path / "compose.yaml", f"services: {{a: {{image: python}}}}\n{words}\n")
    assert problem.startswith("2: ")
    assert TOP[words] in problem


@pytest.mark.parametrize(
    ("text", "begin"),
    [
        ("services: &x {a: *x}\n", "1: an alias of something that it is a part of"),
        ("services: {a: 3}\n", "1: service 'a': 3: write a mapping"),
        ("services: {a: }\n", "1: service 'a': nothing: write a mapping"),
        ("services: {'a b': {image: python}, c: {image: python}}\n", "1: service 'a b': a name has letters"),
        ("x-testbed: {topology: {chain: 1}}\nservices: {left: 3}\n", "2: service 'left': 3: write a mapping"),
        (b"services:\n  a: {image: \xff}\n", "2: is not UTF-8: byte 0xff"),
        ("services:\n  a: {image: \x01}\n", "2: not YAML"),
        ("services:\n  a: [\n", "3: not YAML"),
        ('services:\n  a: "\\U00110000"\n', "2: not YAML: "),
        ('services:\n  a: "\\UFFFFFFFF"\n', "2: not YAML: "),
    ],
)
def test_what_is_no_file_for_compose_is_told(text: str | bytes, begin: str, tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path / "compose.yaml", text)
    assert problem.startswith(begin)


def test_no_problem_hides_another(tmp_path: Path) -> None:
    problems = problems_of(
        tmp_path / "compose.yaml",
        """
services:
  a:
    image: postgres
    ports:
      - "53:53/sctp"
      - eighty
    sysctls: {kernel.shmmax: 1}
    ulimits: {nofiles: 3, core: x}
    volumes: [{type: bind, source: ./nosuch, target: /x}]
    depends_on: [nobody]
    secrets: [x]
  b:
    x-testbed:
      local:
        pth: .
        pyton: 1
networks:
  default: {driver: overlay}
""",
    )
    assert [int(line.partition(":")[0]) for line in problems] == [4, 6, 7, 8, 9, 9, 10, 11, 12, 16, 17, 19]


def test_a_port_of_the_machine_is_named_once(tmp_path: Path) -> None:
    problems = problems_of(
        tmp_path / "compose.yaml",
        """
services:
  a: {image: python, ports: ["8080:80", "8081:81"]}
  b:
    image: python
    ports:
      - 9000:80
      - "0.0.0.0:8080:80"
  c: {image: python, ports: ["127.0.0.2:8081:80", "8080", "0:8080"]}
""",
    )
    assert problems == ["8: service 'b': port 8080 of this machine is given to service 'a' (compose.yaml:3)"]


def test_what_is_right_is_read(tmp_path: Path) -> None:
    made = plan(
        tmp_path / "compose.yaml",
        """
services:
  a:
    image: python
    extra_hosts: {v6: "[::1]", both: [192.0.2.1, "2001:db8::1"]}
    volumes: ["data:/ro:ro", "data:/rw", {type: volume, source: data, target: /long, read_only: yes}, /own]
    cap_add: [cap_net_admin]
    tmpfs: [/run, "/cache:size=1m"]
    scale: "2"
    ports: ["80"]
    stop_grace_period: 1m30s
    healthcheck: {test: []}
    user: "0:0"
    ulimits: {nofile: {soft: "5", hard: -1}, core: 0}
    init: yes
    environment: {ON: on, N: 1e3}
volumes: {data: }
""",
    )
    a = made.services["a"]
    assert made.hosts[0].extra_hosts == (("both", "192.0.2.1"), ("both", "2001:db8::1"), ("v6", "::1"))
    named = (("data", "/ro", True), ("data", "/rw", False), ("data", "/long", True))
    assert a.volumes == (*named, (":3", "/own", False))
    assert a.folders == ("/run", "/cache")
    assert (a.capabilities_added, a.stop_grace_s, a.health_check) == (("NET_ADMIN",), 90.0, None)
    assert a.limits == {"RLIMIT_NOFILE": (5, -1), "RLIMIT_CORE": (0, 0)}
    assert (a.environment["ON"], a.environment["N"]) == ("on", "1000")
    assert [host.name for host in made.hosts] == ["a[1]", "a[2]"]


_DIGITS = "9" * 4400
_SCALARS = (
    st.none()
    | st.booleans()
    | st.sampled_from([-2, -1, 0, 3, 1.5, "", "x", "1", "/", _DIGITS, f"{_DIGITS}:80", f"80:{_DIGITS}", f"x={_DIGITS}"])
    | st.sampled_from(["a\0", "./a\0:/x", "\0=x", "=", "\ud800", "8-7", "8-7:8-7", "::1%lo", "${" * 1200, "%", "~\0"])
    | st.text(max_size=4)
)
_ODD_PLAIN = st.sampled_from(
    [_DIGITS, f"-{_DIGITS}", f"0x{_DIGITS}", f"{_DIGITS}.5", f"1e{_DIGITS}", '"\\UFFFFFFFF"']
) | st.text(alphabet="0179_xXobeE.+-~infa", min_size=1, max_size=6)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["x", "/", "target", "a\0", "\udfff", "", "A=B"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(value=_VALUES)
def test_a_value_of_any_kind_is_read_or_refused(value: object, tmp_path: Path) -> None:
    keys = shapes.FILE.words["services"].others.words  # type: ignore[index, union-attr]
    services = {key: {"image": "python", "command": ["x"], key: value} for key in keys or ()}
    with contextlib.suppress(InvalidComposeError):
        plan(tmp_path / "compose.yaml", json.dumps({"services": services}))


_ADDRESSES = _VALUES | st.sampled_from(
    [
        "0.0.0.0/0",
        "::/0",
        "::/128",
        "10.0.0.0/31",
        "10.0.0.1/30",
        "fd00::/127",
        "::ffff:1.2.3.4",
        "10.0.0.1",
        "fe80::1%lo",
    ]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(
    subnet=st.dictionaries(st.sampled_from(["subnet", "gateway"]), _ADDRESSES),
    joined=st.dictionaries(st.sampled_from(["ipv4_address", "ipv6_address", "aliases", "priority"]), _ADDRESSES),
)
def test_addresses_of_any_kind_are_read_or_refused(
    subnet: dict[str, object], joined: dict[str, object], tmp_path: Path
) -> None:
    service = {"image": "python", "command": ["x"], "networks": {"lan": joined}}
    network = {"enable_ipv6": True, "ipam": {"config": [subnet]}}
    with contextlib.suppress(InvalidComposeError):
        plan(tmp_path / "compose.yaml", json.dumps({"services": {"a": service}, "networks": {"lan": network}}))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(word=_ODD_PLAIN, tag=st.sampled_from(["", "!!float ", "!!int ", "!!bool ", "!!null ", "!!str "]))
def test_a_plain_scalar_of_any_kind_is_read_or_refused(word: str, tag: str, tmp_path: Path) -> None:
    with contextlib.suppress(InvalidComposeError):
        plan(
            tmp_path / "compose.yaml",
            f"services:\n  a: {{image: python, user: {tag}{word}, environment: {{A: {tag}{word}}}}}",
        )
