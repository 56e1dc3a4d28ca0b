"""The parts of the reference that are generated from the package: what it says of itself, as Markdown.

The command line and the plugin are found as their users find them, by entry points; names that are not public stand in
one place, `RESULTS` and `CLAIMS`. Docstrings of the public API are Sphinx's autodoc's.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from testbed.resources import resource

ROOT = Path(__file__).parents[1]
RESULTS = "testbed.evidence.results"
"""The module whose docstring is the schema of the results file."""
CLAIMS = "testbed.paper"
"""The module that has the paper's claims."""


def write(folder: Path) -> None:
    """Write each part into its file; one that has not changed is left alone, so that its page is not built again."""
    folder.mkdir(exist_ok=True)
    for name, part in PARTS.items():
        text = "\n".join(part()) + "\n"
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


# --- the command line -----------------------------------------------------------------------------


def _group() -> click.Group:
    """The command group behind the `testbed` command."""
    (entry,) = entry_points(group="console_scripts", name="testbed")
    module = sys.modules[entry.load().__module__]
    (group,) = (value for value in vars(module).values() if isinstance(value, click.Group))
    return group


def _command_line() -> Iterator[str]:
    for name, command in _commands(_group(), ""):
        context = click.Context(command, info_name=f"testbed {name}", max_content_width=100)
        help_text, _, example = inspect.cleandoc(command.help or "").partition("\n\n\b\nExample:\n")
        yield from (f"## testbed {name}", "", _paragraphs(help_text), "")
        yield from _literal(context.get_usage().removeprefix("Usage: "))
        options = [option for option in command.params if isinstance(option, click.Option)]
        if options:
            rows = ((", ".join(_forms(each, context)), _meaning(each, context)) for each in options)
            yield from _table(("option", "meaning"), rows)
        if example:
            yield from ("Example:", "", *_literal(inspect.cleandoc(example)))


def _commands(group: click.Group, before: str) -> Iterator[tuple[str, click.Command]]:
    """Every command with its name, each behind the group that it is in."""
    for name, command in sorted(group.commands.items()):
        yield f"{before}{name}", command
        if isinstance(command, click.Group):
            yield from _commands(command, f"{before}{name} ")


def _paragraphs(help_text: str) -> str:
    """A command's help, without click's own marks."""
    return help_text.replace("\b\n", "")


def _forms(option: click.Option, context: click.Context) -> list[str]:
    record = option.get_help_record(context)
    return [f"`{record[0]}`"] if record is not None else []


def _meaning(option: click.Option, context: click.Context) -> str:
    record = option.get_help_record(context)
    return record[1] if record is not None else ""


# --- the plugin -----------------------------------------------------------------------------------


class _Options:
    """Takes the place of pytest's parser, and keeps what is declared."""

    def __init__(self) -> None:
        self.declared: list[tuple[tuple[str, ...], dict[str, Any]]] = []

    def getgroup(self, *_name: str, **_words: str) -> _Options:
        return self

    def addoption(self, *names: str, **attributes: Any) -> None:
        self.declared.append((names, attributes))


class _Markers:
    """A plugin of a pytest run without tests, which hears of every marker."""

    lines: list[str]

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self.lines = session.config.getini("markers")


def _plugin() -> Any:
    (entry,) = entry_points(group="pytest11", name="testbed")
    return entry.load()


def _pytest_options() -> Iterator[str]:
    options = _Options()
    _plugin().pytest_addoption(options)
    rows = []
    for names, said in options.declared:
        if said["help"] == argparse.SUPPRESS:
            continue
        metavar = said.get("metavar") or "|".join(said.get("choices", ()))
        default = said.get("default")
        meaning = said["help"].replace("%(default)s", str(default))
        rows.append((f"`{names[0]}{f' {metavar}' if metavar else ''}`", meaning))
    yield from _table(("option", "meaning"), rows)


def _pytest_markers() -> Iterator[str]:
    heard = _Markers()
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--collect-only", f"--rootdir={folder}", "-p", "no:terminal", "-p", "no:cacheprovider", folder]
        status = pytest.main(arguments, plugins=[heard])
    if status != pytest.ExitCode.NO_TESTS_COLLECTED:
        raise RuntimeError(f"pytest without tests ended with {status}")
    ours = [line for line in heard.lines if line.startswith("impair")]
    for line in ours:
        marker, _, meaning = line.partition("): ")
        yield from (f"`@pytest.mark.{marker})`", f": {meaning}", "")


def _pytest_fixtures() -> Iterator[str]:
    plugin = _plugin()
    for name in sorted(vars(plugin)):
        value = getattr(plugin, name)
        if type(value).__name__ == "FixtureFunctionDefinition" and not name.startswith("_"):
            scope = value._fixture_function_marker.scope  # pytest has no public way to it
            described = (inspect.getdoc(value) or "").replace("``", "`").split("\n\n")
            yield f"`{name}` (scope: {scope})"
            yield from (f": {described[0]}", *(f"\n  {each}" for each in described[1:]), "")


# --- impairments and profiles ---------------------------------------------------------------------


def _asked(*arguments: str) -> Any:
    """What a command prints as JSON."""
    done = CliRunner().invoke(_group(), [*arguments, "--json"], catch_exceptions=False)
    return json.loads(done.output)


def _words() -> Iterator[str]:
    words: dict[str, str] = _asked("profiles", "--words")
    yield from _table(("word", "meaning"), ((f"`{name}`", meaning) for name, meaning in words.items()))


def _profiles() -> Iterator[str]:
    for profile in _asked("profiles"):
        name = profile["name"]
        yield from (f"### {name}", "", f"{profile['description'] or 'Without a description'}.", "")
        yield from (f"```{{literalinclude}} ../../netem/{name}.yaml", ":language: yaml", "```", "")


# --- results and claims ---------------------------------------------------------------------------


def _results() -> Iterator[str]:
    module = import_module(RESULTS)
    yield from ((inspect.getdoc(module) or "").replace("``", "`"), "")
    schema = json.loads(resource(f"testbed/evidence/{module.SCHEMA_FILE}").read_text(encoding="utf-8"))
    for part in schema["$defs"].values():
        if len(part["properties"]) > 1:
            yield from (f"**{part['description']}**", "")
            yield from _table(("key", "meaning"), _keys(part, schema["$defs"]))


def _keys(part: dict[str, Any], known: dict[str, Any], within: str = "") -> Iterator[tuple[str, str]]:
    """Each key of an object, and of the objects in it, with its description."""
    for key, described in part["properties"].items():
        items = described.get("items", described)
        referred = known[items["$ref"].rpartition("/")[2]] if "$ref" in items else None
        below = f"; see *{referred['description'].partition(';')[0]}*" if referred is not None else ""
        said = described.get("description") or (referred or {})["description"].lower()
        yield f"`{within}{key}`", f"{said}{below if 'description' in described else ''}"
        for form in (items, *items.get("oneOf", ())):
            if "properties" in form:
                yield from _keys(form, known, f"{within}{key}.")


def _claims() -> Iterator[str]:
    for claim in import_module(CLAIMS).CLAIMS.values():
        yield from (f"### {claim.id}: {claim.name}", "", f"*The paper ({claim.section}): {claim.text}.*", "")
        yield from (inspect.cleandoc(claim.how).replace("``", "`"), "")


def _schema(name: str) -> Iterator[str]:
    printed = CliRunner().invoke(_group(), ["schema", name], standalone_mode=False)
    if printed.exception is not None:
        raise printed.exception
    yield from ("```json", printed.stdout, "```", "")


# --- Markdown -------------------------------------------------------------------------------------


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in row)} |"
    yield ""


def _literal(text: str) -> Iterator[str]:
    yield from ("```text", text, "```", "")


PARTS: dict[str, Callable[[], Iterator[str]]] = {
    "command-line": _command_line,
    "pytest-options": _pytest_options,
    "pytest-markers": _pytest_markers,
    "pytest-fixtures": _pytest_fixtures,
    "words": _words,
    "profiles": _profiles,
    "results": _results,
    "claims": _claims,
    "schema-profile": lambda: _schema("profile"),
    "schema-compose": lambda: _schema("compose"),
}
