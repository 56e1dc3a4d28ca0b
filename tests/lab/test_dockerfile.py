"""One Dockerfile, built by the engine, on both labs: programs find the same environment, folder and files."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from testbed import Lab
from testbed.backends.docker.connecting import NoEngineError
from testbed.backends.local.images import MachinesImages
from testbed.lab.waiting import await_condition
from tests.lab.conftest import lab_of

OWNED = os.geteuid() == 0
"""Whether a local lab can give a file to somebody, and to be somebody."""

_DOCKERFILE = """\
ARG VERSION=1
FROM debian:trixie-slim
ARG VERSION
ENV VERSION=$VERSION QUOTED='$VERSION' PATH=/app/bin:$PATH
RUN mkdir -p /data/empty && mkdir -m 700 /data/closed
WORKDIR /srv
WORKDIR app
COPY . .
COPY tool.sh /app/bin/tool
COPY tool.sh /usr/bin/our-tool
COPY tool.sh /usr/local/bin/
COPY conf /usr/local/
COPY --chmod=0600 conf /etc/
COPY conf /etc/issue
COPY conf /root/ours/
COPY --chown=1:2 conf /data/owned/
CMD ["a b", "$VERSION"]
ENTRYPOINT ["tool"]
"""
_COMPOSE = """
services:
  app:
    build: {context: app, args: {VERSION: "2"}}
    volumes: ["kept:/data"]
    init: true
  bare:
    build: {context: app, args: {VERSION: "2"}}
    entrypoint: []
    command: [sleep, infinity]
    init: true
volumes: {kept: }
"""
_TOOL = """#!/bin/sh
for each; do echo "argument $each"; done
pwd
env
echo all
exec sleep infinity
"""


@pytest.fixture(scope="module")
def lab(kind: str, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab of a Dockerfile that puts files in every kind of place."""
    if kind == "local" and isinstance(MachinesImages(print).engine, NoEngineError):
        pytest.skip("no engine answers, which builds the image")
    folder = tmp_path_factory.mktemp("dockerfile")
    app = folder / "app"
    (app / "sub/empty").mkdir(parents=True)
    (app / "sub").chmod(0o710)
    (app / "left").mkdir()
    for name, text, mode in (
        ("Dockerfile", _DOCKERFILE, 0o644),
        (".dockerignore", "*.log\nleft/*\n!left/kept\nDockerfile*\n", 0o644),
        ("tool.sh", _TOOL, 0o755),
        ("conf", "conf\n", 0o640),
        ("a.log", "", 0o644),
        ("sub/b.log", "b\n", 0o444),
        ("left/kept", "kept\n", 0o644),
        ("left/out", "", 0o644),
    ):
        (app / name).write_text(text, encoding="utf-8")
        (app / name).chmod(mode)
    (app / "sub/link").symlink_to("../conf")
    (app / "sub/dangling").symlink_to("/nowhere")
    (folder / "compose.yaml").write_text(_COMPOSE, encoding="utf-8")
    with lab_of(kind, pytestconfig, folder / "compose.yaml") as up:
        yield up


def run(lab: Lab, command: str, host: str = "app") -> list[str]:
    done = lab.host(host).run(["sh", "-c", command], timeout="30s")
    assert done.ok, done.stderr
    return done.stdout.splitlines()


def test_a_program_has_its_arguments_folder_and_environment(lab: Lab) -> None:
    printed = await_condition(lab.host("app").logs, lambda text: text.endswith("all\n"), deadline_s=30)
    kept = [line for line in printed.splitlines() if not line.startswith(("HOSTNAME=", "SHLVL=", "_=", "OLDPWD="))]
    assert kept[:3] == ["argument a b", "argument $VERSION", "/srv/app"]
    assert sorted(kept[3:]) == [
        "HOME=/root",
        "PATH=/app/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PWD=/srv/app",
        "QUOTED=$VERSION",
        "VERSION=2",
        "all",
    ]


def test_files_folders_and_links_are_as_they_were_copied(lab: Lab) -> None:
    owned = "1:2" if OWNED else "0:0"
    places = "/srv/app /data /app /etc/conf /usr/local/conf /usr/local/bin/tool.sh"
    assert run(lab, f"find {places} -printf '%p %m %y %l %U:%G\\n' | sort") == [
        "/app 755 d  0:0", "/app/bin 755 d  0:0", "/app/bin/tool 755 f  0:0",
        "/data 755 d  0:0", "/data/closed 700 d  0:0", "/data/empty 755 d  0:0",
        f"/data/owned 755 d  {owned}", f"/data/owned/conf 640 f  {owned}",
        "/etc/conf 600 f  0:0",
        "/srv/app 755 d  0:0", "/srv/app/.dockerignore 644 f  0:0", "/srv/app/conf 640 f  0:0",
        "/srv/app/left 755 d  0:0", "/srv/app/left/kept 644 f  0:0",
        "/srv/app/sub 710 d  0:0", "/srv/app/sub/b.log 444 f  0:0", "/srv/app/sub/dangling 777 l /nowhere 0:0",
        "/srv/app/sub/empty 755 d  0:0", "/srv/app/sub/link 777 l ../conf 0:0", "/srv/app/tool.sh 755 f  0:0",
        "/usr/local/bin/tool.sh 755 f  0:0", "/usr/local/conf 640 f  0:0",
    ]  # fmt: skip
    assert run(lab, "cat sub/link /etc/conf /etc/issue /root/ours/conf sub/b.log") == [*["conf"] * 4, "b"]


def test_a_folder_keeps_what_it_had_beside_what_is_copied_into_it(lab: Lab) -> None:
    assert run(lab, "ls /etc/passwd /etc/issue /usr/bin/env /usr/bin/our-tool && tail -n 1 /usr/bin/our-tool") == [
        "/etc/issue",
        "/etc/passwd",
        "/usr/bin/env",
        "/usr/bin/our-tool",
        "exec sleep infinity",
    ]
    assert run(lab, "getent hosts bare | cut -d' ' -f1") == list(lab.host("bare").addresses("default"))


def test_what_the_dockerfile_made_can_be_written_to(lab: Lab) -> None:
    assert run(lab, "touch /srv/app/new /data/empty/new /app/new /etc/new /usr/local/bin/new && echo yes", "bare") == [
        "yes"
    ]


def test_an_empty_entrypoint_resets_the_images(lab: Lab) -> None:
    assert lab.host("bare").logs() == ""
    assert run(lab, "pwd; echo $VERSION", "bare") == ["/srv/app", "2"]


@pytest.mark.skipif(not OWNED, reason="a local lab's programs are root's without root")
def test_another_user_has_a_home_of_his_own(lab: Lab) -> None:
    output = lab.host("app").run(["sh", "-c", "id -u; id -g; echo $HOME"], user="man").stdout
    assert output.split() == ["6", "12", "/var/cache/man"]
