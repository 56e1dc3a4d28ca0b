"""An image that was found, wherever it is: what it says, and how its files are had."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.images.settings import Settings
from testbed.images.unpack import Lost


@dataclass(frozen=True, kw_only=True)
class FoundImage:
    """An image. Its id, not its name, decides which files are its: a name may move on to another image."""

    id: str
    content: str
    """Of its files: images with the same layers have the same."""
    name: str
    """What it was looked for by."""
    source: str
    """Where it was found, in words."""
    settings: Settings
    unpack: Callable[[Path], Lost]
    """Unpacks it into ``root`` of a folder. Raises ImageBuildError, OSError."""

    @property
    def words(self) -> str:
        """Its name, the beginning of its id, and where it is from."""
        return f"{self.name} ({self.id.removeprefix('sha256:')[:12]}) from {self.source}"


def content_of(layers: Sequence[str], image_id: str) -> str:
    """What stands for an image's files: the digests of its layers, or its id if they are unknown."""
    return hashlib.sha256("\n".join(layers).encode()).hexdigest() if layers else image_id.removeprefix("sha256:")
