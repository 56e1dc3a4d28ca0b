"""The command line, as its user types it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import testbed.commands.cli
from testbed import ComposeLab
from tests.lab.conftest import cli

LABS = ("compose",)


@pytest.fixture
def project(project: Path) -> Iterator[Path]:
    """A folder with a Compose file of its own, whose stack is taken down."""
    yield project
    cli("down", cwd=project)


def test_a_proof_that_cannot_be_made_is_refused_before_a_stack_is_up(project: Path) -> None:
    slow = cli("prove", "--tolerance", "0.1", "client -> server", "loss=2%", cwd=project)
    assert slow.returncode == 2
    assert re.search(r"a relative error of 0\.1 in loss=2% takes \d+ probes, \d+ s, where most_s=2\.5", slow.stderr)
    odd = cli("prove", "client -> server", "loss=100%", "duplicate=10%", cwd=project)
    assert odd.returncode == 2
    assert "duplicate=10% with loss=100%" in odd.stderr
    assert cli("show", cwd=project).returncode == 2, "no stack is up"


@pytest.mark.slow
def test_what_netem_makes_of_words_together_is_told_where_they_are_put_shown_and_proven(project: Path) -> None:
    warning = "warning: duplicate=50% with losses: netem keeps a packet that it chose for both, so that 15% are lost"
    words = ("client -> server", "loss=30%", "duplicate=50%")
    proven = cli("prove", *words, cwd=project)
    assert (proven.returncode, warning in proven.stdout) == (0, True)
    assert cli("up", cwd=project).returncode == 0
    assert warning in cli("impair", *words, cwd=project).stdout
    assert warning in cli("show", cwd=project).stdout

    assert cli("cut", "client -> server", cwd=project).returncode == 0
    refused = cli("prove", "client -> server", "delay=5ms", cwd=project)
    assert refused.returncode == 2
    assert "cannot be probed while client -> server is cut" in refused.stderr
    assert cli("impair", "client -> server", "delay=3ms", cwd=project).returncode == 0
    shown = json.loads(cli("show", "--json", cwd=project).stdout)
    assert [cut["warnings"] for cut in shown["cuts"]] == [["no packet met the cut"]]
    assert [link["asked"] for link in shown["links"]] == [{"delay": "3ms"}]


def test_a_stack_stays_up_and_impaired_between_commands(project: Path, stack: ComposeLab) -> None:
    assert cli("show", cwd=project).returncode == 2

    up = cli("up", cwd=project)
    assert up.returncode == 0, up.stderr
    assert "server, client" in up.stdout, "as the Compose file has them"

    impaired = cli("impair", "client <-> server", "delay=40ms", "loss=2%", cwd=project)
    assert impaired.returncode == 0, impaired.stderr
    again = cli("impair", "server -> client", "latency", cwd=project)
    assert again.returncode == 0, again.stderr
    cut = cli("cut", "--reject", "client -> server tcp/9", cwd=project)
    assert cut.stdout == "client -> server tcp/9: cut, rejecting\n", cut.stderr
    flapping = cli("flap", "--up", "3600s", "--down", "100ms", "server -> client", cwd=project)
    assert flapping.returncode == 0, flapping.stderr

    shown = json.loads(cli("show", "--json", cwd=project).stdout)
    links = {link["link"]: link for link in shown["links"]}
    assert links["client -> server"]["asked"] == {"delay": "40ms", "loss": "2%"}
    assert links["client -> server"]["kernel"]["options"]["delay"]["delay"] == 0.04
    assert links["server -> client"]["asked"] == {"delay": "50ms"}
    assert all(link["differences"] == [] for link in links.values())
    assert {cut["link"]: (cut["asked"]["cut"], cut["proof"]["read_back"]) for cut in shown["cuts"]} == {
        "client -> server tcp/9": ("rejecting", "holds"),
        "server -> client": ("flapping, up 3600s, down 100ms, silently", "holds"),
    }

    assert cli("heal", "client -> server", cwd=project).stdout == "client -> server: healed\n"
    shown = json.loads(cli("show", "--json", cwd=project).stdout)
    assert [link["link"] for link in shown["links"]] == ["server -> client"]

    assert cli("down", cwd=project).returncode == 0
    assert stack.engine.containers(testbed_stack=str(project / "compose.yaml")) == []
    assert stack.engine.containers(testbed_stack=str(project)) == []


def proven(project: Path, *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit status of `testbed prove`, and its evidence by link."""
    done = cli("prove", "--json", "--seconds", "1", *arguments, cwd=project)
    assert done.returncode < 2, done.stderr
    return done.returncode, {row["link"]: row for row in json.loads(done.stdout)}


@pytest.mark.slow
@pytest.mark.usefixtures("stack")
def test_a_stack_that_is_up_is_proven_as_it_is_and_with_words(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("up", cwd=project).returncode == 0
    impaired = cli("impair", "client -> server", "delay=30ms", cwd=project)
    assert impaired.returncode == 0, impaired.stderr

    status, evidence = proven(project, "client -> server")
    assert (status, evidence["client -> server"]["proof"]["probe"]) == (0, "holds")
    (delay,) = (check for check in evidence["client -> server"]["checks"] if check["field"] == "delay")
    assert (delay["asked"], delay["kernel"], delay["verdict"]) == ("30ms", "30ms", "holds")

    status, evidence = proven(project, "client <-> server", "delay=20ms", "loss=10%")
    assert status == 0
    for link in evidence.values():
        judged = {check["field"]: (check["asked"], check["verdict"]) for check in link["checks"]}
        assert (judged["delay"], judged["loss"]) == (("20ms", "holds"), ("10%", "holds"))
    assert set(evidence) == {"client -> server", "server -> client"}
    assert all(link["asked"] == {"delay": "20ms", "loss": "10%"} for link in shown(project)), "it stays impaired"

    cannot = cli("prove", "client -> server tcp/80", "delay=10ms", cwd=project)
    assert cannot.returncode == 2
    assert "client -> server tcp/80: cannot be probed" in cannot.stderr
    assert len(shown(project)) == 2, "and was not impaired"

    monkeypatch.chdir(project)
    behind = ComposeLab()
    assert behind.take_up()
    port = behind.ports.attached("server", "lan")
    port.channel.call("tc", port=port.name, lines=[f"qdisc del dev {port.device} parent 1:10"])
    behind.leave()
    status, evidence = proven(project, "client <-> server")
    assert status == 1
    assert evidence["client -> server"]["proof"] == {
        "read_back": "fails",
        "counters": "not asked",
        "probe": "not asked",
    }
    assert "the kernel reports none on this link" in evidence["client -> server"]["warnings"][0]
    assert evidence["server -> client"]["proof"]["probe"] == "holds"
    assert [link["link"] for link in shown(project) if link["differences"]] == ["client -> server"], "left as it was"

    assert behind.take_up()
    port = behind.ports.attached("client", "lan")
    port.channel.call("tc", port=port.name, lines=[f"filter del dev {port.device} parent 1:"])
    behind.leave()
    (other,) = [link for link in shown(project) if link["link"] == "server -> client"]
    assert any("filter" in difference for difference in other["differences"]), "the netem alone would still be as asked"


def shown(project: Path) -> list[dict[str, Any]]:
    """The impaired links of the stack that is up."""
    links: list[dict[str, Any]] = json.loads(cli("show", "--json", cwd=project).stdout)["links"]
    return links


_CONNECT = "import socket; socket.create_connection(('server', 8888), timeout=2)"


@pytest.mark.slow
@pytest.mark.usefixtures("stack")
@pytest.mark.parametrize("command", [["partition", "client", "server"], ["isolate", "client"]])
def test_hosts_are_parted_until_they_are_healed(project: Path, command: list[str]) -> None:
    def connect() -> subprocess.CompletedProcess[str]:
        return cli("exec", "client", "--", "python3", "-c", _CONNECT, cwd=project)

    assert cli("up", cwd=project).returncode == 0
    assert connect().returncode == 0
    cut = cli(*command, cwd=project)
    assert sorted(cut.stdout.splitlines()) == ["client -> server: cut, silently", "server -> client: cut, silently"]
    assert "TimeoutError" in connect().stderr
    cut = cli(*command, "--reject", cwd=project)
    assert sorted(cut.stdout.splitlines()) == ["client -> server: cut, rejecting", "server -> client: cut, rejecting"]
    assert "ConnectionRefusedError" in connect().stderr
    assert cli("heal", cwd=project).returncode == 0
    assert connect().returncode == 0

    wrong = cli(command[0], "clint", "srver", cwd=project) if command[0] == "partition" else None
    if wrong is not None:
        assert wrong.returncode == 2
        assert "host 'clint': unknown" in wrong.stderr
        assert "host 'srver': unknown" in wrong.stderr


def test_commands_that_overlap_leave_what_the_other_did(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "testbed.commands.cli", *arguments]
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(command, cwd=project, text=True, **pipes)

    assert cli("up", cwd=project).returncode == 0
    with begin("exec", "client", "--", "sh", "-c", "echo on; cat") as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "on\n"
        impaired = cli("impair", "client -> server", "delay=30ms", cwd=project)
        assert impaired.returncode == 0, impaired.stderr
        assert program.communicate("off", timeout=60)[0] == "off"
    assert [link["asked"] for link in shown(project)] == [{"delay": "30ms"}]

    monkeypatch.chdir(project)
    first = ComposeLab()
    assert first.take_up()
    with begin("impair", "server -> client", "delay=20ms") as second:
        assert second.stderr is not None
        assert "waiting for another testbed command" in second.stderr.readline()
        first.impair("client -> server", delay="10ms")
        first.leave()
        _, problem = second.communicate(timeout=60)
        assert second.returncode == 0, problem
    assert [link["asked"] for link in shown(project)] == [{"delay": "10ms"}, {"delay": "20ms"}]


def test_a_host_that_is_killed_and_restarted_is_ready_and_impaired_again(project: Path, stack: ComposeLab) -> None:
    def server() -> dict[str, Any]:
        labels = {"testbed_stack": str(project / "compose.yaml"), "com_docker_compose_service": "server"}
        (container,) = stack.engine.containers(**labels)
        state: dict[str, Any] = stack.engine.state(container)["State"]
        return state

    assert cli("up", cwd=project).returncode == 0
    assert cli("impair", "client -> server", "delay=30ms", cwd=project).returncode == 0
    before = server()["StartedAt"]
    killed = cli("kill", "server", cwd=project)
    assert (killed.returncode, killed.stdout) == (0, "server: killed\n"), killed.stderr
    assert (server()["Status"], server()["ExitCode"]) == ("exited", 137)
    restarted = cli("restart", "server", cwd=project)
    assert (restarted.returncode, restarted.stdout) == (0, "server: restarted\n"), restarted.stderr
    assert server()["StartedAt"] > before
    assert server()["Health"]["Status"] == "healthy", "it is awaited"
    (link,) = shown(project)
    assert (link["asked"], link["differences"]) == ({"delay": "30ms"}, [])
    wrong = cli("kill", "srver", cwd=project)
    assert wrong.returncode == 2
    assert "did you mean 'server'?" in wrong.stderr


@pytest.mark.usefixtures("kind")
def test_the_doctor_finds_this_machine_fit() -> None:
    done = cli("doctor", "--json")
    assert done.returncode == 0, done.stderr
    findings = {row["name"]: row for row in json.loads(done.stdout)}
    assert findings["Docker engine"]["state"] == "ok"
    assert findings["local lab"]["state"] == "ok"
    assert findings["carried kernel"]["state"] == "ok"
    assert re.search(r"one-way delays below [\d.]+[mu]?s", findings["noise of this machine"]["costs"])


def test_the_demonstration_refuses_an_unknown_profile(tmp_path: Path) -> None:
    done = cli("demo", "--report", str(tmp_path), "clan", "lossi")
    assert done.returncode == 2
    assert "profile 'clan': unknown; did you mean 'clean'?" in done.stderr
    assert "profile 'lossi': unknown; did you mean 'lossy'?" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "shell",
        "exec",
        "doctor",
        "up",
        "down",
        "impair",
        "prove",
        "cut",
        "partition",
        "isolate",
        "flap",
        "heal",
        "stop",
        "start",
        "restart",
        "kill",
        "pause",
        "resume",
        "show",
        "profiles",
        "images",
    ],
)
def test_every_command_helps_with_an_example(command: str) -> None:
    done = CliRunner().invoke(testbed.commands.cli.cli, [command, "--help"])
    assert done.exit_code == 0
    assert f"Example:\n    testbed {command}" in done.stdout


@pytest.mark.usefixtures("kind")
def test_the_commands_keep_their_hands_off_a_stack_that_a_test_run_owns(project: Path) -> None:
    with ComposeLab(project / "compose.yaml") as running:
        running.link("client -> server").impair(delay="5ms")
        for command in (["show"], ["impair", "client -> server", "lossy"], ["heal"], ["down"]):
            done = cli(*command, "-f", "compose.yaml", cwd=project)
            assert done.returncode == 2
            assert "no stack of this Compose file is up" in done.stderr
        running.verifier.verify()


def test_a_stack_whose_agent_is_gone_is_still_taken_down(project: Path, stack: ComposeLab) -> None:
    assert cli("up", cwd=project).returncode == 0
    (agent,) = stack.engine.containers(testbed_stack=str(project / "compose.yaml"), testbed_role="ports")
    stack.engine.remove(agent)
    down = cli("down", cwd=project)
    assert down.returncode == 0, down.stderr
    assert stack.engine.containers(testbed_stack=str(project / "compose.yaml")) == []
