"""A Compose file read without Compose: YAML and variables in, what ``docker compose config`` prints out, with lines.

One file, without `extends` and `include`: for those, and for files that complement each other, Compose is asked.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from testbed.errors import InvalidComposeError, InvalidValueError
from testbed.model import topologies

DEFAULT_NAMES = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")

Where = tuple[str | int, ...]


class NeedsComposeError(Exception):
    """The file uses what Compose alone can read; the message says what, and on which line."""


@dataclass(frozen=True)
class ComposeFile:
    """A Compose file as Compose would print it, and where in the file each part stands."""

    path: Path
    config: dict[str, Any]
    lines: Mapping[Where, int] = field(default_factory=dict)

    def line(self, *where: str | int) -> int | None:
        """The line of a part, or of the nearest that holds it; None if it is not known."""
        for end in range(len(where), 0, -1):
            if (found := self.lines.get(where[:end])) is not None:
                return found
        return None


def find(folder: Path) -> Path | None:
    """The Compose file of a folder, by Compose's own names."""
    return next((folder / name for name in DEFAULT_NAMES if (folder / name).is_file()), None)


def read(path: Path, *, environment: Mapping[str, str], profiles: Sequence[str] = ()) -> ComposeFile:
    """Read one Compose file. Raises InvalidComposeError with every problem, NeedsComposeError for what is beyond us."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidComposeError(f"Compose file {str(path)!r}: {error.strerror}; see --compose-file") from None
    variables = {**_dotenv(path.parent / ".env"), **environment}
    tree, lines, problems = _parse(text, variables)
    if isinstance(tree, Mapping):
        for name in ("include", "configs", "secrets"):
            if tree.get(name):
                raise NeedsComposeError(f"{path}:{lines.get((name,), 1)}: `{name}:`")
        if _topology(tree) is not None:
            tree = {"services": {}, **tree}
    if not isinstance(tree, Mapping) or not isinstance(tree.get("services"), Mapping):
        problems.append((1, "has no `services:`"))
    if problems:
        raise InvalidComposeError(f"{path}:{line}: {problem}" for line, problem in problems)
    tree = _with_topology(path, tree, lines)
    chosen = {*profiles, *filter(None, variables.get("COMPOSE_PROFILES", "").split(","))}
    services: dict[str, Any] = {}
    for name, body in sorted(tree["services"].items()):  # Compose sorts, too
        if isinstance(body, Mapping) and "extends" in body:
            raise NeedsComposeError(f"{path}:{lines.get(('services', name, 'extends'), 1)}: `extends:`")
        if not isinstance(body, Mapping):
            problems.append((lines.get(("services", name), 1), f"service {name!r} is not a mapping"))
        elif not body.get("profiles") or "*" in chosen or chosen.intersection(map(str, body["profiles"])):
            normalised, found = _service(dict(body), path.parent, environment)
            services[name] = normalised
            problems += [(_nearest(lines, ("services", name, *where)), problem) for where, problem in found]
    if problems:
        raise InvalidComposeError(f"{path}:{line}: {problem}" for line, problem in sorted(problems))
    return ComposeFile(path, _config(path, tree, services), lines)


def of_drawing(drawing: topologies.Drawing, *, environment: Mapping[str, str]) -> ComposeFile:
    """A topology from code, as if a file in the current folder said it. Raises InvalidComposeError."""
    folder = Path.cwd()
    services: dict[str, Any] = {}
    problems: list[str] = []
    for name, body in drawing.services.items():
        services[name], found = _service(dict(body), folder, environment)
        problems += [f"{drawing.name}: service {name!r}: {problem}" for _, problem in found]
    if problems:
        raise InvalidComposeError(problems)
    path = folder / drawing.name
    return ComposeFile(path, _config(path, {"networks": drawing.networks}, services))


def _topology(tree: Mapping[str, Any]) -> Any:
    said = tree.get("x-testbed")
    return said.get("topology") if isinstance(said, Mapping) else None


def _with_topology(path: Path, tree: Mapping[str, Any], lines: Mapping[Where, int]) -> Mapping[str, Any]:
    """The file with the hosts and networks of its ``x-testbed: {topology: …}``. Raises InvalidComposeError."""
    said = _topology(tree)
    if said is None:
        return tree
    line = _nearest(lines, ("x-testbed", "topology"))
    services, networks = tree["services"], tree.get("networks") or {}
    try:
        drawing = topologies.from_words(said, services)
    except InvalidValueError as error:
        raise InvalidComposeError(f"{path}:{line}: {problem}" for problem in error.problems) from None
    if both := sorted(set(networks).intersection(drawing.networks)):
        said_too = ", ".join(map(repr, both))
        raise InvalidComposeError(
            f"{path}:{line}: topology {drawing.name} has networks {said_too}; call yours otherwise"
        )
    return {**tree, "services": {**services, **drawing.services}, "networks": {**networks, **drawing.networks}}


def _config(path: Path, tree: Mapping[str, Any], services: dict[str, Any]) -> dict[str, Any]:
    """What Compose would print."""
    networks = dict(tree.get("networks") or {})
    if any("default" in (body.get("networks") or {}) for body in services.values()):
        networks.setdefault("default", None)
    project = str(tree.get("name") or re.sub(r"[^a-z0-9_-]", "", path.resolve().parent.name.lower()) or "default")
    return {
        "name": project,
        "services": services,
        "networks": {name: {"name": f"{project}_{name}", **(body or {})} for name, body in sorted(networks.items())},
        "volumes": dict(tree.get("volumes") or {}),
    }


def _nearest(lines: Mapping[Where, int], where: Where) -> int:
    return next((lines[where[:end]] for end in range(len(where), 0, -1) if where[:end] in lines), 1)


# --- YAML and variables ------------------------------------------------------------------------------


def _parse(text: str, variables: Mapping[str, str]) -> tuple[Any, dict[Where, int], list[tuple[int, str]]]:
    lines: dict[Where, int] = {}
    problems: list[tuple[int, str]] = []
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        tree = None if node is None else _value(loader, node, (), lines, problems, variables)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        problems.append((mark.line + 1 if mark else 1, f"not YAML: {error.problem}"))
        tree = None
    finally:
        loader.dispose()
    return tree, lines, problems


def _value(
    loader: yaml.SafeLoader, node: yaml.Node, where: Where, lines: dict[Where, int],
    problems: list[tuple[int, str]], variables: Mapping[str, str],
) -> Any:  # fmt: skip
    lines.setdefault(where, node.start_mark.line + 1)
    match node:
        case yaml.MappingNode():
            loader.flatten_mapping(node)
            found: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key = str(loader.construct_object(key_node))
                lines[(*where, key)] = key_node.start_mark.line + 1
                found[key] = _value(loader, value_node, (*where, key), lines, problems, variables)
            return found
        case yaml.SequenceNode():
            return [
                _value(loader, each, (*where, number), lines, problems, variables)
                for number, each in enumerate(node.value)
            ]
        case _:
            value = loader.construct_object(node)
            if isinstance(value, str):
                try:
                    return interpolate(value, variables)
                except ValueError as error:
                    problems.append((node.start_mark.line + 1, str(error)))
            return value


_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_PLAIN = re.compile(_NAME)


def interpolate(text: str, variables: Mapping[str, str]) -> str:
    """Put variables in place of ``$NAME`` and ``${NAME…}``; ``$$`` is a dollar sign.

    ``${NAME:-text}``, ``-``, ``:?``, ``?``, ``:+`` and ``+`` as in Compose (reference, Interpolation). Raises
    ValueError for a variable that must be set, and for what is no variable.
    """
    result, at = "", 0
    while (dollar := text.find("$", at)) >= 0:
        result += text[at:dollar]
        following = text[dollar + 1 : dollar + 2]
        if following == "$":
            result, at = result + "$", dollar + 2
        elif following == "{":
            end = _closing(text, dollar + 2)
            result, at = result + _substituted(text[dollar + 2 : end], text, variables), end + 1
        elif match := _PLAIN.match(text, dollar + 1):
            result, at = result + variables.get(match[0], ""), match.end()
        else:
            raise ValueError(f"{text!r}: a dollar sign that begins no variable; write $$ for the sign itself")
    return result + text[at:]


def _closing(text: str, start: int) -> int:
    depth = 1
    for at in range(start, len(text)):
        depth += (text[at] == "{" and text[at - 1] == "$") - (text[at] == "}")
        if depth == 0:
            return at
    raise ValueError(f"{text!r}: ${{ without its closing brace")


def _substituted(inside: str, text: str, variables: Mapping[str, str]) -> str:
    match = re.fullmatch(rf"({_NAME})(?:(:?[-?+])(.*))?", inside, re.DOTALL)
    if match is None:
        raise ValueError(f"{text!r}: ${{{inside}}} is no variable; write ${{NAME}} or ${{NAME:-default}}")
    name, operator, word = match[1], match[2] or "", match[3] or ""
    value = variables.get(name)
    there = bool(value) if operator.startswith(":") else value is not None
    match operator.removeprefix(":"):
        case "-" if not there:
            return interpolate(word, variables)
        case "+":
            return interpolate(word, variables) if there else ""
        case "?" if not there:
            raise ValueError(f"{text!r}: variable {name} is not set{': ' + word if word else ''}")
    return value or ""


def _dotenv(path: Path) -> dict[str, str]:
    found = {}
    if path.is_file():
        for raw in path.read_text(encoding="utf-8").splitlines():
            line = raw.strip().removeprefix("export ")
            name, equals, value = line.partition("=")
            if equals and not line.startswith("#") and _PLAIN.fullmatch(name.strip()):
                found[name.strip()] = _unquoted_value(value.strip())
    return found


def _unquoted_value(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return value.partition(" #")[0].rstrip()


# --- short forms to long ones ------------------------------------------------------------------------

Found = list[tuple[Where, str]]


def _service(body: dict[str, Any], folder: Path, environment: Mapping[str, str]) -> tuple[dict[str, Any], Found]:
    """A service with Compose's short forms written out; and what could not be read, with its place."""
    problems: Found = []
    if "build" in body:
        build = {"context": body["build"]} if isinstance(body["build"], str) else dict(body["build"] or {})
        build["context"] = str((folder / str(build.get("context", "."))).resolve())
        if "args" in build:
            build["args"] = _texts(_pairs(build["args"]), environment)
        body["build"] = build
    if body.get("network_mode") is None:
        networks = body.get("networks")
        joined = dict.fromkeys(networks) if isinstance(networks, list) else networks or {"default": None}
        body["networks"] = dict(sorted(joined.items()))
    for name in ("command", "entrypoint"):
        if isinstance(body.get(name), str):
            body[name] = _words(body[name], (name,), problems)
    files = body.pop("env_file", None) or []
    given: dict[str, str | None] = {}
    for each in [files] if isinstance(files, str | Mapping) else files:
        path = folder / (each["path"] if isinstance(each, Mapping) else str(each))
        if not path.is_file() and not (isinstance(each, Mapping) and each.get("required") is False):
            problems.append((("env_file",), f"env_file {str(path)!r} does not exist"))
        given.update(_dotenv(path))
    given.update(_pairs(body.get("environment")))
    body["environment"] = _texts(given, environment)
    depends = body.get("depends_on") or {}
    if isinstance(depends, list):
        depends = {name: {"condition": "service_started"} for name in depends}
    body["depends_on"] = depends
    check = body.get("healthcheck")
    if isinstance(check, Mapping) and isinstance(check.get("test"), str):
        body["healthcheck"] = {**check, "test": ["CMD-SHELL", check["test"]]}
    ports = enumerate(body.get("ports") or [])
    body["ports"] = [port for number, each in ports for port in _ports(each, ("ports", number), problems)]
    volumes = enumerate(body.get("volumes") or [])
    body["volumes"] = [_volume(each, folder, ("volumes", number), problems) for number, each in volumes]
    for name in ("sysctls", "labels"):
        body[name] = {key: str(value) for key, value in _pairs(body.get(name)).items()}
    hosts = body.get("extra_hosts") or []
    body["extra_hosts"] = [f"{k}={v}" for k, v in hosts.items()] if isinstance(hosts, Mapping) else [
        re.sub(r"^([^=:]+)[=:]", r"\1=", str(each)) for each in hosts
    ]  # fmt: skip
    if isinstance(body.get("tmpfs"), str):
        body["tmpfs"] = [body["tmpfs"]]
    return body, problems


def _words(text: str, where: Where, problems: Found) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        problems.append((where, f"{text!r}: {error}"))
        return []


def _texts(values: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, str | None]:
    """Each as text; one without a value as the environment has it, or None."""
    return {
        name: environment.get(name) if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in values.items()
    }


def _pairs(value: Any) -> dict[str, Any]:
    if isinstance(value, list):
        pairs: Iterator[tuple[str, str, str]] = (str(each).partition("=") for each in value)
        return {name: text if equals else None for name, equals, text in pairs}
    return dict(value or {})


_PORT = re.compile(
    r"(?:(?:(?P<ip>\[[^]]+\]|[\d.]+):)?(?P<published>\d*(?:-\d+)?):)?(?P<target>\d+(?:-\d+)?)(?:/(?P<protocol>\w+))?"
)


def _ports(value: Any, where: Where, problems: Found) -> list[dict[str, Any]]:
    if isinstance(value, Mapping):
        published = value.get("published")
        return [{**value, "published": "" if published is None else str(published)}]
    match = _PORT.fullmatch(str(value))
    if match is None:
        problems.append((where, f'port {value!r}: write "8080:80" or "127.0.0.1:8080:80"'))
        return []
    targets, published = _span(match["target"]), _span(match["published"] or "")
    if published and len(published) != len(targets):
        problems.append((where, f"port {value!r}: as many ports outside as inside"))
        return []
    host_ip = (match["ip"] or "").strip("[]")
    return [
        {"target": target, "published": str(published[number]) if published else "",
         "protocol": match["protocol"] or "tcp", **({"host_ip": host_ip} if host_ip else {})}
        for number, target in enumerate(targets)
    ]  # fmt: skip


def _span(text: str) -> list[int]:
    if not text:
        return []
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def _volume(value: Any, folder: Path, where: Where, problems: Found) -> dict[str, Any]:
    if isinstance(value, Mapping):
        long = dict(value)
        if long.get("type") == "bind":
            long["source"] = str((folder / os.path.expanduser(str(long.get("source", "")))).resolve())
        return long
    source, colon, rest = str(value).partition(":")
    if not colon:
        return {"type": "volume", "target": source}
    target, _, mode = rest.partition(":")
    read_only = {"read_only": True} if "ro" in mode.split(",") else {}
    if source.startswith((".", "/", "~")):
        path = (folder / os.path.expanduser(source)).resolve()
        return {"type": "bind", "source": str(path), "target": target, **read_only}
    if not target.startswith("/"):
        problems.append((where, f"volume {value!r}: its place in the container must be an absolute path"))
    return {"type": "volume", "source": source, "target": target, **read_only}
