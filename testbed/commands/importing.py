"""`testbed import`: another tool's command line as a profile or as a test."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping

import click

from testbed.commands.console import write
from testbed.commands.options import command, example
from testbed.errors import UserError
from testbed.netem.imported import TOOLS, Imported
from testbed.spec.words import unknown
from testbed.text import shown

_NAMES = {"tcconfig": "tcset", "toxiproxy": "toxiproxy-cli"}


@command("import", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--test", "as_test", is_flag=True, help="Print a test with markers, not a profile.")
@click.argument("line", nargs=-1, required=True, type=click.UNPROCESSED)
@example("""testbed import pumba netem --duration 5m delay --time 3000 --jitter 30 --distribution normal api
             testbed import --test tcset eth0 --rate 100Kbps --delay 100ms --loss 0.1%
             testbed import toxiproxy-cli toxic add -t latency -a latency=100 -a jitter=50 redis""")
def import_(as_test: bool, line: tuple[str, ...]) -> int:
    """Turn a command line of Pumba, tcconfig or Toxiproxy into a profile, or a test.

    What differs is printed with it as comments. What cannot be translated is told, with what to write instead.
    """
    name, *arguments = line
    tool = _NAMES.get(name, name)
    if tool not in TOOLS:
        raise UserError(f"{shown(name)}: {unknown(name, TOOLS)}")
    if arguments[:1] == [tool]:
        del arguments[0]
    imported = TOOLS[tool](arguments)
    comments = [f"# from: {shlex.join([tool, *arguments])}", *(f"# differs: {text}" for text in imported.differs)]
    write("\n".join([*comments, *(_test(imported) if as_test else _profile(imported))]))
    return 0


def _profile(imported: Imported) -> Iterator[str]:
    yield f'# a profile, as in netem/imported.yaml: impair({json.dumps(imported.link)}, "imported")'
    for name, words in (("forward", imported.forward), ("reverse", imported.reverse)):
        yield f"{name}: {{{', '.join(f'{word}: {json.dumps(value)}' for word, value in words.items())}}}"


def _test(imported: Imported) -> Iterator[str]:
    yield from ("import pytest", "", "")
    sender, _, rest = imported.link.partition(" -> ")
    receiver, space, traffic = rest.partition(" ")
    back = f"{receiver} -> {sender}{space}{traffic}"
    for link, words in ((imported.link, imported.forward), (back, imported.reverse)):
        if words:
            yield f"@pytest.mark.impair({json.dumps(link)}, {_words(words)})"
    yield from ("def test_over_this_link(lab):", "    ...  # what must work over it")


def _words(words: Mapping[str, str]) -> str:
    return ", ".join(f"{word}={json.dumps(value)}" for word, value in words.items())


COMMANDS = (import_,)
