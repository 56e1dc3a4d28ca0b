"""The stack of a command: the one that `testbed up` left running, or one of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any

from testbed.backends.choice import decide, make_lab, origins_of
from testbed.backends.docker.lab import ComposeLab
from testbed.commands.console import say
from testbed.commands.options import compose_file_option, lab_option, netem_option, up_deadline_option
from testbed.errors import UserError
from testbed.lab.lab import Lab

NOT_UP = "no stack of this Compose file is up; start it: testbed up"


@dataclass(frozen=True, kw_only=True)
class OwnStack:
    """The options of a command that can start a stack of its own (`own_stack_options`)."""

    compose_file: tuple[Path, ...]
    kind: str
    netem: str
    up_deadline: str
    compose_profile: tuple[str, ...] = ()

    def lab(self) -> Lab:
        """The lab of this kind, or for ``auto`` the one that this machine allows; not up yet."""
        chosen, why = decide(self.kind)
        if chosen == "local" and self.kind == "auto":
            say(f"a local lab: {why}")
        lab = make_lab(
            chosen,
            self.compose_file,
            netem=self.netem,
            compose_profiles=self.compose_profile,
            up_deadline=self.up_deadline,
            say=say,
        )
        if origins := origins_of(lab):
            say(origins)
        return lab


def own_stack_options(function: Any) -> Any:
    """Add the options of `OwnStack`, which the function gets as ``stack``."""

    @wraps(function)
    def call(**arguments: Any) -> int:
        own = {field.name: arguments.pop(field.name) for field in fields(OwnStack) if field.name in arguments}
        return int(function(stack=OwnStack(**own), **arguments))

    return compose_file_option(lab_option(netem_option(up_deadline_option(call))))


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
