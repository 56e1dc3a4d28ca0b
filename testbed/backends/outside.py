"""The images of a stack, prepared on this machine for a local lab in virtual time, where there is no image store."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from testbed.compose import composefile
from testbed.compose.options import find_compose_file
from testbed.compose.problems import NeedsComposeError
from testbed.errors import InvalidComposeError, TestbedError


def images_of(
    files: Sequence[Path],
    *,
    profiles: Sequence[str],
    images: Mapping[str, str],
    say: Callable[[str], None],
    undo: ExitStack,
) -> dict[str, str]:
    """Have the images of a stack unpacked until ``undo`` ends; returns the variable that tells a lab of them.

    ``files``: the stack's Compose files, or none where Compose finds them. Where the stack is wrong there is no
    variable: the lab says what is wrong. Raises EnvironmentUnfitError for an image that cannot be built or unpacked.
    """
    if not may_need_images(files, profiles):
        return {}
    # Here, because importing these takes longer than most stacks without images take to start.
    from testbed.backends.local.images import LIST
    from testbed.backends.local.lab import LocalLab

    lab = LocalLab(list(files) or None, netem="host", compose_profiles=profiles, say=say)
    lab.run_images(images)
    try:
        return {LIST: lab.list_images(undo)}
    except InvalidComposeError as error:
        say(f"no image is prepared: {error}")
        return {}


def may_need_images(files: Sequence[Path], profiles: Sequence[str]) -> bool:
    """Whether a service runs in an image, and not on this machine's programs, as far as a quick look tells."""
    file = files[0] if files else find_compose_file(Path.cwd())
    if len(files) > 1 or file is None:
        return file is not None
    try:
        services = composefile.read(file, environment=os.environ, profiles=profiles).config["services"]
    except NeedsComposeError:
        return True
    except (TestbedError, OSError):
        return False
    local = [(body.get("x-testbed") or {}).get("local") for body in services.values()]
    return any(programs is None or programs.get("image") for programs in local)
