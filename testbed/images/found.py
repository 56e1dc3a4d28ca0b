"""An image that was found, wherever it is: what it says, and how its files are had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from testbed.images.settings import Settings
from testbed.images.unpack import Lost


@dataclass(frozen=True, kw_only=True)
class FoundImage:
    """An image. Its id, not its name, decides which files are its: a name may move on to another image."""

    id: str
    name: str
    """What it was looked for by."""
    source: str
    """Where it was found, in words."""
    settings: Settings
    unpack: Callable[[Path], Lost]
    """Unpacks it into ``root`` of a folder. Raises ImageBuildError, OSError."""
