"""An ordinary user gets the whole local lab: ``scripts/ordinary`` runs the local half of the suite as one.

Here is what is peculiar to him. In CI it is his run alone that has that half; root's has the other.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from testbed import Lab, LocalLab
from testbed.backends.local import images, owners
from testbed.backends.local.capabilities import probe_local
from tests import archives
from tests.archives import entry, link

LABS = ("local",)


@pytest.fixture(autouse=True)
def ordinary(kind: str) -> None:
    assert kind == "local"
    if os.geteuid() == 0:
        pytest.skip("for an ordinary user: scripts/ordinary")


def test_a_host_is_root_in_its_own_namespaces_and_others_by_subordinate_ids_alone(lab: Lab) -> None:
    client = lab.host("client")
    assert client.run(["id", "-u"]).stdout == "0\n"
    assert client.run(["touch", "/etc/hosts"]).exit_code == 1
    done = client.run(["id", "-u"], user="nobody")
    if owners.of_user() is None:
        assert "without root" in done.stderr
    else:
        assert done.stdout == "65534\n"


_FILES = archives.layer(
    *(link(name, f"usr/{name}") for name in ("bin", "lib", "lib64") if Path(f"/{name}").exists()),
    entry("usr"),
    entry("etc"),
    entry("etc/passwd", b"root:x:0:0::/:/bin/sh\nworker:x:77:78::/:/bin/sh\n"),
    entry("etc/group", b"worker:x:78:\nmore:x:79:worker\n"),
    entry("data", uid=77, gid=78, mode=0o700),
    entry("data/own", b"own\n", uid=77, gid=78, mode=0o600),
    entry("set", b"#!/bin/sh\n", uid=77, mode=0o4755),
    entry("far", b"", uid=99_999_999),
)
_BECOMES = "import os; os.setgroups([79]); os.setgid(78); os.setuid(77); print(open('/data/own').read(), os.getuid())"


def test_with_subordinate_ids_files_have_their_owners_and_programs_change_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if owners.of_user() is None:
        pytest.skip("needs newuidmap (apt-get install uidmap), and subordinate ids")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = archives.configuration([_FILES], Env=["PATH=/usr/bin"])
    (tmp_path / "image.tar").write_bytes(archives.archive(archives.docker_files([_FILES], config)))
    (tmp_path / "compose.yaml").write_text(
        "services: {a: {x-testbed: {local: {image: image.tar}}, volumes: ['/usr:/usr:ro']}}\n"
    )
    texts: list[str] = []
    with LocalLab(tmp_path / "compose.yaml", say=texts.append) as lab:
        host = lab.host("a")
        shown = host.run(["stat", "-c", "%u:%g %a", "/data", "/data/own", "/set", "/far"])
        assert shown.stdout.splitlines() == ["77:78 700", "77:78 600", "77:0 4755", "0:0 644"], shown.stderr
        assert "; without 1 owners of files, which need root" in texts[-1], "that id is beyond what the user has"
        assert host.run(["sh", "-c", "id -G; cat /data/own"], user="worker").stdout == "78 79\nown\n"
        assert host.run(["sh", "-c", "echo no >/etc/passwd"], user="worker").exit_code
        assert host.run(["python3", "-c", _BECOMES]).stdout == "own\n 77\n", "as gosu does"
    (image,) = images.cache().images()
    assert images.cache().remove(image)
    assert list((tmp_path / "cache/testbed/images").iterdir()) == []


def test_impairments_are_to_be_had_without_root() -> None:
    able = probe_local(lambda _text: None)
    assert not able.root
    assert able.impairs, able


def test_the_machines_kernel_takes_no_program_from_him_and_nothing_is_changed(lab: Lab) -> None:
    link = lab.link("client -> server")
    link.impair(drop_every=10)  # by the carried kernel; its program is then there to be tried
    port = lab.ports.attached("server", "lan")
    path = next(path for name, path in port.stored.items() if name.endswith(".o"))
    assert "Unable to load program" in port.channel.call("try_program", path=path)
    lab.verifier.verify()
    link.heal()
