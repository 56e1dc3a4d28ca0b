"""The one YAML reader: scalars as Compose's go-yaml v3 resolves them, the line of each part, no key twice.

PyYAML follows YAML 1.1, where ``2222:22`` is a number to base 60 and ``yes`` a boolean. go-yaml follows the core schema
of YAML 1.2, but keeps underscores, ``0b1`` and octal numbers with a leading zero (resolve.go). Profiles and lists of
steps follow the same rules as Compose files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import yaml
from yaml.composer import Composer

from testbed.errors import InvalidValueError
from testbed.text import shown

Where = tuple[str | int, ...]
"""The place of a part: the keys and positions that lead to it."""

_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"
_NULLS = {"", "~", "null", "Null", "NULL"}
_FLAGS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WHOLE = re.compile(r"[-+]?(?:0[xX](?P<x>[0-9a-fA-F]+)|0[bB](?P<b>[01]+)|0[oO]?(?P<o>[0-7]+)|(?P<d>0|[1-9][0-9]*))")
_BASES = {"x": 16, "b": 2, "o": 8, "d": 10}
_LEAST, _MOST = -(1 << 63), (1 << 64) - 1
_MOST_DIGITS = 6
"""Digits of a float that Go prints without an exponent (strconv, %g)."""
_MOST_PARTS = 100_000
"""Keys and values of a document; aliases count as what they stand for."""
_DEEPEST = 64
_MOST_CHARACTERS = 8 << 20
"""Characters that variables may add to a document: they may name each other."""
_MOST_BITS = 64
_COMPOSES_TAGS = ("!reset", "!override")
_ODD = re.compile("[\0\ud800-\udfff]")
"""What a path, an argument or a variable of a program cannot contain; only escapes make it."""


@dataclass
class Document:
    """A YAML document: its values, the line of each part, and its problems."""

    value: Any = None
    lines: dict[Where, int] = field(default_factory=dict)
    problems: list[tuple[Where, int, str]] = field(default_factory=list)
    """Place, line and text."""
    excessive: bool = False
    """Whether it is larger or deeper than any that is meant; nothing was read then."""
    beyond: tuple[int, str] | None = None
    """A part that only Compose can read: its line and its name."""


def read(text: str) -> Document:
    """Read a document that must be right. Raises InvalidValueError with every problem, behind its line."""
    document = parse(text)
    problems = [(line, text) for _, line, text in document.problems]
    if document.beyond is not None:
        problems.append((document.beyond[0], f"{document.beyond[1]}: only a Compose file may have this"))
    if problems:
        raise InvalidValueError(f"line {line}: {text}" for line, text in problems)
    return document


def parse(text: str, change: Callable[[str], str] = str) -> Document:
    """Read a document, and note its problems.

    ``change`` is applied to each text value; it raises ValueError with what is wrong. What is not YAML has no value.
    """
    document = Document()
    if excess := _excess(text):
        document.excessive = True
        document.problems.append(((), *excess))
        return document
    try:
        loader = _Loader(text)
        try:
            try:
                node = loader.get_node() if loader.check_node() else None
                if loader.check_node():
                    document.beyond = loader.peek_event().start_mark.line + 1, "a second document"
            except (ValueError, OverflowError):  # raised by PyYAML for an escape above U+10FFFF
                document.problems.append(((), loader.line + 1, "not YAML: an escape that is no character"))
                node = None
            if node is not None:
                document.value = _Builder(document, loader, change).value(node, ())
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


def _excess(text: str) -> tuple[int, str] | None:
    """The line on which a document becomes too large or too deep, and what to say of it; found before it is built."""
    sizes: dict[str, int] = {}
    stack: list[tuple[str | None, int]] = []
    parts = 0
    try:
        for event in yaml.parse(text, Loader=_Events):
            anchor = getattr(event, "anchor", None)
            if isinstance(event, yaml.AliasEvent):
                parts += sizes.get(str(anchor), 1)  # an alias of something around it is refused later
            elif isinstance(event, yaml.ScalarEvent):
                parts += 1
                sizes[str(anchor)] = 1
            elif isinstance(event, yaml.CollectionStartEvent):
                stack.append((anchor, parts))
                parts += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, before = stack.pop()
                sizes[str(anchor)] = parts - before
            line = event.start_mark.line + 1 if event.start_mark is not None else 1
            if len(stack) > _DEEPEST:
                return line, f"nested more than {_DEEPEST} deep"
            if parts > _MOST_PARTS:
                return line, f"more than {_MOST_PARTS} keys and values, aliases multiplied out"
    except (yaml.YAMLError, ValueError, OverflowError):
        return None  # not YAML: reported with its line when it is read
    return None


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
    """What is wrong with a text that contains a character which no program can be given; None if nothing is."""
    match = _ODD.search(text)
    return None if match is None else f"{shown(text)}: the character {shown(match[0])} may not stand in it"


_Events: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's loader where it is installed: several times as fast."""


class _Loader(Composer, _Events):  # type: ignore[misc]  # whichever is installed
    """PyYAML with go-yaml's rules for plain scalars."""

    def __init__(self, text: str) -> None:
        _Events.__init__(self, text)
        Composer.__init__(self)
        self.repeated: dict[int, list[tuple[str, int, str]]] = {}
        """By a mapping's node: its repeated keys, each with its line and what to say of it."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        """The tag of a node that has none."""
        if kind is yaml.ScalarNode and implicit[0]:
            return _TAG + _kind(value)
        return super().resolve(kind, value, implicit)

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Find repeated keys now: later, those of a merge are among them."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value if node else ():
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in lines:
                    text = f"{shown(key.value)} is here a second time; line {lines[key.value]} has it already"
                    self.repeated.setdefault(id(node), []).append((key.value, line, text))
                lines.setdefault(key.value, line)
        return node


def _kind(text: str) -> str:
    """The name of the tag of a plain scalar."""
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
        return None  # int() refuses thousands of digits
    number = int(digits, _BASES[match.lastgroup]) * (-1 if text.startswith("-") else 1)
    return number if _LEAST <= number <= _MOST else None


def _finite(text: str) -> bool:
    return _FLOAT.fullmatch(text) is not None and float(text) not in (float("inf"), float("-inf"))


def _not_mergeable(node: yaml.Node) -> Iterator[yaml.Node]:
    """The parts behind ``<<:`` that are not mappings."""
    parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
    return (part for part in parts if not isinstance(part, yaml.MappingNode))


class _Builder:
    """Builds values from nodes."""

    def __init__(self, document: Document, loader: _Loader, change: Callable[[str], str]) -> None:
        self._document = document
        self._loader = loader
        self._change = change
        self._open: set[int] = set()
        self._left = _MOST_CHARACTERS

    def value(self, node: yaml.Node, where: Where) -> Any:
        """The value of a node; problems below it are noted."""
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
            return [self.value(item, (*where, number)) for number, item in enumerate(node.value)]
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, where: Where) -> dict[str, Any]:
        for key, line, text in self._loader.repeated.get(id(node), ()):
            self._wrong((*where, key), line, text)
        for key_node, value_node in list(node.value):
            if key_node.tag == _MERGE:
                for part in _not_mergeable(value_node):
                    written = shown(part.value) if isinstance(part, yaml.ScalarNode) else "[…]"
                    text = f"`<<: {written}`: write a mapping or a list of mappings, as in `<<: *name`"
                    self._wrong((*where, "<<"), part.start_mark.line + 1, text)
                    node.value = [pair for pair in node.value if pair[1] is not value_node]
        self._loader.flatten_mapping(node)
        mapping: dict[str, Any] = {}
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
            mapping[key] = self.value(value_node, (*where, key))
        return mapping

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
                    self._wrong(where, node.start_mark.line + 1, f"{shown(text)}: tagged !!float, but is no number")
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
