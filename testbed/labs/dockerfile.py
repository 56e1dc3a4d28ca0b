"""What a Dockerfile says, as far as a local lab can honour it: files, settings, programs; nothing installed but Python.

Pure: text in, values out. Which files a COPY means is for the caller to look up.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from signal import Signals

_BASES = re.compile(r"(docker\.io/)?(library/)?(debian|ubuntu|python|alpine)(:[\w.-]+)?(@\S+)?", re.IGNORECASE)
_PYTHON_BASES = re.compile(r"(docker\.io/)?(library/)?python(:[\w.-]+)?(@\S+)?", re.IGNORECASE)
_IGNORED = {"LABEL", "EXPOSE", "MAINTAINER", "ARG"}
_PYTHON_PACKAGES = re.compile(r"python3(\.\d+)?(-minimal)?(=\S+)?")
_WAY_OUT = "give the service `x-testbed: {local: {path: FOLDER}}` with its files and `command:`, or use --lab compose"


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One instruction of a Dockerfile."""

    line: int
    """Its first line, from 1."""
    name: str
    rest: str


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A COPY: patterns of the build context, and where they go."""

    line: int
    sources: tuple[str, ...]
    target: str
    """Absolute; ends with a slash if it is a folder for sure."""


@dataclass(frozen=True, kw_only=True)
class HealthCheck:
    """A health check; times in seconds. Defaults: docker-compose and Dockerfile reference, HEALTHCHECK."""

    test: tuple[str, ...]
    interval_s: float = 30.0
    timeout_s: float = 30.0
    start_period_s: float = 0.0
    retries: int = 3


@dataclass(frozen=True, kw_only=True)
class Image:
    """What a container starts with."""

    environment: Mapping[str, str] = field(default_factory=dict)
    workdir: str = "/"
    copies: tuple[Copy, ...] = ()
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    health_check: HealthCheck | None = None
    stop_signal: str = "SIGTERM"
    user: str = ""
    python: bool = False
    """Whether its programs count on a ``python3``."""


def instructions(text: str) -> list[Instruction]:
    """The instructions, with continued lines joined and comments left out."""
    found: list[Instruction] = []
    first, pending = 0, ""
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        first = first or number
        if line.endswith("\\"):
            pending += line[:-1].rstrip() + " "
            continue
        name, _, rest = (pending + line).partition(" ")
        found.append(Instruction(line=first, name=name.upper(), rest=rest.strip()))
        first, pending = 0, ""
    if pending:
        name, _, rest = pending.partition(" ")
        found.append(Instruction(line=first, name=name.upper(), rest=rest.strip()))
    return found


def read(text: str, *, expand: Callable[[str, Mapping[str, str]], str]) -> tuple[Image, list[str]]:
    """The image that a Dockerfile describes, and every problem, each with its line.

    ``expand`` puts variables in place of ``${NAME}``.
    """
    image = Image()
    problems: list[str] = []
    arguments: dict[str, str] = {}
    stages = 0
    for each in instructions(text):
        known = {**arguments, **image.environment}
        try:
            if each.name == "FROM":
                stages += 1
                if stages > 1:
                    raise ValueError(f"a build in several stages cannot be followed; {_WAY_OUT}")
                image = _from(image, expand(each.rest, known))
            elif each.name == "ARG":
                name, _, default = each.rest.partition("=")
                arguments[name.strip()] = expand(_unquoted(default), known)
            else:
                image = _step(image, each, functools.partial(_expanded, expand, known))
        except ValueError as error:
            problems.append(f"line {each.line}: {each.name} {each.rest[:80]}: {error}")
    if not stages:
        problems.append("line 1: no FROM")
    return image, problems


def _expanded(expand: Callable[[str, Mapping[str, str]], str], known: Mapping[str, str], text: str) -> str:
    return expand(text, known)


def _from(image: Image, rest: str) -> Image:
    words = [word for word in rest.split() if not word.startswith("--")]
    if not words or not _BASES.fullmatch(words[0]):
        raise ValueError(f"the contents of this image are unknown without an engine; {_WAY_OUT}")
    return replace(image, python=bool(_PYTHON_BASES.fullmatch(words[0])))


def _step(image: Image, each: Instruction, expand: Callable[[str], str]) -> Image:
    rest = each.rest
    match each.name:
        case name if name in _IGNORED:
            return image
        case "RUN":
            return replace(image, python=_run(rest) or image.python)
        case "ENV":
            return replace(image, environment={**image.environment, **_assignments(rest, expand)})
        case "WORKDIR":
            return replace(image, workdir=_joined(image.workdir, expand(_unquoted(rest))))
        case "COPY" | "ADD":
            return replace(image, copies=(*image.copies, _copy(each, image.workdir, expand)))
        case "CMD":
            return replace(image, command=program(rest))
        case "ENTRYPOINT":
            return replace(image, entrypoint=program(rest), command=())
        case "STOPSIGNAL":
            return replace(image, stop_signal=signal_name(rest))
        case "USER":
            return replace(image, user=expand(rest))
        case "HEALTHCHECK":
            return replace(image, health_check=_health_check(rest))
        case "VOLUME":
            raise ValueError(
                "a local lab keeps no volumes; write below /tmp, or name it under the service's `volumes:`"
            )
        case _:
            raise ValueError(f"cannot be followed without an engine; {_WAY_OUT}")


def _run(rest: str) -> bool:
    """Check that a RUN installs nothing but Python; whether it does."""
    python = False
    for command in re.split(r"&&|;", rest):
        words = shlex.split(command)
        while words and re.fullmatch(r"\w+=\S*", words[0]):
            words = words[1:]
        match words:
            case [] | ["set", *_] | ["apt-get" | "apt", *_] if not words or "install" not in words:
                continue
            case ["rm", *paths] if all(path.startswith(("-", "/var/lib/apt/", "/var/cache/")) for path in paths):
                continue
            case ["mkdir", "-p", *_]:
                continue
            case ["apt-get" | "apt", *_] | ["apk", "add", *_]:
                packages = [word for word in words[1:] if not word.startswith("-") and word not in ("install", "add")]
                wrong = [each for each in packages if not _PYTHON_PACKAGES.fullmatch(each)]
                if wrong:
                    raise ValueError(f"installs {', '.join(wrong)}; a local lab gives Python alone; {_WAY_OUT}")
                python = True
            case _:
                raise ValueError(f"`{command.strip()}` cannot be run without an engine; {_WAY_OUT}")
    return python


def _assignments(rest: str, expand: Callable[[str], str]) -> dict[str, str]:
    words = shlex.split(rest)
    if words and "=" not in words[0]:  # the old form: ENV NAME value
        name, _, value = rest.partition(" ")
        return {name: expand(value.strip())}
    return {name: expand(value) for name, _, value in (word.partition("=") for word in words)}


def _copy(each: Instruction, workdir: str, expand: Callable[[str], str]) -> Copy:
    words = shlex.split(each.rest)
    if any(word.startswith("--from") for word in words):
        raise ValueError(f"copies from another image; {_WAY_OUT}")
    words = [expand(word) for word in words if not word.startswith("--")]
    if each.rest.startswith("["):
        words = [expand(word) for word in _exec_form(each.rest) or []]
    if len(words) < 2:
        raise ValueError("needs a source and a target")
    *sources, target = words
    if any("://" in source for source in sources):
        raise ValueError(f"downloads a file; {_WAY_OUT}")
    folder = "/" if target.endswith("/") or target in (".", "..") or len(sources) > 1 else ""
    return Copy(line=each.line, sources=tuple(sources), target=_joined(workdir, target).rstrip("/") + folder)


def program(text: str) -> tuple[str, ...]:
    """The argv of ``["a", "b"]``, or of a line for the shell."""
    return tuple(_exec_form(text) or ["/bin/sh", "-c", text])


def _exec_form(text: str) -> list[str] | None:
    try:
        words = json.loads(text)
    except ValueError:
        return None
    return words if isinstance(words, list) and all(isinstance(word, str) for word in words) else None


def _health_check(rest: str) -> HealthCheck | None:
    options: dict[str, str] = {}
    words = rest
    while words.startswith("--"):
        option, _, words = words.partition(" ")
        name, _, value = option.removeprefix("--").partition("=")
        options[name], words = value, words.strip()
    kind, _, command = words.partition(" ")
    if kind.upper() == "NONE":
        return None
    if kind.upper() != "CMD":
        raise ValueError("write HEALTHCHECK [OPTIONS] CMD command")
    unknown = set(options) - {"interval", "timeout", "start-period", "start-interval", "retries"}
    if unknown:
        raise ValueError(f"unknown option --{sorted(unknown)[0]}")
    check = HealthCheck(test=program(command.strip()), retries=int(options.get("retries", "3")))
    for option, name in (("interval", "interval_s"), ("timeout", "timeout_s"), ("start-period", "start_period_s")):
        if option in options:
            check = replace(check, **{name: duration_s(options[option])})  # type: ignore[arg-type]  # names a float
    return check


_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+")
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def duration_s(text: str) -> float:
    """A duration as Go and Compose write it, ``"1m30s"``, in seconds. Raises ValueError."""
    if text == "0":
        return 0.0
    if not _DURATION.fullmatch(text):
        raise ValueError(f'{text!r} is not a duration; write "1m30s" or "500ms"')
    parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", text)
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)


def signal_name(text: str) -> str:
    """``SIGTERM`` of ``SIGTERM``, ``TERM`` or ``15``. Raises ValueError."""
    word = text.strip().upper()
    if word.isdecimal():
        return Signals(int(word)).name
    return word if word.startswith("SIG") else f"SIG{word}"


def _joined(folder: str, path: str) -> str:
    joined = path if path.startswith("/") else f"{folder.rstrip('/')}/{path}"
    parts: list[str] = []
    for part in joined.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def _unquoted(text: str) -> str:
    words = shlex.split(text)
    return words[0] if len(words) == 1 else text
