"""Images of services that are built: by Compose and the engine, again only when what they are built from changes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from typing import IO, Any

from testbed.backends.docker import images
from testbed.backends.docker.engine import INPUTS_LABEL, Engine
from testbed.backends.docker.sources import NO_SOURCES, Sources, has
from testbed.backends.starting import last_line, said_while
from testbed.compose.command import Composer
from testbed.errors import ImageBuildError

DEADLINE_S = 900.0
_TAIL_BYTES = 2000


def with_images(
    config: Mapping[str, Any],
    *,
    engine: Engine,
    composer: Composer,
    say: Callable[[str], None],
    sources: Sources = NO_SOURCES,
) -> dict[str, Any]:
    """A Compose configuration with an image for each service that is built, building those that changed.

    What ``sources`` have is not built. Raises ImageBuildError.
    """
    config = dict(config)
    services = {name: dict(body) for name, body in config["services"].items()}
    config["services"] = services
    digests: dict[str, str | None] = {}
    unnamed = {name for name, body in services.items() if body.get("build") is not None and not body.get("image")}
    for name, body in services.items():
        if (build := body.get("build")) is None:
            continue
        repository, digest = images.service_image(build, name)
        if name in unnamed:
            body["image"] = f"{repository}:{digest or 'latest'}"
        digests[name] = digest
        if digest is None:
            continue
        body["build"] = {**build, "labels": {**as_mapping(build.get("labels")), INPUTS_LABEL: digest}}
    built = {services[name]["image"]: digest for name, digest in digests.items() if digest is not None}
    others = {body["image"]: None for name, body in services.items() if name not in digests and "image" in body}
    sources.bring(engine, {**others, **built}, say)
    missing = [name for name, tag in digests.items() if tag is None or not has(engine, services[name]["image"], tag)]
    if missing:
        if any(images.starts_from_base(services[name]["build"]) for name in missing):
            images.ensure_base(engine, say)
        say(f"building {', '.join(missing)}")
        with tempfile.TemporaryFile() as log:

            def last() -> str:
                line = last_line(_end_of(log))
                return f"building {', '.join(missing)}{line and f'; last line: {line}'}"

            with said_while(say, last):
                failed = composer.build(config, missing, timeout_s=DEADLINE_S, output=log)
        if failed is not None:
            raise ImageBuildError(f"`docker compose build {' '.join(missing)}` failed:\n{failed}")
        for name in unnamed.intersection(missing):
            tag = services[name]["image"]
            images.remove_older(engine, tag.partition(":")[0], but=tag)
    return config


def _end_of(log: IO[bytes]) -> str:
    """The last bytes that another process has written; its place in the file, which we share, stays."""
    return os.pread(log.fileno(), _TAIL_BYTES, max(os.fstat(log.fileno()).st_size - _TAIL_BYTES, 0)).decode(
        errors="replace"
    )


def as_mapping(labels: Any) -> dict[str, str]:
    """Labels in either of the forms that Compose has for them."""
    if isinstance(labels, Mapping):
        return dict(labels)
    return dict(label.partition("=")[::2] for label in labels or ())
