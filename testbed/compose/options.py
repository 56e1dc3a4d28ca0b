"""The options of a lab, and where its Compose file is by default.

Every start of pytest with the plugin imports this module, even in projects without a stack: it imports neither a lab
nor a library.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

LAB_CHOICES = ("auto", "compose", "local", "within", "swarm")
NETEM_CHOICES = ("auto", "host", "carried")
UP_DEADLINE = "180s"
"""The default time for a stack to start."""
COMPOSE_FILE_NAMES = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")
"""In Compose's order of precedence."""


def find_compose_file(folder: Path) -> Path | None:
    """The Compose file of a folder, by Compose's names; None if there is none."""
    return next((folder / name for name in COMPOSE_FILE_NAMES if os.path.lexists(folder / name)), None)


def files_of(names: str | Path | Sequence[str | Path] | None) -> tuple[Path, ...]:
    """The named Compose files; if there are none, Compose's rules apply."""
    if names is None:
        return ()
    return (Path(names),) if isinstance(names, str | Path) else tuple(map(Path, names))
