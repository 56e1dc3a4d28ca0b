"""A name stands for one thing, and variables are nouns."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator

from tests.unit.test_layering import CHECKED, parsed

NO_NOUNS = {"each", "asked", "said", "told", "found", "got", "heard"}
"""What a variable is not called, for its noun says more: ``host``, ``request``, ``message``, ``problem``."""


def variables(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The variables and parameters that a module binds; the fields of its classes are no variables."""
    fields = {
        id(node.target)
        for body in ast.walk(tree)
        if isinstance(body, ast.ClassDef)
        for node in body.body
        if isinstance(node, ast.AnnAssign)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Name(ctx=ast.Store(), id=name) if id(node) not in fields:
                yield node.lineno, name
            case ast.arg(arg=name):
                yield node.lineno, name
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield node.lineno, name
            case ast.MatchMapping(rest=str(name)):
                yield node.lineno, name


def types(tree: ast.Module) -> Iterator[str]:
    """The classes and names of types at the top of a module; a leading underscore makes no other name."""
    for node in tree.body:
        match node:
            case ast.ClassDef(name=name):
                yield name.lstrip("_")
            case ast.Assign(targets=[ast.Name(id=name)]) if name.lstrip("_")[0].isupper() and not name.isupper():
                yield name.lstrip("_")


def test_variables_are_called_by_nouns() -> None:
    assert [
        f"{file}:{line}: {name}"
        for file, path in CHECKED.items()
        for line, name in variables(parsed(path))
        if name in NO_NOUNS
    ] == []


def test_no_two_classes_share_a_name() -> None:
    files = defaultdict(list)
    for file, path in CHECKED.items():
        if file.startswith("testbed/"):
            for name in types(parsed(path)):
                files[name].append(file)
    assert {name: where for name, where in files.items() if len(where) > 1} == {}


def test_bindings_of_every_kind_are_seen() -> None:
    text = """
class A:
    field: int = 0
    def f(self, a, *b, c=1, **d):
        for e in a: g = h = e
        with a as i, b as (j, *k): pass
        l: int = [m for m in a if (n := m)]
        lambda o: o
        try: pass
        except OSError as p: pass
        match a:
            case {"x": [q, *r], **s}: a.attribute = a["key"]
"""
    assert {name for _, name in variables(ast.parse(text))} == {"self", *"abcdeghijklmnopqrs"}


def test_types_of_every_kind_are_seen() -> None:
    assert list(types(ast.parse("class _A: pass\nPairs = list[int]\nCONSTANT = 1\nx = 2\nC, D = 1, 2"))) == [
        "A",
        "Pairs",
    ]
