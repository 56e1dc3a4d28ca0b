"""The stack of a command: the one that `testbed up` left running, or one of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from testbed.backends.choice import decide, make_lab
from testbed.backends.docker.lab import ComposeLab
from testbed.commands.console import say
from testbed.compose.options import UP_DEADLINE
from testbed.errors import UserError
from testbed.lab.lab import Lab

NOT_UP = "no stack of this Compose file is up; start it: testbed up"


def chosen_lab(
    kind: str, compose_file: tuple[Path, ...], netem: str, compose_profiles: Sequence[str] = (),
    up_deadline: str = UP_DEADLINE,
) -> Lab:  # fmt: skip
    """The lab that was asked for, or that this machine allows; not up yet."""
    chosen, why = decide(kind)
    if chosen == "local" and kind == "auto":
        say(f"a local lab: {why}")
    return make_lab(
        chosen, compose_file, netem=netem, compose_profiles=compose_profiles, up_deadline=up_deadline, say=say
    )


def taken_up(compose_file: tuple[Path, ...], check: Callable[[ComposeLab], object] = lambda _lab: None) -> ComposeLab:
    """The running stack. ``check``: raises UserError where what is asked of it is wrong, whether it is up or not."""
    lab = ComposeLab(compose_file, say=say)
    check(lab)
    if not lab.take_up():
        raise UserError(NOT_UP)
    return lab
