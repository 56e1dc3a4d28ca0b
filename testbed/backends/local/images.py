"""Where a local lab finds the images of services, and has them built: an engine, Podman or Buildah; or an archive."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from testbed import kernel
from testbed.backends.docker.streams import Chunks
from testbed.backends.local import owners
from testbed.backends.local.builders import PodmanOrBuildah
from testbed.compose.command import Composer
from testbed.errors import EnvironmentUnfitError, ImageBuildError
from testbed.images import archive
from testbed.images.cache import Cache, CachedImage, start_of_machine
from testbed.images.found import FoundImage, content_of
from testbed.images.settings import HealthCheck, Settings, of_config, platform_problem
from testbed.images.unpack import Lost, unpack_exported
from testbed.text import shown

if TYPE_CHECKING:
    from testbed.backends.docker.connecting import NoEngineError
    from testbed.backends.docker.engine import Engine

_NEITHER = "neither podman nor buildah is installed (apt-get install buildah)"


def _unpack_nothing(_folder: Path) -> Lost:
    raise ImageBuildError("it is not built yet")


LIST = "TESTBED_IMAGES"
"""The variable that has the list of `ListedImages`."""
UNKNOWN = FoundImage(
    id="", content="", name="", source="", settings=Settings(command=("unknown",)), unpack=_unpack_nothing
)
"""Stands for an image that is not built yet, or is refused."""


def cache() -> Cache:
    """The unpacked images of the user; a machine that can only read these, as a carried kernel's, has its own."""
    folder = kernel.cache() / "images"
    above = next(path for path in (folder, *folder.parents) if path.is_dir())
    if os.statvfs(above).f_flag & os.ST_RDONLY:
        return Cache(Path("/var/tmp/testbed/images"))  # noqa: S108  # that machine's, which has one user
    listed = ListedImages.given()
    return Cache(folder, owners.of_user(), boot=None if listed is None else listed.boot)


class Images:
    """The places where images are; without any, none is found."""

    def find(self, reference: str) -> FoundImage | None:  # noqa: ARG002  # there are none
        """The image of this name; None if it is nowhere. Raises ImageBuildError for one that does not run here."""
        return None

    def built(self, service: str) -> FoundImage | None:  # noqa: ARG002  # likewise
        """The image of a service that is built: before that, one of which nothing is known; None if nothing builds."""
        return None

    @property
    def tried(self) -> str:
        """Where `find` has looked, in words."""
        return "no image store was asked"

    @property
    def builder(self) -> str:
        """What builds, in words; empty if nothing does."""
        return ""

    @property
    def no_builder(self) -> str:
        """Why nothing builds, in words."""
        return "no builder was asked"

    def pull(self, reference: str) -> str:
        """How to have an image here, in words."""
        return f"Pull it (docker pull {reference})"

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
        # Here, because most stacks that run on this machine's programs would start sooner than its library is imported.
        from testbed.backends.docker.connecting import NoEngineError
        from testbed.backends.docker.engine import Engine

        try:
            return Engine()
        except NoEngineError as error:
            return error

    @cached_property
    def _builder(self) -> PodmanOrBuildah | None:
        return PodmanOrBuildah.of_machine(self._say)

    @property
    def tried(self) -> str:
        """See `Images`."""
        engine, builder = self.engine, self._builder
        first = (
            engine.reason if isinstance(engine, EnvironmentUnfitError) else "the Docker engine has none of this name"
        )
        return f"{first}, {f'{builder.name} has none' if builder else _NEITHER}"

    @property
    def builder(self) -> str:
        """See `Images`."""
        if not isinstance(self.engine, EnvironmentUnfitError):
            return "Compose and the Docker engine"
        return "" if self._builder is None else self._builder.name

    @property
    def no_builder(self) -> str:
        """See `Images`."""
        engine = self.engine
        return f"{engine.reason if isinstance(engine, EnvironmentUnfitError) else 'an engine answers'}, and {_NEITHER}"

    def pull(self, reference: str) -> str:
        """See `Images`."""
        by = (
            self._builder.name
            if isinstance(self.engine, EnvironmentUnfitError) and self._builder is not None
            else "docker"
        )
        return f"Pull it ({by} pull {reference})"

    def find(self, reference: str) -> FoundImage | None:
        """See `Images`."""
        if reference and reference not in self._known:
            engine = self.engine
            image = None if isinstance(engine, EnvironmentUnfitError) else engine.image(reference)
            if image is not None and not isinstance(engine, EnvironmentUnfitError):
                self._known[reference] = of_engine(engine, image, reference, self._say)
            else:
                self._known[reference] = None if self._builder is None else self._builder.find(reference)
        return self._known.get(reference)

    def built(self, service: str) -> FoundImage | None:
        """See `Images`."""
        return self._built.get(service, UNKNOWN) if self.builder else None

    def build(self, services: Mapping[str, Mapping[str, Any]], composer: Composer) -> None:
        """Build the images of these services, again only if what they are built from has changed.

        By Compose and the Docker engine, or by Podman or Buildah where no engine answers. Raises ImageBuildError.
        """
        wanted = {name: body for name, body in services.items() if name not in self._built}
        engine, builder = self.engine, self._builder
        if not isinstance(engine, EnvironmentUnfitError):
            parts = {
                name: {key: body[key] for key in ("build", "image") if body.get(key)} for name, body in wanted.items()
            }
            parts = json.loads(json.dumps(parts).replace("$", "$$"))  # which Compose reads as one
            from testbed.backends.docker import building

            config = building.with_images({"services": parts}, engine=engine, composer=composer, say=self._say)
            for name in wanted:
                tag = config["services"][name]["image"]
                if (image := engine.image(tag)) is None:
                    raise ImageBuildError(f"service {shown(name)}: Compose built it, and the engine has no {tag}")
                self._built[name] = of_engine(engine, image, tag, self._say)
        elif builder is not None:
            for name, body in wanted.items():
                self._built[name] = builder.build(body["build"], name)


class ListedImages(Images):
    """The images of a list: for a machine that has this machine's files and cache, but none of its image stores."""

    def __init__(self, text: str) -> None:
        """``text``: what `listing` returned."""
        document = json.loads(text)
        self.boot: str = document["boot"]
        """See `Cache`."""
        self._named, self._of_service = (
            {name: _listed(image) for name, image in document[key].items()} for key in ("named", "built")
        )

    @classmethod
    def given(cls) -> ListedImages | None:
        """The list in this process's environment; None if there is none."""
        text = os.environ.get(LIST)
        return None if text is None else cls(text)

    @property
    def tried(self) -> str:
        """See `Images`."""
        return "it is not among the images that were prepared outside this kernel"

    @property
    def builder(self) -> str:
        """See `Images`."""
        return "the machine outside" if self._of_service else ""

    @property
    def no_builder(self) -> str:
        """See `Images`."""
        return "nothing builds in this kernel"

    def find(self, reference: str) -> FoundImage | None:
        """See `Images`."""
        return self._named.get(reference)

    def built(self, service: str) -> FoundImage | None:
        """See `Images`."""
        return self._of_service.get(service)

    def build(self, services: Mapping[str, Mapping[str, Any]], composer: Composer) -> None:
        """They are built."""


def listing(named: Iterable[FoundImage], built: Mapping[str, FoundImage]) -> str:
    """A list of unpacked images (see `hold`) for `ListedImages`. ``built``: by service."""
    return json.dumps(
        {
            "boot": start_of_machine(),
            "named": {image.name: _as_json(image) for image in named},
            "built": {service: _as_json(image) for service, image in built.items()},
        },
        sort_keys=True,
    )


def _as_json(image: FoundImage) -> dict[str, Any]:
    return {
        "id": image.id,
        "content": image.content,
        "name": image.name,
        "source": image.source,
        "settings": asdict(image.settings),
    }


def _listed(image: Mapping[str, Any]) -> FoundImage:
    settings = {name: _frozen(value) for name, value in image["settings"].items()}
    if check := image["settings"]["health_check"]:
        settings["health_check"] = HealthCheck(**{name: _frozen(value) for name, value in check.items()})
    return FoundImage(**{**image, "settings": Settings(**settings)}, unpack=_unpack_no_more)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _unpack_no_more(_folder: Path) -> Lost:
    raise ImageBuildError("it was removed from the cache of unpacked images")


def of_engine(engine: Engine, image: Any, reference: str, say: Callable[[str], None]) -> FoundImage:
    """An image of the engine, by its inspection. Raises ImageBuildError if its programs do not run here."""
    found_id = str(image["Id"])
    os_name, architecture = str(image.get("Os") or ""), str(image.get("Architecture") or "")
    if problem := platform_problem(os=os_name, architecture=architecture, machine=os.uname().machine):
        raise ImageBuildError(problem)

    def unpack(folder: Path) -> Lost:
        from testbed.backends.docker import runs
        from testbed.backends.docker.engine import OWNER_LABEL, RUN_LABEL

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
