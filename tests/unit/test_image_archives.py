"""Archives of images: both layouts, what is wrong with them, and their files in the cache."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NoReturn, cast

import pytest
from click.testing import CliRunner

from testbed.agent import subordinate
from testbed.backends.docker.streams import Chunks
from testbed.backends.local import images as local_images
from testbed.commands import machine
from testbed.commands.console import OUT
from testbed.errors import ImageBuildError, UserError
from testbed.images import archive
from testbed.images.cache import Cache, CachedImage
from testbed.images.found import FoundImage
from testbed.images.unpack import Lost, OwnedFile, unpack_exported
from tests import archives
from tests.archives import entry, layer, link

ROOT = os.geteuid() == 0
MACHINE = os.uname().machine
BASE = layer(
    entry("bin"),
    entry("bin/tool", b"#!/bin/sh\n", mode=0o4755),
    entry("etc"),
    entry("etc/conf", b"old", mtime=1e9),
    link("sbin", "bin"),
    link("absolute", "/etc/passwd"),
    entry("closed", mode=0o555),
    entry("closed/x", b"x"),
)
ABOVE = layer(
    entry("etc/conf", b"new", uid=5, gid=6, mode=0o600),
    link("etc/again", "bin/tool", tarfile.LNKTYPE),
    entry("closed/.wh.x", b""),
    entry("pipe", type=tarfile.FIFOTYPE),
    entry("srv/null", type=tarfile.CHRTYPE),
)
CONFIG = archives.configuration(
    [BASE, ABOVE],
    Entrypoint=["tool"],
    Cmd=["serve"],
    Env=["A=1", "B=x=y"],
    User="5:6",
    WorkingDir="/srv",
    StopSignal="SIGQUIT",
    Volumes={"/data": {}},
    Healthcheck={"Test": ["CMD-SHELL", "true"], "Interval": 2_000_000_000, "Retries": 7},
)


def found(path: Path, name: str = "image:1") -> FoundImage:
    return archive.find(path, name, machine=MACHINE)


def at(tmp_path: Path, files: Mapping[str, bytes]) -> Path:
    path = tmp_path / "image.tar"
    path.write_bytes(archives.archive(files))
    return path


def held(cache: Cache, image: FoundImage) -> CachedImage:
    with ExitStack() as undo:
        return cache.hold(image.content, image.name, image.unpack, undo)


@pytest.mark.parametrize("layout", ["docker", "oci", "oci folder"])
def test_all_layouts_give_the_same_files_and_settings(layout: str, tmp_path: Path) -> None:
    files = archives.docker_files([BASE, ABOVE], CONFIG)
    if layout.startswith("oci"):
        files = archives.oci_files([BASE, ABOVE], CONFIG)
    path = archives.write(files, tmp_path / "layout") if layout == "oci folder" else at(tmp_path, files)
    image = found(path)
    assert image.id == archives.image_id(CONFIG)
    settings = image.settings
    assert (settings.entrypoint, settings.command, settings.user) == (("tool",), ("serve",), "5:6")
    assert settings.environment == {"A": "1", "B": "x=y"}
    assert (settings.workdir, settings.stop_signal, settings.volumes) == ("/srv", "SIGQUIT", ("/data",))
    check = settings.health_check
    assert check is not None
    assert (check.test, check.interval_s, check.retries) == (("/bin/sh", "-c", "true"), 2.0, 7)
    unpacked = held(Cache(tmp_path / "cache"), image)
    root = unpacked.root
    assert "1 device nodes" in unpacked.lost
    assert ("owners" in unpacked.lost) == (not ROOT)
    assert unpacked.size_bytes == len(b"#!/bin/sh\n" + b"new")
    assert (root / "etc/conf").read_bytes() == b"new"
    assert (root / "etc/conf").stat().st_mode & 0o7777 == 0o600
    assert [os.readlink(root / name) for name in ("sbin", "absolute")] == ["bin", "/etc/passwd"]
    assert (root / "bin/tool").samefile(root / "etc/again")
    assert (root / "bin/tool").stat().st_mode & 0o7777 == 0o4755
    assert (list((root / "closed").iterdir()), (root / "closed").stat().st_mode & 0o7777) == ([], 0o555)
    assert (root / "pipe").is_fifo()
    assert not (root / "srv/null").exists()
    if ROOT:
        assert (root / "etc/conf").stat()[4:6] == (5, 6)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"x": b""}, "neither manifest.json nor index.json: write it with `docker save`"),
        ({**archives.docker_files([BASE], CONFIG)}, "it has 1 layers, and its configuration 2"),
        ({**archives.docker_files([BASE, ABOVE], CONFIG), "manifest.json": b"{"}, "'manifest.json' in it is damaged"),
        ({**archives.docker_files([BASE, ABOVE], CONFIG), "manifest.json": b"[1]"}, "is no image of a known layout"),
        ({"manifest.json": b"[]"}, "it has 0 images"),
        (
            archives.docker_files([], archives.configuration([], architecture="mips")),
            "it is for mips, and this machine is",
        ),
    ],
)
def test_what_is_no_image_for_this_machine_is_said_in_a_line(
    files: dict[str, bytes], reason: str, tmp_path: Path
) -> None:
    path = at(tmp_path, files)
    with pytest.raises(ImageBuildError) as raised:
        found(path)
    assert reason in str(raised.value)
    assert str(raised.value).startswith(f"{path}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("kept", "when"), [(0.02, "found"), (0.5, "found"), (0.5, "unpacked")])
def test_a_truncated_archive_is_refused(kept: float, when: str, tmp_path: Path) -> None:
    path = at(tmp_path, archives.docker_files([BASE, ABOVE], CONFIG))
    whole = path.read_bytes()
    image = found(path) if when == "unpacked" else None
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(ImageBuildError, match=r"no whole archive|cut short|neither manifest"):
        held(Cache(tmp_path / "cache"), image) if image else found(path)
    assert not (tmp_path / "cache").exists() or [*(tmp_path / "cache").glob("new-*")] == []


def test_a_layer_that_is_not_the_configurations_is_refused(tmp_path: Path) -> None:
    image = found(at(tmp_path, archives.docker_files([BASE, BASE], CONFIG)))
    with pytest.raises(ImageBuildError, match="layer 2 is not the one of the image's configuration"):
        held(Cache(tmp_path / "cache"), image)


def test_a_name_that_moves_on_to_another_image_does_not_change_what_is_unpacked(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    contents = []
    for text in (b"one", b"two"):
        data = layer(entry("x", text))
        path = at(tmp_path, archives.docker_files([data], archives.configuration([data])))
        contents.append((held(cache, found(path)).root / "x").read_bytes())
    assert contents == [b"one", b"two"]
    assert [image.names for image in cache.images()] == [("image:1",), ("image:1",)]


def test_of_several_images_the_named_one_is_taken(tmp_path: Path) -> None:
    configs = [archives.configuration([BASE], User=user) for user in ("a", "b")]
    files: dict[str, bytes] = {}
    manifests = []
    for config, name in zip(configs, ("docker.io/library/one:latest", "two:1"), strict=True):
        one = archives.docker_files([BASE], config, [name])
        manifests += json.loads(one.pop("manifest.json"))
        files |= one
    path = at(tmp_path, {**files, "manifest.json": json.dumps(manifests).encode()})
    assert found(path, "one").settings.user == "a"
    assert found(path, "two:1").settings.user == "b"
    with pytest.raises(ImageBuildError, match=r"it has 2 images .*two:1.*: write which under the service's `image:`"):
        found(path, "two")


def test_a_full_disk_leaves_nothing_and_is_said(tmp_path: Path) -> None:
    def unpack(folder: Path) -> Lost:
        (folder / "root").mkdir()
        raise OSError(28, "No space left on device")

    cache = Cache(tmp_path / "cache")
    with pytest.raises(ImageBuildError, match=r"image some cannot be unpacked into .*cache: No space left on device"):
        cache.hold("1", "some", unpack, ExitStack())
    assert cache.images() == []
    assert [*cache.folder.glob("new-*")] == []


def test_an_image_in_use_is_not_removed_and_one_that_is_not_is(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    image = found(at(tmp_path, archives.docker_files([BASE, ABOVE], CONFIG)))
    with ExitStack() as undo:
        unpacked = cache.hold(image.content, "one", image.unpack, undo)
        assert not cache.remove(unpacked)
        assert unpacked.root.is_dir()
    assert cache.remove(cache.images()[0])
    assert list(cache.folder.iterdir()) == []


def test_after_a_restart_of_the_machine_an_image_is_unpacked_anew(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    image = found(at(tmp_path, archives.docker_files([BASE, ABOVE], CONFIG)))
    (held(cache, image).root / "etc/conf").write_bytes(b"")  # as a file that had not reached the disk
    assert (held(cache, image).root / "etc/conf").read_bytes() == b""
    cache = Cache(tmp_path / "cache", boot="another")
    assert (held(cache, image).root / "etc/conf").read_bytes() == b"new"


def test_a_stream_that_breaks_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield BASE[: len(BASE) // 2]
        raise ImageBuildError("the engine does not export image 'x': it went away")

    cache = Cache(tmp_path / "cache")
    with Chunks(chunks()) as stream, pytest.raises(ImageBuildError, match="it went away"):
        cache.hold("1", "x", lambda folder: unpack_exported(cast(BinaryIO, stream), folder), ExitStack())
    assert [*cache.folder.glob("new-*")] == []


class GivesAllButOne:
    """Gives owners, but for one file; notes what it is asked."""

    def __init__(self) -> None:
        self.given: list[tuple[str, int, int, int, bytes]] = []
        self.removed: list[Path] = []

    def give(self, root: Path, files: Sequence[OwnedFile]) -> int:
        self.given += [(file.path, file.uid, file.gid, file.mode, file.capability) for file in files]
        assert all((root / file.path).exists() for file in files)
        return 1

    def remove(self, folder: Path) -> None:
        self.removed.append(folder)
        shutil.rmtree(folder)


def test_owners_that_somebody_else_can_give_are_given_and_only_the_rest_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    capability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
    files = layer(
        entry("etc", uid=0),
        entry("etc/conf", b"new", uid=5, gid=6, mode=0o600),
        entry("ping", b"", pax_headers={"SCHILY.xattr.security.capability": capability}),
    )
    image = found(at(tmp_path, archives.docker_files([files], archives.configuration([files]))))
    owners = GivesAllButOne()
    cache = Cache(tmp_path / "cache", owners)
    unpacked = held(cache, image)
    assert sorted(owners.given) == [("etc/conf", 5, 6, 0o600, b""), ("ping", 0, 0, 0o644, capability.encode())]
    assert unpacked.lost.startswith("1 owners of files, which need root, or newuidmap and subordinate ids")
    assert "capabilities" not in unpacked.lost
    assert held(Cache(tmp_path / "cache"), image).folder != unpacked.folder, "whose owners are lost is another"
    assert cache.remove(unpacked)
    assert len(owners.removed) == 1


def test_subordinate_ids_are_those_of_the_users_name_or_number(tmp_path: Path) -> None:
    name = pwd.getpwuid(os.getuid()).pw_name
    path = tmp_path / "subuid"
    for text, ids in (
        (f"other:1:2\n{name}:100000:65536\n", ["100000", "65536"]),
        (f"{os.getuid()}:7:8\n", ["7", "8"]),
        ("other:1:2\n\n", []),
    ):
        path.write_text(text)
        assert list(subordinate.ids_in(str(path), os.getuid())) == ids
    assert list(subordinate.ids_in(str(tmp_path / "none"), os.getuid())) == []


def test_what_an_engine_exports_is_unpacked_but_for_its_own_mark(tmp_path: Path) -> None:
    data = layer(entry(".dockerenv", b""), entry("a", b"1", mode=0o4750), link("b", "a", tarfile.LNKTYPE), entry("c"))
    assert unpack_exported(io.BytesIO(data), tmp_path).words() == ""
    root = tmp_path / "root"
    assert sorted(os.listdir(root)) == ["a", "b", "c"]
    assert ((root / "b").read_bytes(), (root / "b").stat().st_mode & 0o7777) == (b"1", 0o4750)


def test_an_export_that_is_cut_anywhere_is_no_image(tmp_path: Path) -> None:
    data = layer(entry("a", b"x" * 600), entry("b", b"y" * 600))
    end = len(data.rstrip(b"\0")) // 512 * 512 + 512  # after the last block that has anything
    for size in range(0, end + 512, 512):
        folder = tmp_path / str(size)
        folder.mkdir()
        with pytest.raises(ImageBuildError, match="the engine's export is cut short"):
            unpack_exported(io.BytesIO(data[:size]), folder)


def test_chunks_are_one_stream_and_its_end_stays_the_end() -> None:
    with Chunks(iter([b"ab", b"", b"c" * 100_000])) as stream:
        assert stream.read(1) == b"a"
        assert len(stream.read() or b"") == 100_001
        assert (stream.read(1), stream.read(1)) == (b"", b"")


def test_the_command_lists_unpacked_images_and_removes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    image = found(at(tmp_path, archives.docker_files([BASE, ABOVE], CONFIG)))
    held(local_images.cache(), image)

    def told(*words: str) -> str:
        with OUT.capture() as capture:
            CliRunner().invoke(machine.images, words, catch_exceptions=False, standalone_mode=False)
        return capture.get()

    assert "image:1" in told("--unpacked")
    with pytest.raises(UserError, match="no unpacked image 'another'"):
        told("--remove", "another")
    assert "image:1" not in told("--remove", "image:1")
    assert local_images.cache().images() == []


_UNPACKS = """
import sys
from contextlib import ExitStack
from pathlib import Path
from testbed.images import archive
from testbed.images.cache import Cache
image = archive.find(Path(sys.argv[1]), "image:1", machine=sys.argv[3])
with ExitStack() as undo:
    print("begun", flush=True)
    held = Cache(Path(sys.argv[2])).hold(image.content, image.name, image.unpack, undo)
    print(len(list(held.root.iterdir())), flush=True)
"""


def _begun(tmp_path: Path, path: Path) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", _UNPACKS, str(path), str(tmp_path / "cache"), MACHINE]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def _rest(process: subprocess.Popen[str]) -> str:
    """What it prints after that; communicate() would miss what has been read ahead."""
    assert process.stdout is not None
    with process:
        return process.stdout.read()


def test_two_at_once_unpack_an_image_once_and_both_have_all_of_it(tmp_path: Path) -> None:
    files = layer(*(entry(f"f{number}", bytes(1000)) for number in range(500)))
    path = at(tmp_path, archives.docker_files([files], archives.configuration([files])))
    both = [_begun(tmp_path, path) for _ in range(2)]
    assert [_rest(process) for process in both] == ["500\n", "500\n"]
    assert len(Cache(tmp_path / "cache").images()) == 1


def test_what_a_killed_process_has_half_unpacked_is_never_used_and_goes(tmp_path: Path) -> None:
    files = layer(*(entry(f"f{number}", bytes(1000)) for number in range(1000)))
    path = at(tmp_path, archives.docker_files([files], archives.configuration([files])))
    cache = Cache(tmp_path / "cache")
    left = 0
    for number in range(4):
        process = _begun(tmp_path, path)
        time.sleep(0.02 + 0.1 * number)  # any moment is right; these are spread over the unpacking
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        left += len([*cache.folder.glob("new-*")])
        for image in cache.images():
            assert len(list(image.root.iterdir())) == 1000
    last = _begun(tmp_path, path)
    assert _rest(last) == "1000\n"
    assert left
    assert [*cache.folder.glob("new-*")] == []


def test_a_file_that_is_missing_while_an_image_is_unpacked_is_an_error(tmp_path: Path) -> None:
    def unpack(_: Path) -> NoReturn:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    with ExitStack() as undo, pytest.raises(ImageBuildError, match=r"cannot be unpacked into .*: No such file"):
        Cache(tmp_path).hold("content", "image:1", unpack, undo)


def test_what_others_are_at_is_not_cleared_up(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for name in ("new-aa-1-root-1", "new-bb-2-root-1"):
        (tmp_path / name / "root").mkdir(parents=True)
    with (tmp_path / "2-root-1.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cache.remove_unfinished()
    assert sorted(path.name for path in tmp_path.glob("new-*")) == ["new-bb-2-root-1"]
