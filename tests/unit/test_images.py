"""When an image is built again, its name, and whether testbed's base image would help."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from testbed.backends.docker.engine import Engine, tar_archive
from testbed.backends.docker.images import ensure_archived, netem_tag, service_image, starts_from_base
from testbed.errors import InvalidComposeError, UserError


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "server"
    (folder / "src").mkdir(parents=True)
    (folder / "Dockerfile").write_text("FROM debian:trixie-slim\nCOPY . /\n")
    (folder / "src" / "main.py").write_text("print(1)\n")
    (folder / "latest").symlink_to("src")
    return folder


def digest(build: dict[str, Any], service: str = "web") -> str:
    image = service_image(build, service)[1]
    assert image is not None
    return image


@pytest.mark.parametrize("place", ["/", "/proc", "/proc/self", "/sys/class", "/dev"])
def test_a_context_with_the_kernels_own_files_is_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(place)
    for context in (place, str(tmp_path / "link")):
        with pytest.raises(InvalidComposeError, match=r"service 'web': the build context .* the kernel"):
            service_image({"context": context, "dockerfile_inline": "FROM x"}, "web")


def test_a_context_whose_files_go_while_it_is_read_has_no_digest(
    context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "readlink", gone)
    assert service_image({"context": str(context)}, "web") == ("testbed/server-web", None)


# --- the archive -----------------------------------------------------------------------------------


class OneImage:
    """An engine that has the agent's image, or none."""

    def __init__(self, *, has: bool) -> None:
        self.has = has
        self.calls: list[str] = []

    def image_labels(self, tag: str) -> dict[str, str] | None:
        return {} if self.has else None

    def save(self, tag: str, archive: Path) -> None:
        self.calls.append("save")
        archive.write_bytes(tar_archive({"manifest.json": json.dumps([{"RepoTags": [tag]}]).encode()}))

    def load(self, archive: Path) -> None:
        self.calls.append("load")
        self.has = True


def archived(archive: Path, *, has: bool) -> tuple[list[str], list[str]]:
    """What the engine was asked for, and what was said."""
    engine, lines = OneImage(has=has), list[str]()
    ensure_archived(cast(Engine, engine), archive, lines.append)
    return engine.calls, lines


def test_an_archive_is_written_once_and_loaded_where_the_image_is_missing(tmp_path: Path) -> None:
    archive = tmp_path / "cache" / "images.tar"
    assert archived(archive, has=True)[0] == ["save"]
    assert archived(archive, has=True)[0] == []
    assert archived(archive, has=False)[0] == ["load"]
    assert list(archive.parent.iterdir()) == [archive]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no archive",
        tar_archive({"other": b""}),
        tar_archive({"manifest.json": b"[1]"}),
        tar_archive({"manifest.json": b"{"}),
    ],
)
def test_an_archive_that_cannot_be_read_is_written_anew(tmp_path: Path, content: bytes) -> None:
    archive = tmp_path / "images.tar"
    archive.write_bytes(content)
    calls, lines = archived(archive, has=True)
    assert calls == ["save"]
    assert lines[0].startswith(f"warning: {archive} is no archive of images, so it is not used: ")
    assert archived(archive, has=True) == ([], [])


def test_an_archive_of_another_version_is_written_anew(tmp_path: Path) -> None:
    manifest = json.dumps([{"RepoTags": ["testbed/netem:0123456789abcdef"]}, {"RepoTags": None}]).encode()
    (tmp_path / "images.tar").write_bytes(tar_archive({"manifest.json": manifest}))
    assert archived(tmp_path / "images.tar", has=True)[0] == ["save"]


def test_an_archive_where_none_can_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^--archive '.*/file/images\.tar': "):
        archived(tmp_path / "file" / "images.tar", has=True)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"^--archive '.*/folder': "):
        archived(tmp_path / "folder", has=True)


# --- the digest ------------------------------------------------------------------------------------


def test_the_same_inputs_have_the_same_digest(context: Path) -> None:
    assert digest({"context": str(context)}) == digest({"context": str(context)})
    assert re.fullmatch(r"[0-9a-f]{16}", digest({"context": str(context)}))


def _relink(context: Path) -> None:
    (context / "latest").unlink()
    (context / "latest").symlink_to("elsewhere")


CHANGES: dict[str, Callable[[Path], object]] = {
    "a content": lambda context: (context / "src" / "main.py").write_text("print(2)\n"),
    "the Dockerfile": lambda context: (context / "Dockerfile").write_text("FROM scratch\n"),
    "a new file": lambda context: (context / "new").touch(),
    "a new folder": lambda context: (context / "empty").mkdir(),
    "a lost file": lambda context: (context / "src" / "main.py").unlink(),
    "a name": lambda context: (context / "src" / "main.py").rename(context / "src" / "app.py"),
    "a permission": lambda context: (context / "src" / "main.py").chmod(0o755),
    "a symbolic link": _relink,
    "a hidden file": lambda context: (context / ".env").write_text("A=1"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_a_build_may_copy_changes_the_digest(context: Path, change: str) -> None:
    before = digest({"context": str(context)})
    CHANGES[change](context)
    assert digest({"context": str(context)}) != before


@pytest.mark.parametrize("folder", [".git", "__pycache__", "src/__pycache__"])
def test_what_git_and_python_write_beside_the_sources_does_not(context: Path, folder: str) -> None:
    before = digest({"context": str(context)})
    (context / folder).mkdir()
    (context / folder / "index").write_text("x")
    assert digest({"context": str(context)}) == before


def test_a_context_that_itself_lies_below_git_is_read(tmp_path: Path) -> None:
    context = tmp_path / ".git" / "app"
    context.mkdir(parents=True)
    before = digest({"context": str(context)})
    (context / "a").touch()
    assert digest({"context": str(context)}) != before


def test_moving_bytes_from_one_file_to_the_next_changes_the_digest(context: Path) -> None:
    (context / "a").write_text("12")
    (context / "b").write_text("3")
    before = digest({"context": str(context)})
    (context / "a").write_text("1")
    (context / "b").write_text("23")
    assert digest({"context": str(context)}) != before


def test_the_build_section_is_part_of_the_digest(context: Path) -> None:
    plain = digest({"context": str(context)})
    assert digest({"context": str(context), "args": {"A": "1"}}) != plain
    assert digest({"context": str(context), "target": "test"}) != plain


def test_a_dockerfile_outside_its_context_is_part_of_the_digest(context: Path, tmp_path: Path) -> None:
    build = {"context": str(context), "dockerfile": "../Dockerfile.test"}
    missing = digest(build)
    (tmp_path / "Dockerfile.test").write_text("FROM scratch\n")
    present = digest(build)
    (tmp_path / "Dockerfile.test").write_text("FROM debian\n")
    assert len({missing, present, digest(build)}) == 3


def test_a_file_whose_name_is_not_utf8_is_digested(context: Path) -> None:
    before = digest({"context": str(context)})
    Path(os.fsdecode(os.fsencode(context) + b"/\xff")).touch()
    assert digest({"context": str(context)}) != before


@pytest.mark.parametrize("elsewhere", ["https://example.org/app.git#main", "/does/not/exist"])
def test_what_is_built_from_elsewhere_has_no_digest(elsewhere: str) -> None:
    assert service_image({"context": elsewhere}, "web")[1] is None


def test_a_file_is_no_context(context: Path) -> None:
    assert service_image({"context": str(context / "Dockerfile")}, "web")[1] is None


# --- the name --------------------------------------------------------------------------------------

# A component of a repository's name, after the OCI distribution specification.
COMPONENT = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"


@pytest.mark.parametrize(
    ("folder", "service", "repository"),
    [
        ("server", "web", "testbed/server-web"),
        ("Server", "Web", "testbed/server-web"),
        ("My App (2)", "web_1", "testbed/my-app-2-web-1"),
        ("größe", "web.", "testbed/gr-e-web"),
        ("_c++_", "-", "testbed/c-x"),
    ],
)
def test_an_image_is_named_by_folder_and_service_as_docker_allows(
    tmp_path: Path, folder: str, service: str, repository: str
) -> None:
    (tmp_path / folder).mkdir()
    named = service_image({"context": str(tmp_path / folder)}, service)
    assert named is not None
    assert named[0] == repository
    assert re.fullmatch(f"{COMPONENT}/{COMPONENT}", named[0])


def test_the_agents_tag_carries_its_digest() -> None:
    assert re.fullmatch(r"testbed/netem:[0-9a-f]{16}", netem_tag())
    assert netem_tag() == netem_tag()


# --- the base --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dockerfile", "ours"),
    [
        ("FROM debian:trixie-slim\n", True),
        ("FROM debian:trixie-slim", True),
        ("FROM debian:trixie-slim AS build\nFROM scratch\n", True),
        ("# syntax=docker/dockerfile:1\nARG A\nFROM scratch\nFROM   debian:trixie-slim\n", True),
        ("from debian:trixie-slim\n", True),
        ("FROM --platform=linux/amd64 debian:trixie-slim\n", True),
        ("FROM debian:trixie-slim\r\nRUN true\r\n", True),
        ("FROM debian:trixie\n", False),
        ("FROM debian:trixie-slim-20240101\n", False),
        ("FROM me/debian:trixie-slim\n", False),
        ("# FROM debian:trixie-slim\nFROM scratch\n", False),
        ("FROM scratch\nCOPY --from=debian:trixie-slim / /\n", False),
        ("", False),
    ],
)
def test_a_dockerfile_starts_from_our_base_if_it_says_so(tmp_path: Path, dockerfile: str, ours: bool) -> None:
    (tmp_path / "Dockerfile").write_bytes(dockerfile.encode())
    assert starts_from_base({"context": str(tmp_path)}) is ours
    assert starts_from_base({"context": "/does/not/exist", "dockerfile_inline": dockerfile}) is ours


def test_the_dockerfile_that_the_build_names_is_read(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    (tmp_path / "Dockerfile.test").write_text("FROM debian:trixie-slim\n")
    assert starts_from_base({"context": str(tmp_path), "dockerfile": "Dockerfile.test"})


@pytest.mark.parametrize("content", [None, b"FROM debian:trixie-slim \xff\n"])
def test_a_dockerfile_that_cannot_be_read_is_left_to_compose(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "Dockerfile").write_bytes(content)
    assert not starts_from_base({"context": str(tmp_path)})
