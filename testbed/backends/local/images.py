"""Where a local lab finds the images of services: an engine's store, or an archive."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from testbed import kernel
from testbed.backends.docker.engine import Engine, NoEngineError
from testbed.errors import ImageBuildError
from testbed.images import archive
from testbed.images.cache import Cache, CachedImage
from testbed.images.found import FoundImage
from testbed.images.settings import of_config, platform_problem
from testbed.images.unpack import Lost


def cache() -> Cache:
    """The unpacked images of the user."""
    return Cache(kernel.cache() / "images")


class Images:
    """The places where images are; without any, none is found."""

    def find(self, reference: str) -> FoundImage | None:  # noqa: ARG002  # there are none
        """The image of this name; None if it is nowhere. Raises ImageBuildError for one that does not run here."""
        return None

    @property
    def tried(self) -> str:
        """Where `find` has looked, in words."""
        return "no image store was asked"

    @staticmethod
    def in_archive(path: Path, name: str) -> FoundImage:
        """The image in an archive. Raises ImageBuildError."""
        try:
            return archive.find(path, name, machine=os.uname().machine)
        except OSError as error:
            raise ImageBuildError(f"{path}: {error.strerror}") from None


class MachinesImages(Images):
    """The images of this machine."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._without_engine = ""
        self._known: dict[str, FoundImage | None] = {}

    @property
    def engine(self) -> Engine | None:
        """The Docker engine, if one answers."""
        if self._engine is None and not self._without_engine:
            try:
                self._engine = Engine()
            except NoEngineError as error:
                self._without_engine = error.reason
        return self._engine

    @property
    def tried(self) -> str:
        """See `Images`."""
        return self._without_engine or "the Docker engine has no such image"

    def find(self, reference: str) -> FoundImage | None:
        """See `Images`."""
        if reference not in self._known:
            self._known[reference] = self._in_engine(reference)
        return self._known[reference]

    def _in_engine(self, reference: str) -> FoundImage | None:
        engine = self.engine
        image = None if engine is None else engine.image(reference)
        if engine is None or image is None:
            return None
        return of_engine(engine, image, reference)


def of_engine(engine: Engine, image: Any, reference: str) -> FoundImage:
    """An image of the engine, by its inspection. Raises ImageBuildError if its programs do not run here."""
    found_id = str(image["Id"])
    os_name, architecture = str(image.get("Os") or ""), str(image.get("Architecture") or "")
    if problem := platform_problem(os=os_name, architecture=architecture, machine=os.uname().machine):
        raise ImageBuildError(problem)

    def unpack(folder: Path) -> Lost:
        return archive.unpack_stream(engine.saved(found_id), folder)

    return FoundImage(
        id=found_id,
        name=reference,
        source="the Docker engine",
        settings=of_config(image.get("Config") or {}),
        unpack=unpack,
    )


def hold(images: dict[str, FoundImage], say: Callable[[str], None], undo: ExitStack) -> dict[str, CachedImage]:
    """Have images unpacked, by service, until ``undo`` ends; says where each is from. Raises ImageBuildError."""
    store, cached = cache(), {}
    for service, image in images.items():

        def unpack(folder: Path, image: FoundImage = image) -> Lost:
            say(f"unpacking {image.name} from {image.source}")
            return image.unpack(folder)

        held = cached[service] = store.hold(image.id, image.name, unpack, undo)
        lost = f"; without {held.lost}" if held.lost else ""
        say(f"{service}: image {image.name} ({held.short_id}) from {image.source}{lost}")
    return cached
