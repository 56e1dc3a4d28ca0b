"""What commands print, and where: results to stdout, everything else to stderr."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from testbed.errors import UserError
from testbed.writing import make_room

# Without a terminal that has a width, a table is not squeezed into 80 columns.
OUT = Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else 150)
ERR = Console(stderr=True, highlight=False, emoji=False)


def write(text: str) -> None:
    """Print a line of results, neither wrapped nor with markup."""
    OUT.print(text, markup=False, soft_wrap=True)


def say(text: str) -> None:
    """Print what is being done."""
    ERR.print(f"testbed: {text}", style="dim", markup=False, soft_wrap=True)


def see_room(folder: Path, *names: str) -> None:
    """Check that these files can be written. Raises UserError."""
    for name in names:
        try:
            make_room(folder / name, Path.cwd())
        except OSError as error:
            raise UserError(
                f"{folder / name} cannot be written: {error.strerror or error}; say --report FOLDER"
            ) from None
