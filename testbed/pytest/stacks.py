"""Which stack a test runs on: the session's own, or the one that its markers name.

A marker parametrises `SESSION_LAB`, so that pytest takes one stack down before the next comes up, and names it in ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed.compose.options import COMPOSE_FILE_NAMES
from testbed.pytest.declared import IMPAIRING
from testbed.text import shortened, shown

SESSION_LAB = "_testbed_stack"
"""The fixture that brings up the stack of a test."""
EACH = "stack_each"
_USING = {*IMPAIRING, "impair_each"}


@dataclass(frozen=True, kw_only=True)
class StackOf:
    """Which Compose files are a stack."""

    files: tuple[Path, ...] = ()
    """Empty for the session's own stack, which the options name."""
    profiles: tuple[str, ...] = ()

    @property
    def name(self) -> str | None:
        """For ids and results: of the folder or the file, and the Compose profiles; None for the session's own."""
        if not self.files:
            return None
        file = self.files[-1]
        name = file.parent.name if file.name in COMPOSE_FILE_NAMES else file.stem
        return "+".join([name or file.stem, *self.profiles])


OWN = StackOf()


def stack_of(item: pytest.Item) -> StackOf:
    """The stack of a test."""
    callspec = getattr(item, "callspec", None)
    stack = callspec.params.get(SESSION_LAB) if callspec is not None else None
    return stack if isinstance(stack, StackOf) else OWN


def parametrize(metafunc: pytest.Metafunc, problems: list[str]) -> StackOf:
    """Give a test the stack of its closest marker, or make one test for each; returns the first."""
    marks = [mark for mark in metafunc.definition.iter_markers() if mark.name in ("stack", EACH)]
    if not marks:
        return OWN
    wrong: list[str] = []
    stacks = list(_stacks(marks[0], [metafunc.definition.path.parent, *base_folders(metafunc.config)], wrong))
    problems += [f"{marks[0].name}: {problem}" for problem in wrong]
    if wrong:
        return OWN
    if SESSION_LAB not in metafunc.fixturenames:
        metafunc.fixturenames.insert(0, SESSION_LAB)
    names = [str(stack.name) for stack in stacks]
    metafunc.parametrize(SESSION_LAB, stacks, indirect=True, scope="session", ids=names)
    return stacks[0]


def base_folders(config: pytest.Config) -> list[Path]:
    """The folders that a Compose file's path may begin at, wherever it is written."""
    return [config.rootpath, config.invocation_params.dir]


def _stacks(mark: pytest.Mark, folders: Sequence[Path], problems: list[str]) -> Iterator[StackOf]:
    """The stacks that a marker names."""
    if unknown := mark.kwargs.keys() - {"profiles"}:
        problems.append(f"{', '.join(map(shortened, sorted(unknown)))}: unknown; known: profiles")
    profiles = mark.kwargs.get("profiles", ())
    written = mark.args if mark.name == EACH else (mark.args,)
    if not mark.args:
        problems.append('name a Compose file, as in "other/compose.yaml"')
        return
    for files in written:
        yield named((files,) if isinstance(files, str | Path) else files, profiles, folders, problems)


def named(files: object, profiles: object, folders: Sequence[Path], problems: list[str]) -> StackOf:
    """The stack of these Compose files and profiles; ``problems`` get what is wrong with them.

    ``folders``: where paths begin; the first in which a file exists counts.
    """
    folders = list(dict.fromkeys(folders))
    paths: list[Path] = []
    for file in files if isinstance(files, list | tuple) else [files]:
        if not isinstance(file, str | Path):
            problems.append(f"{shown(file)}: must be the path of a Compose file, or a list of paths")
            continue
        path = next((folder / file for folder in folders if (folder / file).is_file()), None)
        if path is None:
            where = ", ".join(map(str, folders))
            problems.append(f"no file {shown(str(file))} in {shortened(where)}")
        else:
            paths.append(path.resolve())
    if not isinstance(profiles, list | tuple) or not all(isinstance(name, str) for name in profiles):
        problems.append(f'profiles={shown(profiles)}: must be a list of Compose profiles, as in ["debug"]')
        profiles = ()
    return StackOf(files=tuple(paths), profiles=tuple(profiles))


def uses_stack(item: pytest.Item) -> bool:
    """Whether a test uses its stack, as far as that is known at collection."""
    return SESSION_LAB in getattr(item, "fixturenames", ()) or any(mark.name in _USING for mark in item.iter_markers())


def together(items: list[pytest.Item]) -> None:
    """Order tests so that each stack comes up once; a test that needs none stays behind the test before it."""
    stacks: dict[StackOf, int] = {}
    places: dict[pytest.Item, int] = {}
    place = 0
    for item in items:
        if uses_stack(item):
            place = stacks.setdefault(stack_of(item), len(stacks))
        places[item] = place
    items.sort(key=places.__getitem__)
