"""Images for a lab in virtual time: told of from outside, and looked up by what was told."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from testbed.backends import outside
from testbed.backends.local.images import LIST, Images, ListedImages, listing
from testbed.errors import ImageBuildError
from testbed.images.cache import Cache, start_of_machine
from testbed.images.found import FoundImage
from testbed.images.settings import of_config
from testbed.images.unpack import Lost

CONFIG = {
    "Env": ["A=1"],
    "Entrypoint": ["/serve"],
    "Cmd": ["all"],
    "User": "app",
    "Volumes": {"/data": {}},
    "Healthcheck": {"Test": ["CMD", "test"], "Interval": 10**9},
}


def unpack(folder: Path) -> Lost:
    (folder / "root").mkdir()
    return Lost()


IMAGE = FoundImage(
    id="sha256:1", content="c", name="redis", source="an engine", settings=of_config(CONFIG), unpack=unpack
)


def test_what_is_listed_is_found_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ListedImages.given() is None
    monkeypatch.setenv(LIST, listing([IMAGE], {"api": replace(IMAGE, name="built")}))
    images = ListedImages.given()
    assert images is not None
    assert images.boot == start_of_machine()
    named, built = images.find("redis"), images.built("api")
    assert named is not None
    assert built is not None
    assert replace(named, unpack=unpack) == IMAGE
    assert replace(built, unpack=unpack) == replace(IMAGE, name="built")
    assert (images.find("another"), images.built("redis")) == (None, None)
    with pytest.raises(ImageBuildError, match="removed from the cache"):
        named.unpack(Path())


def test_another_machine_uses_the_images_that_were_unpacked_on_this_one(tmp_path: Path) -> None:
    with ExitStack() as undo:
        unpacked = Cache(tmp_path).hold("c", "redis", unpack, undo)
        listed = Cache(tmp_path, boot=start_of_machine()).hold("c", "redis", lambda _folder: pytest.fail("again"), undo)
        assert listed.root == unpacked.root


@pytest.mark.parametrize(
    ("service", "needed"),
    [
        ("{image: redis}", True),
        ("{build: .}", True),
        ("{x-testbed: {local: {image: a.tar}}}", True),
        ("{image: redis, x-testbed: {local: {path: programs}}}", False),
    ],
)
def test_images_are_looked_for_only_where_a_service_may_run_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: str, needed: bool
) -> None:
    (tmp_path / "compose.yaml").write_text(f"services: {{a: {service}}}\n")
    monkeypatch.chdir(tmp_path)
    assert outside.may_need_images([], ()) is needed
    assert outside.may_need_images([tmp_path / "compose.yaml"], ()) is needed


def test_without_a_compose_file_there_is_nothing_to_prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ExitStack() as undo:
        assert outside.images_of([], profiles=(), images={}, say=print, undo=undo) == {}
    assert Images().find("redis") is None
