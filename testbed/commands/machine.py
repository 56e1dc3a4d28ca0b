"""Commands on the machine and the profiles: what there is, and what is missing."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
from rich.table import Table

from testbed.backends.docker import images as image_store
from testbed.backends.docker.engine import Engine
from testbed.backends.local import images as local_images
from testbed.commands import doctor as diagnosis
from testbed.commands import noise as noises
from testbed.commands.console import OUT, say, write
from testbed.commands.options import command, example
from testbed.errors import UserError
from testbed.netem.profiles import find_profile, load_profiles
from testbed.report import console as tables
from testbed.report import profile as explained
from testbed.spec.features import WORDS
from testbed.text import shown


@command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.option("--noise", is_flag=True, help="Instead, run tests against themselves for a minute: see below.")
@click.argument("pytest_args", nargs=-1, type=click.UNPROCESSED)
@example("""testbed doctor --json
             testbed doctor --noise -- tests/test_upload.py""")
def doctor(as_json: bool, noise: bool, pytest_args: tuple[str, ...]) -> int:
    """Try what this machine can do; show what is missing, what that costs, and how to get it.

    With --noise and what pytest is to run: the smallest effect that `testbed ab` can find here, by number of pairs.
    Exit status 1 if a lab cannot run here.
    """
    if noise:
        comparison, pair_s = noises.measure(pytest_args)
        if as_json:
            OUT.print_json(json.dumps({"pair_s": pair_s, "metrics": list(noises.effects(comparison))}))
        else:
            noises.show(OUT, comparison, pair_s)
        return 0
    if pytest_args:
        raise UserError(f"{shown(pytest_args[0])}: tests are given to --noise alone")
    findings = diagnosis.examine(say)
    if as_json:
        OUT.print_json(json.dumps([finding.as_json() for finding in findings]))
    else:
        tables.print_findings(OUT, findings)
    return 0 if diagnosis.fit(findings) else 1


@command()
@click.option("--words", is_flag=True, help="List the words of profiles and markers.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.argument("name", required=False)
@example("""testbed profiles
             testbed profiles tunnel""")
def profiles(words: bool, as_json: bool, name: str | None) -> int:
    """List the profiles, or explain the profile NAME: its tc words, its delays and its timeline, drawn."""
    if words:
        if as_json:
            OUT.print_json(json.dumps({word.name: word.help for word in WORDS.values()}))
            return 0
        table = Table("word", "meaning")
        for word in WORDS.values():
            table.add_row(word.name, word.help)
        OUT.print(table)
        return 0
    known = load_profiles(Path("netem"))
    if name is not None:
        profile = find_profile(known, name)
        if as_json:
            OUT.print_json(json.dumps(explained.profile_json(profile)))
        else:
            explained.print_profile(OUT, profile)
    elif as_json:
        OUT.print_json(json.dumps([explained.profile_json(profile) for _, profile in sorted(known.checked().items())]))
    else:
        tables.print_profiles(OUT, known)
    return 0


@command()
@click.option("--check", is_flag=True, help="Change nothing; exit status 1 if an image is missing or out of date.")
@click.option("--base-reachable", is_flag=True, help="Exit status 1 if the base image is neither here nor pullable.")
@click.option("--names", is_flag=True, help="Print their names, which change with their content; needs no engine.")
@click.option(
    "--archive",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Load the agent's image from this archive; if it is not in it, build it and write the archive (for CI).",
)
@click.option("--unpacked", is_flag=True, help="List the images that local labs have unpacked: size and last use.")
@click.option("--remove", metavar="NAME", help="Remove such an image, by name or id, or `all`; not one that is in use.")
@example("""testbed images
             testbed images --remove all""")
def images(
    check: bool, base_reachable: bool, names: bool, archive: Path | None, unpacked: bool, remove: str | None
) -> int:
    """Build or pull the images that every lab needs: the base image and the agent's.

    With --unpacked or --remove: the images of services, as local labs have unpacked them.
    """
    if unpacked or remove is not None:
        return _unpacked(remove)
    if names:
        write(f"{image_store.BASE}\n{image_store.netem_tag()}")
        return 0
    engine = Engine()
    if base_reachable:
        return 0 if image_store.base_pullable(engine) else 1
    if check:
        return 0 if engine.image_labels(image_store.netem_tag()) is not None else 1
    if archive is not None:
        image_store.ensure_archived(engine, archive, say)
    image_store.ensure_base(engine, say)
    write(f"{image_store.BASE}\n{image_store.ensure_netem(engine, say)}")
    return 0


def _unpacked(remove: str | None) -> int:
    """Remove unpacked images of this name, then list what is left."""
    store = local_images.cache()
    if remove is not None:
        chosen = [
            image for image in store.images() if remove in ("all", *image.names) or image.content.startswith(remove)
        ]
        if not chosen and remove != "all":
            raise UserError(f"no unpacked image {shown(remove)}: see `testbed images --unpacked`")
        store.remove_unfinished()
        if in_use := [image for image in chosen if not store.remove(image)]:
            raise UserError(f"in use by a lab that runs: {', '.join(', '.join(image.names) for image in in_use)}")
    table = Table("names", "content", "size", "last use", "without")
    for image in store.images():
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(image.used_at))
        table.add_row(", ".join(image.names), image.content[:12], f"{image.size_bytes / 1e6:,.0f} MB", used, image.lost)
    OUT.print(table)
    return 0


COMMANDS = (doctor, profiles, images)
