"""Services of a local lab run in the files of their images, with the images' settings, overridden by Compose's."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from testbed import Lab, LocalLab
from testbed.backends.docker import images
from testbed.backends.docker.connecting import NoEngineError
from testbed.backends.docker.engine import Engine
from testbed.backends.docker.images import service_image
from testbed.backends.local import builders
from testbed.backends.local.images import MachinesImages
from testbed.errors import ServiceFailedError
from testbed.lab.waiting import await_condition
from tests import archives
from tests.archives import entry, layer, link

LABS = ("local",)
ROOT = os.geteuid() == 0

# An image of some folders: its programs are this machine's, by volumes.
_USR = [link(name, f"usr/{name}") for name in ("bin", "sbin", "lib", "lib64") if Path(f"/{name}").exists()]
_PASSWD = b"root:x:0:0::/root:/bin/sh\nworker:x:77:78::/srv/home:/bin/sh\n"
_LAYERS = [
    layer(
        *_USR,
        entry("usr"),
        entry("etc"),
        entry("etc/passwd", _PASSWD),
        entry("etc/group", b"more:x:79:worker\n"),
        entry("data", mode=0o750),
        entry("data/seed", b"seed\n"),
        link("hosts", "/etc/hosts"),
        entry("serve", b"#!/bin/sh\necho served $0 $@ in $PWD as $A; exec sleep infinity\n", mode=0o755),
    ),
    layer(entry("etc/issue", b"of the image\n"), entry("srv/.wh..wh..opq", b"")),
]
_CONFIG = archives.configuration(
    _LAYERS,
    Entrypoint=["/serve"],
    Cmd=["all"],
    Env=["A=1", "PATH=/usr/bin"],
    WorkingDir="/srv/app",
    StopSignal="SIGKILL",
    Volumes={"/data": {}},
    Healthcheck={"Test": ["CMD", "/usr/bin/test", "-e", "/data/seed"], "Interval": 1_000_000_000},
)
_COMPOSE = """
x-image: &image
  x-testbed: {local: {image: ./image.tar}}
  volumes: ["/usr:/usr:ro"]
services:
  asis: *image
  other:
    <<: *image
    entrypoint: ["/bin/sh", "-c", "echo mine $$A; exec sleep infinity"]
    environment: {A: "2"}
    working_dir: /made/here
    volumes: ["/usr:/usr:ro", "kept:/data"]
    tmpfs: [/run/own]
volumes: {kept: }
"""


@pytest.fixture(scope="module")
def lab(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalLab]:
    assert kind == "local"
    folder = tmp_path_factory.mktemp("images")
    (folder / "image.tar").write_bytes(archives.archive(archives.docker_files(_LAYERS, _CONFIG)))
    (folder / "compose.yaml").write_text(_COMPOSE, encoding="utf-8")
    with LocalLab(folder / "compose.yaml") as lab:
        yield lab


def run(lab: Lab, command: str, host: str = "asis") -> str:
    done = lab.host(host).run(["/bin/sh", "-c", command], timeout="20s")
    assert done.ok, done.stderr
    return done.stdout


def test_the_entry_point_command_environment_and_folder_are_the_images(lab: LocalLab) -> None:
    printed = await_condition(lab.host("asis").logs, lambda text: text.endswith("\n"), deadline_s=20)
    assert printed == "served /serve all in /srv/app as 1\n"


def test_the_compose_file_goes_before_the_image(lab: LocalLab) -> None:
    printed = await_condition(lab.host("other").logs, lambda text: text.endswith("\n"), deadline_s=20)
    assert printed == "mine 2\n"
    assert run(lab, "pwd; echo $A", "other") == "/made/here\n2\n"


def test_files_are_the_images_and_what_a_host_changes_is_its_own(lab: LocalLab) -> None:
    assert run(lab, "cat /etc/issue; ls /srv /etc") == (
        "of the image\n/etc:\ngroup\nhostname\nhosts\nissue\npasswd\nresolv.conf\n\n/srv:\napp\n"
    )
    run(lab, "echo changed >/etc/issue; rm /serve; echo new >/new")
    assert run(lab, "cat /etc/issue; ls /serve; ls /", "other").split()[:4] == ["of", "the", "image", "/serve"]
    lab.host("other").put("/etc/issue", "put\n")
    assert lab.host("other").get("/etc/issue") == b"put\n"


def test_a_volume_begins_with_what_the_image_has_there(lab: LocalLab) -> None:
    for host in ("asis", "other"):
        assert run(lab, "cat /data/seed; stat -c %a /data; grep -c ' /data ' /proc/mounts", host) == "seed\n750\n1\n"
    run(lab, "echo mine >/data/seed", "other")
    assert run(lab, "cat /data/seed") == "seed\n"


def test_hosts_know_each_other_by_name(lab: LocalLab) -> None:
    assert run(lab, "grep -c ' other ' /hosts; hostname") == "1\nasis\n"


def test_users_and_groups_are_the_images(lab: LocalLab) -> None:
    done = lab.host("asis").run(["/bin/sh", "-c", "id -u; id -g; echo $HOME; id -G"], user="worker")
    ids = done.stdout.split()
    assert ids[:3] == ["77", "78", "/srv/home"], done.stderr
    assert not ROOT or ids[3:] == ["78", "79"]
    missing = lab.host("asis").run(["/bin/true"], user="man")
    assert (missing.exit_code, "user 'man' is not in the host's /etc/passwd" in missing.stderr) == (126, True)


def test_a_host_that_was_stopped_keeps_its_changes(lab: LocalLab) -> None:
    run(lab, "echo kept >/kept; echo gone >/run/own/gone", "other")
    lab.host("other").stop()
    lab.host("other").start()
    assert run(lab, "cat /kept; ls /run/own", "other") == "kept\n"


def test_an_entry_point_that_is_not_there_is_said(kind: str, tmp_path: Path) -> None:
    assert kind == "local"
    data = layer(entry("etc"))
    config = archives.configuration([data], Entrypoint=["/nowhere/serve"])
    (tmp_path / "image.tar").write_bytes(archives.archive(archives.oci_files([data], config)))
    (tmp_path / "compose.yaml").write_text("services: {a: {x-testbed: {local: {image: image.tar}}}}\n")
    with pytest.raises(ServiceFailedError, match=r"exec: '/nowhere/serve': no such file"):
        LocalLab(tmp_path / "compose.yaml").up()


def test_an_image_of_the_engine_runs_and_meets_its_impairment(kind: str, tmp_path: Path) -> None:
    assert kind == "local"
    try:
        images.ensure_base(Engine(), lambda _text: None)
    except NoEngineError as error:
        pytest.skip(f"an engine's image needs an engine: {error}")
    texts: list[str] = []
    (tmp_path / "compose.yaml").write_text(
        f"services:\n  a: &a {{image: '{images.BASE}', command: sleep infinity}}\n  b: *a\n"
    )
    with LocalLab(tmp_path / "compose.yaml", say=texts.append) as lab:
        assert any(f"a: image {images.BASE} (" in text and "from the Docker engine" in text for text in texts)
        assert run(lab, "cat /etc/debian_version", "a").startswith("13")
        assert run(lab, "stat -c %U:%G /etc/shadow", "a") == ("root:shadow\n" if ROOT else "root:root\n")
        _is_refused_only_through_a_link_without_loss(lab)


def _is_refused_only_through_a_link_without_loss(lab: Lab) -> None:
    """Host b listens on no port, which host a hears at once, or not at all."""
    lab.impair("a -> b", loss="100%")
    asks = ["bash", "-c", "echo >/dev/udp/b/9; timeout 0.5 bash -c '</dev/tcp/b/9'"]
    assert lab.host("a").run(asks, timeout="20s").exit_code == 124
    lab.heal()
    assert lab.host("a").run(asks, timeout="20s").exit_code == 1


@pytest.mark.parametrize("builder", ["an engine", *builders.NAMES])
def test_what_is_built_is_what_runs_and_is_built_again_only_when_it_changes(
    builder: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kind == "local"
    if builder != "an engine":
        if shutil.which(builder) is None or not (ROOT or shutil.which("newuidmap")):
            pytest.skip(f"needs {builder}, and without root newuidmap (apt-get install {builder} uidmap)")
        monkeypatch.setattr(builders, "NAMES", (builder,))
        monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")
    elif isinstance(MachinesImages(print).engine, NoEngineError):
        pytest.skip("no engine answers")
    (tmp_path / "Dockerfile").write_text(
        "FROM scratch AS all\nARG V\nCOPY word /\nUSER 77:78\nENV A=$V\n"
        'HEALTHCHECK --interval=1s CMD ["/usr/bin/test", "-e", "/word"]\n'
        'ENTRYPOINT ["/usr/bin/sleep", "infinity"]\nFROM scratch\n'
    )
    links = "".join(f"'/usr/{name}:/{name}:ro', " for name in ("bin", "lib", "lib64") if Path(f"/usr/{name}").exists())
    build = "{context: ., target: all, args: {V: x$$y}}"
    (tmp_path / "compose.yaml").write_text(
        f"services: {{a: &a {{build: {build}, volumes: [{links}'/usr:/usr:ro']}}, b: *a}}\n"
    )
    texts: list[str] = []
    one, two = uuid4().hex, uuid4().hex
    for word, is_built in ((one, True), (one, False), (two, True)):
        (tmp_path / "word").write_text(word)
        texts.clear()
        with LocalLab(tmp_path / "compose.yaml", say=texts.append) as lab:
            assert run(lab, "cat /word; echo; id -u; id -g; echo $A", "a").split() == [word, "77", "78", "x$y"]
            if word == two:
                _is_refused_only_through_a_link_without_loss(lab)
        assert any(text.startswith("building a") for text in texts) == is_built, texts
        source = "the Docker engine" if builder == "an engine" else f"{builder}'s store"
        assert any(text.startswith("a: image ") and f"from {source}" in text for text in texts), texts
    if builder == "an engine":
        images.remove_older(Engine(), service_image({"context": str(tmp_path)}, "a")[0], older_than_s=0)


def test_an_archive_that_has_another_image_by_then_is_unpacked_anew(kind: str, tmp_path: Path) -> None:
    assert kind == "local"
    (tmp_path / "compose.yaml").write_text(_COMPOSE[: _COMPOSE.index("  other:")])
    for issue in (b"one\n", b"two\n"):
        layers = [*_LAYERS, layer(entry("etc/issue", issue))]
        config = archives.configuration(layers, Entrypoint=["/usr/bin/sleep", "infinity"], Env=["PATH=/usr/bin"])
        (tmp_path / "image.tar").write_bytes(archives.archive(archives.docker_files(layers, config)))
        with LocalLab(tmp_path / "compose.yaml") as lab:
            assert run(lab, "cat /etc/issue") == issue.decode()


def test_a_user_who_is_not_in_the_image_is_said(kind: str, tmp_path: Path) -> None:
    assert kind == "local"
    data = layer(entry("etc"), entry("etc/passwd", _PASSWD))
    for image, service in (("nobody-here", ""), ("", ", user: 'worker:nogroup'")):
        config = archives.configuration([data], Entrypoint=["/serve"], User=image)
        (tmp_path / "image.tar").write_bytes(archives.archive(archives.oci_files([data], config)))
        (tmp_path / "compose.yaml").write_text(
            f"services: {{a: {{x-testbed: {{local: {{image: image.tar}}}}{service}}}}}"
        )
        missing = "user 'nobody-here' is not in the host's /etc/passwd" if image else "group 'nogroup' is not in"
        with pytest.raises(ServiceFailedError, match=missing):
            LocalLab(tmp_path / "compose.yaml").up()


def test_the_archive_that_an_engine_saves_is_read(kind: str, tmp_path: Path) -> None:
    assert kind == "local"
    try:
        engine = Engine()
    except NoEngineError as error:
        pytest.skip(f"what an engine saves needs an engine: {error}")
    images.ensure_base(engine, lambda _text: None)
    engine.save(images.BASE, tmp_path / "base.tar")
    with tarfile.open(tmp_path / "base.tar") as saved:
        assert "manifest.json" in saved.getnames()
    (tmp_path / "compose.yaml").write_text(
        "services: {a: {x-testbed: {local: {image: base.tar}}, command: sleep infinity}}\n"
    )
    with LocalLab(tmp_path / "compose.yaml") as lab:
        assert run(lab, "cat /etc/debian_version", "a").startswith("13")
