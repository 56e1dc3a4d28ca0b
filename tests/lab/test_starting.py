"""A stack that starts slowly: progress is printed, and at the deadline the state of each service."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from testbed import ServiceFailedError
from testbed.backends.choice import make_lab
from tests.lab.conftest import ROOT, cli

_STACK = """
services:
  slow:
    build: {{context: {images}, dockerfile: client/Dockerfile}}
    x-testbed: {{local: {{}}}}
    init: true
    command: [sh, -c, "echo warming up; sleep infinity"]
    volumes: ["./state:/state:ro"]
    healthcheck:
      test: [CMD-SHELL, "test -e /state/ready || {{ echo still warming up; exit 1; }}"]
      interval: 200ms
      timeout: 20s
      retries: 10000
  app:
    build: {{context: {images}, dockerfile: client/Dockerfile}}
    x-testbed: {{local: {{}}}}
    init: true
    command: [sleep, infinity]
    depends_on: {{slow: {{condition: service_healthy}}}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A stack that is well once there is a file ``state/ready``."""
    (tmp_path / "state").mkdir()
    path = tmp_path / "compose.yaml"
    path.write_text(_STACK.format(images=ROOT / "images"))
    return path


def test_what_is_awaited_is_told_until_it_is_well(kind: str, file: Path, pytestconfig: pytest.Config) -> None:
    lines: list[str] = []

    def say(text: str) -> None:
        if "not well yet" in text:
            lines.append(text)
            if "still warming up" in text:
                (file.parent / "state" / "ready").touch()

    with make_lab(kind, file, netem=pytestconfig.getoption("--netem"), up_deadline="90s", say=say) as lab:
        assert set(lab.hosts) == {"slow", "app"}
    assert lines[-1].startswith("starting, ")
    assert " s of 90 s (the up-deadline); not well yet: " in lines[-1]
    assert "is running and starting; its last check said: 'still warming up'; last line: 'warming up'" in lines[-1]
    assert "app" in lines[-1].partition("not well yet: ")[2]


def test_once_the_deadline_is_over_each_service_is_told_with_what_its_check_said(kind: str, file: Path) -> None:
    lab = make_lab(kind, file, netem="auto", up_deadline="12s", say=lambda _text: None)
    with pytest.raises(ServiceFailedError) as raised:
        lab.up()
    text = str(raised.value)
    assert "service `slow` is running and starting; its last check said: 'still warming up'" in text
    assert re.search("not started yet: `app`|service `app` was not started", text), text
    assert "not well after 12 s (the up-deadline)" in text


def test_the_command_line_has_the_deadline_and_tells_too(kind: str, file: Path) -> None:
    if kind == "local":
        pytest.skip("stacks that stay up are an engine's")
    zero = cli("up", "--up-deadline", "0s", cwd=file.parent)
    assert zero.returncode == 2
    assert "up_deadline='0s': must be more than 0" in zero.stderr
    done = cli("up", "--up-deadline", "8s", cwd=file.parent)
    assert done.returncode == 2, done.stdout
    assert "testbed: starting, " in done.stderr
    assert "not well after 8 s (the up-deadline)" in done.stderr
    assert cli("show", cwd=file.parent).returncode == 2, "nothing is left"
