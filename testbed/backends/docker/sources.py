"""Other engines as the source of images: of several engines, one builds an image, and the others are sent it, once.

An image is the same where its layers and its settings are: engines give ids in ways of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from testbed.backends.docker import turn
from testbed.backends.docker.engine import INPUTS_LABEL, Engine, send
from testbed.errors import EnvironmentUnfitError

_DEADLINE_S = 900.0
_SETTINGS = ("Cmd", "Entrypoint", "Env", "User", "WorkingDir")


class Sources:
    """Engines that have images, or will have them."""

    def __init__(self, environments: Sequence[Mapping[str, str]] = ()) -> None:
        """``environments``: what points the engine's client at each of them; the first one's images count."""
        self._environments = environments

    @contextmanager
    def turn(self, say: Callable[[str], None]) -> Iterator[Sources]:
        """While images are sent and built: so that two processes do not build what one can send to the other."""
        if not self._environments:
            yield self
            return
        with turn.take("images", say=say, deadline_s=_DEADLINE_S, what="images of other engines"):
            yield self

    def bring(self, engine: Engine, wanted: Mapping[str, str | None], say: Callable[[str], None]) -> None:
        """Send to an engine what others have of these images, and it has not.

        ``wanted``: by name, the digest of what an image is built from; None for one that nobody builds, of which the
        first engine's counts.
        """
        left = {name: digest for name, digest in wanted.items() if digest is None or not has(engine, name, digest)}
        for number, environment in enumerate(self._environments):
            if not left:
                return
            try:
                source = Engine(environment)
            except EnvironmentUnfitError:  # it is gone: another one may have them
                continue
            if number == 0:
                left = {name: tag for name, tag in left.items() if tag is not None or _differs(engine, source, name)}
            here = [
                name
                for name, digest in left.items()
                if (source.image(name) is not None if digest is None else has(source, name, digest))
            ]
            if here:
                say(f"taking {', '.join(here)} from {environment.get('DOCKER_HOST') or environment['DOCKER_CONTEXT']}")
                try:
                    send(source, engine, here)
                except EnvironmentUnfitError as error:
                    say(str(error))
                    continue
                left = {name: digest for name, digest in left.items() if name not in here}


NO_SOURCES = Sources()


def has(engine: Engine, name: str, digest: str) -> bool:
    """Whether an engine has an image of this name that was built from what this digest is of."""
    return (engine.image_labels(name) or {}).get(INPUTS_LABEL) == digest


def _differs(engine: Engine, source: Engine, name: str) -> bool:
    """Whether an engine lacks an image that the source has, or has another one of that name."""
    image, own = source.image(name), engine.image(name)
    return own is None or (image is not None and _content(own) != _content(image))


def _content(image: Mapping[str, Any] | None) -> object:
    if image is None:
        return None
    settings = image.get("Config") or {}
    return (image.get("RootFS") or {}).get("Layers"), *(settings.get(key) for key in _SETTINGS)
