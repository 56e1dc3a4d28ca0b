"""`testbed completion`: the shell's completion of the `testbed` command, which click has."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from testbed.commands.console import write
from testbed.commands.options import command, example

_SHELLS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


@command()
@click.argument("shell", type=click.Choice(tuple(_SHELLS)))
@example("""testbed completion bash >> ~/.bashrc
             testbed completion fish > ~/.config/fish/completions/testbed.fish""")
def completion(shell: str) -> int:
    """Print the lines that have a shell complete the words of `testbed`."""
    root = click.get_current_context().find_root().command
    write(_SHELLS[shell](root, {}, "testbed", "_TESTBED_COMPLETE").source())
    return 0


COMMANDS = (completion,)
