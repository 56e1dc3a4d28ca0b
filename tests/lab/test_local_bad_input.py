"""What a machine may lack for a local lab, and what programs in the lab may not do."""

from __future__ import annotations

import json
import os
import resource
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from testbed import Lab, LocalLab, ServiceFailedError, topologies
from testbed.lab.waiting import await_condition
from tests.lab.conftest import HERE, Datagrams, prepare

LABS = ("local",)
ROOT = HERE.parents[1]
_TRY = f"""
from testbed import EnvironmentUnfitError, LocalLab
try:
    with LocalLab({str(ROOT / "compose.yaml")!r}, netem="carried") as lab:
        print("up")
        lab.impair("client -> server", delay="1ms")
except EnvironmentUnfitError as error:
    print(error)
"""
_DOCTOR = "from testbed.backends.local.capabilities import main; main()"


def sandboxed(kind: str, prepare: str, code: str) -> str:
    """The output of Python in its own user and mount namespaces, after these shell commands."""
    assert kind == "local"
    argv = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", f"{prepare} exec \"$0\" -c \"$1\"",
            sys.executable, code]  # fmt: skip
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def test_without_taps_a_lab_comes_up_and_what_must_be_carried_is_refused_with_the_way_out(kind: str) -> None:
    done = sandboxed(kind, "mount -t tmpfs none /dev/net;", _TRY)
    assert done.startswith("up\n")
    assert "netem must be carried here, and a carried kernel needs taps" in done
    assert "/dev/net/tun: No such file or directory. As root: modprobe tun; chmod 0666 /dev/net/tun" in done


def test_without_network_namespaces_the_setting_to_raise_is_named(kind: str) -> None:
    done = sandboxed(kind, "echo 1 >/proc/sys/user/max_net_namespaces;", _TRY)
    assert done.startswith("2 hosts need 3 net namespaces; user.max_net_namespaces is 1: sysctl user.max_net_names")


def test_without_user_namespaces_it_is_told_what_closes_the_way(kind: str) -> None:
    closed = 'echo 0 >/proc/sys/user/max_user_namespaces; set -- setpriv --bounding-set=-sys_admin "$0" "$1";'
    argv_first = 'exec "$1" "$2" "$3" -c "$4"; '
    assert "this machine refuses" in sandboxed(kind, closed + argv_first, _TRY)
    done = sandboxed(kind, closed + argv_first, _DOCTOR)
    assert done.startswith("no local lab: ")
    assert "sysctl user.max_user_namespaces=10000 (user.max_user_namespaces is 0)" in done


def test_tools_are_found_where_an_ordinary_users_path_does_not_lead(kind: str) -> None:
    assert kind == "local"
    environment = {**os.environ, "PATH": "/usr/bin:/bin"}  # without /usr/sbin, where Debian has tc
    argv = [sys.executable, "-c", _DOCTOR]
    done = subprocess.run(argv, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("local lab ("), done.stdout


@pytest.mark.parametrize(
    ("service", "reason"),
    [
        ("command: [nosuchprog]", "exec: 'nosuchprog': no such file, or not found in \\$PATH"),
        ("command: [/etc/passwd]", "exec: '/etc/passwd': Permission denied"),
        (
            "command: [sleep, '9'], ulimits: {nofile: 9999999999}",
            "sleep: not started: ulimit nofile 9999999999:9999999999: .*; the most here is [0-9]+",
        ),
    ],
)
def test_a_program_that_cannot_start_is_never_a_service_that_runs(
    kind: str, tmp_path: Path, service: str, reason: str
) -> None:
    assert kind == "local"
    later = "b: {x-testbed: {local: {}}, command: [touch, /shared/began], depends_on: [a], volumes: ['.:/shared']}"
    (tmp_path / "compose.yaml").write_text(f"services:\n  a: {{x-testbed: {{local: {{}}}}, {service}}}\n  {later}\n")
    for _ in range(3):  # whoever looked too soon saw nothing wrong, most of the time
        with pytest.raises(ServiceFailedError, match=f"^service `a` cannot be started: {reason}"):
            LocalLab(tmp_path / "compose.yaml").up()
    assert not (tmp_path / "began").exists()


def test_what_a_host_is_told_to_run_and_cannot_has_a_shells_exit_status(lab: Lab) -> None:
    done = lab.host("client").run(["nosuchprog"])
    assert done.exit_code == 127
    assert done.stderr.startswith("exec: 'nosuchprog': no such file")


def test_a_service_is_stopped_by_the_signal_that_it_asks_for(kind: str, tmp_path: Path) -> None:
    assert kind == "local"
    program = (
        "import pathlib, signal; either = {signal.SIGUSR1, signal.SIGTERM}; "
        "signal.pthread_sigmask(signal.SIG_BLOCK, either); print('ready', flush=True); "
        "pathlib.Path('/shared/by').write_text(signal.sigwait(either).name)"
    )
    services: dict[str, dict[str, object]] = {"a": {"stop_signal": "SIGUSR1"}, "b": {}}
    for name, service in services.items():
        (tmp_path / name).mkdir()
        service |= {"x-testbed": {"local": {}}, "command": ["python3", "-c", program], "volumes": [f"./{name}:/shared"]}
    (tmp_path / "compose.yaml").write_text(json.dumps({"services": services}))
    with LocalLab(tmp_path / "compose.yaml") as lab:
        for host in lab.hosts.values():
            await_condition(host.logs, lambda log: "ready" in log, deadline_s=5)
    assert (tmp_path / "a/by").read_text() == "SIGUSR1"
    assert (tmp_path / "b/by").read_text() == "SIGTERM"


def test_what_lies_outside_a_hosts_own_folders_is_read_only(lab: Lab) -> None:
    client = lab.host("client")
    for path in ("/etc/hosts", "/usr/bin/new", "/var/new"):
        done = client.run(["touch", path])
        assert done.exit_code == 1
        assert "Read-only file system" in done.stderr
    new = f"/tmp/{secrets.token_hex(8)}"
    assert client.run(["sh", "-c", f"echo seen >{new} && cat {new}"]).stdout == "seen\n"
    assert not Path(new).exists()
    assert lab.host("server").run(["cat", new]).exit_code == 1, "each host has a /tmp of its own"


def test_a_program_that_makes_itself_a_daemon_ends_with_the_lab(kind: str) -> None:
    marker = "77.012345"

    def running() -> list[int]:
        results = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if marker.encode() in path.read_bytes().split(b"\0"):
                    results.append(int(path.parent.name))
            except OSError:
                continue  # it ended while we looked
        return results

    with LocalLab(topologies.star(1)) as lab:
        assert lab.host("host").run(["setsid", "--fork", "sleep", marker]).ok
        await_condition(running, bool, deadline_s=5)
    await_condition(running, lambda pids: not pids, deadline_s=2)


def test_5000_hosts_are_refused_before_anything_starts_where_they_take_too_much(kind: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    code = "from testbed import LocalLab, topologies\nLocalLab(topologies.star(5000)).up()"
    argv = ["prlimit", f"--nofile={min(soft, 1024)}:{min(hard, 20_000)}", sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert "5000 hosts need 25,064 open files in one process; the limit is 20,000: ulimit -Hn 50128" in done.stderr


def test_the_hosts_of_a_network_that_is_too_large_for_one_bridge_reach_each_other(kind: str) -> None:
    with LocalLab(topologies.star(130)) as lab:
        first, last = lab.host("host[1]"), lab.host("host[130]")
        prepare(first, last)
        assert len(Datagrams(first, last).arrived(5)) == 5
