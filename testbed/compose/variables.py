"""Variables of a Compose file: where they are set, and how they are put into texts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from testbed import reading
from testbed.compose import dotenv
from testbed.compose.shapes import quoted
from testbed.text import shown

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_PLAIN = re.compile(_NAME)
_MOST_DEPTH = 100


def variables_of(folder: Path, environment: Mapping[str, str]) -> tuple[Mapping[str, str], list[tuple[int, str]]]:
    """The environment and what a folder's ``.env`` adds to it; and the problems of that file, by line."""
    values, problems = env_file(folder / ".env", environment, folder)
    return {**values, **environment}, problems


def env_file(
    path: Path, environment: Mapping[str, str], folder: Path, *, raw: bool = False
) -> tuple[dict[str, str], list[tuple[int, str]]]:
    """The variables of a file; and its problems, by line, 0 for the whole file.

    The content of a file outside the folder is not quoted.
    """
    if not reading.exists(path):
        return {}, []
    try:
        text = reading.read_text(path, most_bytes=dotenv.MOST_CHARACTERS)
    except reading.UnreadableError as error:
        return {}, [(error.line, error.reason)]
    if raw:
        values, problems = dotenv.parse_raw(text, environment)
    else:
        values, problems = dotenv.parse(text, environment, expand=interpolate)
    if problems and not reading.is_below(path, [folder]):
        unquoted = f"is no variable; the line is not quoted, as the file is outside {folder}"
        problems = [(line, unquoted) for line, _ in problems]
    return values, problems


def interpolate(text: str, variables: Mapping[str, str], depth: int = 0, *, unset: set[str] | None = None) -> str:
    """Put variables in place of ``$NAME`` and ``${NAME…}``; ``$$`` is a dollar sign.

    ``${NAME:-text}``, ``-``, ``:?``, ``?``, ``:+`` and ``+`` as in Compose (reference, Interpolation); any other dollar
    sign stays. A variable that is not set and has no default joins ``unset``. Raises ValueError for a required variable
    that is not set, and for what is no variable.
    """
    if depth > _MOST_DEPTH:
        raise ValueError(f"{quoted(text)}: variables nested more than {_MOST_DEPTH} deep")
    result, at = "", 0
    while (dollar := text.find("$", at)) >= 0:
        result += text[at:dollar]
        following = text[dollar + 1 : dollar + 2]
        if following == "$":
            result, at = result + "$", dollar + 2
        elif following == "{":
            end = _closing(text, dollar + 2)
            result, at = result + _substituted(text[dollar + 2 : end], text, variables, depth, unset), end + 1
        elif match := _PLAIN.match(text, dollar + 1):
            if unset is not None and match[0] not in variables:
                unset.add(match[0])
            result, at = result + variables.get(match[0], ""), match.end()
        else:
            result, at = result + "$", dollar + 1
        if len(result) > dotenv.MOST_CHARACTERS:
            raise ValueError(f"{shown(text)}: more than {dotenv.MOST_CHARACTERS} characters, variables put in")
    return result + text[at:]


def interpolate_if_possible(text: str, variables: Mapping[str, str]) -> str:
    """The same of what Compose has read already, or will: a text that cannot be read stays as it is."""
    try:
        return interpolate(text, variables)
    except ValueError:
        return text


def _closing(text: str, start: int) -> int:
    depth = 1
    for at in range(start, len(text)):
        depth += (text[at] == "{" and text[at - 1] == "$") - (text[at] == "}")
        if depth == 0:
            return at
    raise ValueError(f"{shown(text)}: ${{ without its closing brace")


def _substituted(inside: str, text: str, variables: Mapping[str, str], depth: int, unset: set[str] | None) -> str:
    match = re.fullmatch(rf"({_NAME})(?:(:?[-?+])(.*))?", inside, re.DOTALL)
    if match is None:
        raise ValueError(f"{shown(text)}: ${{{inside}}} is no variable; write ${{NAME}} or ${{NAME:-default}}")
    name, operator, word = match[1], match[2] or "", match[3] or ""
    value = variables.get(name)
    given = bool(value) if operator.startswith(":") else value is not None
    match operator.removeprefix(":"):
        case "-" if not given:
            return interpolate(word, variables, depth + 1, unset=unset)
        case "+":
            return interpolate(word, variables, depth + 1, unset=unset) if given else ""
        case "?" if not given:
            raise ValueError(f"{shown(text)}: variable {name} is not set{': ' + word if word else ''}")
    if value is None and not operator and unset is not None:
        unset.add(name)
    return value or ""
