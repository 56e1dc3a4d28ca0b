"""The files and folders that a Dockerfile's instructions put into a host's file system.

Reads the build context, and the parts of this machine that replace the base image; writes nothing.
"""

from __future__ import annotations

import os
import posixpath
import re
import stat
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from testbed import reading
from testbed.compose.dockerfile import Copy, Folder, Problem
from testbed.text import shown

# A container has its own there, and hides those of its image.
_HIDDEN = re.compile(r"/(proc|sys|dev)(/.*)?")
# Every host has its own, empty except for its image's files.
SCRATCH = ("/tmp", "/run")  # noqa: S108  # of a host, not of this machine
_MOST_FILES = 50_000
_WILD = re.compile(r"[*?\[\\]")


class Entry(NamedTuple):
    """A file or folder of a host's image."""

    source: str
    """A file or symbolic link of this machine; empty for a folder."""
    target: str
    mode: int | None = None
    """None: the mode of the source."""
    owner: str = ""
    """Empty: root."""


def entries(context: Path, dockerfile: Path, layers: Sequence[Copy | Folder]) -> tuple[list[Entry], list[Problem]]:
    """The files and folders in order, and every problem, with its line in the Dockerfile."""
    try:
        layered = _Layered(BuildContext(context, _ignore_file(context, dockerfile)))
    except reading.UnreadableError as error:
        return [], [Problem(0, problem) for problem in error.problems]
    except (ValueError, OSError) as error:
        return [], [Problem(0, f".dockerignore: {error}")]
    for layer in layers:
        try:
            if isinstance(layer, Folder):
                layered.folder(Entry("", layer.path, layer.mode, layer.owner))
            else:
                layered.copy(layer)
        except (ValueError, OSError) as error:
            layered.problems.append(Problem(layer.line, f"{layer}: {error}"))
    return layered.entries, layered.problems


class _Layered:
    """The file system after the instructions so far."""

    def __init__(self, context: BuildContext) -> None:
        self.entries: list[Entry] = []
        self.problems: list[Problem] = []
        self._context = context
        self._folders = {"/"}
        self._files: set[str] = set()

    def folder(self, entry: Entry) -> None:
        """Add a folder and its parents. Raises ValueError if one of them is a file."""
        if _HIDDEN.fullmatch(entry.target):
            raise ValueError(f"{entry.target}: a host has its own there, and hides what an image has")
        new = [path for path in _upwards(entry.target) if path not in self._folders]
        for path in new:
            if path in self._files or (not is_hosts_own(path) and os.path.isfile(path)):
                raise ValueError(f"{path} is a file, and not a folder")
        if new:
            self._folders.update(new)
            self.entries.append(entry)

    def copy(self, copy: Copy) -> None:
        """Add what a COPY copies. Raises ValueError if there is nothing, or if it cannot be copied."""
        matches: list[str] = []
        for source in copy.sources:
            of_source = self._context.matches(source)
            if not of_source and not _WILD.search(source):
                raise ValueError(self._context.missing(source))
            matches += of_source
        if not matches:
            raise ValueError(f"no such file in {self._context.folder}")
        if len(matches) > 1 and not copy.target.endswith("/"):
            raise ValueError(f"{shown(copy.target)} must end with a slash: {len(matches)} files go into it")
        target = copy.target.rstrip("/") or "/"
        for match in matches:
            place = self._context.real(match)
            if place.is_dir():
                self.folder(Entry("", target, 0o755, copy.owner))
                self._contents(copy, place, target)
            elif copy.unpacks and tarfile.is_tarfile(place):
                raise ValueError(f"{match} would be unpacked; COPY its contents instead, or use --lab compose")
            elif copy.target.endswith("/") or self._is_folder(target):
                self._file(copy, place, f"{target.rstrip('/')}/{posixpath.basename(match)}")
            else:
                self._file(copy, place, target)

    def _contents(self, copy: Copy, place: Path, target: str) -> None:
        """Add what is in a folder of the context, without the folder itself."""
        top = self._context.name(place)
        for name in self._context.below(top):
            inner = self._context.folder / name
            at = posixpath.join(target, posixpath.relpath(name, top or "."))
            if inner.is_dir() and not inner.is_symlink():
                mode = stat.S_IMODE(inner.stat().st_mode) if copy.mode is None else copy.mode
                self.folder(Entry("", at, mode, copy.owner))
            else:
                self._file(copy, inner, at)

    def _file(self, copy: Copy, place: Path, target: str) -> None:
        folder = posixpath.dirname(target)
        if self._is_folder(target):
            raise ValueError(f"{target} is a folder, and not a file")
        self.folder(Entry("", folder, 0o755, copy.owner))
        self._files.add(target)
        self.entries.append(Entry(str(place), target, copy.mode, copy.owner))

    def _is_folder(self, path: str) -> bool:
        return path in self._folders or (path not in self._files and is_machines_folder(path))


# By os.path: the methods of Path raise for what may not be read.


def is_machines_folder(path: str) -> bool:
    """Whether it is a folder of this machine that hosts have, too."""
    return not is_hosts_own(path) and os.path.isdir(path)


def is_hosts_own(path: str) -> bool:
    """Whether it lies below a folder that every host has of its own."""
    places = (posixpath.normpath(path), os.path.realpath(path))
    return any(place.startswith(f"{folder}/") for place in places for folder in SCRATCH)


def _upwards(path: str) -> Iterator[str]:
    while path != "/":
        yield path
        path = posixpath.dirname(path)


class BuildContext:
    """A build's folder, without what ``.dockerignore`` excludes. Paths in it are relative; ``""`` is the folder."""

    def __init__(self, folder: Path, ignore: str = "") -> None:
        self.folder = folder.resolve()
        self._patterns = list(_ignore_patterns(ignore))
        self._left = _MOST_FILES

    def matches(self, pattern: str) -> list[str]:
        """The paths that a COPY's source matches. Raises ValueError for one outside the folder."""
        clean = posixpath.normpath(pattern.lstrip("/") or ".")
        if clean.split("/")[0] == "..":
            raise ValueError(f"{shown(pattern)} lies outside the build's folder {self.folder}")
        places = [""]
        for part in clean.split("/") if clean != "." else ():
            if _WILD.search(part):
                name_pattern = _compiled(part)
                places = [
                    posixpath.join(place, name)
                    for place in places
                    if (self.folder / place).is_dir()
                    for name in sorted(os.listdir(self.folder / place))
                    if name_pattern.fullmatch(name)
                ]
            else:
                named = [posixpath.join(place, part) for place in places]
                places = [place for place in named if os.path.lexists(self.folder / place)]
        return [place for place in places if not self._left_out(place)]

    def missing(self, source: str) -> str:
        """Why a source matches nothing."""
        exists = os.path.lexists(self.folder / source.lstrip("/"))
        return f"{'.dockerignore leaves it out' if exists else 'no such file'} in {self.folder}"

    def real(self, name: str) -> Path:
        """The real path, symbolic links followed. Raises ValueError if it is outside, or does not exist."""
        place = (self.folder / name).resolve()
        if not place.is_relative_to(self.folder):
            raise ValueError(f"{shown(name)} leads out of the build's folder, to {place}")
        if not place.exists():
            raise ValueError(f"{shown(name)} leads to {place}, which does not exist")
        return place

    def name(self, place: Path) -> str:
        """The path of a place in the folder."""
        return place.relative_to(self.folder).as_posix() if place != self.folder else ""

    def below(self, name: str) -> Iterator[str]:
        """Everything in a folder, folders before their contents. Raises ValueError for too many files."""
        for entry in sorted(os.scandir(self.folder / name), key=lambda entry: entry.name):
            inner = posixpath.join(name, entry.name)
            self._left -= 1
            if self._left < 0:
                raise ValueError(f"more than {_MOST_FILES} files in {self.folder}; leave some out in .dockerignore")
            ignored = self.ignores(inner)
            if entry.is_dir(follow_symlinks=False):
                # An excluded folder may contain an exception.
                contents = [] if ignored and not any(kept for kept, _ in self._patterns) else list(self.below(inner))
                if contents or not ignored:
                    yield inner
                    yield from contents
            elif not ignored and (entry.is_symlink() or entry.is_file()):
                yield inner

    def ignores(self, name: str) -> bool:
        """Whether ``.dockerignore`` excludes a path: by the last pattern that matches it or a folder above it."""
        ignored = False
        paths = [name, *(parent.as_posix() for parent in Path(name).parents if parent.name)]
        for kept, pattern in self._patterns:
            if any(pattern.fullmatch(path) for path in paths):
                ignored = not kept
        return ignored

    def _left_out(self, name: str) -> bool:
        place = self.folder / name
        return self.ignores(name) and not (place.is_dir() and not place.is_symlink() and any(self.below(name)))


def _ignore_file(context: Path, dockerfile: Path) -> str:
    """The text of the file beside the Dockerfile, or else in the context (reference, "Filename and location")."""
    for path in (dockerfile.with_name(f"{dockerfile.name}.dockerignore"), context / ".dockerignore"):
        if reading.exists(path):
            return reading.read_bytes(path).decode("utf-8-sig", errors="replace")
    return ""


def _ignore_patterns(text: str) -> Iterator[tuple[bool, re.Pattern[str]]]:
    """Patterns, each with whether it is an exception (moby, patternmatcher and ignorefile)."""
    for raw in text.splitlines():
        line = raw.strip()
        if not line or raw.startswith("#"):
            continue
        kept = line.startswith("!")
        clean = posixpath.normpath(line.removeprefix("!").strip().lstrip("/") or ".")
        if clean != ".":
            yield kept, _compiled(clean)


def _compiled(pattern: str) -> re.Pattern[str]:
    """A pattern of Go's filepath.Match, with ``**`` for any number of folders. Raises ValueError."""
    try:
        return re.compile(_translated(pattern), re.DOTALL)
    except re.error as error:
        raise ValueError(f"{shown(pattern)} is no pattern: {error}") from None


def _translated(pattern: str) -> str:
    result, at = "", 0
    while at < len(pattern):
        char = pattern[at]
        if pattern.startswith("**", at):
            at += 1
            if pattern.startswith("/", at + 1):
                at += 1
                result += "(?:.*/)?"
            else:
                result += ".*"
        elif char == "*":
            result += "[^/]*"
        elif char == "?":
            result += "[^/]"
        elif char == "[" and (end := pattern.find("]", at + 2)) > 0:
            inside = pattern[at + 1 : end].replace("[", "\\[")
            result += f"[{inside}]"
            at = end
        elif char == "\\" and at + 1 < len(pattern):
            at += 1
            result += re.escape(pattern[at])
        else:
            result += re.escape(char)
        at += 1
    return result
