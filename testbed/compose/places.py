"""Where the parts of Compose files stand, also of those that a file includes or whose services it extends."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from testbed import reading
from testbed.compose.problems import FileLine
from testbed.compose.variables import interpolate_if_possible
from testbed.errors import InvalidComposeError
from testbed.reading import yamltree
from testbed.reading.yamltree import Where
from testbed.text import shown


def compose_text(path: Path) -> str:
    """The text of a Compose file. Raises InvalidComposeError."""
    try:
        return reading.read_text(path)
    except reading.UnreadableError as error:
        if not reading.exists(path):
            raise InvalidComposeError(f"Compose file {shown(str(path))}: {error.reason}; see --compose-file") from None
        raise InvalidComposeError(error.problems) from None


@dataclass(frozen=True, kw_only=True)
class PlacedFile:
    """One Compose file, and the places of its parts."""

    own: Mapping[Where, FileLine]
    services: Mapping[str, dict[Where, FileLine]]
    """By service, its parts by their places in it."""
    bases: Mapping[str, tuple[Path, str]]
    """By service that extends another: that one's file and name."""
    included: Sequence[Path] = ()
    beside: Sequence[Path] = ()
    """Files of variables and of labels."""
    env_files: Sequence[Path] = ()
    """Files of variables."""
    profiles: Mapping[str, tuple[str, ...]]
    """By service that has some: its Compose profiles."""


_NO_FILE = PlacedFile(own={}, services={}, bases={}, profiles={})


class Places:
    """Finds the places of parts; remembers every file that it read.

    Items of lists are left out: their positions change when files are merged.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables
        self._files: dict[str, PlacedFile] = {}
        self._real = cache(os.path.realpath)

    def of_file(self, path: Path) -> dict[Where, FileLine]:
        """The places in a file and in all that it includes."""
        files = {path: None}
        seen = {self._real(path)}
        waiting = [path]
        while waiting:
            for included in self._read(waiting.pop()).included:
                if (real := self._real(included)) not in seen:
                    seen.add(real)
                    files[included] = None
                    waiting.append(included)
        places: dict[Where, FileLine] = {}
        for file_path in reversed(files):
            file = self._read(file_path)
            places.update(file.own)
            for name in file.services:
                parts = self.of_service(file_path, name)
                places.update((("services", name, *inside), place) for inside, place in parts.items())
        return places

    def of_service(self, path: Path, name: str) -> dict[Where, FileLine]:
        """The parts of a service by their places in it, those of the services that it extends included."""
        chain: list[dict[Where, FileLine]] = []
        passed = set()
        following: tuple[Path, str] | None = (path, name)
        while following is not None and (key := (self._real(following[0]), following[1])) not in passed:
            passed.add(key)
            file = self._read(following[0])
            chain.append(file.services.get(following[1], {}))
            following = file.bases.get(following[1])
        places: dict[Where, FileLine] = {}
        for number, parts in reversed(list(enumerate(chain))):
            places.update((inside, place) for inside, place in parts.items() if inside or number == 0)
        return places

    def files(self) -> Iterable[PlacedFile]:
        """Every file that was read."""
        return self._files.values()

    def services(self) -> tuple[str, ...]:
        """The services of these files, in their order there; Compose prints them sorted by name."""
        return tuple(dict.fromkeys(name for file in self.files() for name in file.services))

    def _read(self, path: Path) -> PlacedFile:
        real = self._real(path)
        if real not in self._files:
            self._files[real] = self._placed(path) if reading.exists(path) else _NO_FILE
        return self._files[real]

    def _placed(self, path: Path) -> PlacedFile:
        document = yamltree.parse(compose_text(path), lambda text: interpolate_if_possible(text, self._variables))
        if document.excessive:
            raise InvalidComposeError(f"{path}:{line}: {text}" for _, line, text in document.problems)
        tree = document.value if isinstance(document.value, Mapping) else {}
        included: list[Path] = []
        env_files: list[Path] = []
        for include in tree["include"] if isinstance(tree.get("include"), list) else ():
            included += [path.parent / name for name in _paths(include)]
            if isinstance(include, Mapping):
                env_files += [path.parent / name for name in _paths(include.get("env_file"))]
        bodies = tree["services"] if isinstance(tree.get("services"), Mapping) else {}
        services: dict[str, dict[Where, FileLine]] = {name: {} for name in bodies}
        own: dict[Where, FileLine] = {}
        for where, line in document.lines.items():
            if any(isinstance(key, int) for key in where):
                continue
            own[where] = (path, line)
            if where[:1] == ("services",) and len(where) > 1 and where[1] in services:
                services[str(where[1])][where[2:]] = (path, line)
        bases: dict[str, tuple[Path, str]] = {}
        label_files: list[Path] = []
        profiles: dict[str, tuple[str, ...]] = {}
        for name, body in bodies.items():
            if not isinstance(body, Mapping):
                continue
            label_files += [path.parent / file for file in _paths(body.get("label_file"))]
            env_files += [path.parent / file for file in _paths(body.get("env_file"))]
            if isinstance(body.get("profiles"), list):
                profiles[name] = tuple(map(str, body["profiles"]))
            base = body.get("extends")
            base_name = base.get("service") if isinstance(base, Mapping) else base
            file = base.get("file") if isinstance(base, Mapping) else None
            if base_name:
                bases[name] = (path.parent / file if isinstance(file, str) else path, str(base_name))
        return PlacedFile(
            own=own,
            services=services,
            bases=bases,
            included=included,
            beside=[*env_files, *label_files],
            env_files=env_files,
            profiles=profiles,
        )


def _paths(value: Any) -> Iterator[str]:
    """The paths under ``env_file:`` or ``path:``, in any of the ways in which they are written."""
    match value:
        case str():
            yield value
        case {"path": path}:
            yield from _paths(path)
        case list():
            for item in value:
                yield from _paths(item)
