"""Text for people: values and messages, shortened and without control characters. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

VALUE_CHARACTERS = 200
"""The most characters of a quoted value."""
_DEEPEST = 20
_MOST_BITS = 1000
"""The most bits of a whole number that is written out; Python refuses more than 4300 digits."""
# Control characters, marks that reverse or break a line, and surrogates. Line feed and tab stay.
_UNSEEN = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""The text with escapes for what acts on a terminal: ESC becomes ``\x1b``; line feeds and tabs stay."""
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))


def shortened(text: str, most: int = VALUE_CHARACTERS) -> str:
    """The text, or its beginning and an ellipsis: at most ``most`` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def shown(value: object, most: int = VALUE_CHARACTERS) -> str:
    """A value of any kind and size as Python writes it, in at most ``most`` characters.

    Nested, shared and recursive values are followed no further than that. An object whose ``repr`` fails is named by
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
            for number, (key, item) in enumerate(islice(dict.items(value), VALUE_CHARACTERS)):
                yield ", " * bool(number)
                yield from _pieces(key, depth + 1)
                yield ": "
                yield from _pieces(item, depth + 1)
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
            except Exception as error:  # noqa: BLE001  # code of others may raise anything
                yield f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"


def _row(begin: str, values: Iterable[object], end: str, depth: int) -> Iterator[str]:
    yield begin
    for number, value in enumerate(islice(values, VALUE_CHARACTERS)):
        yield ", " * bool(number)
        yield from _pieces(value, depth + 1)
    yield end


def several(names: Sequence[str], most: int = 3) -> str:
    """The first names, and the number of others: ``a, b, c and 9 more``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def word_set(text: str) -> frozenset[str]:
    """The words of a table that is written as text."""
    return frozenset(text.split())
