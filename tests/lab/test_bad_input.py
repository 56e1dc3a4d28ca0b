"""Errors of the user or the machine: one clear message, exit status 2 or a verdict, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from time import sleep
from uuid import uuid4

import docker
import pytest

from testbed import (
    CommandTimeoutError,
    ComposeLab,
    EnvironmentUnfitError,
    InvalidComposeError,
    InvalidValueError,
    LabError,
    ServiceFailedError,
)
from testbed.backends.docker import images
from testbed.backends.docker.engine import Engine
from testbed.errors import AgentError, ImageBuildError
from testbed.lab.channel import Channel

LABS = ("compose",)

IMAGE = "debian:trixie-slim"


def compose_file(folder: Path, text: str) -> Path:
    path = folder / "compose.yaml"
    path.write_text(text)
    return path


def assert_nothing_left(engine: Engine, lab: ComposeLab) -> None:
    assert [container.name for container in engine.containers(testbed_run=lab.run_id)] == []
    assert [network.name for network in engine.networks(testbed_run=lab.run_id)] == []


def test_of_a_service_that_exits_at_once_the_last_lines_are_shown(stack: ComposeLab, tmp_path: Path) -> None:
    lab = ComposeLab(
        compose_file(
            tmp_path,
            f"""
services:
  broken:
    image: {IMAGE}
    command: ["sh", "-c", "echo reading the settings; echo no such setting >&2; exit 3"]
  fine: {{image: {IMAGE}, command: ["sleep", "60"], init: true}}
""",
        )
    )
    with pytest.raises(ServiceFailedError) as caught:
        lab.up()
    message = str(caught.value)
    assert "service `broken` exited with status 3; its last lines:" in message
    assert "reading the settings" in message
    assert "no such setting" in message
    assert "fine" not in message
    assert_nothing_left(stack.engine, lab)


def test_a_service_that_ends_while_the_agent_is_awaited_is_found(
    stack: ComposeLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"services:\n  late: {{image: {IMAGE}, command: [sh, -c, 'echo well; sleep 0.2; echo gone; exit 3']}}\n"
    lab = ComposeLab(compose_file(tmp_path, text))
    choose = lab.choose_engine

    def slowly(channel: Channel) -> None:
        sleep(1.5)
        choose(channel)

    monkeypatch.setattr(lab, "choose_engine", slowly)
    with pytest.raises(ServiceFailedError, match=r"service `late` exited with status 3[\s\S]*gone"):
        lab.up()
    assert_nothing_left(stack.engine, lab)


def test_of_an_unhealthy_service_the_checks_own_words_are_shown(stack: ComposeLab, tmp_path: Path) -> None:
    lab = ComposeLab(
        compose_file(
            tmp_path,
            f"""
services:
  ill:
    image: {IMAGE}
    command: ["sleep", "60"]
    init: true
    healthcheck: {{test: ["CMD-SHELL", "echo has a fever; exit 1"], interval: 200ms, retries: 2}}
""",
        )
    )
    with pytest.raises(ServiceFailedError, match=r"service `ill` is running and unhealthy.*has a fever"):
        lab.up()
    assert_nothing_left(stack.engine, lab)


def test_a_service_that_never_becomes_healthy_fails_at_the_deadline(stack: ComposeLab, tmp_path: Path) -> None:
    lab = ComposeLab(
        compose_file(
            tmp_path,
            f"""
services:
  slow:
    image: {IMAGE}
    command: ["sleep", "60"]
    init: true
    healthcheck: {{test: ["CMD", "false"], interval: 1s, retries: 1000}}
""",
        ),
        up_deadline="4s",
    )
    with pytest.raises(ServiceFailedError, match=r"service `slow` is running and starting[\s\S]*not well after 4 s"):
        lab.up()
    assert_nothing_left(stack.engine, lab)


def test_a_service_that_has_done_its_work_is_well(stack: ComposeLab, tmp_path: Path) -> None:
    path = compose_file(
        tmp_path,
        f"""
services:
  migration: {{image: {IMAGE}, command: ["true"]}}
  main: {{image: {IMAGE}, command: ["sleep", "60"], init: true}}
""",
    )
    with ComposeLab(path) as lab:
        assert lab.host("main").run(["true"]).ok
    assert_nothing_left(stack.engine, lab)


def test_an_image_that_cannot_be_built_shows_the_builders_last_lines(stack: ComposeLab, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {IMAGE}\nRUN echo now it happens && exit 7\n")
    lab = ComposeLab(compose_file(tmp_path, "services:\n  app: {build: .}\n"))
    with pytest.raises(ImageBuildError, match=r"`docker compose build app` failed:[\s\S]*exit 7"):
        lab.up()
    assert_nothing_left(stack.engine, lab)


def test_an_image_is_built_again_only_when_its_inputs_change(stack: ComposeLab, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f'FROM {IMAGE}\nCOPY word /word\nCMD ["sleep", "60"]\n')
    path = compose_file(tmp_path, "services:\n  app: {build: ., init: true}\n")
    messages: list[str] = []
    one, two = uuid4().hex, uuid4().hex  # never built before, not even by a run that was killed in this test
    for word, builds in ((one, True), (one, False), (two, True)):
        (tmp_path / "word").write_text(word)
        messages.clear()
        lab = ComposeLab(path, say=messages.append)
        config = lab.stack.with_images(lab.composer.config())
        container = docker.from_env().containers.create(config["services"]["app"]["image"])
        assert stack.engine.get(container, "/word").decode() == word
        container.remove()
        assert ("building app" in messages) == builds, messages
    repository = images.service_image({"context": str(tmp_path)}, "app")[0]

    def tags() -> list[str]:
        return [tag for image in docker.from_env().images.list(name=repository) for tag in image.tags]

    assert len(tags()) == 2, "a build that another checkout may be about to use is kept for an hour"
    images.remove_older(stack.engine, repository, older_than_s=0)
    assert tags() == []


def test_an_image_that_cannot_be_had_is_told_in_the_engines_words(stack: ComposeLab, tmp_path: Path) -> None:
    lab = ComposeLab(compose_file(tmp_path, "services:\n  app: {image: 'testbed/none:such'}\n"), up_deadline="30s")
    with pytest.raises(ServiceFailedError, match=r"`docker compose up` failed:[\s\S]*app"):
        lab.up()
    assert_nothing_left(stack.engine, lab)


def test_a_missing_compose_file_is_named() -> None:
    with pytest.raises(InvalidComposeError, match=r"'nowhere\.yaml' does not exist; name another with --compose-file"):
        ComposeLab("nowhere.yaml").up()


def test_a_compose_file_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidComposeError, match=r"compose\.yaml"):
        ComposeLab(compose_file(tmp_path, "services: [")).up()


@pytest.mark.parametrize("mode", ["host", "none"])
def test_a_host_without_a_port_of_its_own_cannot_end_a_link(tmp_path: Path, mode: str) -> None:
    path = compose_file(
        tmp_path,
        f"services:\n  a: {{image: x, network_mode: {mode}}}\n  b: {{image: x}}\n",
    )
    with pytest.raises(InvalidValueError, match=f"`network_mode: {mode}`, and so no port of its own to impair"):
        ComposeLab(path).topology.links("b -> a")


def test_a_carried_kernel_without_tun_is_refused_with_the_way_out() -> None:
    class WithoutTun:
        """An agent on a machine without /dev/net/tun."""

        def call(self, operation: str) -> dict[str, object]:
            assert operation == "capabilities"
            return {"kernel": "6.1", "host_netem": None, "tun": "/dev/net/tun: No such file or directory"}

    lab = ComposeLab("compose.yaml", netem="carried")
    with pytest.raises(EnvironmentUnfitError, match=r"needs taps.*/dev/net/tun: No such file.*modprobe tun"):
        lab.choose_engine(WithoutTun())  # type: ignore[arg-type]  # what the lab asks of a channel


def test_a_carried_kernel_really_needs_tun(stack: ComposeLab) -> None:
    """The agent itself, in a container without the device."""
    container, stream = stack.engine.attached(stack.netem_image, ["ports"], cap_drop=["ALL"], network_mode="none")
    channel = Channel(stream, name="agent")
    try:
        with pytest.raises(AgentError, match=r"a carried kernel needs taps: /dev/net/tun: No such file or directory"):
            channel.call("boot")
    finally:
        channel.close()
        stack.engine.await_removed(container, 10)


@pytest.mark.parametrize("command", [["demo", "--lab", "compose"], ["up"], ["images"], ["down", "--stale"]])
def test_without_an_engine_the_command_line_says_how_to_get_one(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "testbed.commands.cli", *command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "DOCKER_HOST": "unix:///nowhere.sock"},
    )
    assert done.returncode == 2
    assert "no Docker engine answers" in done.stderr
    assert "Start one" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_program_that_does_not_end_is_killed_with_all_it_started(lab: ComposeLab) -> None:
    client = lab.host("client")
    with pytest.raises(CommandTimeoutError, match=r"no end after 500ms; last output:\n    begun"):
        client.run(["sh", "-c", "echo begun; sleep 77 & sleep 78"], timeout="500ms")
    running = client.run(["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"]).stdout
    assert "sleep 77" not in running
    assert "sleep 78" not in running


def test_a_program_that_does_not_become_ready_says_what_was_seen(lab: ComposeLab) -> None:
    server = lab.host("server")
    with pytest.raises(CommandTimeoutError, match=r"not listening on tcp/7777 after 300ms \(listening: .*8888"):
        server.start(["sleep", "60"], ready=7777, timeout="300ms")
    with pytest.raises(CommandTimeoutError, match=r"ended before it was ready .*exit status 4.*\n    bind failed"):
        server.start(["sh", "-c", "echo bind failed; exit 4"], ready="ready", timeout="5s")
    with pytest.raises(CommandTimeoutError, match=r"ended before it was ready .*exit status 4.*\n    bind failed"):
        server.start(["sh", "-c", "echo bind failed; exit 4"], ready=7777, timeout="60s")
    with pytest.raises(LabError, match=r"paper_server\.py  8888: another program listens on tcp/8888 already"):
        server.start(["python3", "paper_server.py", "", "8888"], ready=8888)


def test_a_program_that_does_not_exist_is_a_result_with_status_127(lab: ComposeLab) -> None:
    result = lab.host("client").run(["no-such-program"])
    assert result.exit_code in (126, 127)
    assert "no-such-program" in result.stdout + result.stderr


def test_files_go_in_and_come_out(lab: ComposeLab) -> None:
    client = lab.host("client")
    client.put("/tmp/greeting", "hello", mode=0o755)
    assert client.get("/tmp/greeting") == b"hello"
    assert client.run(["stat", "-c", "%a", "/tmp/greeting"]).stdout == "755\n"
    with pytest.raises(FileNotFoundError):
        client.get("/tmp/none")


def test_environment_and_folder_reach_the_program(lab: ComposeLab) -> None:
    result = lab.host("client").run(["sh", "-c", 'echo "$WORD in $PWD"'], env={"WORD": "said"}, workdir="/tmp")
    assert result.stdout == "said in /tmp\n"


def test_a_stack_that_does_not_come_up_is_exit_status_2(stack: ComposeLab, tmp_path: Path) -> None:
    compose_file(
        tmp_path, f'services:\n  broken: {{image: {IMAGE}, command: ["sh", "-c", "echo no such setting; exit 3"]}}\n'
    )
    (tmp_path / "test_it.py").write_text("def test_one(lab): pass\ndef test_two(lab): pass\n")
    for command in (["pytest", "-p", "no:cacheprovider"], ["testbed.commands.cli", "up"]):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2, done.stdout
        output = done.stdout + done.stderr
        assert "service `broken` exited with status 3; its last lines:" in output
        assert "no such setting" in output
        assert "Traceback" not in output
