r"""Files of variables, ``.env`` and those of ``env_file:``, read as Compose does (compose-go, dotenv). Pure.

``NAME=value`` or ``NAME: value``, with or without ``export``. In unquoted and doubly quoted values, variables are
replaced: by those of the environment, or by earlier ones. In double quotes, ``\n`` and the like are escapes. A name
without a value is taken from the environment.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import NamedTuple

from testbed.text import shown

MOST_CHARACTERS = 1 << 20
"""The most characters of all values of a file, with variables replaced."""
Expand = Callable[[str, Mapping[str, str]], str]

_BLANKS = "\t\v\f\r \x85\xa0"
_ESCAPES = {
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
    "\\": "\\",
    '"': '"',
    "$": "$$",
}
_ESCAPE = re.compile(r'\\(?:0(\d{0,3})|([abfnrtv$"\\]))')


class _Read(NamedTuple):
    value: str
    at: int


def parse(text: str, environment: Mapping[str, str], *, expand: Expand) -> tuple[dict[str, str], list[tuple[int, str]]]:
    """The variables of a file; and its problems, with their lines. ``expand`` replaces variables in a value."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    values: dict[str, str] = {}
    known = ChainMap(dict(environment), values)
    at = length = 0
    try:
        while (at := _statement(text, at)) < len(text):
            name, at, alone = _name(text, at)
            if alone:
                if name in environment:
                    values[name] = environment[name]
                continue
            start = at
            try:
                values[name], at = _value(text, at, lambda value: expand(value, known))
                length += len(values[name])
                if length > MOST_CHARACTERS:
                    raise ValueError(
                        f"{shown(name)}: the variables up to here are more than {MOST_CHARACTERS} characters"
                    )
                if "\0" in values[name]:
                    raise ValueError(f"{shown(name)}: a variable's value has no NUL")
            except ValueError:
                at = start
                raise
    except ValueError as error:
        return values, [(text.count("\n", 0, at) + 1, str(error))]
    return values, []


def parse_raw(text: str, environment: Mapping[str, str]) -> tuple[dict[str, str], list[tuple[int, str]]]:
    """The same of a file in the format ``raw``: lines ``NAME=value``, without quotes and variables."""
    values: dict[str, str] = {}
    problems = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        statement = line.removesuffix("\r").lstrip(" \t")
        if not statement or statement.startswith("#"):
            continue
        name, equals, value = statement.partition("=")
        if not name or any(blank in name for blank in _BLANKS):
            problems.append(
                (number, f"{shown(name)}: a variable's name is not empty and has no blanks; write NAME=value")
            )
        elif "\0" in statement:
            problems.append((number, f"{shown(statement)}: a variable has no NUL"))
        elif equals or name in environment:
            values[name] = value if equals else environment[name]
    return values, problems


def _statement(text: str, at: int) -> int:
    """The position of the next statement, after blanks and comments."""
    while at < len(text):
        if text[at] == "#":
            end = text.find("\n", at)
            at = len(text) if end < 0 else end
        elif not text[at].isspace():
            break
        at += 1
    return at


def _name(text: str, at: int) -> tuple[str, int, bool]:
    """A name, the position of its value, and whether it has none."""
    if match := re.compile(r"export\s+").match(text, at):
        at = match.end()
    end = at
    while end < len(text) and text[end] not in "=:\n":
        if not (text[end] in _BLANKS or text[end] in "_.-[]" or text[end].isalnum()):
            line = text[at:].partition("\n")[0]
            raise ValueError(f"{shown(line)}: {shown(text[end])} may not stand in a variable's name")
        end += 1
    name = text[at:end].rstrip()
    alone = end == len(text) or text[end] == "\n"
    if any(blank in name for blank in _BLANKS):
        raise ValueError(f"{shown(name)}: a variable's name has no blanks; write NAME=value")
    end += not alone
    while not alone and end < len(text) and text[end] in _BLANKS:
        end += 1
    return name, end, alone


def _value(text: str, at: int, expand: Callable[[str], str]) -> _Read:
    if (quote := text[at : at + 1]) not in ("'", '"'):
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        return _Read(expand(text[at:end].partition(" #")[0].rstrip()), end)
    inside, end = "", at + 1
    while end < len(text) and text[end] != quote:
        if text[end] == "\\" and end + 1 < len(text):
            # `_ESCAPE` replaces other escapes, in double quotes.
            inside += text[end + 1] if text[end + 1] == quote else text[end : end + 2]
            end += 2
        else:
            inside += text[end]
            end += 1
    if end >= len(text):
        raise ValueError(f"{shown(text[at:].partition(chr(10))[0])}: without its closing quote")
    return _Read(expand(_ESCAPE.sub(_escaped, inside)) if quote == '"' else inside, end + 1)


def _escaped(match: re.Match[str]) -> str:
    digits = match[1]
    if digits is None:
        return _ESCAPES[match[2]]
    # Go's octal escapes have three digits and no leading 0; compose-go removes the 0 of others.
    return chr(int(digits, 8)) if re.fullmatch(r"[0-3][0-7]{2}", digits) else f"\\{digits}"
