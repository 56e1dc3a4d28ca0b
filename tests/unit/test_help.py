"""What `--help` prints: whole sentences and whole examples, on every Python."""

from __future__ import annotations

import inspect
import re

import click
import pytest
from click.testing import CliRunner

from testbed.commands.cli import cli

GROUPS = {name: command for name, command in cli.commands.items() if isinstance(command, click.Group)}
COMMANDS = ["", *cli.commands, *(f"{name} {inner}" for name, group in GROUPS.items() for inner in group.commands)]
WIDTH = 80


def helped(name: str) -> str:
    result = CliRunner().invoke(cli, [*name.split(), "--help"], terminal_width=WIDTH)
    assert result.exit_code == 0
    return result.output


def paragraphs(name: str) -> list[str]:
    command: click.Command = cli
    for word in name.split():
        command = command.commands[word] if isinstance(command, click.Group) else command
    blocks = inspect.cleandoc(command.help or "").split("\n\n")
    return [" ".join(line.split()) for line in blocks if not line.startswith("\b")]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_sentence_is_printed_whole_on_lines_that_begin_alike(name: str) -> None:
    assert paragraphs(name)
    text = helped(name).partition("\n\n")[2].partition("\n\n  Example:\n")[0]
    printed = text.split("\n\n")
    assert [" ".join(line.split()) for line in printed] == paragraphs(name)
    for line in text.splitlines():
        assert not line or re.fullmatch(r"  \S+( \S+)*", line), f"{line!r}: indented, or with a gap in it"
        assert len(line) <= WIDTH


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_is_a_line_that_can_be_copied(name: str) -> None:
    examples = helped(name).partition("\n  Example:\n")[2].partition("\n\n")[0].splitlines()
    assert examples
    assert all(re.match(r"    testbed( |$)", line) for line in examples), examples


def test_no_commands_summary_is_cut() -> None:
    listed = " ".join(helped("").partition("Commands:\n")[2].split())
    assert "..." not in listed
    for name in cli.commands:
        first, *_ = re.split(r"(?<=\.)(?:\s|$)", paragraphs(name)[0])
        assert f"{name} {first}" in listed
