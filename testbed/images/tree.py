"""The files of an image from the entries of its layers, by the rules of the OCI's image specification. Pure.

Symbolic links are followed within the tree alone, as in the root of a container: none leads out of it. An entry that
would have to be outside is refused. Whiteouts hide what layers below have, never what their own layer adds
(image-spec, layer.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from testbed.text import shown

EntryKind = Literal["folder", "file", "symlink", "hardlink", "fifo", "device"]

_WHITEOUT, _AUFS = ".wh.", ".wh..wh."
_OPAQUE = ".wh..wh..opq"
_MOST_NAME_BYTES = 4095
"""PATH_MAX of linux/limits.h, with its end."""
_LINKS_FOLLOWED = 40  # path_resolution(7)


class LayerError(ValueError):
    """What is wrong with an entry of a layer."""


@dataclass(frozen=True, kw_only=True)
class LayerEntry:
    """An entry of a layer's archive."""

    name: str
    kind: EntryKind
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    link: str = ""
    """The target of a link."""
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    content: int = -1
    """Where the content of a file is; the reader's own number."""


@dataclass(eq=False)
class Node:
    """A file of the tree; one that has several names is in several places."""

    entry: LayerEntry
    children: dict[str, Node] | None = None
    """Of a folder, by name."""


class Tree:
    """The files of an image so far."""

    def __init__(self) -> None:
        self.root = _folder()
        self.devices = 0
        """Device nodes that were left out, beside those in /dev, where a host has its own."""

    def add_layer(self, entries: Sequence[LayerEntry]) -> None:
        """Put a layer over the layers below. Raises LayerError."""
        named = [(_parts(entry), entry) for entry in entries]
        folders = {parts for parts, entry in named if entry.kind == "folder"}
        for parts, _ in named:
            if parts and parts[-1].startswith(_WHITEOUT):
                self._hide(parts[:-1], parts[-1], folders)
        for parts, entry in named:
            if not any(part.startswith(_AUFS) for part in parts) and not (parts and parts[-1].startswith(_WHITEOUT)):
                self._add(parts, entry)

    def _hide(self, parts: tuple[str, ...], whiteout: str, anew: set[tuple[str, ...]]) -> None:
        """Follow a whiteout in a folder. ``anew``: the folders that its own layer has."""
        ways = (parts[:number] for number in range(1, len(parts) + 1))
        if any(way in anew and self._is_link(way) for way in ways):  # the folder takes the link's place
            return
        way = self._way(parts, make=False)
        if way is None or (children := way[-1].children) is None:
            return
        if whiteout == _OPAQUE:
            children.clear()
        elif not whiteout.startswith(_AUFS):
            children.pop(whiteout.removeprefix(_WHITEOUT), None)

    def _is_link(self, parts: tuple[str, ...]) -> bool:
        way = self._way(parts[:-1], make=False)
        node = None if way is None else (way[-1].children or {}).get(parts[-1])
        return node is not None and node.entry.kind == "symlink"

    def _way(self, parts: Iterable[str], *, make: bool) -> list[Node] | None:
        """The folders from the root to a path, links followed; ``make``: folders that are missing are made."""
        way, left, followed = [self.root], list(parts)[::-1], 0
        while left:
            name = left.pop()
            if name in ("", "."):
                continue
            if name == "..":  # of a link's target: the root's own parent is the root
                way = way[:-1] or way
                continue
            children = way[-1].children
            if children is None:
                return None
            inner = children.get(name)
            if inner is None:
                if not make:
                    return None
                inner = children[name] = _folder()
            if inner.entry.kind != "symlink":
                way.append(inner)
                continue
            followed += 1
            if followed > _LINKS_FOLLOWED:
                return None
            target = inner.entry.link
            way = [self.root] if target.startswith("/") else way
            left += target.split("/")[::-1]
        return way

    def _add(self, parts: tuple[str, ...], entry: LayerEntry) -> None:
        if not parts:
            if entry.kind != "folder":
                raise LayerError(f"entry {shown(entry.name)} is the root, and no folder")
            self.root.entry = entry
            return
        way = self._way(parts[:-1], make=True)
        if way is None or (siblings := way[-1].children) is None:
            raise LayerError(f"entry {shown(entry.name)} is below what is no folder")
        name, present = parts[-1], siblings.get(parts[-1])
        if entry.kind == "folder" and present is not None and present.children is not None:
            present.entry = entry
        elif entry.kind == "device":
            self.devices += parts[0] != "dev"
            siblings.pop(name, None)
        elif entry.kind == "hardlink":
            siblings[name] = self._target(entry)
        else:
            siblings[name] = Node(entry, {} if entry.kind == "folder" else None)

    def _target(self, entry: LayerEntry) -> Node:
        """The file that a hard link is another name of; see link(2)."""
        parts = _parts(entry, entry.link)
        way = self._way(parts[:-1], make=False)
        node = None if way is None or not parts else (way[-1].children or {}).get(parts[-1])
        if node is None or node.children is not None:
            what = "is not there" if node is None else "is a folder"
            raise LayerError(f"entry {shown(entry.name)} is a hard link to {shown(entry.link)}, which {what}")
        return node

    def walk(self) -> Iterator[tuple[str, Node]]:
        """Every place, folders before what is in them: its path, from the root but without it, and what is there."""
        left = [("", self.root)]
        while left:
            path, node = left.pop()
            if path:
                yield path, node
            below = f"{path}/" if path else ""
            left += [(f"{below}{name}", child) for name, child in (node.children or {}).items()]


def _folder() -> Node:
    return Node(LayerEntry(name="", kind="folder", mode=0o755), {})


def _parts(entry: LayerEntry, name: str | None = None) -> tuple[str, ...]:
    """The names on the way to an entry, from the root. Raises LayerError."""
    name = entry.name if name is None else name
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise LayerError(f"entry {shown(entry.name)} leads out of the image by `..`{_to(entry)}")
    if "\0" in name or len(name.encode(errors="surrogateescape")) > _MOST_NAME_BYTES:
        raise LayerError(f"entry {shown(entry.name)} has a name that no file can have")
    return parts


def _to(entry: LayerEntry) -> str:
    return f": it is a link to {shown(entry.link)}" if entry.kind == "hardlink" else ""
