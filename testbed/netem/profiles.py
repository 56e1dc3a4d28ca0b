"""Profiles: named pairs of impairments, one YAML file each.

::

    # netem/dsl.yaml
    description: ADSL, 8 Mbit/s down and 1 Mbit/s up     # optional, shown by `testbed profiles`
    forward: {delay: 15ms, rate: 1mbit}                  # toward the second host of a link
    reverse: {delay: 15ms, rate: 8mbit}                  # back
    # or, instead of the two:
    both: {delay: 15ms}

A side may also have `shape`, the bottleneck that all links of the direction share: `testbed.spec.bottleneck`.

A side may also be a list of steps or a trace: `testbed.spec.timeline`. Profiles in the user's folder ``netem/`` beside
the Compose file come before those of the same name that ship with testbed.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from testbed import reading
from testbed.errors import InvalidValueError, Problems
from testbed.netem.schedule import compile_timeline
from testbed.reading import yamltree
from testbed.resources import resource
from testbed.spec.bottleneck import Bottleneck
from testbed.spec.impairment import Impairment
from testbed.spec.profile import Profile
from testbed.spec.steps import ReadTrace, parse_side
from testbed.spec.timeline import Timeline
from testbed.spec.traces import csv_rows, is_csv, mahimahi_rows
from testbed.spec.words import SHAPE_WORD, is_table, unknown
from testbed.text import shown

T = TypeVar("T")

_LONGEST_TABLE = 16384  # sch_netem.c, NETEM_DIST_MAX
_MOST_TABLE_BYTES = 1 << 20

_KEYS = ("description", "both", "forward", "reverse")


def read_trace(name: str, *folders: Path) -> str:
    """The text of a trace in the first of these folders that has it, or in testbed's own.

    Raises InvalidValueError, naming the folders, if there is none. An error about a file outside them does not quote
    the file.
    """
    where = (*folders, resource("netem"))
    path = next(filter(reading.exists, (folder / name for folder in where)), None)
    if path is None:
        places = ", ".join(map(str, where))
        raise InvalidValueError(f"trace {shown(name)}: no such file in {places}")
    text = reading.read_text(path, most_bytes=reading.MOST_TRACE_BYTES)
    if not reading.is_below(path, where):
        try:
            csv_rows(text) if is_csv(name) else mahimahi_rows(text)
        except InvalidValueError:
            raise InvalidValueError(_not_quoted(f"trace {shown(name)}", "trace", path)) from None
    return text


def _not_quoted(what: str, kind: str, path: Path) -> str:
    real = shown(str(path.resolve()))
    return f"{what}: is not a {kind}; its content is not quoted, because it is {real}, outside the folder of profiles"


def parse_profile(name: str, text: str, read: ReadTrace = read_trace) -> Profile:
    """A profile from the text of its file; ``read`` reads its traces.

    Raises InvalidValueError with every problem.
    """
    document = yamltree.read(text)
    body = {} if document.value is None else document.value
    if not isinstance(body, Mapping):
        raise InvalidValueError(f"must be a mapping with keys {', '.join(_KEYS)}; found {type(body).__name__}")
    problems = [f"{key}: {unknown(str(key), _KEYS)}" for key in body if key not in _KEYS]
    if "both" in body and ("forward" in body or "reverse" in body):
        problems.append("`both` excludes `forward` and `reverse`: remove one or the other")
    halves: dict[str, tuple[Impairment | Timeline, Bottleneck | None]] = {}
    for side in ("both", "forward", "reverse"):
        words = body.get(side)
        try:
            lines = [document.lines[side, n] for n in range(len(words))] if isinstance(words, list) else []
            halves[side] = checked_half({} if words is None else words, read, lines)
        except InvalidValueError as error:
            problems += [f"{side}: {problem}" for problem in error.problems]
    if problems:
        raise InvalidValueError(problems)
    both = "both" in body
    forward, forward_shape = halves["both" if both else "forward"]
    reverse, reverse_shape = halves["both" if both else "reverse"]
    return Profile(
        name=name,
        description=str(body.get("description") or ""),
        forward=forward,
        reverse=reverse,
        forward_shape=forward_shape,
        reverse_shape=reverse_shape,
    )


def checked_half(
    written: object, read: ReadTrace = read_trace, lines: Sequence[int] = ()
) -> tuple[Impairment | Timeline, Bottleneck | None]:
    """A side as `checked_side` reads it, and the bottleneck of its word ``shape``; of a list, of its first step's.

    Raises InvalidValueError with every problem of both.
    """
    first = written[0] if isinstance(written, list | tuple) and written else written
    if not isinstance(first, Mapping) or SHAPE_WORD not in first:
        return checked_side(written, read, lines), None
    words = {name: value for name, value in first.items() if name != SHAPE_WORD}
    rest: object = words
    if first is not written:
        assert isinstance(written, list | tuple)  # noqa: S101  # as `first` is one of its steps
        rest = [words if set(words) - {"at"} else {**words, "clean": True}, *written[1:]]
    problems = Problems()
    shape: Bottleneck | None = None
    with problems.gathered():
        shape = None if first[SHAPE_WORD] is None else Bottleneck.read(first[SHAPE_WORD])
    side: Impairment | Timeline = Impairment()
    with problems.gathered():
        side = checked_side(rest, read, lines)
    problems.tell()
    return side, shape


def checked_side(written: object, read: ReadTrace = read_trace, lines: Sequence[int] = ()) -> Impairment | Timeline:
    """An impairment from words, or a timeline from a list of steps or a trace; ``read`` finds the traces.

    ``lines``: where the steps stand in their file.

    Raises InvalidValueError with every problem, including a timeline whose steps cannot follow each other.
    """
    side = parse_side(written, read_trace=read, lines=lines)
    if isinstance(side, Timeline):
        compile_timeline(side)
    return side


class _Files(Mapping[str, T], abc.ABC):
    """Files by name, read on access: an invalid file matters only to those who need it."""

    def __init__(self, named: Iterable[tuple[str, Path]]) -> None:
        self._paths: dict[str, Path] = {}
        for name, path in named:
            self._paths.setdefault(name, path)

    def __getitem__(self, name: str) -> T:
        """Raises InvalidValueError with every problem of the file, prefixed with its path."""
        return self._read(self._paths[name])

    def __contains__(self, name: object) -> bool:
        return name in self._paths

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    @abc.abstractmethod
    def _read(self, path: Path) -> T: ...


class Profiles(_Files[Profile]):
    """Every profile, by name: those of the given folders, the first folder first, then testbed's own."""

    def __init__(self, *folders: Path) -> None:
        """List the folders; no file is read yet."""
        super().__init__((path.stem, path) for path in _files(*folders, resource("netem")))

    def _read(self, path: Path) -> Profile:
        if not path.stem.isprintable():
            raise InvalidValueError(f"{path.parent}/{shown(path.name)}: characters that a profile's name cannot have")
        try:
            return _parse_file(path)
        except reading.UnreadableError:
            raise
        except InvalidValueError as error:
            if not reading.is_below(path, [path.parent]):
                raise InvalidValueError(_not_quoted(str(path), "profile", path)) from None
            raise InvalidValueError(f"{path}: {problem}" for problem in error.problems) from None

    def checked(self) -> Profiles:
        """Itself, after reading every file. Raises InvalidValueError with the problems of all of them."""
        problems: list[str] = []
        for name in self:
            try:
                self[name]
            except InvalidValueError as error:
                problems += error.problems
        if problems:
            raise InvalidValueError(problems)
        return self


def load_profiles(*folders: Path) -> Profiles:
    """Every profile, by name, read on access: those of these folders, the first folder first, then testbed's own."""
    return Profiles(*folders)


@dataclass(frozen=True)
class _Cached:
    """A file's text, its traces, and the profile that came of them."""

    text: str
    traces: Mapping[str, str]
    profile: Profile


_CACHE: dict[Path, _Cached] = {}
"""By path: every lab of a process needs all profiles, and traces take long to parse."""


def _parse_file(path: Path) -> Profile:
    """The profile of a file. Raises InvalidValueError."""
    text = reading.read_text(path)
    cached = _CACHE.get(path.absolute())
    if cached is not None and cached.text == text and _same_traces(cached, path.parent):
        return cached.profile
    traces: dict[str, str] = {}

    def read(name: str) -> str:
        traces[name] = read_trace(name, path.parent)
        return traces[name]

    profile = parse_profile(path.stem, text, read)
    _CACHE[path.absolute()] = _Cached(text, traces, profile)
    return profile


def _same_traces(cached: _Cached, folder: Path) -> bool:
    try:
        return all(read_trace(name, folder) == text for name, text in cached.traces.items())
    except InvalidValueError:
        return False


def _files(*folders: Path) -> Iterator[Path]:
    for folder in folders:
        yield from _listed(folder, (".yaml", ".yml"))


def _listed(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """Files of a folder; none if it does not exist. Raises InvalidValueError if it cannot be listed."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix in endings)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InvalidValueError(f"{folder}: cannot be listed: {error.strerror}") from None


class Tables(_Files[Path]):
    """The user's tables of delays, ``*.dist`` in a folder, by file name; read and checked on access.

    A table in iproute2's format is the inverse of the distribution: up to 16384 numbers from -32768 to 32767, where
    8192 is one jitter from the delay. ``#`` starts a comment (tc-netem(8), netem/README.distribution).
    """

    def __init__(self, folder: Path) -> None:
        """List the folder; no file is read yet."""
        super().__init__((path.name, path) for path in _listed(folder, (".dist",)))

    def _read(self, path: Path) -> Path:
        table_numbers(path)
        return path


def table_numbers(path: Path) -> list[int]:
    """The numbers of a table of delays. Raises InvalidValueError with its problems, prefixed with the file's path."""
    text = reading.read_text(path, most_bytes=_MOST_TABLE_BYTES)
    words = [
        (number, word) for number, line in enumerate(text.splitlines(), 1) for word in line.partition("#")[0].split()
    ]
    problems = [
        f"{path}:{number}: {shown(word)} is not a whole number from -32768 to 32767"
        for number, word in words
        if not (re.fullmatch(r"-?[0-9]{1,5}", word) and -32768 <= int(word) <= 32767)
    ][:3]
    if problems and not reading.is_below(path, [path.parent]):
        problems = [_not_quoted(str(path), "table", path)]
    if not problems and not 2 <= len(words) <= _LONGEST_TABLE:
        problems.append(f"{path}: {len(words)} numbers; a table has 2 to {_LONGEST_TABLE}")
    elif not problems and len({word for _, word in words}) == 1:
        problems.append(f"{path}: all numbers are {words[0][1]}, so no delay would differ from another")
    if not is_table(path.name):
        problems.append(f"{path}: use only letters, digits, - and _ in its name, as in measured.dist")
    if problems:
        raise InvalidValueError(problems)
    return [int(word) for _, word in words]


def find_table(tables: Mapping[str, Path], name: str) -> Path:
    """The table of that name. Raises InvalidValueError, suggesting the nearest name."""
    if name not in tables:
        known = unknown(name, tables) if tables else "there is none"
        raise InvalidValueError(f"distribution={shown(name)}: of the tables in netem/ beside the Compose file, {known}")
    return tables[name]


def find_profile(profiles: Mapping[str, Profile], name: Any) -> Profile:
    """The profile of that name. Raises InvalidValueError, suggesting the nearest name."""
    if not isinstance(name, str):
        raise InvalidValueError(
            f"{shown(name)} is not a profile: give a profile's name, as in lossy; words, as in delay=40ms; "
            f"or a list of steps, as in [{{delay: 40ms}}, {{at: 5s, outage: 2s}}]"
        )
    if name not in profiles:
        raise InvalidValueError(f"profile {shown(name)}: {unknown(name, profiles)}")
    return profiles[name]
