"""The examples of a page of documentation in order: files, tests, scripts and commands, as a reader would use them.

A fenced block is one of these, and anything else is refused, so that no example goes without a test:

* ``python``, ``yaml`` or ``dockerfile`` whose first line is a comment with a path: that file of the project; ``text``
  with such a line: the file has what follows it;
* ``python`` with a test function: a test module; with ``LocalLab``: a script; else the body of a test;
* ``console``: commands behind ``$``, each with what it prints below it; ``# exit status 1`` if it fails; ``…`` stands
  for lines, or the rest of one, that are left out;
* other ``text``: what something looks like; no command;
* a directive of the site's generator (``{include}``): not an example.

``<!-- not run: REASON -->`` above a block says why no test runs it; tests/lab/test_documents.py knows the reasons.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<kind>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
_PATH = re.compile(r"# (?P<path>[\w./-]+\.\w+|[\w./-]*Dockerfile)\n")
_STATUS = re.compile(r"\s+# exit status (\d)$")
_COMMAND = re.compile(r"^\s*(\$ |testbed |pytest |pip |docker |make )", re.MULTILINE)
_BODY = 'import pytest\n\n\n@pytest.mark.impair("client -> server", delay="100ms")\ndef test_it(lab):\n'
"""Around the body of a test: on a link that delivers every packet."""


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of the reader's project."""

    path: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Test:
    """A test module."""

    __test__ = False  # pytest must not collect it

    text: str


@dataclass(frozen=True, kw_only=True)
class Script:
    """A Python program."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Command:
    """A line for the shell."""

    line: str
    status: int = 0
    shown: tuple[str, ...] = ()
    """What the page says that it prints."""

    def missing(self, output: str) -> str | None:
        """The first line of the page that the output lacks after the lines before it; None if it has all.

        Numbers and their units, identifiers and the width of columns may differ.
        """
        lines = iter([_outline(line) for line in output.splitlines()])
        for line in self.shown:
            begin, cut, _ = _outline(line).partition("…")
            if not any(line.startswith(begin.strip()) if cut else line == begin for line in lines):
                return line
        return None


@dataclass(frozen=True, kw_only=True)
class NotRun:
    """A block that no test runs."""

    reason: str
    text: str


Step = File | Test | Script | Command | NotRun


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page and its examples."""

    name: str
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return self.name


def read(path: Path, root: Path) -> Page:
    """The examples of a page. Raises ValueError for a block of a kind that nobody runs."""
    name = str(path.relative_to(root))
    text = path.read_text(encoding="utf-8")
    if text.count("```") != 2 * len(list(_BLOCK.finditer(text))):
        raise ValueError(f"{name}: a fenced block begins and ends at the start of a line, with three backquotes")
    try:
        return Page(name=name, steps=tuple(step for block in _BLOCK.finditer(text) for step in _steps(block)))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _steps(block: re.Match[str]) -> Iterator[Step]:
    kind, code, named = block["kind"], block["code"], _PATH.match(block["code"])
    if block["reason"]:
        yield NotRun(reason=block["reason"], text=code)
    elif kind in ("python", "yaml", "dockerfile", "text") and named is not None:
        yield File(path=named["path"], text=code if kind != "text" else code[named.end() :])
    elif kind == "python" and "def test_" in code:
        yield Test(text=code)
    elif kind == "python" and "LocalLab" in code:
        yield Script(text=code)
    elif kind == "python":
        yield Test(text=_BODY + textwrap.indent(code, "    "))
    elif kind == "console":
        yield from _commands(code)
    elif kind == "text":
        if _COMMAND.search(code):
            raise ValueError(f"a block of text has a command: {code}")
    elif not kind.startswith("{"):
        raise ValueError(f"a block of {kind or 'no kind'} that no test runs: {code}")


def _commands(code: str) -> Iterator[Command]:
    if not code.startswith("$ "):
        raise ValueError(f"a console begins with a command, behind $: {code}")
    for word in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]:
        line, *shown = word.replace("\\\n", "").splitlines()
        status = _STATUS.search(line)
        yield Command(
            line=_STATUS.sub("", line),
            status=int(status[1]) if status else 0,
            shown=tuple(line for line in shown if line.strip() not in ("", "…")),
        )


def _outline(line: str) -> str:
    """A line without the parts that differ between two runs."""
    line = re.sub(r"\b(?=[0-9a-f]*\d)[0-9a-f]{8,}\b", "0", line)  # a run's name
    line = re.sub(r" \(\d+:\d\d:\d\d\)", "", line)  # of pytest's, behind more than a minute
    line = re.sub(r"[\d.,]*\d ?(?:(?:ns|us|µs|ms|s|min|kB|MB)\b)?", "0", line)
    return re.sub(r"[\s─━=_-]+", " ", line).strip()
