r"""Files of variables, ``.env`` and those that ``env_file:`` names, as Compose reads them (compose-go, dotenv). Pure.

``NAME=value`` or ``NAME: value``, with or without ``export``. A variable in an unquoted or doubly quoted value is put
in its place: the environment's, or one from further up. Doubly quoted: ``\n`` and the like are what they mean. A name
alone is taken from the environment.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import NamedTuple

from testbed.text import shown

MOST_CHARACTERS = 1 << 20
"""Of all values of a file, variables put in; a program can be given fewer yet."""
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
    """The variables of a file; and what is wrong with it, with its line. ``expand`` puts variables in their places."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    found: dict[str, str] = {}
    known = ChainMap(dict(environment), found)
    at = length = 0
    try:
        while (at := _statement(text, at)) < len(text):
            name, at, alone = _name(text, at)
            if alone:
                if name in environment:
                    found[name] = environment[name]
                continue
            start = at
            try:
                found[name], at = _value(text, at, lambda said: expand(said, known))
                length += len(found[name])
                if length > MOST_CHARACTERS:
                    raise ValueError(
                        f"{shown(name)}: the variables up to here are more than {MOST_CHARACTERS} characters"
                    )
                if "\0" in found[name]:
                    raise ValueError(f"{shown(name)}: a variable's value has no NUL")
            except ValueError:
                at = start
                raise
    except ValueError as error:
        return found, [(text.count("\n", 0, at) + 1, str(error))]
    return found, []


def parse_raw(text: str, environment: Mapping[str, str]) -> tuple[dict[str, str], list[tuple[int, str]]]:
    """The same of a file in the format ``raw``: ``NAME=value``, of which all is meant as it is written."""
    found: dict[str, str] = {}
    problems = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        said = line.removesuffix("\r").lstrip(" \t")
        if not said or said.startswith("#"):
            continue
        name, equals, value = said.partition("=")
        if not name or any(blank in name for blank in _BLANKS):
            problems.append(
                (number, f"{shown(name)}: a variable's name is not empty and has no blanks; write NAME=value")
            )
        elif "\0" in said:
            problems.append((number, f"{shown(said)}: a variable has no NUL"))
        elif equals or name in environment:
            found[name] = value if equals else environment[name]
    return found, problems


def _statement(text: str, at: int) -> int:
    """Where the next statement begins: behind blanks and comments."""
    while at < len(text):
        if text[at] == "#":
            end = text.find("\n", at)
            at = len(text) if end < 0 else end
        elif not text[at].isspace():
            break
        at += 1
    return at


def _name(text: str, at: int) -> tuple[str, int, bool]:
    """A name, where its value begins, and whether it stands alone."""
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
            # Another character behind it is for `_ESCAPE` to judge, and a single quote's text is as it is.
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
    # Go's octal escapes have three digits and no 0 before them; of another, compose-go leaves the 0 out.
    return chr(int(digits, 8)) if re.fullmatch(r"[0-3][0-7]{2}", digits) else f"\\{digits}"
