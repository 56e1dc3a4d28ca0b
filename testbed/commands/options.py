"""The options that several commands share, and the form of a command's help."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from testbed.compose.options import LAB_CHOICES, NETEM_CHOICES, UP_DEADLINE

_AFTER_A_SENTENCE = re.compile(r"(?<=\.) ")


compose_file_option = click.option(
    "--compose-file",
    "-f",
    type=click.Path(path_type=Path),
    multiple=True,
    help="The Compose file; repeatable: later files add to earlier ones (default: the file that Compose finds here).",
)
compose_profile_option = click.option(
    "--compose-profile", multiple=True, help="Activate a Compose profile; repeatable."
)
lab_option = click.option(
    "--lab",
    "kind",
    type=click.Choice(LAB_CHOICES),
    default="auto",
    show_default=True,
    help="Containers of an engine, namespaces of this machine, or auto: containers if an engine answers.",
)
netem_option = click.option(
    "--netem",
    type=click.Choice(NETEM_CHOICES),
    default="auto",
    show_default=True,
    help="Who executes netem: this kernel, a kernel that testbed brings, or auto: this kernel if it has netem.",
)
up_deadline_option = click.option(
    "--up-deadline",
    default=UP_DEADLINE,
    show_default=True,
    metavar="TIME",
    help="How long the stack may take to start.",
)


def _with_an_engine(_context: click.Context, _option: click.Parameter, kind: str) -> None:
    if kind == "local":
        raise click.BadParameter(
            "a local lab ends with the command that started it, so none is running; `testbed shell`, `testbed exec` "
            "and `testbed prove` start one, impair its links and take it down"
        )


running_lab_option = click.option(
    "--lab",
    type=click.Choice(LAB_CHOICES),
    default="auto",
    expose_value=False,
    callback=_with_an_engine,
    help="Only containers of an engine can be left running: local is refused.",
)
reject_option = click.option(
    "--reject", is_flag=True, help="Answer lost packets with TCP resets and ICMP errors, as a firewall does."
)
impair_option = click.option(
    "--impair",
    "impaired",
    multiple=True,
    metavar="LINK=PROFILE|WORDS",
    help='Impair a link first, as in "a -> b=lossy" or "a -> b=delay=5ms loss=1%"; repeatable.',
)


def example(text: str) -> Callable[[Any], Any]:
    """Put an example below a command's help."""

    def add(function: Any) -> Any:
        lines = "\n".join(f"  {line.strip()}" for line in text.strip().splitlines())
        described = inspect.cleandoc(function.__doc__)  # before 3.13 it has the source's indentation
        function.__doc__ = f"{described}\n\n\b\nExample:\n{lines}"
        return function

    return add


class Command(click.Command):
    """A command whose summary in the list of commands is its first sentence."""

    def get_short_help_str(self, limit: int = 0) -> str:  # noqa: ARG002  # click's
        """The first sentence."""
        return _AFTER_A_SENTENCE.split(" ".join((self.help or "").split()))[0]


def command(name: str | None = None, **attributes: Any) -> Callable[[Callable[..., int]], Command]:
    """Make a command of a function that returns the exit status."""
    return click.command(name, cls=Command, **attributes)
