"""Profiles: named pairs of impairments, one YAML file each.

::

    # netem/dsl.yaml
    description: ADSL, 8 Mbit/s down and 1 Mbit/s up     # optional, shown by `testbed profiles`
    forward: {delay: 15ms, rate: 1mbit}                  # toward the second host of a link
    reverse: {delay: 15ms, rate: 8mbit}                  # back
    # or, in place of the two:
    both: {delay: 15ms}

A side may also be a list of steps or a trace: `testbed.spec.timeline`.

The user's own folder ``netem/`` beside the Compose file comes first, then the ones that ship with testbed.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from testbed import reading
from testbed.errors import InvalidValueError
from testbed.netem.schedule import compile_timeline
from testbed.resources import resource
from testbed.spec.impairment import Impairment
from testbed.spec.profile import Profile
from testbed.spec.steps import ReadTrace, parse_side
from testbed.spec.timeline import Timeline
from testbed.spec.traces import csv_rows, is_csv, mahimahi_rows
from testbed.spec.words import is_table, unknown
from testbed.text import shown

T = TypeVar("T")

_LONGEST_TABLE = 16384  # sch_netem.c, NETEM_DIST_MAX
_MOST_TABLE_BYTES = 1 << 20

_KEYS = ("description", "both", "forward", "reverse")


_MERGE_TAG = "tag:yaml.org,2002:merge"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml's where it is there
    """YAML that refuses a key given twice, where the usual loader keeps the last."""


class _Located(dict[object, object]):
    """A mapping that knows its line in the file."""

    line: int | None = None


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[object, object]:
    for key, value in node.value:
        if key.tag == _MERGE_TAG:
            _check_merged(value)
    pairs = [
        ("<<" if key.tag == _MERGE_TAG else loader.construct_object(key, deep=True), key.start_mark.line + 1)
        for key, _ in node.value
    ]
    seen: dict[object, int] = {}
    for key, line in pairs:
        if not isinstance(key, Hashable):
            raise InvalidValueError(f"{shown(key)} in line {line} is a collection and cannot be a key")
        if key in seen:
            raise InvalidValueError(f"{shown(key)} stands twice, in lines {seen[key]} and {line}")
        seen[key] = line
    located = _Located(loader.construct_mapping(node, deep=True))
    located.line = node.start_mark.line + 1
    return located


def _check_merged(value: yaml.Node) -> None:
    """What stands behind `<<:` must be a mapping, or a list of them."""
    for part in value.value if isinstance(value, yaml.SequenceNode) else [value]:
        if not isinstance(part, yaml.MappingNode):
            said = shown(part.value) if isinstance(part, yaml.ScalarNode) else "[…]"
            raise InvalidValueError(
                f"line {part.start_mark.line + 1}: `<<: {said}`: it takes in a mapping, or a list of mappings, "
                "as in `<<: *name`"
            )


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse_yaml(text: str) -> Any:
    """What a text says. Raises InvalidValueError if it is not YAML, gives a key twice, or is larger than any file."""
    if excess := reading.yaml_excess(text):
        raise InvalidValueError(f"line {excess[0]}: {excess[1]}")
    try:
        return yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader that refuses duplicate keys
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-45
        raise InvalidValueError(f"not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise InvalidValueError("an alias of something that it is a part of") from None


def read_trace(name: str, *folders: Path) -> str:
    """The text of a trace, looked for in the given folders, the earlier first, then in testbed's own.

    Raises InvalidValueError saying where it was looked for; of a file outside these folders that is no trace, nothing
    is quoted.
    """
    where = (*folders, resource("netem"))
    looked = [folder / name for folder in where]
    path = next(filter(reading.exists, looked), None)
    if path is None:
        places = ", ".join(map(str, where))
        raise InvalidValueError(f"trace {shown(name)}: no such file; looked for it in {places}")
    text = reading.read_text(path, most_bytes=reading.MOST_TRACE_BYTES)
    if not reading.is_below(path, where):
        try:
            csv_rows(text) if is_csv(name) else mahimahi_rows(text)
        except InvalidValueError:
            raise InvalidValueError(_not_quoted(f"trace {shown(name)}", "trace", path)) from None
    return text


def _not_quoted(what: str, kind: str, path: Path) -> str:
    real = shown(str(path.resolve()))
    return f"{what}: is no {kind}; what is in it is not quoted, for it is {real}, outside the folder of profiles"


def parse_profile(name: str, text: str, read: ReadTrace = read_trace) -> Profile:
    """One profile from the text of its file; ``read`` finds its traces.

    Raises InvalidValueError with every problem.
    """
    body = parse_yaml(text)
    body = {} if body is None else body
    if not isinstance(body, Mapping):
        raise InvalidValueError(f"must be a mapping with keys {', '.join(_KEYS)}; found {type(body).__name__}")
    problems = [f"{key}: {unknown(str(key), _KEYS)}" for key in body if key not in _KEYS]
    if "both" in body and ("forward" in body or "reverse" in body):
        problems.append("`both` excludes `forward` and `reverse`: say either")
    sides: dict[str, Impairment | Timeline] = {}
    for side in ("both", "forward", "reverse"):
        words = body.get(side)
        try:
            sides[side] = checked_side({} if words is None else words, read)
        except InvalidValueError as error:
            problems += [f"{side}: {problem}" for problem in error.problems]
    if problems:
        raise InvalidValueError(problems)
    both = "both" in body
    return Profile(
        name=name,
        description=str(body.get("description") or ""),
        forward=sides["both" if both else "forward"],
        reverse=sides["both" if both else "reverse"],
    )


def checked_side(said: object, read: ReadTrace = read_trace) -> Impairment | Timeline:
    """What a side of a profile says, or words, or a list of steps; ``read`` finds the traces.

    Raises InvalidValueError with every problem, also where a timeline's steps cannot follow each other.
    """
    side = parse_side(said, read_trace=read)
    if isinstance(side, Timeline):
        compile_timeline(side)
    return side


class _Files(Mapping[str, T], abc.ABC):
    """Files by name, each read when it is asked for: a broken one is told to whoever needs it, and to nobody else."""

    def __init__(self, named: Iterable[tuple[str, Path]]) -> None:
        self._paths: dict[str, Path] = {}
        for name, path in named:
            self._paths.setdefault(name, path)

    def __getitem__(self, name: str) -> T:
        """Raises InvalidValueError with every problem of the file, each behind its path."""
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
    """Every profile, by name: of the given folders, the earlier first, then of testbed itself."""

    def __init__(self, *folders: Path) -> None:
        """Looks the folders through, and reads nothing yet."""
        super().__init__((path.stem, path) for path in _files(*folders, resource("netem")))

    def _read(self, path: Path) -> Profile:
        if not path.stem.isprintable():
            raise InvalidValueError(f"{path.parent}/{shown(path.name)}: a profile's name has no such characters")
        try:
            return _parse_file(path)
        except reading.UnreadableError:
            raise
        except InvalidValueError as error:
            if not reading.is_below(path, [path.parent]):
                raise InvalidValueError(_not_quoted(str(path), "profile", path)) from None
            raise InvalidValueError(f"{path}: {problem}" for problem in error.problems) from None

    def checked(self) -> Profiles:
        """Itself, for who needs all of them. Raises InvalidValueError with the problems of every file."""
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
    """Every profile, by name: of the given folders, the earlier first, then of testbed itself; read when asked for."""
    return Profiles(*folders)


@dataclass(frozen=True)
class _Known:
    """A file as it was read, and what it says."""

    text: str
    traces: Mapping[str, str]
    profile: Profile


_KNOWN: dict[Path, _Known] = {}
"""Each file that was read, by its path: every lab of a process wants them all, and traces take long to understand."""


def _parse_file(path: Path) -> Profile:
    """The profile of a file. Raises InvalidValueError."""
    text = reading.read_text(path)
    known = _KNOWN.get(path.absolute())
    if known is not None and known.text == text and _same_traces(known, path.parent):
        return known.profile
    traces: dict[str, str] = {}

    def read(name: str) -> str:
        traces[name] = read_trace(name, path.parent)
        return traces[name]

    profile = parse_profile(path.stem, text, read)
    _KNOWN[path.absolute()] = _Known(text, traces, profile)
    return profile


def _same_traces(known: _Known, folder: Path) -> bool:
    try:
        return all(read_trace(name, folder) == text for name, text in known.traces.items())
    except InvalidValueError:
        return False


def _files(*folders: Path) -> Iterator[Path]:
    for folder in folders:
        yield from _listed(folder, (".yaml", ".yml"))


def _listed(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """Files of a folder; none where there is no such folder. Raises InvalidValueError for one that nobody may list."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix in endings)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InvalidValueError(f"{folder}: cannot be listed: {error.strerror}") from None


class Tables(_Files[Path]):
    """The tables of delays of one's own, ``*.dist`` in a folder, by the name of the file, each checked when asked for.

    A table in iproute2's format holds the inverse of the distribution: up to 16384 numbers from -32768 to 32767, 8192
    being one jitter away from the delay; ``#`` begins a comment (tc-netem(8), netem/README.distribution).
    """

    def __init__(self, folder: Path) -> None:
        """Looks the folder through, and reads nothing yet."""
        super().__init__((path.name, path) for path in _listed(folder, (".dist",)))

    def _read(self, path: Path) -> Path:
        table_numbers(path)
        return path


def table_numbers(path: Path) -> list[int]:
    """The numbers of a table of delays. Raises InvalidValueError with its problems, each behind the file's path."""
    text = reading.read_text(path, most_bytes=_MOST_TABLE_BYTES)
    words = [
        (number, word) for number, line in enumerate(text.splitlines(), 1) for word in line.partition("#")[0].split()
    ]
    wrong = [f"{path}:{number}: {shown(word)} is no whole number from -32768 to 32767" for number, word in words
             if not (re.fullmatch(r"-?[0-9]{1,5}", word) and -32768 <= int(word) <= 32767)][:3]  # fmt: skip
    if wrong and not reading.is_below(path, [path.parent]):
        wrong = [_not_quoted(str(path), "table", path)]
    if not wrong and not 2 <= len(words) <= _LONGEST_TABLE:
        wrong.append(f"{path}: {len(words)} numbers; a table has 2 to {_LONGEST_TABLE}")
    elif not wrong and len({word for _, word in words}) == 1:
        wrong.append(f"{path}: all its numbers are {words[0][1]}, so that no delay would differ from another")
    if not is_table(path.name):
        wrong.append(f"{path}: name it with letters, digits, - and _ alone, as in measured.dist")
    if wrong:
        raise InvalidValueError(wrong)
    return [int(word) for _, word in words]


def load_tables(folder: Path) -> Tables:
    """The tables of delays in a folder, by the name of the file; each read when it is asked for."""
    return Tables(folder)


def find_table(tables: Mapping[str, Path], name: str) -> Path:
    """The table of that name. Raises InvalidValueError naming the nearest."""
    if name not in tables:
        known = unknown(name, tables) if tables else "there is none"
        raise InvalidValueError(f"distribution={shown(name)}: of the tables in netem/ beside the Compose file, {known}")
    return tables[name]


def find_profile(profiles: Mapping[str, Profile], name: Any) -> Profile:
    """The profile of that name. Raises InvalidValueError naming the nearest."""
    if not isinstance(name, str):
        raise InvalidValueError(
            f"{shown(name)} is no profile: give a profile's name, as lossy, words, as delay=40ms, "
            f"or a list of steps, as [{{delay: 40ms}}, {{at: 5s, outage: 2s}}]"
        )
    if name not in profiles:
        raise InvalidValueError(f"profile {shown(name)}: {unknown(name, profiles)}")
    return profiles[name]
