"""`testbed kernel`: the kernel with a simulated clock, in which `pytest --virtual-time` runs."""

from __future__ import annotations

import json

import click

from testbed.commands.console import OUT, say, write
from testbed.commands.options import command, example
from testbed.kernel import building


@click.group()
@example("""testbed kernel build
             testbed kernel status""")
def kernel() -> None:
    """Build, show or remove the kernel for virtual time."""


@command()
@click.option("--newest", is_flag=True, help="Look for a newer source, even if a kernel of this recipe is there.")
@example("""testbed kernel build
             testbed kernel build --newest""")
def build(newest: bool) -> int:
    """Build it from the newest Linux source that apt can get, and print its path.

    Three minutes on two free cores, 250 MB of downloads and 4.5 GB of disk meanwhile; 10 MB stay. What it needs, the
    compiler included, comes from Debian's archive into the cache; nothing is installed. Does nothing if a kernel is
    there already. Exit status 2, naming all that is missing, if it cannot be built.
    """
    there = None if newest else building.find()
    built = there or building.build(say)
    say(f"{'there already' if there else 'built'}: {built.source}")
    write(str(built.path))
    return 0


@command()
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@example("testbed kernel status --json")
def status(as_json: bool) -> int:
    """Show the kernel that would be used. Exit status 1 if there is none."""
    known = building.find()
    if as_json:
        OUT.print_json(json.dumps(known and known.as_json()))
    elif known is None:
        write("none: `testbed kernel build` builds one")
    else:
        write(f"{known.path}\nsource   {known.source}\nsha256   {known.sha256}")
        write(f"from     {building.OWN_KERNEL}" if known.own else f"built    in {known.seconds:.0f} s")
    return 0 if known else 1


@command()
@example("testbed kernel path")
def path() -> int:
    """Print the path of the kernel that would be used. Exit status 1 if there is none."""
    known = building.find()
    if known is not None:
        write(str(known.path))
    return 0 if known else 1


@command()
@example("testbed kernel remove")
def remove() -> int:
    """Remove every kernel that was built here, of this and of earlier recipes, and what killed builds left."""
    removed = building.remove()
    say(f"removed: {', '.join(folder.name for folder in removed)}" if removed else "nothing to remove")
    return 0


for _command in (build, status, path, remove):
    kernel.add_command(_command)

COMMANDS = (kernel,)
