"""Where a local lab finds the images of services: an engine's store, or an archive."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast

from testbed import kernel
from testbed.backends.docker import building, runs
from testbed.backends.docker.engine import OWNER_LABEL, RUN_LABEL, Engine, NoEngineError
from testbed.backends.docker.streams import Chunks
from testbed.backends.local.builders import PodmanOrBuildah
from testbed.compose.command import Composer
from testbed.errors import ImageBuildError
from testbed.images import archive
from testbed.images.cache import Cache, CachedImage
from testbed.images.found import FoundImage, content_of
from testbed.images.settings import of_config, platform_problem
from testbed.images.unpack import Lost, unpack_exported
from testbed.text import shown


def cache() -> Cache:
    """The unpacked images of the user."""
    return Cache(kernel.cache() / "images")


class Images:
    """The places where images are; without any, none is found."""

    def find(self, reference: str) -> FoundImage | None:  # noqa: ARG002  # there are none
        """The image of this name; None if it is nowhere. Raises ImageBuildError for one that does not run here."""
        return None

    def built(self, service: str) -> FoundImage | None:  # noqa: ARG002  # likewise
        """The image that was built for a service; None if there is nothing that builds."""
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
    """The images of this machine: the Docker engine's, and those of Podman and Buildah."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._known: dict[str, FoundImage | None] = {}
        self._built: dict[str, FoundImage] = {}

    @cached_property
    def engine(self) -> Engine | NoEngineError:
        """The Docker engine, or why none answers."""
        try:
            return Engine()
        except NoEngineError as error:
            return error

    @cached_property
    def _builder(self) -> PodmanOrBuildah | None:
        return PodmanOrBuildah.of_machine()

    @property
    def tried(self) -> str:
        """See `Images`."""
        engine = self.engine
        places = [engine.reason] if isinstance(engine, NoEngineError) else ["the Docker engine has none of this name"]
        builder = self._builder
        return " and ".join([*places, f"neither has {builder.name}" if builder else "there is no podman or buildah"])

    def find(self, reference: str) -> FoundImage | None:
        """See `Images`."""
        if reference and reference not in self._known:
            engine = self.engine
            image = None if isinstance(engine, NoEngineError) else engine.image(reference)
            if image is not None and isinstance(engine, Engine):
                self._known[reference] = of_engine(engine, image, reference, self._say)
            else:
                self._known[reference] = None if self._builder is None else self._builder.find(reference)
        return self._known.get(reference)

    def built(self, service: str) -> FoundImage | None:
        """See `Images`."""
        return self._built.get(service)

    def build(self, services: Mapping[str, Mapping[str, Any]], composer: Composer) -> None:
        """Build the images of these services, again only if what they are built from has changed.

        By Compose and the Docker engine, or by Podman or Buildah where no engine answers; nothing happens if there is
        none of them. Raises ImageBuildError.
        """
        wanted = {name: body for name, body in services.items() if name not in self._built}
        if not wanted:
            return
        engine, builder = self.engine, self._builder
        if isinstance(engine, Engine):
            parts = {
                name: {key: body[key] for key in ("build", "image") if body.get(key)} for name, body in wanted.items()
            }
            config = building.with_images({"services": parts}, engine=engine, composer=composer, say=self._say)
            for name in wanted:
                tag = config["services"][name]["image"]
                if (image := engine.image(tag)) is None:
                    raise ImageBuildError(f"service {shown(name)}: Compose built it, and the engine has no {tag}")
                self._built[name] = of_engine(engine, image, tag, self._say)
        elif builder is not None:
            for name, body in wanted.items():
                self._say(f"building {name} by {builder.name}")
                self._built[name] = builder.build(body["build"], name)


def of_engine(engine: Engine, image: Any, reference: str, say: Callable[[str], None]) -> FoundImage:
    """An image of the engine, by its inspection. Raises ImageBuildError if its programs do not run here."""
    found_id = str(image["Id"])
    os_name, architecture = str(image.get("Os") or ""), str(image.get("Architecture") or "")
    if problem := platform_problem(os=os_name, architecture=architecture, machine=os.uname().machine):
        raise ImageBuildError(problem)

    def unpack(folder: Path) -> Lost:
        runs.clear_stale(engine, say)
        labels = {RUN_LABEL: secrets.token_hex(4), OWNER_LABEL: runs.owner()}
        with contextlib.closing(engine.exported(found_id, labels)) as chunks:
            return unpack_exported(cast(BinaryIO, Chunks(chunks)), folder)

    return FoundImage(
        id=found_id,
        content=content_of((image.get("RootFS") or {}).get("Layers") or (), found_id),
        name=reference,
        source="the Docker engine",
        settings=of_config(image.get("Config") or {}),
        unpack=unpack,
    )


def hold(images: Mapping[str, FoundImage], say: Callable[[str], None], undo: ExitStack) -> dict[str, CachedImage]:
    """Have images unpacked, by service, until ``undo`` ends; says where each is from. Raises ImageBuildError."""
    store, cached = cache(), {}
    for service, image in images.items():

        def unpack(folder: Path, image: FoundImage = image) -> Lost:
            say(f"unpacking {image.name} from {image.source}")
            return image.unpack(folder)

        held = cached[service] = store.hold(image.content, image.name, unpack, undo)
        say(f"{service}: image {image.words}{f'; without {held.lost}' if held.lost else ''}")
    return cached
