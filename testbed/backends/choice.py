"""Which lab a run gets: the engine's, or the local one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from testbed.backends.docker.engine import Engine, NoEngineError
from testbed.backends.docker.lab import ComposeLab
from testbed.backends.local.lab import LocalLab
from testbed.compose.options import LAB_CHOICES, UP_DEADLINE
from testbed.errors import EnvironmentUnfitError
from testbed.lab.lab import Lab
from testbed.text import shown

LABS: Mapping[str, Callable[..., Lab]] = {"compose": ComposeLab, "local": LocalLab}
"""Each kind of lab, by its name in `LAB_CHOICES`; the arguments are `make_lab`'s."""


def decide(kind: str) -> tuple[str, str]:
    """``compose`` or ``local``, and why: for ``auto``, compose where an engine answers us.

    Also where DOCKER_HOST names one that does not answer: who sets it means that engine, as with every other program of
    Docker's. A lab then says so; tests that need none run as they do.
    """
    if kind not in LAB_CHOICES:
        raise EnvironmentUnfitError(f"lab {shown(kind)}: must be one of {', '.join(LAB_CHOICES)}")
    if kind != "auto":
        return kind, "as asked"
    try:
        return "compose", Engine().describe()
    except EnvironmentUnfitError as error:
        reason = error.reason if isinstance(error, NoEngineError) else str(error)
        return ("compose" if os.environ.get("DOCKER_HOST") else "local"), reason


def make_lab(
    kind: str,
    compose_file: str | Path | Sequence[str | Path] | None,
    *,
    netem: str,
    compose_profiles: Sequence[str] = (),
    images: Mapping[str, str] | None = None,
    up_deadline: str = UP_DEADLINE,
    say: Callable[[str], None],
    warn: Callable[[str], None] | None = None,
) -> Lab:
    """The lab that was decided on, of one Compose file, or of several that add to the first; not up yet.

    ``images``: by service, an image in place of the file's; a lab that runs no images takes no notice.
    """
    lab = LABS[kind](
        compose_file, netem=netem, compose_profiles=compose_profiles, up_deadline=up_deadline, say=say, warn=warn
    )
    lab.run_images(images or {})
    return lab
