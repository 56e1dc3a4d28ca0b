"""Which lab a run gets: the engine's, or the local one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed.compose.options import LAB_CHOICES, UP_DEADLINE
from testbed.errors import EnvironmentUnfitError, TestbedError
from testbed.lab.lab import Lab
from testbed.text import several, shown

if TYPE_CHECKING:
    from testbed.backends.stacklab import StackLab


def lab_type(kind: str) -> Callable[..., StackLab[Any]]:
    """A kind of lab, by its name in `LAB_CHOICES`; the arguments are `make_lab`'s.

    A local lab needs nothing of an engine's, whose library takes longer to import than a small stack to start.
    """
    if kind == "compose":
        from testbed.backends.docker.lab import ComposeLab

        return ComposeLab
    if kind == "within":
        from testbed.backends.docker.within import WithinLab

        return WithinLab
    if kind == "swarm":
        from testbed.backends.docker.swarm import SwarmLab

        return SwarmLab
    from testbed.backends.local.lab import LocalLab

    return LocalLab


def decide(kind: str) -> tuple[str, str]:
    """``compose``, ``within`` or ``local``, and why: for ``auto``, compose where an engine answers us.

    A rootless Podman keeps its bridges where no container can enter; there it is ``within``.
    Also ``compose`` where DOCKER_HOST names an engine that does not answer: its user means that engine. Then a lab
    reports that; tests without a lab run as usual.
    """
    if kind not in LAB_CHOICES:
        raise EnvironmentUnfitError(f"lab {shown(kind)}: must be one of {', '.join(LAB_CHOICES)}")
    if kind != "auto":
        return kind, "as asked"
    from testbed.backends.docker.agents import enters_network
    from testbed.backends.docker.connecting import NoEngineError
    from testbed.backends.docker.engine import Engine

    try:
        engine = Engine()
    except EnvironmentUnfitError as error:
        reason = error.reason if isinstance(error, NoEngineError) else str(error)
        return ("compose" if os.environ.get("DOCKER_HOST") else "local"), reason
    return ("compose" if enters_network(engine) else "within"), engine.describe()


def make_lab(
    kind: str,
    compose_file: str | Path | Sequence[str | Path] | None,
    *,
    netem: str,
    compose_profiles: Sequence[str] = (),
    images: Mapping[str, str] | None = None,
    up_deadline: str = UP_DEADLINE,
    images_from: Sequence[Mapping[str, str]] = (),
    say: Callable[[str], None],
    warn: Callable[[str], None] | None = None,
) -> Lab:
    """The lab that was decided on, of one Compose file, or of several that add to the first; not up yet.

    ``images``: by service, an image in place of the file's; a lab without images ignores it. ``images_from``: variables
    that lead to other engines, which send images that they have.
    """
    lab = lab_type(kind)(
        compose_file, netem=netem, compose_profiles=compose_profiles, up_deadline=up_deadline, say=say, warn=warn
    )
    lab.run_images(images or {})
    lab.images_from = images_from
    return lab


def origins_of(lab: Lab) -> str:
    """Where the programs of each service are from, in one line; empty on an engine, or if the file is wrong."""
    by_origin: dict[str, list[str]] = {}
    with suppress(TestbedError, OSError):  # which it raises again as it comes up
        for service, origin in lab.origins().items():
            by_origin.setdefault(origin, []).append(service)
    return "; ".join(f"{several(services, 10)}: {origin}" for origin, services in by_origin.items())
