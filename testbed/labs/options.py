"""What a lab may be asked for, and where its Compose file is by itself.

Each pytest start on a machine with the plugin imports this module, also in projects that have no stack: it imports
neither a lab nor a library.
"""

from __future__ import annotations

import os
from pathlib import Path

LAB_CHOICES = ("auto", "compose", "local")
NETEM_CHOICES = ("auto", "host", "carried")
COMPOSE_FILE_NAMES = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")
"""By precedence, as Compose looks for them."""


def find_compose_file(folder: Path) -> Path | None:
    """The Compose file of a folder, by Compose's own names; or what stands in its place."""
    return next((folder / name for name in COMPOSE_FILE_NAMES if os.path.lexists(folder / name)), None)
