"""A Compose file read without Compose: YAML and variables in, what ``docker compose config`` prints out, with lines.

One file, without `extends` and `include`: for those, and for files that complement each other, Compose is asked, and
what it prints is read in the same way.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from testbed import reading
from testbed.compose import composeshapes, composeyaml, dotenv, shellwords
from testbed.compose.composeshapes import quoted
from testbed.compose.composeyaml import Document, Where, as_text
from testbed.compose.options import find_compose_file
from testbed.errors import InvalidComposeError, InvalidValueError
from testbed.spec import topologies
from testbed.spec.words import unknown
from testbed.text import shown

_MOST_PORT = 65535

Place = tuple[Path, int]
"""A file and a line of it."""


class NeedsComposeError(Exception):
    """The file uses what Compose alone can read; the message says what, and on which line."""


class Problems:
    """What is wrong with a Compose file, each with its place."""

    def __init__(self, path: Path, places: Mapping[Where, Place]) -> None:
        self._path = path
        self._places = places
        self._unread: set[Where] = set()
        self._found: list[tuple[str, int, str]] = []

    def add(self, where: Where, text: str, *, place: Place | None = None) -> None:
        """Note a part that cannot be read, and where that shows if not where it begins; what comes of it is no news."""
        if place is not None or not self.known(where[:-1]):
            self._note(where, text, place)
        self._unread.add(where)

    def of_part(self, where: Where, text: str) -> None:
        """Note what is wrong with a part that was read."""
        if not self.known(where):
            self._note(where, text, None)

    def _note(self, where: Where, text: str, place: Place | None) -> None:
        path, line = place or self.place(where) or (self._path, 0)
        self._found.append((str(path), line, text))

    def known(self, where: Where) -> bool:
        """Whether a part, or what holds it, could not be read."""
        return any(where[:end] in self._unread for end in range(1, len(where) + 1))

    def place(self, where: Where) -> Place | None:
        """Where a part stands, or the nearest that holds it; None if that is not known."""
        return next(
            (self._places[where[:end]] for end in range(len(where), 0, -1) if where[:end] in self._places), None
        )

    def copy(self) -> Problems:
        """The same, to add more."""
        copied = Problems(self._path, self._places)
        copied._unread, copied._found = set(self._unread), list(self._found)
        return copied

    def __bool__(self) -> bool:
        return bool(self._found)

    def raise_if_any(self) -> None:
        """Raise InvalidComposeError with all of them, in the order of the lines."""
        if self._found:
            found = sorted(set(self._found))
            raise InvalidComposeError(f"{path}:{f'{line}:' if line else ''} {text}" for path, line, text in found)


@dataclass(frozen=True)
class ComposeFile:
    """A Compose file as Compose would print it, and what is wrong with it; what could not be read is left out."""

    path: Path
    config: dict[str, Any]
    problems: Problems
    inactive: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Services that were left out, and the profiles that have them."""
    unset: tuple[str, ...] = ()
    """Variables that are nowhere set, and so stand for nothing."""


def read(path: Path, *, environment: Mapping[str, str], profiles: Sequence[str] = ()) -> ComposeFile:
    """Read one Compose file; what is wrong with its parts is in its ``problems``.

    Raises InvalidComposeError if it is no Compose file at all, NeedsComposeError for what is beyond us.
    """
    known, found = variables(path.parent, environment)
    said = _text(path)
    if _PROJECT in said:
        known = {**known, _PROJECT: _project(path, said, known)}
    unset: set[str] = set()
    document = composeyaml.parse(said, lambda text: interpolate(text, known, unset=unset))
    problems = Problems(path, {where: (path, line) for where, line in document.lines.items()})
    tree = document.value
    if isinstance(tree, Mapping):
        _refuse_what_needs_compose(path, document)
    for where, line, text in document.problems:
        problems.add(where, text, place=(path, line))
    for line, text in found:
        problems.add((".env",), text, place=(path.parent / ".env", line))
    return replace(_read(path, tree, problems, known, profiles), unset=tuple(sorted(unset)))


def of_compose(
    path: Path, config: Mapping[str, Any], files: Iterable[Path], *, environment: Mapping[str, str],
    inactive: Mapping[str, tuple[str, ...]] | None = None,
) -> ComposeFile:  # fmt: skip
    """What Compose printed of these files, of which the later go before: every dollar sign is doubled in it."""
    known, _ = variables(path.parent, environment)
    tree = _undoubled(config)
    if _topology(tree) is not None:
        # Compose has put every service that says nothing of networks on one, and a topology says that itself.
        for body in (tree.get("services") or {}).values():
            if body.get("networks") == {"default": None}:
                del body["networks"]
    places: dict[Where, Place] = {}
    found = _Places(known)
    for file in files:
        places.update(found.of_file(file))
    left_out = {name: said for name, said in (inactive or {}).items() if name not in (tree.get("services") or {})}
    return replace(_read(path, tree, Problems(path, places), {}, ("*",)), inactive=left_out)


def look_through(
    files: Iterable[Path], *, environment: Mapping[str, str], asked: Sequence[str] = ()
) -> dict[str, tuple[str, ...]]:
    """Look at all that Compose is about to read, for it takes a device, a FIFO or a bomb as it comes.

    Returns the services that belong to Compose profiles, and to which. Raises InvalidComposeError for a file that
    cannot be read, for one that is larger or deeper than any that is meant, for a file of variables outside the
    folder that is none, which Compose would quote, and for a Compose profile that is ``asked`` for and nobody's.
    """
    profiles: dict[str, tuple[str, ...]] = {}
    for file in files:
        known, wrong = variables(file.parent, environment)
        if wrong:
            raise InvalidComposeError(
                f"{file.parent / '.env'}:{f'{line}:' if line else ''} {text}" for line, text in wrong
            )
        found = _Places(known)
        found.of_file(file)
        for each in found.read():
            for path in each.beside:
                try:
                    reading.read_bytes(path)
                except reading.UnreadableError as error:
                    if reading.exists(path):
                        raise InvalidComposeError(error.problems) from None
            for path in each.variables:
                _, wrong = _dotenv(path, known, file.parent)
                if wrong and not reading.is_below(path, [file.parent]):
                    raise InvalidComposeError(f"{path}:{line}: {text}" for line, text in wrong)
            profiles.update(each.profiles)
    unknown_ones: list[str] = []
    _know_profiles(asked, ({"profiles": each} for each in profiles.values()), unknown_ones.append)
    if unknown_ones:
        raise InvalidComposeError(unknown_ones)
    return profiles


def _know_profiles(asked: Iterable[str], services: Iterable[Mapping[str, Any]], wrong: Callable[[str], None]) -> None:
    """Tell of each profile that is asked for and that no service has; Compose takes it for one of nobody."""
    known = sorted({str(profile) for body in services for profile in body.get("profiles") or ()})
    for each in asked:
        if each not in (*known, "*"):
            wrong(f"--compose-profile {shown(each)}: {unknown(each, known) if known else 'no service has a profile'}")


def listed(environment: Mapping[str, str]) -> list[Path]:
    """The files that COMPOSE_FILE names, in the environment or in ``.env`` of the current folder."""
    known, _ = variables(Path.cwd(), environment)
    separator = known.get("COMPOSE_PATH_SEPARATOR") or os.pathsep
    return [Path(each) for each in known.get("COMPOSE_FILE", "").split(separator) if each]


def found_by_compose(environment: Mapping[str, str]) -> list[Path]:
    """The files that Compose finds where none is named: COMPOSE_FILE's, or the nearest upwards with its override."""
    if files := listed(environment):
        return files
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (found := find_compose_file(folder)) is not None:
            beside = (found.with_name(f"{found.stem}.override{suffix}") for suffix in (".yaml", ".yml"))
            return [found, *(path for path in beside if reading.exists(path))]
    return []


def of_drawing(drawing: topologies.Drawing, *, environment: Mapping[str, str]) -> ComposeFile:
    """A topology from code, as if a file in the current folder said it."""
    path = Path.cwd() / drawing.name
    names = {each.partition(":")[0] for body in drawing.services.values() for each in body.get("volumes", ())
             if isinstance(each, str) and each[:1].isalnum()}  # fmt: skip
    tree = {"services": drawing.services, "networks": drawing.networks, "volumes": dict.fromkeys(sorted(names))}
    return _read(path, tree, Problems(path, {}), environment, ())


def _read(
    path: Path, tree: Any, problems: Problems, variables: Mapping[str, str], profiles: Sequence[str]
) -> ComposeFile:
    drawn = isinstance(tree, Mapping) and _topology(tree) is not None
    if not isinstance(tree, Mapping) or not (drawn or isinstance(tree.get("services"), Mapping)):
        if not problems:
            problems.add((), "has no `services:`", place=problems.place(("services",)) or (path, 1))
        problems.raise_if_any()
    tree = composeshapes.read(composeshapes.FILE, {"services": {}, **tree}, problems.add)
    tree["services"] = tree.get("services") or {}
    tree = _with_topology(tree, problems)
    # Where none is asked for, Compose takes the variable's; where that is empty, the one whose name is empty.
    _know_profiles(profiles, tree["services"].values(), lambda text: problems.add(("--compose-profile", text), text))
    chosen = {*(profiles or map(str.strip, variables.get("COMPOSE_PROFILES", "").split(",")))}
    services: dict[str, Any] = {}
    inactive: dict[str, tuple[str, ...]] = {}
    for name, body in sorted(tree["services"].items()):  # Compose sorts, too
        if not body.get("profiles") or "*" in chosen or chosen.intersection(map(str, body["profiles"])):
            services[name] = _Service(name, path.parent, variables, problems).read(
                {key: value for key, value in body.items() if value is not None}
            )
        else:
            inactive[name] = tuple(map(str, body["profiles"]))
    return ComposeFile(path, _config(path, tree, services, variables, problems), problems, inactive)


def _text(path: Path) -> str:
    try:
        return reading.read_text(path)
    except reading.UnreadableError as error:
        if not reading.exists(path):
            raise InvalidComposeError(f"Compose file {shown(str(path))}: {error.reason}; see --compose-file") from None
        raise InvalidComposeError(error.problems) from None


def _refuse_what_needs_compose(path: Path, document: Document) -> None:
    tree = document.value
    if document.beyond is not None:
        raise NeedsComposeError(f"{path}:{document.beyond[0]}: {document.beyond[1]}")
    for name in ("include", "configs", "secrets"):
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
            return {key: _undoubled(each) for key, each in value.items()}
        case list():
            return [_undoubled(each) for each in value]
        case _:
            return value


class _Places:
    """Where the parts of files stand, and of those that they include or whose services they extend.

    Items of lists are left out: it is not known where they have come to in what was merged.
    """

    def __init__(self, known: Mapping[str, str]) -> None:
        self._known = known
        self._files: dict[str, _Placed] = {}

    def of_file(self, path: Path) -> dict[Where, Place]:
        """Of a file and all that it includes."""
        files = {path: None}
        seen = {os.path.realpath(path)}
        waiting = [path]
        while waiting:
            for each in self._read(waiting.pop()).included:
                if (real := os.path.realpath(each)) not in seen:
                    seen.add(real)
                    files[each] = None
                    waiting.append(each)
        places: dict[Where, Place] = {}
        for each in reversed(files):
            file = self._read(each)
            places.update(file.own)
            for name in file.services:
                places.update((("services", name, *inside), place) for inside, place in self._of_service(each, name))
        return places

    def _of_service(self, path: Path, name: str) -> Iterable[tuple[Where, Place]]:
        """Of a service, by their places in it; those that it has from others, too."""
        chain: list[dict[Where, Place]] = []
        passed = set()
        next_one: tuple[Path, str] | None = (path, name)
        while next_one is not None and (key := (os.path.realpath(next_one[0]), next_one[1])) not in passed:
            passed.add(key)
            file = self._read(next_one[0])
            chain.append(file.services.get(next_one[1], {}))
            next_one = file.bases.get(next_one[1])
        found: dict[Where, Place] = {}
        for number, parts in reversed(list(enumerate(chain))):
            found.update((inside, place) for inside, place in parts.items() if inside or number == 0)
        return found.items()

    def read(self) -> Iterable[_Placed]:
        """Every file that was read."""
        return self._files.values()

    def _read(self, path: Path) -> _Placed:
        real = os.path.realpath(path)
        if real not in self._files:
            self._files[real] = self._placed(path) if reading.exists(path) else _Placed({}, {}, {}, [], [], [], {})
        return self._files[real]

    def _placed(self, path: Path) -> _Placed:
        text = _text(path)
        if excess := reading.yaml_excess(text):
            raise InvalidComposeError(f"{path}:{excess[0]}: {excess[1]}")
        document = composeyaml.parse(text, lambda text: _leniently(text, self._known))
        tree = document.value if isinstance(document.value, Mapping) else {}
        included: list[Path] = []
        included_variables: list[Path] = []
        variables: list[Path] = []
        for each in tree.get("include") or () if isinstance(tree.get("include"), list) else ():
            included += [path.parent / one for one in _paths(each)]
            if isinstance(each, Mapping):
                included_variables += [path.parent / one for one in _paths(each.get("env_file"))]
        own: dict[Where, Place] = {}
        said = tree.get("services")
        services: dict[str, dict[Where, Place]] = {name: {} for name in said} if isinstance(said, Mapping) else {}
        for where, line in document.lines.items():
            if any(isinstance(each, int) for each in where):
                continue
            own[where] = (path, line)
            if where[:1] == ("services",) and len(where) > 1 and where[1] in services:
                services[str(where[1])][where[2:]] = (path, line)
        bases = {}
        beside = [*included_variables]
        profiles: dict[str, tuple[str, ...]] = {}
        for name, body in said.items() if isinstance(said, Mapping) else ():
            if isinstance(body, Mapping):
                beside += [path.parent / each for key in ("env_file", "label_file") for each in _paths(body.get(key))]
                variables += [path.parent / each for each in _paths(body.get("env_file"))]
                if isinstance(body.get("profiles"), list):
                    profiles[name] = tuple(map(str, body["profiles"]))
            base = body.get("extends") if isinstance(body, Mapping) else None
            base_name = base.get("service") if isinstance(base, Mapping) else base
            file = base.get("file") if isinstance(base, Mapping) else None
            if base_name:
                bases[name] = (path.parent / file if isinstance(file, str) else path, str(base_name))
        return _Placed(own, services, bases, included, beside, [*included_variables, *variables], profiles)


@dataclass(frozen=True)
class _Placed:
    """What one file says, by its places."""

    own: Mapping[Where, Place]
    services: Mapping[str, dict[Where, Place]]
    """Of each service its parts, by their places in it."""
    bases: Mapping[str, tuple[Path, str]]
    """Of a service that extends another: which, in which file."""
    included: Sequence[Path]
    beside: Sequence[Path]
    """Files of variables and labels."""
    variables: Sequence[Path]
    """Those of variables alone."""
    profiles: Mapping[str, tuple[str, ...]]
    """Of each service that has some, its Compose profiles."""


def _paths(said: Any) -> Iterator[str]:
    """The paths under ``env_file:`` or ``path:``, in any of the ways in which they are written."""
    match said:
        case str():
            yield said
        case {"path": path}:
            yield from _paths(path)
        case list():
            for each in said:
                yield from _paths(each)


def _leniently(text: str, variables: Mapping[str, str]) -> str:
    try:
        return interpolate(text, variables)
    except ValueError:
        return text  # Compose has read it


def _topology(tree: Mapping[str, Any]) -> Any:
    said = tree.get("x-testbed")
    return said.get("topology") if isinstance(said, Mapping) else None


def _with_topology(tree: Mapping[str, Any], problems: Problems) -> Mapping[str, Any]:
    """The file with the hosts and networks of its ``x-testbed: {topology: …}``."""
    said = _topology(tree)
    if said is None:
        return tree
    where = ("x-testbed", "topology")
    services, networks = tree["services"], tree.get("networks") or {}
    try:
        drawing = topologies.from_words(said, services)
    except InvalidValueError as error:
        for problem in error.problems:
            problems.add(where, problem)
        return tree
    if both := sorted(set(networks).intersection(drawing.networks)):
        said_too = ", ".join(map(repr, both))
        problems.add(where, f"topology {drawing.name} has networks {said_too}; call yours otherwise")
    return {**tree, "services": {**services, **drawing.services}, "networks": {**networks, **drawing.networks}}


def _config(
    path: Path, tree: Mapping[str, Any], services: dict[str, Any], variables: Mapping[str, str], problems: Problems
) -> dict[str, Any]:
    """What Compose would print."""
    networks = dict(tree.get("networks") or {})
    if any("default" in (body.get("networks") or {}) for body in services.values()):
        networks.setdefault("default", None)
    name = variables.get(_PROJECT, "")
    if name and composeshapes.project(f"x{name}") != f"x{name}":
        problems.add((), f"{_PROJECT}={shown(name)}: must be small letters, digits, dashes and underscores")
    project = name or tree.get("name") or _name_of(path)
    return {
        "name": project,
        "services": services,
        "networks": {name: {"name": f"{project}_{name}", **(body or {})} for name, body in sorted(networks.items())},
        "volumes": dict(tree.get("volumes") or {}),
    }


_PROJECT = "COMPOSE_PROJECT_NAME"


def _project(path: Path, text: str, known: Mapping[str, str]) -> str:
    """How Compose calls the project of a file, to put into its text."""
    if known.get(_PROJECT):
        return known[_PROJECT]
    tree = composeyaml.parse(text, lambda each: _leniently(each, known)).value
    said = tree.get("name") if isinstance(tree, Mapping) else None
    try:
        return composeshapes.project(said) if said else _name_of(path)
    except ValueError:
        return ""  # told of the name itself


def _name_of(path: Path) -> str:
    try:
        return composeshapes.project(path.resolve().parent.name)
    except ValueError:
        return "default"


# --- variables ---------------------------------------------------------------------------------------


def variables(folder: Path, environment: Mapping[str, str]) -> tuple[Mapping[str, str], list[tuple[int, str]]]:
    """The environment, and what a folder's ``.env`` adds to it; and what is wrong with that, by line."""
    found, problems = _dotenv(folder / ".env", environment, folder)
    return {**found, **environment}, problems


def _dotenv(
    path: Path, environment: Mapping[str, str], folder: Path, *, raw: bool = False
) -> tuple[dict[str, str], list[tuple[int, str]]]:
    """What a file of variables says; what is wrong with it, by line, of which 0 is the whole file.

    What stands in a file outside the folder is not quoted.
    """
    if not reading.exists(path):
        return {}, []
    try:
        text = reading.read_text(path, most_bytes=dotenv.MOST_CHARACTERS)
    except reading.UnreadableError as error:
        return {}, [(error.line, error.reason)]
    if raw:
        found, problems = dotenv.parse_raw(text, environment)
    else:
        found, problems = dotenv.parse(text, environment, expand=interpolate)
    if problems and not reading.is_below(path, [folder]):
        problems = [(line, "is no variable; what is written there is not quoted, for the file is none of "
                           f"{folder}") for line, _ in problems]  # fmt: skip
    return found, problems


_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_PLAIN = re.compile(_NAME)
_MOST_DEPTH = 100


def interpolate(text: str, variables: Mapping[str, str], depth: int = 0, *, unset: set[str] | None = None) -> str:
    """Put variables in place of ``$NAME`` and ``${NAME…}``; ``$$`` is a dollar sign.

    ``${NAME:-text}``, ``-``, ``:?``, ``?``, ``:+`` and ``+`` as in Compose (reference, Interpolation); a dollar sign
    that begins none of these is one. A variable that is not set, and has nothing in its place, joins ``unset``. Raises
    ValueError for a variable that must be set, and for what is no variable.
    """
    if depth > _MOST_DEPTH:
        raise ValueError(f"{quoted(text)}: variables nested more than {_MOST_DEPTH} deep")
    result, at = "", 0
    while (dollar := text.find("$", at)) >= 0:
        result += text[at:dollar]
        following = text[dollar + 1 : dollar + 2]
        if following == "$":
            result, at = result + "$", dollar + 2
        elif following == "{":
            end = _closing(text, dollar + 2)
            result, at = result + _substituted(text[dollar + 2 : end], text, variables, depth, unset), end + 1
        elif match := _PLAIN.match(text, dollar + 1):
            if unset is not None and match[0] not in variables:
                unset.add(match[0])
            result, at = result + variables.get(match[0], ""), match.end()
        else:
            result, at = result + "$", dollar + 1
        if len(result) > dotenv.MOST_CHARACTERS:
            raise ValueError(f"{shown(text)}: more than {dotenv.MOST_CHARACTERS} characters, variables put in")
    return result + text[at:]


def _closing(text: str, start: int) -> int:
    depth = 1
    for at in range(start, len(text)):
        depth += (text[at] == "{" and text[at - 1] == "$") - (text[at] == "}")
        if depth == 0:
            return at
    raise ValueError(f"{shown(text)}: ${{ without its closing brace")


def _substituted(inside: str, text: str, variables: Mapping[str, str], depth: int, unset: set[str] | None) -> str:
    match = re.fullmatch(rf"({_NAME})(?:(:?[-?+])(.*))?", inside, re.DOTALL)
    if match is None:
        raise ValueError(f"{shown(text)}: ${{{inside}}} is no variable; write ${{NAME}} or ${{NAME:-default}}")
    name, operator, word = match[1], match[2] or "", match[3] or ""
    value = variables.get(name)
    there = bool(value) if operator.startswith(":") else value is not None
    match operator.removeprefix(":"):
        case "-" if not there:
            return interpolate(word, variables, depth + 1, unset=unset)
        case "+":
            return interpolate(word, variables, depth + 1, unset=unset) if there else ""
        case "?" if not there:
            raise ValueError(f"{shown(text)}: variable {name} is not set{': ' + word if word else ''}")
    if value is None and not operator and unset is not None:
        unset.add(name)
    return value or ""


# --- short forms to long ones ------------------------------------------------------------------------


class _Service:
    """A service with Compose's short forms written out."""

    def __init__(self, name: str, folder: Path, variables: Mapping[str, str], problems: Problems) -> None:
        self._at: Where = ("services", name)
        self._name = name
        self._folder = folder
        self._variables = variables
        self._problems = problems

    def _wrong(self, text: str, *where: str | int) -> None:
        if not self._problems.known((*self._at, *where)):
            self._problems.add((*self._at, *where), f"service {shown(self._name)}: {text}")

    def read(self, body: dict[str, Any]) -> dict[str, Any]:
        """The service as Compose prints it."""
        if "build" in body:
            build = {"context": body["build"]} if isinstance(body["build"], str) else dict(body["build"])
            build["context"] = self._path(build.get("context") or ".")
            if "args" in build:
                build["args"] = _texts(_pairs(build["args"]), self._variables)
            body["build"] = build
        if body.get("network_mode") is None:
            networks = body.get("networks")
            joined = dict.fromkeys(filter(None, networks)) if isinstance(networks, list) else networks
            body["networks"] = dict(sorted((joined or {"default": None}).items()))
        for name in ("command", "entrypoint"):
            if isinstance(body.get(name), str):
                body[name] = self._words(body[name], name)
            elif body.get(name):
                body[name] = [each for each in body[name] if each is not None]
        body["environment"] = self._environment(body)
        depends = body.get("depends_on") or {}
        if isinstance(depends, list):
            depends = {name: {"condition": "service_started"} for name in depends if name is not None}
        body["depends_on"] = depends
        check = body.get("healthcheck")
        if isinstance(check, Mapping) and check.get("test") is not None:
            body["healthcheck"] = {**check, "test": self._test(check["test"])}
        body["ports"] = self._each(body.get("ports"), "ports", self._port)
        body["volumes"] = self._each(body.get("volumes"), "volumes", self._volume)
        for name in ("sysctls", "labels"):
            body[name] = {key: as_text(value) for key, value in self._valued(_pairs(body.get(name)), name)}
        hosts = body.get("extra_hosts") or []
        if isinstance(hosts, Mapping):
            several = ((name, said if isinstance(said, list) else [said]) for name, said in hosts.items())
            hosts = [f"{name}={each or ''}" for name, those in several for each in those]
        body["extra_hosts"] = self._each(hosts, "extra_hosts", self._extra_host)
        if isinstance(body.get("tmpfs"), str):
            body["tmpfs"] = [body["tmpfs"]]
        return body

    def _each(self, items: Any, key: str, written_out: Callable[[Any, Callable[[str], None]], list[Any]]) -> list[Any]:
        """Every item of a list in its long form; what is None was refused."""
        found: list[Any] = []
        for number, item in enumerate(items or ()):
            if item is not None:
                found += [{**each, "item": number} if isinstance(each, dict) else each
                          for each in written_out(item, lambda text, number=number: self._wrong(text, key, number))]  # type: ignore[misc]  # fmt: skip
        return found

    def _words(self, text: str, *where: str) -> list[str]:
        try:
            return shellwords.split(text)
        except ValueError as error:
            self._wrong(f"{where[0]}: {shown(text)}: {error}", *where)
            return []

    def _environment(self, body: dict[str, Any]) -> dict[str, str | None]:
        files = body.pop("env_file", None) or []
        given: dict[str, str] = {}
        for number, each in enumerate([files] if isinstance(files, str) else files):
            if each is None:
                continue
            where = ("env_file",) if isinstance(files, str) else ("env_file", number)
            path = self._folder / (each["path"] if isinstance(each, Mapping) else each)
            if not reading.exists(path):
                if not isinstance(each, Mapping) or each.get("required") is not False:
                    self._wrong(f"env_file {shown(str(path))} does not exist", *where)
                continue
            raw = isinstance(each, Mapping) and each.get("format") == "raw"
            found, problems = _dotenv(path, {**given, **self._variables}, self._folder, raw=raw)
            given.update(found)
            for line, text in problems:
                if line:
                    self._problems.add((*self._at, *where), text, place=(path, line))
                else:
                    self._wrong(f"env_file {shown(str(path))} {text}", *where)
        said = body.get("environment") or {}
        names = (
            enumerate(each and each.partition("=")[0] for each in said)
            if isinstance(said, list)
            else zip(said, said, strict=True)
        )
        for key, name in names:
            if name is not None and (not name or "=" in name):
                self._wrong(
                    f"environment: {shown(name)}: a variable's name is not empty and has no =", "environment", key
                )
        values = _texts(_pairs(said), self._variables)
        for name, value in values.items():
            if value and (problem := composeyaml.odd(value)):  # the environment's own, which has bytes
                self._wrong(f"environment.{name}: {problem}", "environment", name)
        return {**given, **values}

    def _valued(self, pairs: Mapping[str, Any], key: str) -> Iterator[tuple[str, Any]]:
        for name, value in pairs.items():
            if value is None and key == "sysctls":
                self._wrong(f"sysctl {shown(name)}: needs a value", key, name)
            else:
                yield name, "" if value is None else value

    def _test(self, test: str | list[str | None]) -> list[str]:
        if isinstance(test, str):
            return ["CMD-SHELL", test]
        words = [each for each in test if each is not None]
        if words and (words[0] not in ("NONE", "CMD", "CMD-SHELL") or (len(words) == 1 and words[0] != "NONE")):
            self._wrong(
                f'healthcheck.test: {quoted(test)}: write ["CMD", "program", …], ["CMD-SHELL", "line"] or ["NONE"]',
                "healthcheck", "test",
            )  # fmt: skip
            return []
        return words

    def _port(self, value: Any, wrong: Callable[[str], None]) -> list[dict[str, Any]]:
        if isinstance(value, Mapping):
            published = value.get("published")
            ports = [{**value, "published": "" if published is None else as_text(published)}]
        else:
            ports = self._short_port(value, wrong)
        for port in ports:
            if not _are_ports(port["target"], port["published"]):
                wrong(f"port {quoted(value)}: ports go from 1 to {_MOST_PORT}")
                return []
            if (host_ip := port.get("host_ip")) and not is_address(host_ip):
                wrong(f"port {quoted(value)}: {shown(host_ip)} is no address")
                return []
        return ports

    def _short_port(self, value: Any, wrong: Callable[[str], None]) -> list[dict[str, Any]]:
        match = None if isinstance(value, bool) else _PORT.fullmatch(str(value))
        if match is None:
            wrong(f'port {quoted(value)}: write "8080:80" or "127.0.0.1:8080:80"')
            return []
        if not _are_ports(match["target"].partition("-")[0], match["target"], match["published"] or ""):
            wrong(f"port {quoted(value)}: ports go from 1 to {_MOST_PORT}")
            return []
        targets, published = _span(match["target"]), _span(match["published"] or "")
        if not targets or (match["published"] and not published):
            wrong(f"port {quoted(value)}: the range runs backwards")
            return []
        host_ip = (match["ip"] or "").strip("[]")
        if len(targets) == 1 and len(published) > 1:  # whichever of them is free
            published = [match["published"]]
        elif published and len(published) != len(targets):
            wrong(f"port {shown(value)}: as many ports outside as inside, or one inside")
            return []
        return [
            {"target": target, "published": str(published[number]) if published else "",
             "protocol": match["protocol"] or "tcp", **({"host_ip": host_ip} if host_ip else {})}
            for number, target in enumerate(targets)
        ]  # fmt: skip

    def _volume(self, value: Any, wrong: Callable[[str], None]) -> list[dict[str, Any]]:
        if isinstance(value, Mapping):
            if value["type"] != "bind":
                return [dict(value)]
            if not value.get("source"):
                wrong(f"volume {quoted(value)}: needs `source`, what is shown")
                return []
            return [{**value, "source": self._path(value["source"])}]
        if len(value) > 2 and not all(value.split(":")):
            wrong(f"volume {quoted(value)}: nothing between its colons, or beside them; is a variable in it not set?")
            return []
        source, colon, rest = str(value).partition(":")
        if not colon:
            return [{"type": "volume", "target": source}]
        target, _, mode = rest.partition(":")
        read_only = {"read_only": True} if "ro" in mode.split(",") else {}
        if source.startswith((".", "/", "~")):
            return [{"type": "bind", "source": self._path(source), "target": target, **read_only}]
        return [{"type": "volume", "source": source, "target": target, **read_only}]

    def _path(self, said: str) -> str:
        return os.path.realpath(self._folder / os.path.expanduser(said))

    def _extra_host(self, said: str, wrong: Callable[[str], None]) -> list[str]:
        name, _, address = re.sub(r"^([^=:]+)[=:]", r"\1=", said).partition("=")
        bare = address[1:-1] if address.startswith("[") and address.endswith("]") else address
        if bare == "host-gateway":
            wrong(f"extra_hosts: {shown(said)}: the hosts of a local lab do not reach this machine; name an address")
        elif not is_address(bare):
            wrong(f"extra_hosts: {shown(said)}: {shown(bare)} is no address; write NAME=ADDRESS")
        else:
            return [f"{name}={bare}"]
        return []


def is_address(text: str) -> bool:
    """Whether a text is an IP address."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def _texts(values: Mapping[str, Any], variables: Mapping[str, str]) -> dict[str, str | None]:
    """Each as text; one without a value as the environment has it, or None."""
    return {name: variables.get(name) if value is None else as_text(value) for name, value in values.items()}


def _pairs(value: Any) -> dict[str, Any]:
    if isinstance(value, list):
        pairs = (each.partition("=") for each in value if each is not None)
        return {name: text if equals else None for name, equals, text in pairs}
    return dict(value or {})


_PORT = re.compile(
    r"(?:(?:(?P<ip>\[[^]]+\]|[\d.]+):)?(?P<published>(?:\d+(?:-\d+)?)?):)?(?P<target>\d+(?:-\d+)?)"
    r"(?:/(?P<protocol>tcp|udp|sctp))?",
    re.ASCII,
)


def _are_ports(target: Any, *others: str) -> bool:
    """Whether the numbers in these can be ports; 0 outside lets the kernel choose."""
    # Six digits are too many, and int() refuses thousands.
    digits = [each.lstrip("0")[:6] for text in (str(target), *others) for each in re.findall(r"\d+", text)]
    numbers = [int(each or 0) for each in digits]
    return str(target)[0] != "-" and numbers[0] > 0 and max(numbers) <= _MOST_PORT


def _span(text: str) -> list[int | str]:
    if not text:
        return []
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))
