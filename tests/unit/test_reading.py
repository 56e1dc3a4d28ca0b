"""A user's file is a regular file of bounded size in UTF-8, or an error; reading never waits."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from testbed.errors import InvalidValueError
from testbed.netem.profiles import Tables, load_profiles, read_trace
from testbed.reading import UnreadableError, is_below, read_bytes, read_text, yamltree


def make(kind: str, path: Path) -> Path:
    match kind:
        case "folder":
            path.mkdir()
        case "FIFO":
            os.mkfifo(path)
        case "link to itself":
            path.symlink_to(path)
        case "link to nothing":
            path.symlink_to("/nonexistent")
        case "device":
            path.symlink_to("/dev/zero")
        case "large":
            with path.open("wb") as file:
                file.truncate(9 << 20)
        case "latin":
            path.write_bytes(b"a\nb\xe9\n")
        case "utf16":
            path.write_bytes("a".encode("utf-16"))
    return path


KINDS = {
    "folder": "is a folder, and no file",
    "FIFO": "is a FIFO, and no file",
    "device": "is a device, and no file",
    "link to itself": "cannot be read: Too many levels",
    "link to nothing": "cannot be read: No such file",
    "large": "has 9437184 bytes; at most 8388608",
    "latin": "2: is not UTF-8: byte 0xe9",
    "utf16": "is not UTF-8: byte 0xff (UTF-16, by its first bytes); save it as UTF-8",
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_of_text_is_told_and_not_waited_for(kind: str, tmp_path: Path) -> None:
    begun = time.process_time()
    with pytest.raises(UnreadableError) as refused:
        read_text(make(kind, tmp_path / "x"))
    assert str(refused.value).startswith(f"{tmp_path}/x:")
    assert KINDS[kind] in str(refused.value)
    assert time.process_time() - begun < 1


def test_a_name_that_no_file_can_have_is_told() -> None:
    for name in ("x" * 5000, "a\0b", "\udcff"):
        with pytest.raises(UnreadableError) as refused:
            read_bytes(name)
        assert len(str(refused.value)) < 300


def test_a_file_without_a_size_is_empty_and_is_not_read_to_its_end() -> None:
    assert read_bytes("/proc/self/environ") == b""


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_folder_a_file_that_is_none_troubles_only_who_asks_for_it(kind: str, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text("both: {delay: 1ms}\n")
    (tmp_path / "good.dist").write_text("1 2 3\n")
    make(kind, tmp_path / "bad.yaml")
    make(kind, tmp_path / "bad.dist")
    profiles, tables = load_profiles(tmp_path), Tables(tmp_path)
    assert profiles["good"].forward.describe() == "delay=1ms"
    assert tables["good.dist"] == tmp_path / "good.dist"
    assert "bad" in profiles
    for read in (lambda: profiles["bad"], lambda: tables["bad.dist"], profiles.checked):
        with pytest.raises(InvalidValueError, match=r"bad\."):
            read()


def test_what_lies_outside_the_folder_is_not_quoted(tmp_path: Path) -> None:
    folder = tmp_path / "netem"
    folder.mkdir()
    secret = tmp_path / "secret"
    secret.write_text("root:PASSWORD:1:2\n")
    for name in ("x.yaml", "x.dist", "x.csv", "x"):
        (folder / name).symlink_to(secret)
    (folder / "t.yaml").write_text("both: {trace: ../secret}\n")
    (folder / "u.yaml").write_text(f"both: {{trace: {secret}}}\n")
    reads: list[Callable[[], object]] = [lambda: Tables(folder)["x.dist"]]
    reads += [partial(load_profiles(folder).__getitem__, name) for name in ("x", "t", "u")]
    reads += [partial(read_trace, name, folder) for name in ("x.csv", "x", "../secret", str(secret))]
    for read in reads:
        with pytest.raises(InvalidValueError) as refused:
            read()
        assert "PASSWORD" not in str(refused.value)
        assert "secret" in str(refused.value)
    (folder / "own").write_text("root:MINE:1:2\n")
    (folder / "own.yaml").write_text("both: {trace: own}\n")
    with pytest.raises(InvalidValueError, match="MINE"):
        _ = load_profiles(folder)["own"]


def test_a_file_is_below_its_folder_by_where_it_really_is(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "ab").write_text("")
    (tmp_path / "a" / "x").symlink_to("../ab")
    assert not is_below(tmp_path / "a" / "x", [tmp_path / "a"])
    assert not is_below(tmp_path / "ab", [tmp_path / "a"])
    assert is_below(tmp_path / "a" / "x", [tmp_path])


ALIASES = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
ALIASES += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]


@pytest.mark.parametrize(
    ("text", "line"),
    [("\n".join(ALIASES), 5), ("a:\n  " + "[" * 5000, 2), ("a:\n" + "- x\n" * 200_000, 99_999), ("{a: " * 3000, 1)],
    ids=["aliases", "deep", "long", "unclosed"],
)
def test_yaml_that_nobody_means_is_found_before_anything_is_built_of_it(text: str, line: int) -> None:
    begun = time.process_time()
    document = yamltree.parse(text)
    assert document.excessive
    assert [line for _, line, _ in document.problems] == [line]
    assert time.process_time() - begun < 1.5


@pytest.mark.parametrize("text", ["", "a: [", "a: &a [*a]", "\0", "a: *b", "a: 1\n---\nb: 2\n", "- &a x\n- *a\n"])
def test_what_is_small_is_left_to_its_reader(text: str) -> None:
    assert not yamltree.parse(text).excessive
