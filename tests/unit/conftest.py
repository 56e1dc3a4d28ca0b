"""What unit tests share."""

from __future__ import annotations

import pytest

from testbed.compose.command import find
from testbed.errors import EnvironmentUnfitError


@pytest.fixture
def compose() -> None:
    """Compose is installed, to be asked how it reads a file; skipped where it is not."""
    try:
        find()
    except EnvironmentUnfitError as error:
        pytest.skip(str(error))
