"""`testbed clean`: what accumulates on a machine, and its removal. Nothing is touched that is not surely ours."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
from rich.table import Table

from testbed import kernel
from testbed.backends.docker import images
from testbed.backends.docker.engine import Engine
from testbed.backends.local import images as local_images
from testbed.commands.console import OUT, say, write
from testbed.commands.options import command, example
from testbed.errors import EnvironmentUnfitError
from testbed.report.files import is_results
from testbed.text import several
from testbed.units import parse_time

_REPORT = Path("report")
_RESULTS = ("results.jsonl", "index.html", "seeds.json", "captures")
_MOST_CHARACTERS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Thing:
    """Something of ours that takes room on a disk."""

    kind: str
    """A key of `KINDS`."""
    name: str
    size_bytes: int
    used_at: float
    """When it was made, or used last if that is known; seconds since the epoch."""
    remove: Callable[[], str | None]
    """Removes it; returns why not."""
    needed: bool = False
    """Whether the next run would have to make or fetch it again."""


def _images() -> Iterator[Thing]:
    """Images that testbed built on the engine: the agent's, and those of services."""
    try:
        engine = Engine()
    except EnvironmentUnfitError:  # nothing is on an engine that does not answer
        return
    for image in images.built(engine):
        yield Thing(
            kind="images",
            name=image.tag,
            size_bytes=image.size_bytes,
            used_at=image.made_at,
            remove=partial(engine.remove_image, image.tag),
            needed=image.tag == images.netem_tag(),
        )


def _unpacked() -> Iterator[Thing]:
    """Images that local labs have unpacked."""
    store = local_images.cache()
    for image in store.images():
        yield Thing(
            kind="unpacked",
            name=several(image.names) or image.content[:12],
            size_bytes=image.size_bytes,
            used_at=image.used_at,
            remove=lambda image=image: None if store.remove(image) else "a lab uses it",  # type: ignore[misc]  # a default binds it
        )


def _kernels() -> Iterator[Thing]:
    """Kernels: carried ones, those with a simulated clock, and the modules that are compiled for these."""
    for pattern in ("kernel-*", "virtual-*", "bytecode-*"):
        for folder in sorted(kernel.cache().glob(pattern)):
            with suppress(FileNotFoundError):  # it was removed meanwhile
                yield Thing(
                    kind="kernels",
                    name=folder.name,
                    size_bytes=_size(folder),
                    used_at=folder.stat().st_mtime,
                    remove=partial(_remove_kernel, folder),
                    needed=folder == kernel.root_folder() or pattern == "virtual-*",
                )


def _remove_kernel(folder: Path) -> str | None:
    """Remove a kernel that no process runs; modules and root file systems, if no kernel runs at all.

    One with a simulated clock has the root file system of a carried one.
    """
    above = folder if folder.name.startswith("virtual-") else folder.parent
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with suppress(OSError):  # it has ended, or is another user's
                if Path(entry.path, "exe").readlink().is_relative_to(above.resolve()):
                    return f"process {entry.name} uses it"
    shutil.rmtree(folder, ignore_errors=True)
    return "some of its files cannot be removed" if folder.exists() else None


def _results() -> Iterator[Thing]:
    """The results of the last run here, with its page and the packets that it kept."""
    if not is_results(_REPORT / _RESULTS[0]):
        return
    for name in _RESULTS:
        path = _REPORT / name
        if path.exists() and not path.is_symlink():
            yield Thing(
                kind="results",
                name=str(path),
                size_bytes=_size(path),
                used_at=path.stat().st_mtime,
                remove=partial(_remove, path),
            )


def _remove(path: Path) -> str | None:
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _size(path: Path) -> int:
    size_bytes = 0
    for entry in (path, *path.rglob("*")):
        with suppress(OSError):  # it was removed meanwhile
            size_bytes += entry.lstat().st_size
    return size_bytes


KINDS: Mapping[str, Callable[[], Iterable[Thing]]] = {
    "images": _images,
    "unpacked": _unpacked,
    "kernels": _kernels,
    "results": _results,
}


def chosen(kinds: Iterable[str], *, older_than_s: float, everything: bool) -> list[Thing]:
    """What is to be removed, by kind and then by age."""
    latest = time.time() - older_than_s
    return [
        thing
        for kind in kinds
        for thing in sorted(KINDS[kind](), key=lambda thing: thing.used_at)
        if thing.used_at <= latest and (everything or not thing.needed)
    ]


def remove(things: Iterable[Thing]) -> list[str]:
    """Remove them; returns the problems."""
    return [f"{thing.name} is left: {reason}" for thing in things if (reason := thing.remove()) is not None]


@command()
@click.argument("kinds", nargs=-1, type=click.Choice(tuple(KINDS)))
@click.option("--yes", is_flag=True, help="Remove it; without this, it is only listed.")
@click.option("--older-than", "age", default="0s", metavar="TIME", help="Only what is older, as in 600min.")
@click.option("--all", "everything", is_flag=True, help="Also what the next run needs: the agent's image, its kernels.")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
@example("""testbed clean
             testbed clean images unpacked --older-than 600min --yes""")
def clean(kinds: tuple[str, ...], yes: bool, age: str, everything: bool, as_json: bool) -> int:
    """List what testbed has left on this machine, and with --yes remove it.

    Images that it built on the engine (with its label and under its names alone), images that local labs unpacked,
    kernels, and the results below report/ here. What is in use stays. Stacks that killed runs left are removed by the
    next run, or by `testbed down --stale`; baselines are kept. Exit status 1 if something could not be removed.
    """
    things = chosen(kinds or KINDS, older_than_s=parse_time(age, name="--older-than"), everything=everything)
    if as_json:
        listed = [
            {"kind": thing.kind, "name": thing.name, "size_bytes": thing.size_bytes, "used_at": thing.used_at}
            for thing in things
        ]
        OUT.print_json(json.dumps(listed))
    elif things:
        show(things)
    if not things:
        say("nothing to remove")
        return 0
    if not yes:
        say("nothing was removed; --yes removes it")
        return 0
    problems = remove(things)
    for problem in problems:
        say(problem)
    return 1 if problems else 0


def show(things: Iterable[Thing]) -> None:
    """A table of them, and their size in all."""
    table = Table("kind", "name", "size", "made or used last")
    total_bytes = 0
    for thing in things:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(thing.used_at))
        table.add_row(thing.kind, thing.name, f"{thing.size_bytes / 1e6:,.0f} MB", used)
        total_bytes += thing.size_bytes
    OUT.print(table)
    write(f"{total_bytes / 1e6:,.0f} MB in all; layers that images share count for each")


COMMANDS = (clean,)
