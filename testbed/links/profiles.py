"""Profiles: named pairs of impairments, one YAML file each.

::

    # netem/dsl.yaml
    description: ADSL, 8 Mbit/s down and 1 Mbit/s up     # optional, shown by `testbed profiles`
    forward: {delay: 15ms, rate: 1mbit}                  # toward the second host of a link
    reverse: {delay: 15ms, rate: 8mbit}                  # back
    # or, in place of the two:
    both: {delay: 15ms}

A side may also be a list of steps or a trace: `testbed.model.timeline`.

The user's own folder ``netem/`` beside the Compose file comes first, then the ones that ship with testbed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from testbed.errors import InvalidFilesError, InvalidValueError
from testbed.links.schedule import compile_timeline
from testbed.model.impairment import Impairment, Profile, is_table, unknown
from testbed.model.timeline import ReadTrace, Timeline, parse_side
from testbed.resources import resource

T = TypeVar("T")

_LONGEST_TABLE = 16384  # sch_netem.c, NETEM_DIST_MAX

_KEYS = ("description", "both", "forward", "reverse")


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice, where the usual loader keeps the last."""


class _Located(dict[object, object]):
    """A mapping that knows its line in the file."""

    line: int | None = None


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[object, object]:
    pairs = [(loader.construct_object(key, deep=True), key.start_mark.line + 1) for key, _ in node.value]
    seen: dict[object, int] = {}
    for key, line in pairs:
        if not isinstance(key, Hashable):
            raise InvalidValueError(f"{key!r} in line {line} is a collection and cannot be a key")
        if key in seen:
            raise InvalidValueError(f"{key!r} stands twice, in lines {seen[key]} and {line}")
        seen[key] = line
    located = _Located(loader.construct_mapping(node, deep=True))
    located.line = node.start_mark.line + 1
    return located


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse_yaml(text: str) -> Any:
    """What a text says. Raises InvalidValueError if it is not YAML, or gives a key twice."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader that refuses duplicate keys
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-45
        raise InvalidValueError(f"not YAML: {' '.join(str(error).split())}") from None


def read_trace(name: str, *folders: Path) -> str:
    """The text of a trace, looked for in the given folders, the earlier first, then in testbed's own.

    Raises InvalidValueError saying where it was looked for.
    """
    looked = [folder / name for folder in (*folders, resource("netem"))]
    for path in looked:
        if path.is_file():
            try:
                return path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise InvalidValueError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None
    raise InvalidValueError(f"trace {name!r}: no such file; looked for {', '.join(map(str, looked))}")


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


def load_profiles(*folders: Path) -> dict[str, Profile]:
    """Every profile, by name: of the given folders, the earlier first, then of testbed itself.

    Raises InvalidFilesError with the problems of every file, each behind the file's path.
    """
    problems: list[str] = []
    profiles: dict[str, Profile] = {}
    for path in _files(*folders, resource("netem")):
        if path.stem in profiles:
            continue
        profiles[path.stem] = Profile(name=path.stem)  # one that is broken is no unknown one
        try:
            profiles[path.stem] = _parse_file(path)
        except UnicodeDecodeError as error:
            problems.append(f"{path}: not UTF-8: {error.reason} at byte {error.start}")
        except InvalidValueError as error:
            problems += [f"{path}: {problem}" for problem in error.problems]
    if problems:
        raise InvalidFilesError(problems, profiles)
    return profiles


@dataclass(frozen=True)
class _Known:
    """A file as it was read, and what it says."""

    text: str
    traces: Mapping[str, str]
    profile: Profile


_KNOWN: dict[Path, _Known] = {}
"""Each file that was read, by its path: every lab of a process wants them all, and traces take long to understand."""


def _parse_file(path: Path) -> Profile:
    """The profile of a file. Raises InvalidValueError and UnicodeDecodeError."""
    text = path.read_text(encoding="utf-8")
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
        if folder.is_dir():
            yield from sorted(path for path in folder.iterdir() if path.suffix in (".yaml", ".yml"))


def load_tables(folder: Path) -> dict[str, Path]:
    """The tables of delays of one's own, ``*.dist`` in the folder, by the name of the file, each checked.

    A table in iproute2's format holds the inverse of the distribution: up to 16384 numbers from -32768 to 32767, 8192
    being one jitter away from the delay; ``#`` begins a comment (tc-netem(8), netem/README.distribution). Raises
    InvalidFilesError with the problems of every file.
    """
    problems: list[str] = []
    tables: dict[str, Path] = {}
    for path in sorted(folder.glob("*.dist")) if folder.is_dir() else ():
        tables[path.name] = path
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        numbers = [(number, word) for number, line in enumerate(lines, 1) for word in line.partition("#")[0].split()]
        wrong = [(number, word) for number, word in numbers if not re.fullmatch(r"-?\d{1,5}", word)]
        wrong += [(number, word) for number, word in numbers
                  if (number, word) not in wrong and not -32768 <= int(word) <= 32767]  # fmt: skip
        problems += [f"{path}:{number}: {word!r} is no whole number from -32768 to 32767" for number, word in wrong[:3]]
        if not wrong and not 2 <= len(numbers) <= _LONGEST_TABLE:
            problems.append(f"{path}: {len(numbers)} numbers; a table has 2 to {_LONGEST_TABLE}")
        if not is_table(path.name):
            problems.append(f"{path}: name it with letters, digits, - and _ alone, as in measured.dist")
    if problems:
        raise InvalidFilesError(problems, tables)
    return tables


def as_far_as_read(load: Callable[[], Mapping[str, T]], problems: list[str]) -> Mapping[str, T]:
    """What `load_profiles` or `load_tables` finds; what is wrong with files joins the problems, and hides no other."""
    try:
        return load()
    except InvalidFilesError as error:
        problems += error.problems
        return error.found


def find_table(tables: Mapping[str, Path], name: str) -> Path:
    """The table of that name. Raises InvalidValueError naming the nearest."""
    if name not in tables:
        known = unknown(name, tables) if tables else "there is none"
        raise InvalidValueError(f"distribution={name!r}: of the tables in netem/ beside the Compose file, {known}")
    return tables[name]


def find_profile(profiles: Mapping[str, Profile], name: Any) -> Profile:
    """The profile of that name. Raises InvalidValueError naming the nearest."""
    if not isinstance(name, str):
        raise InvalidValueError(
            f"{name!r} is no profile: give a profile's name, as lossy, words, as delay=40ms, "
            f"or a list of steps, as [{{delay: 40ms}}, {{at: 5s, outage: 2s}}]"
        )
    if name not in profiles:
        raise InvalidValueError(f"profile {name!r}: {unknown(name, profiles)}")
    return profiles[name]
