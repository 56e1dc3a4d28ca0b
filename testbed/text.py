"""Text for people: values and messages in few characters, all of them visible. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

VALUE_CHARACTERS = 200
"""The most characters in which a value is quoted."""
_DEEPEST = 20
_MOST_BITS = 1000
"""Of a whole number that is written out; Python itself refuses above 4300 digits."""
# What a terminal obeys, what reverses or breaks a line, what is no character at all. Line feed and tab stay.
_UNSEEN = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""A text in which no character acts on a terminal: ESC is ``\x1b``; line feeds and tabs stay."""
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))


def shortened(text: str, most: int = VALUE_CHARACTERS) -> str:
    """A text, or its beginning and an ellipsis: at most so many characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def shown(value: object, most: int = VALUE_CHARACTERS) -> str:
    """A value as Python writes it, in at most so many characters, for values of any kind and size.

    What is nested, shared or in itself is followed no further than that; an object whose ``repr`` fails is named by
    its type.
    """
    written = ""
    for piece in _pieces(value, 0):
        written += piece
        if len(written) > most:
            break
    return shortened(visible(written), most)


def _pieces(value: object, depth: int) -> Iterator[str]:
    match value:
        case str():
            yield str.__repr__(str.__getitem__(value, slice(VALUE_CHARACTERS + 1)))
        case bytes():
            yield bytes.__repr__(bytes.__getitem__(value, slice(VALUE_CHARACTERS + 1)))
        case int() if type(value) is int and value.bit_length() > _MOST_BITS:
            yield f"a whole number of about {value.bit_length() * 30103 // 100000 + 1} digits"
        case list() | tuple() | set() | frozenset() | dict() if depth >= _DEEPEST:
            yield "…"
        case dict() if type(value).__repr__ is dict.__repr__:
            yield "{"
            for number, (key, each) in enumerate(islice(dict.items(value), VALUE_CHARACTERS)):
                yield ", " * bool(number)
                yield from _pieces(key, depth + 1)
                yield ": "
                yield from _pieces(each, depth + 1)
            yield "}"
        case list() if type(value).__repr__ is list.__repr__:
            yield from _row("[", value, "]", depth)
        case tuple() if type(value).__repr__ is tuple.__repr__:
            yield from _row("(", value, ",)" if len(value) == 1 else ")", depth)
        case set() if type(value).__repr__ is set.__repr__ and value:
            yield from _row("{", value, "}", depth)
        case _:
            try:
                yield repr(value)
            except Exception as error:  # noqa: BLE001  # of somebody else's code, which may raise anything
                yield f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"


def _row(begin: str, values: Iterable[object], end: str, depth: int) -> Iterator[str]:
    yield begin
    for number, each in enumerate(islice(values, VALUE_CHARACTERS)):
        yield ", " * bool(number)
        yield from _pieces(each, depth + 1)
    yield end


def several(names: Sequence[str], most: int = 3) -> str:
    """The first of several names, and how many there are beside them: ``a, b, c and 9 more``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def word_set(text: str) -> frozenset[str]:
    """The words of a table that is written as text."""
    return frozenset(text.split())
