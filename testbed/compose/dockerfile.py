"""Reads a Dockerfile as far as a local lab can follow it: files, settings, programs; it installs only Python.

Pure: text in, values out. `buildcontext` looks up the files of a COPY.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from signal import Signals
from typing import NoReturn

from testbed.images.settings import PATH, HealthCheck, Settings
from testbed.text import shown

_BASES = re.compile(r"(docker\.io/)?(library/)?(debian|ubuntu|python|alpine)(:[\w.-]+)?(@\S+)?", re.IGNORECASE)
# Programs of the image see nothing of these; ONBUILD is for images that are built from it.
_IGNORED = {"LABEL", "EXPOSE", "MAINTAINER", "ONBUILD"}
_REFUSED = {"VOLUME": "a local lab keeps no volumes; write below /tmp, or name it under the service's `volumes:`"}
# Set by BuildKit (reference, "Automatic platform ARGs in the global scope").
_PLATFORM = re.compile(r"(TARGET|BUILD)(PLATFORM|OS|ARCH|VARIANT)")
_PYTHON_PACKAGES = re.compile(r"python3(\.\d+)?(-minimal)?(=\S+)?")
_APT_HARMLESS = {"update", "upgrade", "dist-upgrade", "full-upgrade", "clean", "autoclean", "autoremove"}
_WAY_OUT = "give the service `x-testbed: {local: {path: FOLDER}}` with its files and `command:`, or use --lab compose"


@dataclass(frozen=True)
class Problem:
    """What is wrong with a line of a Dockerfile."""

    line: int
    """0: the problem is in ``.dockerignore``, which has its own lines."""
    text: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}" if self.line else self.text


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One instruction of a Dockerfile."""

    line: int
    """Its first line, from 1."""
    name: str
    rest: str
    heredoc: bool = False
    """Whether a heredoc follows: ``<<EOF``."""

    def __str__(self) -> str:
        return f"{self.name} {' '.join(self.rest.split())}".strip()[:80]


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder of a WORKDIR or ``mkdir``, made if it does not exist."""

    line: int
    path: str
    mode: int = 0o755
    owner: str = ""
    """In the form of USER, with or without a group."""

    def __str__(self) -> str:
        return f"folder {self.path}"


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A COPY or an ADD: patterns of the build context, and their target."""

    line: int
    sources: tuple[str, ...]
    target: str
    """Absolute; ends with a slash if it must be a folder."""
    owner: str = ""
    """In the form of ``--chown``; empty: root."""
    mode: int | None = None
    unpacks: bool = False
    """Whether it is an ADD, which unpacks archives."""

    def __str__(self) -> str:
        return f"{'ADD' if self.unpacks else 'COPY'} {' '.join(self.sources)}"


@dataclass(frozen=True, kw_only=True)
class Image(Settings):
    """The content and settings of an image."""

    layers: tuple[Copy | Folder, ...] = ()
    """What is put into the file system, in this order."""
    python: bool = False
    """Whether its programs need ``python3``."""


def base(reference: str) -> Image | None:
    """A base image, if a machine with Python can replace its contents; else None."""
    match = _BASES.fullmatch(reference)
    if match is None:
        return None
    python = match[3].lower() == "python"
    return Image(environment={"PATH": PATH}, python=python, command=("python3",) if python else ())


# --- lines to instructions ---------------------------------------------------------------------------

_CONTINUED = re.compile(r"(?:(?<=[^\\])|^)\\[ \t]*$")
_HEREDOC = re.compile(r"(?:^|\s)\d*<<-?(['\"]?)([A-Za-z_]\w*)\1(?=\s|$)")


def instructions(text: str) -> list[Instruction]:
    """The instructions, with continued lines joined and comments left out."""
    read: list[Instruction] = []
    first, pending = 0, ""
    lines = enumerate(text.splitlines(), start=1)
    for number, raw in lines:
        if not raw.strip() or raw.lstrip().startswith("#"):
            continue
        first = first or number
        pending += raw if pending else raw.lstrip()
        if (end := _CONTINUED.search(pending)) is not None:
            pending = pending[: end.start()]
            continue
        instruction = _instruction(first, pending)
        read.append(instruction)
        if instruction.heredoc:
            for ending in (match[2] for match in _HEREDOC.finditer(instruction.rest)):
                next((line for _, line in lines if line.strip() == ending), None)
        first, pending = 0, ""
    if pending.strip():
        read.append(_instruction(first, pending))
    return read


def _instruction(line: int, text: str) -> Instruction:
    name, rest = [*text.split(maxsplit=1), ""][:2]
    heredoc = name.upper() in ("RUN", "COPY", "ADD") and _HEREDOC.search(rest) is not None
    return Instruction(line=line, name=name.upper(), rest=rest.strip(), heredoc=heredoc)


def _directive_problems(text: str) -> Iterator[Problem]:
    """What is wrong with the directives at the top (reference, "Parser directives")."""
    for number, line in enumerate(text.splitlines(), start=1):
        directive = re.fullmatch(r"#\s*(\w+)\s*=\s*(\S+)\s*", line.strip())
        if directive is None:
            return
        if directive[1].lower() == "escape" and directive[2] != "\\":
            yield Problem(number, f"{line.strip()}: a local lab knows only the escape character \\; {_WAY_OUT}")


# --- instructions to an image ------------------------------------------------------------------------


def read(text: str, *, arguments: Mapping[str, str] | None = None) -> tuple[Image, list[Problem]]:
    """The image of a Dockerfile, and every problem, with its line.

    ``arguments``: the values of its ARGs from ``build: args:``.
    """
    builder = _InstructionReader(arguments or {})
    for instruction in instructions(text):
        builder.take(instruction)
    problems = builder.problems if builder.stages else [Problem(1, "no FROM")]
    return builder.image, [*_directive_problems(text), *problems]


class _InstructionReader:
    """Builds an image instruction by instruction."""

    def __init__(self, given: Mapping[str, str]) -> None:
        self.image = Image()
        self.stages = 0
        self.problems: list[Problem] = []
        self._given = given
        self._global: dict[str, str] = {}
        """The ARGs before FROM: known in FROM, and after an ARG that repeats their name."""
        self._arguments: dict[str, str] = {}
        self._has_command = False

    def take(self, instruction: Instruction) -> None:
        """Follow an instruction, or note what is wrong."""
        try:
            if instruction.heredoc:
                raise ValueError(f"a heredoc (<<) cannot be followed; write a file and COPY it, or {_WAY_OUT}")
            if not self.stages and instruction.name not in ("ARG", "FROM"):
                raise ValueError("comes before FROM")
            if not instruction.rest:
                raise ValueError("needs an argument")
            self._step(instruction)
        except ValueError as error:
            self._wrong(instruction, error)

    def _wrong(self, instruction: Instruction, error: ValueError) -> None:
        self.problems.append(Problem(instruction.line, f"{instruction}: {error}"))

    @property
    def _known(self) -> Mapping[str, str]:
        """The variables of ENV and ARG; the later of two with one name counts, as with BuildKit."""
        return {**self.image.environment, **self._arguments}

    def _expand(self, word: str) -> str:
        return expand(word, self._known)

    def _set(self, **values: object) -> None:
        self.image = replace(self.image, **values)  # type: ignore[arg-type]  # names fields of an Image

    def _step(self, instruction: Instruction) -> None:
        rest, line = instruction.rest, instruction.line
        match instruction.name:
            case name if name in _IGNORED:
                pass
            case "FROM":
                self._from(rest)
            case "ARG":
                self._arg(rest)
            case "RUN":
                self._run(instruction)
            case "ENV":
                assigned = _assignments(rest, self._known)
                self._set(environment={**self.image.environment, **assigned})
                self._arguments = {name: value for name, value in self._arguments.items() if name not in assigned}
            case "WORKDIR":
                workdir = _joined(self.image.workdir, self._expand(rest))
                self._set(workdir=workdir)
                self._add(Folder(line=line, path=workdir, owner=_owner(self.image.user)))
            case "COPY" | "ADD":
                self._add(_copy(instruction, self.image.workdir, self._known))
            case "CMD":
                self._has_command = True
                self._set(command=self._program(rest))
            case "ENTRYPOINT":
                # The base image's CMD is dropped (reference, "Understand how CMD and ENTRYPOINT interact").
                self._set(entrypoint=self._program(rest), command=self.image.command if self._has_command else ())
            case "SHELL":
                shell = _exec_form(rest)
                if not shell:
                    raise ValueError('write it as a list, SHELL ["/bin/bash", "-c"]')
                self._set(shell=tuple(shell))
            case "STOPSIGNAL":
                self._set(stop_signal=signal_name(self._expand(rest)))
            case "USER":
                self._set(user=self._expand(rest))
            case "HEALTHCHECK":
                self._set(health_check=self._health_check(rest))
            case name:
                raise ValueError(_REFUSED.get(name, "is no instruction of a Dockerfile"))

    def _add(self, layer: Copy | Folder) -> None:
        self._set(layers=(*self.image.layers, layer))

    def _from(self, rest: str) -> None:
        self.stages += 1
        self.image, self._arguments, self._has_command = Image(), {}, False
        if self.stages > 1:
            raise ValueError(f"a build in several stages cannot be followed; {_WAY_OUT}")
        _, rest = _options(rest, {"platform"})
        words = [expand(word, self._global) for word in rest.split()]
        if not (len(words) == 1 or (len(words) == 3 and words[1].upper() == "AS")):
            raise ValueError("write FROM IMAGE, or FROM IMAGE AS NAME")
        image = base(words[0])
        if image is None:
            raise ValueError(f"the contents of {words[0]} are unknown without an engine; {_WAY_OUT}")
        self.image = image

    def _arg(self, rest: str) -> None:
        for word in _words(rest):
            name, equals, default = word.partition("=")
            value = self._given.get(name)
            if value is None and equals:
                value = expand(default, self._known if self.stages else self._global)
            if value is None and self.stages:
                value = self._global.get(name)
            if value is None and _PLATFORM.fullmatch(name):
                raise ValueError(f"the builder sets {name}; give it under `build: args:`, or use --lab compose")
            if value is not None:
                (self._arguments if self.stages else self._global)[name] = value

    def _program(self, text: str) -> tuple[str, ...]:
        """The argv of ``["a", "b"]``, or of a shell line."""
        words = _exec_form(text)
        return (*self.image.shell, text) if words is None else tuple(words)

    def _run(self, instruction: Instruction) -> None:
        """Follow the commands of a RUN, which may only make folders and install Python."""
        _, rest = _options(instruction.rest, {"mount", "network", "security"})
        words = _exec_form(rest)
        for command in _commands(rest) if words is None else [[f"'{word}'" for word in words]]:
            try:
                self._command(instruction.line, command)
            except ValueError as error:
                self._wrong(instruction, error)

    def _command(self, line: int, raw: list[str]) -> None:
        """One command of a RUN, in the shell's own words."""

        def not_to_be_run() -> NoReturn:
            raise ValueError(f"`{' '.join(raw)}` cannot be run without an engine; {_WAY_OUT}")

        while raw and re.match(r"[A-Za-z_]\w*=", raw[0]):
            raw = raw[1:]
        # Only a shell knows the output of other commands, variables that the Dockerfile does not set, and, for
        # `mkdir`, patterns. An operator between commands is a separate word.
        if any(re.fullmatch(r"[|&<>()]+", word) for word in raw):
            not_to_be_run()
        unquoted = [word for word in raw if not word.startswith("'")]
        if any(not set(re.findall(r"\$\{?(\w+)", word)) <= set(self._known) for word in unquoted):
            not_to_be_run()
        if raw[:1] == ["mkdir"] and any(re.search(r"[*?\[{~`#]", word.replace("${", "$")) for word in raw):
            not_to_be_run()
        words = [self._expand(word) for word in raw]
        match words:
            case [] | ["set" | "true" | ":", *_]:
                pass
            case ["rm", *paths] if all(path.startswith(("-", "/var/lib/apt/", "/var/cache/")) for path in paths):
                pass
            case ["mkdir", *options]:
                for folder in _made(options, line, self.image) or not_to_be_run():
                    self._add(folder)
            case ["apt-get" | "apt" | "apk", *rest]:
                kind, *packages = [word for word in rest if not word.startswith("-")] or [""]
                if kind in ("install", "add"):
                    wrong = [package for package in packages if not _PYTHON_PACKAGES.fullmatch(package)]
                    if wrong:
                        raise ValueError(f"installs {', '.join(wrong)}; a local lab has only Python; {_WAY_OUT}")
                    self._set(python=self.image.python or bool(packages))
                elif kind not in _APT_HARMLESS:
                    not_to_be_run()
            case _:
                not_to_be_run()

    def _health_check(self, rest: str) -> HealthCheck | None:
        options, words = _options(rest, {"interval", "timeout", "start-period", "start-interval", "retries"})
        kind, _, command = words.partition(" ")
        if kind.upper() == "NONE":
            return None
        if kind.upper() != "CMD" or not command.strip():
            raise ValueError("write HEALTHCHECK [OPTIONS] CMD command")
        retries = options.get("retries", "3")
        if not retries.isdecimal():
            raise ValueError(f"--retries={retries}: must be a whole number")
        check = HealthCheck(test=self._program(command.strip()), retries=int(retries) or 3)  # 0 is the default
        for option, name in (("interval", "interval_s"), ("timeout", "timeout_s"), ("start-period", "start_period_s")):
            if option in options and (time_s := duration_s(options[option])):  # 0 is the default
                check = replace(check, **{name: time_s})  # type: ignore[arg-type]  # names a float
        duration_s(options.get("start-interval", "0"))  # checked only: a local lab checks more often anyway
        return check


def _options(rest: str, known: set[str]) -> tuple[dict[str, str], str]:
    """The options ``--name=value`` at the beginning, and the rest. Raises ValueError for an unknown option."""
    options: dict[str, str] = {}
    while rest.startswith("--"):
        option, rest = [*rest.split(maxsplit=1), ""][:2]
        name, _, value = option.removeprefix("--").partition("=")
        if name not in known:
            raise ValueError(f"option --{name} cannot be followed; {_WAY_OUT}")
        options[name] = value
    return options, rest


def _assignments(rest: str, known: Mapping[str, str]) -> dict[str, str]:
    words = _words(rest)
    if "=" not in words[0]:  # the old form, ENV NAME value
        name, value = [*rest.split(maxsplit=1), ""][:2]
        if not value:
            raise ValueError("write ENV NAME=value")
        return {name: expand(value, known)}
    values = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ValueError(f"{shown(word)} is not of the form NAME=value")
        values[expand(name, known)] = expand(value, known)
    return values


def _copy(instruction: Instruction, workdir: str, known: Mapping[str, str]) -> Copy:
    options, rest = _options(instruction.rest, {"chown", "chmod", "link", "from"})
    if "from" in options:
        raise ValueError(f"copies from another image, or another stage; {_WAY_OUT}")
    mode = expand(options.get("chmod", ""), known)
    if mode and not re.fullmatch(r"0?[0-7]{3,4}", mode):
        raise ValueError(f"--chmod={mode}: write the mode as 755")
    words = _exec_form(rest)
    words = [expand(word, known) for word in (rest.split() if words is None else words)]
    if len(words) < 2:
        raise ValueError("needs a source and a target")
    *sources, target = words
    if any("://" in source or source.startswith("git@") for source in sources):
        raise ValueError(f"downloads a file; {_WAY_OUT}")
    folder = "/" if target.rpartition("/")[2] in ("", ".", "..") else ""
    if len(sources) > 1 and not folder:
        raise ValueError(f"{shown(target)} must end with a slash: several sources go into a folder")
    return Copy(
        line=instruction.line,
        sources=tuple(sources),
        target=_joined(workdir, target).rstrip("/") + folder,
        owner=_owner(expand(options.get("chown", ""), known)),
        mode=int(mode, 8) if mode else None,
        unpacks=instruction.name == "ADD",
    )


def _owner(user: str) -> str:
    """The owner of the builder's files: a number alone is also the group (reference, "COPY --chown")."""
    return f"{user}:{user}" if user.isdecimal() else user


def _exec_form(text: str) -> list[str] | None:
    """The words of ``["a", "b"]``; None for anything else. Raises ValueError for a list of other values."""
    try:
        words = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(words, list):
        return None
    if not all(isinstance(word, str) for word in words):
        raise ValueError("a list may contain nothing but strings")
    return words


# --- words -------------------------------------------------------------------------------------------

_QUOTED = r"""\\(?:.|$)|'[^']*(?:'|$)|"(?:[^"\\]|\\.)*(?:"|\\?$)"""
_WORD = re.compile(rf"""(?:[^\s'"\\]|{_QUOTED})+""", re.DOTALL)
_TOKEN = re.compile(rf"""&&|\|\||[;|&<>()]|(?:[^\s'"\\;|&<>()]|{_QUOTED})+""", re.DOTALL)
_REDIRECTED = re.compile(r"\d?>>?\s*/dev/null|\d>&\d")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+|[@*#!?$-]")
_OPERATOR = re.compile(r"\}|:?[-+?]")


def _words(text: str) -> list[str]:
    """A line split at blanks, except in quotes and after backslashes."""
    return _WORD.findall(text)


def _commands(text: str) -> list[list[str]]:
    """A shell line split at ``&&`` and ``;``."""
    commands: list[list[str]] = [[]]
    for token in _TOKEN.findall(_REDIRECTED.sub("", text)):
        if token in ("&&", ";"):
            commands.append([])
        else:
            commands[-1].append(token)
    return commands


def _made(options: list[str], line: int, image: Image) -> list[Folder]:
    """The folders of a ``mkdir``; empty if they are not known."""
    mode, paths, left = 0o755, [], list(options)
    while left:
        word = left.pop(0)
        if re.fullmatch(r"-[pv]*m", word) and left:
            word = f"--mode={left.pop(0)}"
        if re.fullmatch(r"-[pv]+|--parents|--verbose", word):
            continue
        if (option := re.fullmatch(r"--mode=(0?[0-7]{3,4})", word)) is not None:
            mode = int(option[1], 8)
        elif word.startswith("-") or not word:
            return []
        else:
            paths.append(_joined(image.workdir, word))
    return [Folder(line=line, path=path, mode=mode, owner=image.user) for path in paths]


def expand(text: str, known: Mapping[str, str]) -> str:
    """A word as Docker's builder reads it (shell/lex.go): without quotes, variables replaced. Raises ValueError."""
    return _expanded(text, 0, "", known)[0]


def _expanded(text: str, at: int, stop: str, known: Mapping[str, str]) -> tuple[str, int]:
    """The text from a position to the character ``stop`` or the end, expanded; and the position after it."""
    result, quoted = "", False
    while at < len(text):
        char, following = text[at], text[at + 1 : at + 2]
        if char == "$":
            value, at = _variable(text, at, known)
            result += value
            continue
        if char == '"':
            quoted = not quoted
        elif char == "\\" and (not quoted or following in ('"', "$", "\\")):
            result, at = result + following, at + 1
        elif quoted:
            result += char
        elif char == stop:
            return result, at + 1
        elif char == "'":
            end = text.find("'", at + 1)
            if end < 0:
                raise ValueError(f"{shown(text)}: a ' without its second")
            result, at = result + text[at + 1 : end], end
        else:
            result += char
        at += 1
    if quoted:
        raise ValueError(f'{shown(text)}: a " without its second')
    if stop:
        raise ValueError(f"{shown(text)}: ${{ without its closing brace")
    return result, at


def _variable(text: str, at: int, known: Mapping[str, str]) -> tuple[str, int]:
    """The value of the variable at a position, and the position after it."""
    braces = text[at + 1 : at + 2] == "{"
    match = _NAME.match(text, at + 1 + braces)
    if not braces:
        return (known.get(match[0], ""), match.end()) if match else ("$", at + 1)
    operator = _OPERATOR.match(text, match.end()) if match else None
    if match is None or operator is None:
        raise ValueError(f"{shown(text)}: write ${{NAME}}, ${{NAME:-default}} or ${{NAME:+other}}")
    name, value = match[0], known.get(match[0])
    if operator[0] == "}":
        return value or "", operator.end()
    word, at = _expanded(text, operator.end(), "}", known)
    given = bool(value) if operator[0].startswith(":") else value is not None
    match operator[0][-1]:
        case "-" if not given:
            return word, at
        case "+":
            return word if given else "", at
        case "?" if not given:
            raise ValueError(f"{shown(text)}: variable {name} is not set{': ' + word if word else ''}")
    return value or "", at


_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+")
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def duration_s(text: str) -> float:
    """A duration in the form of Go and Compose, ``"1m30s"``, in seconds. Raises ValueError."""
    if text == "0":
        return 0.0
    if not _DURATION.fullmatch(text):
        raise ValueError(f'{shown(text)} is not a duration; write "1m30s" or "500ms"')
    parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", text)
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)


def signal_name(text: str) -> str:
    """``SIGTERM`` for ``SIGTERM``, ``TERM`` or ``15``. Raises ValueError."""
    word = text.strip().upper()
    known = {str(int(number)): name for name, number in Signals.__members__.items()}
    name = known.get(word, word if word.startswith("SIG") else f"SIG{word}")
    if name not in Signals.__members__:
        raise ValueError(f"{shown(text)} is no signal; write SIGTERM, or 15")
    return name


def _joined(folder: str, path: str) -> str:
    joined = path if path.startswith("/") else f"{folder.rstrip('/')}/{path}"
    parts: list[str] = []
    for part in joined.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)
