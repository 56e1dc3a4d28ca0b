"""Which files of a build's folder a COPY copies, and where to. Each case was tried with `docker build`."""

from __future__ import annotations

import os
import tarfile
import tempfile
from pathlib import Path

import pytest

from testbed.compose import buildcontext, dockerfile


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    for name in ("d7/sub", "d7/e", "deep/a/b", "ig"):
        (folder / name).mkdir(parents=True)
    for name in ("one.txt", "two.txt", ".hid", "x.log", "d7/sub/f", "deep/a/y.log", "deep/a/b/n.txt", "ig/k.txt",
                 "ig/drop.txt"):  # fmt: skip
        (folder / name).write_text(name)
        (folder / name).chmod(0o644)
    for name, mode in (("d7", 0o700), ("d7/sub", 0o710), ("one.txt", 0o640)):
        (folder / name).chmod(mode)
    (folder / "deep/up").symlink_to("../one.txt")
    (folder / "d7/dangling").symlink_to("nowhere")
    (folder / "linked").symlink_to("d7")
    (folder / "out").symlink_to("/etc")
    return folder


def read(context: Path, text: str) -> tuple[list[buildcontext.Entry], list[str]]:
    path = context.parent / "Dockerfile"
    path.write_text(f"FROM debian\n{text}\n")
    image, problems = dockerfile.read(path.read_text())
    assert problems == []
    entries, wrong = buildcontext.entries(context, path, image.layers)
    return entries, [str(problem) for problem in wrong]


def made(context: Path, text: str) -> dict[str, str]:
    """What is where: ``folder``, or the name in the context."""
    entries, problems = read(context, text)
    assert problems == []
    return {entry.target: os.path.relpath(entry.source, context) if entry.source else "folder" for entry in entries}


def test_a_folders_contents_are_meant_with_their_folders_links_and_modes(context: Path) -> None:
    entries, _ = read(context, "COPY d7 /new/t")
    listed = [(entry.target, entry.mode, bool(entry.source)) for entry in entries]
    assert listed == [
        ("/new/t", 0o755, False),
        ("/new/t/dangling", None, True),
        ("/new/t/e", 0o755, False),
        ("/new/t/sub", 0o710, False),
        ("/new/t/sub/f", None, True),
    ]
    assert os.path.islink(entries[1].source)
    assert made(context, "COPY linked/ /new/t") == made(context, "COPY d7 /new/t")


def test_owner_and_mode_go_to_all_that_is_copied(context: Path) -> None:
    entries, _ = read(context, "COPY --chown=3:4 --chmod=705 d7 /c/t")
    assert {entry.owner for entry in entries} == {"3:4"}
    assert {entry.target: entry.mode for entry in entries}["/c/t"] == 0o755
    assert {entry.mode for entry in entries} == {0o755, 0o705}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("COPY one.txt /n/other.txt", {"/n": "folder", "/n/other.txt": "one.txt"}),
        ("COPY one.txt /n/", {"/n": "folder", "/n/one.txt": "one.txt"}),
        ("WORKDIR /n\nCOPY one.txt .", {"/n": "folder", "/n/one.txt": "one.txt"}),
        ("WORKDIR /n\nCOPY one.txt /n", {"/n": "folder", "/n/one.txt": "one.txt"}),  # there is such a folder
        ("COPY one.txt /usr/bin", {"/usr/bin": "folder", "/usr/bin/one.txt": "one.txt"}),
        ("COPY one.txt /one.txt", {"/one.txt": "one.txt"}),
        ("COPY /one.txt /", {"/one.txt": "one.txt"}),
        ("COPY *.txt /n/", {"/n": "folder", "/n/one.txt": "one.txt", "/n/two.txt": "two.txt"}),
        ("COPY [ot][!n]?.txt *.nope /n/", {"/n": "folder", "/n/one.txt": "one.txt"}),  # Go's, no shell's
        ("COPY [^o]?o.t* /n/", {"/n": "folder", "/n/two.txt": "two.txt"}),
        ("COPY deep/up /n/", {"/n": "folder", "/n/up": "one.txt"}),  # a link that is named is followed
        ("COPY d*p/a/*.log /n/x", {"/n": "folder", "/n/x": "deep/a/y.log"}),
        ('COPY ["one.txt", "/n/a b"]', {"/n": "folder", "/n/a b": "one.txt"}),
        ("COPY ./ig/../ig /n", {"/n": "folder", "/n/drop.txt": "ig/drop.txt", "/n/k.txt": "ig/k.txt"}),
    ],
)
def test_files_go_where_docker_puts_them(context: Path, text: str, expected: dict[str, str]) -> None:
    assert made(context, text) == expected


def test_an_empty_folder_is_copied(context: Path) -> None:
    assert made(context, "COPY d7/e /n") == {"/n": "folder"}


def test_dockerignore_leaves_out_and_takes_back(context: Path) -> None:
    (context / ".dockerignore").write_text("# words\n*.log\n/ig/*\n!ig/k.txt\n**/n.txt\nd7/\n!d7/e\n")
    assert sorted(made(context, "COPY . /all")) == [
        "/all", "/all/.dockerignore", "/all/.hid", "/all/d7", "/all/d7/e", "/all/deep", "/all/deep/a",
        "/all/deep/a/b", "/all/deep/a/y.log", "/all/deep/up", "/all/ig", "/all/ig/k.txt", "/all/linked",
        "/all/one.txt", "/all/out", "/all/two.txt",
    ]  # fmt: skip
    _, problems = read(context, "COPY x.log /n\nCOPY ig/* /n/\nCOPY d7/sub /n")
    assert problems == [
        f"line {line}: COPY {what}: .dockerignore leaves it out in {context}"
        for line, what in ((2, "x.log"), (4, "d7/sub"))
    ]


def test_the_dockerfiles_own_dockerignore_goes_first(context: Path) -> None:
    (context / ".dockerignore").write_text("one.txt\n")
    (context.parent / "Dockerfile.dockerignore").write_text("two.txt\n")
    assert sorted(made(context, "COPY *.txt /n/")) == ["/n", "/n/one.txt"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("COPY none /n", "line 2: COPY none: no such file in "),
        ("COPY *.none *.nor /n/", "line 2: COPY *.none *.nor: no such file in "),
        ("COPY *.txt /n", "'/n' must end with a slash: 2 files go into it"),
        ("COPY ../Dockerfile /n", "'../Dockerfile' lies outside the build's folder"),
        ("COPY out/passwd /n", "leads out of the build's folder, to /etc/passwd"),
        ("COPY d7/dangling /n", "which does not exist"),
        ("COPY [z-a] /n", "'[z-a]' is no pattern"),
        ("COPY one.txt /n\nCOPY two.txt /n/m", "line 3: COPY two.txt: /n is a file, and not a folder"),
        ("COPY d7 /etc/passwd", "/etc/passwd is a file, and not a folder"),
        ("COPY one.txt /etc/passwd/", "/etc/passwd is a file, and not a folder"),
        ("RUN mkdir -p /n/sub/f\nCOPY d7 /n", "line 3: COPY d7: /n/sub/f is a folder, and not a file"),
        ("COPY one.txt /proc/n", "/proc: a host has its own there"),
        ("WORKDIR /dev/n", "line 2: folder /dev/n: /dev/n: a host has its own there"),
        ("ADD a.tgz /n/", "line 2: ADD a.tgz: a.tgz would be unpacked"),
    ],
)
def test_what_cannot_be_copied_is_told_with_its_line(context: Path, text: str, part: str) -> None:
    with tarfile.open(context / "a.tgz", "w:gz") as archive:
        archive.add(context / "one.txt", "one.txt")
    _, problems = read(context, text)
    (problem,) = problems
    assert part in problem


def test_an_archive_that_is_copied_stays_one_and_a_file_that_is_added_is_copied(context: Path) -> None:
    with tarfile.open(context / "a.tgz", "w:gz") as archive:
        archive.add(context / "one.txt", "one.txt")
    expected = {"/n": "folder", "/n/a.tgz": "a.tgz", "/n/one.txt": "one.txt"}
    assert made(context, "COPY a.tgz /n/\nADD one.txt /n/") == expected


def test_a_pattern_that_is_none_is_told(context: Path) -> None:
    (context / ".dockerignore").write_text("[z-a]\n")
    (problem,) = read(context, "COPY . /n")[1]
    assert problem.startswith(".dockerignore: '[z-a]' is no pattern")


def test_a_folder_below_the_machines_tmp_is_none_of_a_hosts(context: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as there:
        Path(there, "file").touch()
        assert made(context, f"COPY one.txt {there}") == {"/tmp": "folder", there: "one.txt"}
        assert made(context, f"COPY one.txt {there}/file/x") == {
            f"{there}/file": "folder",
            f"{there}/file/x": "one.txt",
        }
