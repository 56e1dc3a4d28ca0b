"""YAML as Compose reads it: scalars as go-yaml v3 resolves them, each part with its line, no key twice.

PyYAML knows YAML 1.1, where ``2222:22`` is a number to the base of 60 and ``yes`` a truth. go-yaml follows the core
schema of YAML 1.2, but keeps underscores, ``0b1`` and octal numbers by a leading zero (resolve.go).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import yaml
from yaml.composer import Composer

from testbed import reading
from testbed.text import shown

Where = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"
_NULLS = {"", "~", "null", "Null", "NULL"}
_FLAGS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WHOLE = re.compile(r"[-+]?(?:0[xX](?P<x>[0-9a-fA-F]+)|0[bB](?P<b>[01]+)|0[oO]?(?P<o>[0-7]+)|(?P<d>0|[1-9][0-9]*))")
_BASES = {"x": 16, "b": 2, "o": 8, "d": 10}
_LEAST, _MOST = -(1 << 63), (1 << 64) - 1
_MOST_DIGITS = 6
"""Of a whole number that Go prints without an exponent, if it is not an integer (strconv, %g)."""
_MOST_CHARACTERS = 8 << 20
"""Of all that variables put into a document: they may name each other."""
_MOST_BITS = 64
_COMPOSES_TAGS = ("!reset", "!override")
_ODD = re.compile("[\0\ud800-\udfff]")
"""What no path, argument or variable of a program can have, and what is no character at all; only escapes make them."""


@dataclass
class Document:
    """A YAML document: its values, the line of each part, and what is wrong with it."""

    value: Any = None
    lines: dict[Where, int] = field(default_factory=dict)
    problems: list[tuple[Where, int, str]] = field(default_factory=list)
    beyond: tuple[int, str] | None = None
    """What in it Compose alone can read, and its line."""


def parse(text: str, change: Callable[[str], str] = str) -> Document:
    """Read a document; ``change`` is done to each text that is a value, and raises ValueError with what is wrong.

    What is not YAML at all has no value.
    """
    document = Document()
    if excess := reading.yaml_excess(text):
        document.problems.append(((), *excess))
        return document
    try:
        loader = _Loader(text)
        try:
            try:
                node = loader.get_node() if loader.check_node() else None
                if loader.check_node():
                    document.beyond = loader.peek_event().start_mark.line + 1, "a second document"
            except (ValueError, OverflowError):  # PyYAML's own, of an escape beyond Unicode's last
                document.problems.append(((), loader.line + 1, "not YAML: an escape that is no character"))
                node = None
            if node is not None:
                document.value = _Reading(document, loader, change).value(node, ())
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        document.problems.append(((), mark.line + 1 if mark else 1, f"not YAML: {error.problem}"))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        document.problems.append(((), line, f"not YAML: character {shown(error.character)} may not stand in it"))
    except RecursionError:
        document.problems.append(((), 1, "nested too deeply, or too large"))
    return document


def as_text(value: Any) -> str:
    """A plain value as Compose writes it where a text is wanted: ``true``; a number as Go's ``%v`` prints it."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, float):
        return str(value)
    if value == 0:
        return "0" if str(value)[0] != "-" else "-0"
    shortest = Decimal(repr(value)).normalize()
    sign, digits, _ = shortest.as_tuple()
    exponent = shortest.adjusted()
    if -4 <= exponent < _MOST_DIGITS:
        return f"{shortest:f}"
    first, *rest = map(str, digits)
    return f"{'-' if sign else ''}{first}{'.' if rest else ''}{''.join(rest)}e{exponent:+03d}"


def odd(text: str) -> str | None:
    """What is wrong with a text that has a character which no program can be given."""
    match = _ODD.search(text)
    return None if match is None else f"{shown(text)}: the character {shown(match[0])} may not stand in it"


_Events: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's where it is there: several times as fast."""


class _Loader(Composer, _Events):  # type: ignore[misc]  # whichever is there
    """PyYAML with go-yaml's rules for plain scalars."""

    def __init__(self, text: str) -> None:
        _Events.__init__(self, text)
        Composer.__init__(self)
        self.twice: dict[int, list[tuple[str, int, str]]] = {}
        """Of a mapping's node: keys that it has already, their lines, and what to say of them."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        """The tag of what has none."""
        if kind is yaml.ScalarNode and implicit[0]:
            return _TAG + _kind(value)
        return super().resolve(kind, value, implicit)

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Look for keys that are there twice now: later, those of a merge are among them."""
        node = super().compose_mapping_node(anchor)
        first: dict[str, int] = {}
        for key, _ in node.value if node else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                if key.value in first:
                    text = f"{shown(key.value)} is here a second time; line {first[key.value]} has it already"
                    self.twice.setdefault(id(node), []).append((key.value, key.start_mark.line + 1, text))
                first.setdefault(key.value, key.start_mark.line + 1)
        return node


def _kind(text: str) -> str:
    """What a plain scalar is, by the name of its tag."""
    if text in _NULLS:
        return "null"
    if text in _FLAGS:
        return "bool"
    if text == "<<":
        return "merge"
    number = text.replace("_", "") if text[0] in "+-.0123456789" else ""
    if _FLOAT.fullmatch(number) or _WHOLE.fullmatch(number):
        return "int" if _whole(number) is not None else "float" if _finite(number) else "str"
    return "float" if re.fullmatch(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", text) else "str"


def _whole(text: str) -> int | None:
    match = _WHOLE.fullmatch(text)
    if match is None or match.lastgroup is None:
        return None
    digits = match[match.lastgroup].lstrip("0") or "0"
    if len(digits) > _MOST_BITS:
        return None  # and int() refuses thousands of them
    number = int(digits, _BASES[match.lastgroup]) * (-1 if text.startswith("-") else 1)
    return number if _LEAST <= number <= _MOST else None


def _finite(text: str) -> bool:
    return _FLOAT.fullmatch(text) is not None and float(text) not in (float("inf"), float("-inf"))


class _Reading:
    """From nodes to values."""

    def __init__(self, document: Document, loader: _Loader, change: Callable[[str], str]) -> None:
        self._document = document
        self._loader = loader
        self._change = change
        self._open: set[int] = set()
        self._left = _MOST_CHARACTERS

    def value(self, node: yaml.Node, where: Where) -> Any:
        """The value of a node; what is wrong below it is noted."""
        line = node.start_mark.line + 1
        self._document.lines.setdefault(where, line)
        if node.tag in _COMPOSES_TAGS and self._document.beyond is None:
            self._document.beyond = line, f"`{node.tag}`"
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, where)
        if id(node) in self._open:
            self._wrong(where, self._document.lines[where], "an alias of something that it is a part of")
            return {} if isinstance(node, yaml.MappingNode) else []
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, where)
            return [self.value(each, (*where, number)) for number, each in enumerate(node.value)]
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, where: Where) -> dict[str, Any]:
        for key, line, text in self._loader.twice.get(id(node), ()):
            self._wrong((*where, key), line, text)
        self._loader.flatten_mapping(node)
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._wrong((*where, str(line)), line, "a key must be a text")
                continue
            key = str(key_node.value)
            if problem := odd(key):
                self._wrong((*where, key), line, f"key {problem}")
                continue
            if key_node.tag != f"{_TAG}str":
                self._wrong((*where, key), line, f"key {key} must be a text: write '{key}'")
            self._document.lines[*where, key] = line
            found[key] = self.value(value_node, (*where, key))
        return found

    def _scalar(self, node: yaml.ScalarNode, where: Where) -> Any:
        text = str(node.value)
        plain = text.replace("_", "")
        match node.tag.removeprefix(_TAG):
            case "null":
                return None
            case "bool":
                return _FLAGS.get(text, text)
            case "int" if (number := _whole(plain)) is not None:
                return number
            case "float":
                try:
                    return float(plain.lower().replace(".inf", "inf").replace(".nan", "nan"))
                except ValueError:
                    self._wrong(where, node.start_mark.line + 1, f"{shown(text)}: is no number, as !!float says")
                    return None
        try:
            changed = self._change(text)
        except ValueError as error:
            self._wrong(where, node.start_mark.line + 1, str(error))
            changed = text
        self._left -= max(len(changed) - len(text), 0)
        if self._left < 0:
            raise RecursionError
        if problem := odd(changed):
            self._wrong(where, node.start_mark.line + 1, problem)
        return _ODD.sub("", changed)  # so that the rest can be read

    def _wrong(self, where: Where, line: int, text: str) -> None:
        self._document.problems.append((where, line, text))
