"""A Compose file as Compose would print it: read without Compose, or from what Compose printed; with lines.

Read without Compose: one file, without `extends` and `include`. Otherwise Compose is run, and its output is read in
the same way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from testbed import reading
from testbed.compose import shapes
from testbed.compose.longforms import LongForms, path_of
from testbed.compose.options import find_compose_file
from testbed.compose.places import Places, compose_text
from testbed.compose.problems import FileLine, FileProblems, NeedsComposeError
from testbed.compose.variables import env_file, interpolate, interpolate_if_possible, variables_of
from testbed.errors import InvalidComposeError, InvalidValueError
from testbed.reading import yamltree
from testbed.reading.yamltree import Document, Where, as_text
from testbed.spec import drawings
from testbed.spec.words import unknown
from testbed.text import shown

T = TypeVar("T")
_PROJECT = "COMPOSE_PROJECT_NAME"


@dataclass(frozen=True)
class ComposeFile:
    """A Compose file as Compose would print it, and its problems; what could not be read is left out."""

    path: Path
    config: dict[str, Any]
    problems: FileProblems
    inactive: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Services that were left out, and the Compose profiles that have them."""
    unset: tuple[str, ...] = ()
    """Variables that are not set, and so stand for nothing."""


def read(path: Path, *, environment: Mapping[str, str], profiles: Sequence[str] = ()) -> ComposeFile:
    """Read one Compose file; what is wrong with its parts is in its ``problems``.

    Raises InvalidComposeError if it is no Compose file at all, NeedsComposeError for what only Compose can read.
    """
    variables, env_problems = variables_of(path.parent, environment)
    text = compose_text(path)
    if _PROJECT in text:
        variables = {**variables, _PROJECT: _project(path, text, variables)}
    unset: set[str] = set()
    document = yamltree.parse(text, lambda value: interpolate(value, variables, unset=unset))
    problems = FileProblems(path, {where: (path, line) for where, line in document.lines.items()})
    tree = document.value
    if isinstance(tree, Mapping):
        _refuse_what_needs_compose(path, document)
    for where, line, problem in document.problems:
        problems.add(where, problem, place=(path, line))
    for line, problem in env_problems:
        problems.add((".env",), problem, place=(path.parent / ".env", line))
    return replace(_read(path, tree, problems, variables, profiles), unset=tuple(sorted(unset)))


def of_compose(
    path: Path,
    config: Mapping[str, Any],
    files: Iterable[Path],
    *,
    environment: Mapping[str, str],
    inactive: Mapping[str, tuple[str, ...]] | None = None,
) -> ComposeFile:
    """What Compose printed of these files, the later ones overriding; every dollar sign is doubled in its output."""
    variables, _ = variables_of(path.parent, environment)
    tree = _undoubled(config)
    if _topology(tree) is not None:
        # Compose has put every service without networks on `default`; the topology names their networks.
        for body in (tree.get("services") or {}).values():
            if body.get("networks") == {"default": None}:
                del body["networks"]
    places: dict[Where, FileLine] = {}
    placed = Places(variables)
    for file in files:
        places.update(placed.of_file(file))
    active = tree["services"] = in_order(tree.get("services") or {}, placed.services())
    left_out = {name: profiles for name, profiles in (inactive or {}).items() if name not in active}
    return replace(_read(path, tree, FileProblems(path, places), {}, ("*",)), inactive=left_out)


def in_order(services: Mapping[str, T], order: Sequence[str]) -> dict[str, T]:
    """Services in this order; others come last."""
    return {name: services[name] for name in (*(name for name in order if name in services), *services)}


@dataclass(frozen=True)
class Declared:
    """The services that Compose files declare."""

    order: tuple[str, ...]
    """All, in the order of the files."""
    profiles: Mapping[str, tuple[str, ...]]
    """By service that belongs to Compose profiles: these."""


def look_through(files: Iterable[Path], *, environment: Mapping[str, str], profiles: Sequence[str] = ()) -> Declared:
    """Check all that Compose is about to read, for it reads devices, FIFOs and YAML bombs.

    Raises InvalidComposeError for a file that cannot
    be read, for one that is too large or too deep, for a file outside the folder that should hold variables and does
    not (Compose would quote it), and for one of ``profiles`` that no service has.
    """
    profiles_of: dict[str, tuple[str, ...]] = {}
    order: dict[str, None] = {}
    for file in files:
        variables, wrong = variables_of(file.parent, environment)
        if wrong:
            raise InvalidComposeError(
                f"{file.parent / '.env'}:{f'{line}:' if line else ''} {text}" for line, text in wrong
            )
        places = Places(variables)
        places.of_file(file)
        order.update(dict.fromkeys(places.services()))
        for placed in places.files():
            for path in placed.beside:
                try:
                    reading.read_bytes(path)
                except reading.UnreadableError as error:
                    if reading.exists(path):
                        raise InvalidComposeError(error.problems) from None
            for path in placed.env_files:
                _, wrong = env_file(path, variables, file.parent)
                if wrong and not reading.is_below(path, [file.parent]):
                    raise InvalidComposeError(f"{path}:{line}: {text}" for line, text in wrong)
            profiles_of.update(placed.profiles)
    problems: list[str] = []
    _check_profiles(profiles, profiles_of.values(), problems.append)
    if problems:
        raise InvalidComposeError(problems)
    return Declared(tuple(order), profiles_of)


def _check_profiles(
    profiles: Iterable[str], profiles_of_services: Iterable[Iterable[object]], wrong: Callable[[str], None]
) -> None:
    """Refuse a profile that no service has; Compose would ignore it."""
    known = sorted({str(profile) for of_service in profiles_of_services for profile in of_service})
    for profile in profiles:
        if profile not in (*known, "*"):
            reason = unknown(profile, known) if known else "no service has a profile"
            wrong(f"--compose-profile {shown(profile)}: {reason}")


def files_in_environment(environment: Mapping[str, str]) -> list[Path]:
    """The files that COMPOSE_FILE names, in the environment or in ``.env`` of the current folder."""
    variables, _ = variables_of(Path.cwd(), environment)
    separator = variables.get("COMPOSE_PATH_SEPARATOR") or os.pathsep
    return [Path(name) for name in variables.get("COMPOSE_FILE", "").split(separator) if name]


def files_by_default(environment: Mapping[str, str]) -> list[Path]:
    """The files that Compose uses where none is named: COMPOSE_FILE's, or the nearest upwards with its override."""
    if files := files_in_environment(environment):
        return files
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (nearest := find_compose_file(folder)) is not None:
            beside = (nearest.with_name(f"{nearest.stem}.override{suffix}") for suffix in (".yaml", ".yml"))
            return [nearest, *(path for path in beside if reading.exists(path))]
    return []


def of_drawing(drawing: drawings.Drawing, *, environment: Mapping[str, str]) -> ComposeFile:
    """A topology from code, as if a file in the current folder described it."""
    path = Path.cwd() / drawing.name
    mounts = (volume for body in drawing.services.values() for volume in body.get("volumes", ()))
    names = {mount.partition(":")[0] for mount in mounts if isinstance(mount, str) and mount[:1].isalnum()}
    tree = {"services": drawing.services, "networks": drawing.networks, "volumes": dict.fromkeys(sorted(names))}
    return _read(path, tree, FileProblems(path, {}), environment, ())


def _read(
    path: Path,
    tree: Any,
    problems: FileProblems,
    variables: Mapping[str, str],
    profiles: Sequence[str],
) -> ComposeFile:
    drawn = isinstance(tree, Mapping) and _topology(tree) is not None
    if not isinstance(tree, Mapping) or not (drawn or isinstance(tree.get("services"), Mapping)):
        if not problems:
            problems.add((), "has no `services:`", place=problems.place(("services",)) or (path, 1))
        problems.raise_if_any()
    tree = shapes.read(shapes.FILE, {"services": {}, **tree}, problems.add)
    tree["services"] = tree.get("services") or {}
    tree = _with_topology(tree, problems)
    profiles_of_services = (body.get("profiles") or () for body in tree["services"].values())
    _check_profiles(profiles, profiles_of_services, lambda text: problems.add(("--compose-profile", text), text))
    # Without --compose-profile Compose takes the variable's; if that is empty, the profile with the empty name.
    chosen = {*(profiles or map(str.strip, variables.get("COMPOSE_PROFILES", "").split(",")))}
    services: dict[str, Any] = {}
    inactive: dict[str, tuple[str, ...]] = {}
    for name, body in tree["services"].items():
        if not body.get("profiles") or "*" in chosen or chosen.intersection(map(str, body["profiles"])):
            given = {key: value for key, value in body.items() if value is not None}
            services[name] = LongForms(name, path.parent, variables, problems).read(given)
        else:
            inactive[name] = tuple(map(str, body["profiles"]))
    return ComposeFile(path, _config(path, tree, services, variables, problems), problems, inactive)


def _refuse_what_needs_compose(path: Path, document: Document) -> None:
    tree = document.value
    if document.beyond is not None:
        raise NeedsComposeError(f"{path}:{document.beyond[0]}: {document.beyond[1]}")
    for name in ("include",):
        if tree.get(name):
            raise NeedsComposeError(f"{path}:{document.lines.get((name,), 1)}: `{name}:`")
    services = tree.get("services")
    for name, body in services.items() if isinstance(services, Mapping) else ():
        if isinstance(body, Mapping) and "extends" in body:
            raise NeedsComposeError(f"{path}:{document.lines.get(('services', name, 'extends'), 1)}: `extends:`")


def _undoubled(value: Any) -> Any:
    match value:
        case str():
            return value.replace("$$", "$")
        case Mapping():
            return {key: _undoubled(item) for key, item in value.items()}
        case list():
            return [_undoubled(item) for item in value]
        case _:
            return value


def _topology(tree: Mapping[str, Any]) -> Any:
    extension = tree.get("x-testbed")
    return extension.get("topology") if isinstance(extension, Mapping) else None


def _with_topology(tree: Mapping[str, Any], problems: FileProblems) -> Mapping[str, Any]:
    """The file with the hosts and networks of its ``x-testbed: {topology: …}``."""
    words = _topology(tree)
    if words is None:
        return tree
    where = ("x-testbed", "topology")
    services, networks = tree["services"], tree.get("networks") or {}
    try:
        drawing = drawings.from_words(words, services)
    except InvalidValueError as error:
        for problem in error.problems:
            problems.add(where, problem)
        return tree
    if both := sorted(set(networks).intersection(drawing.networks)):
        names = ", ".join(map(repr, both))
        problems.add(where, f"topology {drawing.name} has networks {names}; call yours otherwise")
    return {**tree, "services": {**services, **drawing.services}, "networks": {**networks, **drawing.networks}}


def _config(
    path: Path, tree: Mapping[str, Any], services: dict[str, Any], variables: Mapping[str, str], problems: FileProblems
) -> dict[str, Any]:
    """What Compose would print."""
    networks = dict(tree.get("networks") or {})
    if any("default" in (body.get("networks") or {}) for body in services.values()):
        networks.setdefault("default", None)
    name = variables.get(_PROJECT, "")
    if name and shapes.project(f"x{name}") != f"x{name}":
        problems.add((), f"{_PROJECT}={shown(name)}: must be small letters, digits, dashes and underscores")
    project = name or tree.get("name") or _name_of(path)
    mounted = {volume.get("source") for body in services.values() for volume in body["volumes"]}
    return {
        "name": project,
        "services": services,
        "networks": {name: _named(project, name, body) for name, body in sorted(networks.items())},
        "volumes": {
            name: _named(project, name, body) for name, body in (tree.get("volumes") or {}).items() if name in mounted
        },
        **{
            kind: {name: _with_path(path, _named(project, name, body)) for name, body in (tree.get(kind) or {}).items()}
            for kind in ("secrets", "configs")
        },
    }


def _with_path(path: Path, body: dict[str, Any]) -> dict[str, Any]:
    """A secret or config with the path of its file written out."""
    return {**body, "file": path_of(path.parent, body["file"])} if body.get("file") else body


def _named(project: str, name: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
    """A network, volume, secret or config with the name that the engine knows it by."""
    body = {key: value for key, value in (body or {}).items() if value is not None}
    external = body.get("external")
    if isinstance(external, Mapping):
        body.update(external=True, name=external.get("name") or body.get("name") or name)
    if isinstance(body.get("driver_opts"), Mapping):
        body["driver_opts"] = {key: as_text(value) for key, value in body["driver_opts"].items()}
    return {"name": name if body.get("external") else f"{project}_{name}", **body}


def _project(path: Path, text: str, variables: Mapping[str, str]) -> str:
    """Compose's name for the project of a file, to put into its text."""
    if variables.get(_PROJECT):
        return variables[_PROJECT]
    tree = yamltree.parse(text, lambda value: interpolate_if_possible(value, variables)).value
    name = tree.get("name") if isinstance(tree, Mapping) else None
    try:
        return shapes.project(name) if name else _name_of(path)
    except ValueError:
        return ""  # reported where the name is read


def _name_of(path: Path) -> str:
    try:
        return shapes.project(path.resolve().parent.name)
    except ValueError:
        return "default"
