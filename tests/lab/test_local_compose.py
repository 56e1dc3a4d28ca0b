"""Keys of a Compose file, seen from within hosts: volumes, limits, sysctls, names, ports, order, and stopping."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import LocalLab
from testbed.compose.command import find
from testbed.errors import EnvironmentUnfitError, ServiceFailedError
from tests.lab.conftest import HERE

LABS = ("local",)

# `web` fails if it is started before `setup` has ended; `setup` takes long enough for that to show.
_STACK = """
services:
  setup:
    x-testbed: {{local: {{}}}}
    command: sh -c "sleep 0.3; echo made >/data/made"
    volumes: ["data:/data"]
  web:
    x-testbed: {{local: {{}}}}
    command: sh -c "cat /data/made && exec python3 -m http.server 80 --directory /data"
    depends_on: {{setup: {{condition: service_completed_successfully}}}}
    volumes: ["data:/data:ro", {{type: volume, source: data, target: /again, read_only: true}}]
    ports: ["{port}:80"]
    healthcheck:
      test: python3 -c "import socket; socket.create_connection(('127.0.0.1', 80))"
    ulimits: {{nofile: {{soft: 100, hard: 200}}, core: 0}}
    sysctls: {{net.core.somaxconn: 77, net.ipv4.ip_default_ttl: 33}}
    container_name: the-web
    extra_hosts: {{away: "[2001:db8::7]"}}
    cap_add: [ALL]
volumes: {{data: }}
"""
_LINGERING = """
services:
  last:
    x-testbed: {{local: {{}}}}
    command: ["python3", "-c", "{last}"]
    volumes: [".:/out"]
    healthcheck: {{test: "test -e /out/ready"}}
    stop_signal: SIGINT
    stop_grace_period: 20s
"""
# It takes longer to stop than a lab waits for a service that says nothing of it.
_LAST = (
    "import signal, time; signal.signal(signal.SIGINT, lambda *_: None); open('/out/ready', 'w').close(); "
    "signal.pause(); time.sleep(1.5); open('/out/stopped', 'w').close()"
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def lab(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalLab]:
    assert kind == "local"
    path = tmp_path_factory.mktemp("compose") / "compose.yaml"
    path.write_text(_STACK.format(port=free_port()), encoding="utf-8")
    with LocalLab(path) as lab:
        yield lab


def test_a_volume_is_shared_and_read_only_where_the_file_says_so(lab: LocalLab) -> None:
    web, setup = lab.host("web"), lab.host("setup")
    for path in ("/data/new", "/again/new"):
        refused = web.run(["touch", path])
        assert refused.exit_code == 1
        assert "Read-only file system" in refused.stderr
    assert setup.run(["sh", "-c", "echo seen >/data/new"]).ok
    assert web.run(["cat", "/data/new", "/again/new"]).stdout == "seen\nseen\n"


def test_a_service_starts_once_what_it_depends_on_has_ended_well(lab: LocalLab) -> None:
    assert lab.host("web").logs().startswith("made\n")


def test_a_published_port_is_answered_on_the_machines_loopback(lab: LocalLab) -> None:
    port = lab.plan.services["web"].published[0].port
    assert lab.host("web").published(80) == ("127.0.0.1", port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/made", timeout=10) as answer:
        assert answer.read() == b"made\n"


def test_limits_are_those_of_the_file(lab: LocalLab) -> None:
    done = lab.host("web").run(["sh", "-c", "ulimit -Sn; ulimit -Hn; ulimit -c"])
    assert done.stdout.split() == ["100", "200", "0"]
    assert lab.host("setup").run(["sh", "-c", "ulimit -Sn"]).stdout.strip() != "100"


def test_sysctls_are_those_of_the_file(lab: LocalLab) -> None:
    names = ["/proc/sys/net/core/somaxconn", "/proc/sys/net/ipv4/ip_default_ttl"]
    assert lab.host("web").run(["cat", *names]).stdout.split() == ["77", "33"]
    assert lab.host("setup").run(["cat", *names]).stdout.split() != ["77", "33"]


def test_a_host_is_known_by_its_container_name_and_knows_extra_hosts(lab: LocalLab) -> None:
    output = lab.host("setup").run(["getent", "hosts", "the-web"]).stdout.split()
    assert output[0] == lab.host("web").addresses()[0]
    assert "2001:db8::7 away" in lab.host("web").run(["cat", "/etc/hosts"]).stdout.splitlines()


def test_every_capability_is_given_where_all_are_asked_for(lab: LocalLab) -> None:
    def bounding(host: str) -> int:
        lines = lab.host(host).run(["cat", "/proc/self/status"]).stdout.splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("CapBnd:")), 16)

    ours = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "CapBnd" in line)
    assert bounding("web") & int(ours, 16) == int(ours, 16)
    assert bounding("setup") < bounding("web")


def test_a_service_has_the_time_to_stop_that_the_file_gives_it(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "compose.yaml"
    path.write_text(_LINGERING.format(last=_LAST), encoding="utf-8")
    with LocalLab(path):
        assert not (tmp_path / "stopped").exists()
    assert (tmp_path / "stopped").exists()


def test_a_service_is_not_started_if_what_it_depends_on_ends_badly(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "compose.yaml"
    path.write_text(
        'services:\n  setup: {x-testbed: {local: {}}, command: [sh, -c, "exit 3"]}\n'
        "  web: {x-testbed: {local: {}}, command: [sleep, inf], depends_on: {setup: {condition: "
        "service_completed_successfully}}}\n",
        encoding="utf-8",
    )
    lab = LocalLab(path, up_deadline="20s")
    with pytest.raises(ServiceFailedError, match="service `setup` exited with status 3") as raised:
        lab.up()
    assert str(raised.value).endswith("not started yet: `web`")


def test_what_compose_alone_can_read_comes_up(kind: str, tmp_path: Path) -> None:
    try:
        find()
    except EnvironmentUnfitError as error:
        pytest.skip(str(error))
    (tmp_path / "other.yaml").write_text(
        'services:\n  base: {image: none, command: [sh, -c, "echo V=$${V}"], environment: {V: a$$b}, '
        "x-testbed: {local: {}}}\n",
        encoding="utf-8",
    )
    path = tmp_path / "compose.yaml"
    path.write_text(
        "services:\n  a: {extends: {file: other.yaml, service: base}}\n"
        "  b: {extends: a, depends_on: {a: {condition: service_completed_successfully}}}\n",
        encoding="utf-8",
    )
    with LocalLab(path) as lab:
        for host in lab.hosts.values():
            assert host.service is not None
            assert host.service.wait().stdout == "V=a$b\n"


_PLACES = """
services:
  under:
    x-testbed: {{local: {{}}}}
    command: [sleep, inf]
    volumes: ["./conf:/app/conf", "nm:/app/node_modules", ".:/app"]
  own:
    x-testbed: {{local: {{}}}}
    command: [sh, -c, "touch /own/$$HOSTNAME && exec sleep inf"]
    volumes: [/own, "own-0:/named"]
    scale: 2
  most: {{x-testbed: {{local: {{}}}}, command: [sleep, inf], cap_add: [ALL], cap_drop: [NET_RAW]}}
  tmp: {{x-testbed: {{local: {{}}}}, command: [sleep, inf], working_dir: {there}}}
volumes: {{nm: , own-0: }}
"""


@pytest.fixture(scope="module")
def places(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalLab]:
    """A lab whose mounts lie over, below or behind each other."""
    folder = tmp_path_factory.mktemp("places")
    for name in ("conf", "node_modules"):
        (folder / name).mkdir()
    (folder / "conf/seen").touch()
    path = folder / "compose.yaml"
    with tempfile.TemporaryDirectory(dir="/tmp") as there:
        path.write_text(_PLACES.format(there=there), encoding="utf-8")
        with LocalLab(path) as lab:
            yield lab


def output_of(lab: LocalLab, host: str, command: str) -> str:
    done = lab.host(host).run(["sh", "-c", command])
    assert done.ok, done.stderr
    return done.stdout


def test_what_the_machine_has_in_its_tmp_does_not_matter(places: LocalLab) -> None:
    there = places.plan.services["tmp"].workdir
    assert output_of(places, "tmp", "pwd && ls") == f"{there}\n"


def test_what_is_shown_deeper_is_shown_over_what_is_not(places: LocalLab) -> None:
    assert output_of(places, "under", "touch /app/node_modules/new && ls /app/conf /app/node_modules") == (
        "/app/conf:\nseen\n\n/app/node_modules:\nnew\n"
    )
    source = Path(places.plan.services["under"].binds[-1][0])
    assert list((source / "node_modules").iterdir()) == []


def test_each_host_has_volumes_without_a_name_for_itself(places: LocalLab) -> None:
    for host in ("own[1]", "own[2]"):
        hostname, *listed = output_of(places, host, "echo $HOSTNAME; ls /named /own").splitlines()
        assert listed == ["/named:", "", "/own:", hostname]


def test_all_capabilities_but_one(places: LocalLab) -> None:
    bounding = int(output_of(places, "most", "grep CapBnd /proc/self/status").split()[1], 16)
    net_raw, net_admin = 1 << 13, 1 << 12  # linux/capability.h
    assert bounding & (net_raw | net_admin) == net_admin


def test_what_the_kernel_cannot_take_is_told_and_no_crash(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "compose.yaml"
    path.write_text(
        "services:\n  a: {image: python, x-testbed: {local: {}}}\n"
        "  b: {image: python, x-testbed: {local: {}}, ulimits: {nofile: 10000000000000000000}}\n",
        encoding="utf-8",
    )
    with LocalLab(path) as lab:
        done = lab.host("a").run(["true"], env={"A": "zero \0"})
        assert (done.exit_code, "embedded null" in done.stderr) == (126, True), done.stderr
        done = lab.host("a").run(["true"], user="5000000000")
        assert done.exit_code == 126
        assert "Traceback" not in done.stderr
        done = lab.host("b").run(["true"])
        assert (done.exit_code, "ulimit nofile 1000" in done.stderr) == (126, True), done.stderr
        assert lab.host("a").run(["true"]).ok


def test_every_programs_end_is_told_while_a_timeline_runs_on_a_busy_machine(kind: str) -> None:
    assert kind == "local"
    # Beside the timeline's thread a program may end before the agent has noted that it began.
    with LocalLab(HERE.parents[1] / "compose.yaml") as lab:
        lab.link("client -> server").impair([{"delay": "1ms"}, {"at": "100ms", "delay": "2ms"}, {"repeat": "200ms"}])
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
        try:
            assert all(lab.host("client").run(["true"], timeout="10s").ok for _ in range(150))
        finally:
            for process in busy:
                process.kill()
                process.wait()
