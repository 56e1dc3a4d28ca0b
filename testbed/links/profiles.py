"""Profiles: named pairs of impairments, one YAML file each.

::

    # netem/dsl.yaml
    description: ADSL, 8 Mbit/s down and 1 Mbit/s up     # optional, shown by `testbed profiles`
    forward: {delay: 15ms, rate: 1mbit}                  # toward the second host of a link
    reverse: {delay: 15ms, rate: 8mbit}                  # back
    # or, in place of the two:
    both: {delay: 15ms}

The user's own folder ``netem/`` beside the Compose file comes first, then the ones that ship with testbed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from testbed.errors import InvalidValueError
from testbed.model.impairment import Impairment, Profile, unknown
from testbed.resources import resource

_KEYS = ("description", "both", "forward", "reverse")


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice, where the usual loader keeps the last."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[object, object]:
    pairs = [(loader.construct_object(key, deep=True), key.start_mark.line + 1) for key, _ in node.value]
    seen: dict[object, int] = {}
    for key, line in pairs:
        if not isinstance(key, Hashable):
            raise InvalidValueError(f"{key!r} in line {line} is a collection and cannot be a key")
        if key in seen:
            raise InvalidValueError(f"{key!r} stands twice, in lines {seen[key]} and {line}")
        seen[key] = line
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse_profile(name: str, text: str) -> Profile:
    """One profile from the text of its file. Raises InvalidValueError with every problem."""
    try:
        body = yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader that refuses duplicate keys
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-45
        raise InvalidValueError(f"not YAML: {' '.join(str(error).split())}") from None
    body = {} if body is None else body
    if not isinstance(body, Mapping):
        raise InvalidValueError(f"must be a mapping with keys {', '.join(_KEYS)}; found {type(body).__name__}")
    problems = [f"{key}: {unknown(str(key), _KEYS)}" for key in body if key not in _KEYS]
    if "both" in body and ("forward" in body or "reverse" in body):
        problems.append("`both` excludes `forward` and `reverse`: say either")
    sides: dict[str, Impairment] = {}
    for side in ("both", "forward", "reverse"):
        words = body.get(side)
        words = {} if words is None else words
        if not isinstance(words, Mapping):
            problems.append(f"{side}: must be a mapping such as {{delay: 40ms, loss: 2%}}; found {words!r}")
            continue
        try:
            sides[side] = Impairment.parse(words)
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


def load_profiles(*folders: Path) -> dict[str, Profile]:
    """Every profile, by name: of the given folders, the earlier first, then of testbed itself.

    Raises InvalidValueError with the problems of every file, each behind the file's path.
    """
    problems: list[str] = []
    profiles: dict[str, Profile] = {}
    for path in _files(*folders, resource("netem")):
        if path.stem in profiles:
            continue
        try:
            profiles[path.stem] = parse_profile(path.stem, path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            problems.append(f"{path}: not UTF-8: {error.reason} at byte {error.start}")
        except InvalidValueError as error:
            problems += [f"{path}: {problem}" for problem in error.problems]
    if problems:
        raise InvalidValueError(problems)
    return profiles


def _files(*folders: Path) -> Iterator[Path]:
    for folder in folders:
        if folder.is_dir():
            yield from sorted(path for path in folder.iterdir() if path.suffix in (".yaml", ".yml"))


def find_profile(profiles: Mapping[str, Profile], name: Any) -> Profile:
    """The profile of that name. Raises InvalidValueError naming the nearest."""
    if not isinstance(name, str) or name not in profiles:  # a list cannot be looked up
        raise InvalidValueError(f"profile {name!r}: {unknown(str(name), profiles)}")
    return profiles[name]
