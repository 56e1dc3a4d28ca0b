"""The stack of a command: the one that `testbed up` left running, or one of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from testbed.backends.choice import decide, make_lab
from testbed.backends.docker.lab import ComposeLab
from testbed.commands.console import say
from testbed.compose.options import UP_DEADLINE
from testbed.errors import UserError
from testbed.lab.lab import Lab

NOT_UP = "no stack of this Compose file is up; start it: testbed up"


def chosen_lab(
    kind: str,
    compose_file: tuple[Path, ...],
    netem: str,
    compose_profiles: Sequence[str] = (),
    up_deadline: str = UP_DEADLINE,
) -> Lab:
    """The lab of this kind, or for ``auto`` the one that this machine allows; not up yet."""
    chosen, why = decide(kind)
    if chosen == "local" and kind == "auto":
        say(f"a local lab: {why}")
    return make_lab(
        chosen, compose_file, netem=netem, compose_profiles=compose_profiles, up_deadline=up_deadline, say=say
    )


@contextmanager
def running(
    compose_file: tuple[Path, ...], check: Callable[[ComposeLab], object] = lambda _lab: None
) -> Iterator[ComposeLab]:
    """The running stack. ``check`` is called before, and raises UserError for wrong arguments of a command."""
    lab = ComposeLab(compose_file, say=say)
    check(lab)
    if not lab.take_up():
        raise UserError(NOT_UP)
    try:
        yield lab
    finally:
        lab.leave()


@contextmanager
def running_or_own(lab: Lab, *, unless: str = "") -> Iterator[Lab]:
    """A lab on the stack that `testbed up` started; if none is up, on its own, for as long as the block runs.

    ``unless``: why it must not have its own; raises UserError with it then.
    """
    if isinstance(lab, ComposeLab) and lab.take_up():
        try:
            yield lab
        finally:
            lab.leave()
    elif unless:
        raise UserError(unless)
    else:
        with lab:
            yield lab
