"""What a lab may be asked for, and where its Compose file is by itself.

Each pytest start on a machine with the plugin imports this module, also in projects that have no stack: it imports
neither a lab nor a library.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

LAB_CHOICES = ("auto", "compose", "local")
NETEM_CHOICES = ("auto", "host", "carried")
UP_DEADLINE = "180s"
"""How long a stack may take to start, by itself."""
COMPOSE_FILE_NAMES = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")
"""By precedence, as Compose looks for them."""


def find_compose_file(folder: Path) -> Path | None:
    """The Compose file of a folder, by Compose's own names; or what stands in its place."""
    return next((folder / name for name in COMPOSE_FILE_NAMES if os.path.lexists(folder / name)), None)


def files_of(said: str | Path | Sequence[str | Path] | None) -> tuple[Path, ...]:
    """The Compose files that were named; none leaves it to Compose's own rules."""
    if said is None:
        return ()
    return (Path(said),) if isinstance(said, str | Path) else tuple(map(Path, said))
