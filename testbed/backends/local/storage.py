"""What a host of a local lab sees in its file system: the image's files, volumes, the working folder.

Looks up what volumes name; writes nothing.
"""

from __future__ import annotations

import grp
import os
import posixpath
import pwd
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testbed.backends.local.images import UNKNOWN, Images
from testbed.backends.local.source import WAY_OUT, ServiceSource
from testbed.errors import ImageBuildError, LabError
from testbed.images.found import FoundImage
from testbed.images.settings import Settings
from testbed.text import shown

# Every host has its own of these, and a lab's programs count on them.
_SCRATCH = ("/tmp", "/run")  # noqa: S108  # of a host, not of this machine
_LABS_PLACES = ("/proc", "/sys", "/dev", "/run")
_LABS_PARTS = ("/proc", "/sys", "/run/testbed")
_LABS_FILES = ("/etc/hosts", "/etc/hostname")
_MOST_ID = 2**31 - 1
"""The largest number of a user or group that the engine takes."""
# What the engine takes, and the kernel after it (tmpfs(5)). A local lab's folder grows with what is put there.
_TMPFS_OPTION = re.compile(
    r"ro|rw|(no)?(suid|dev|exec|mand|atime|diratime|relatime|strictatime)|defaults|a?sync|dirsync|remount"
    r"|r?(un)?bind(able)?|r?(private|shared|slave)|(uid|gid)=\d+|mode=[0-7]+|mpol=.+"
    r"|(size|nr_blocks|nr_inodes)=\d+[kmgtpe]?%?",
    re.IGNORECASE,
)
_ARCHIVE = "`x-testbed: {local: {image: ./image.tar}}`"
_PROGRAMS = "`x-testbed: {local: {path: FOLDER}}` and `command:`"
_ENGINES_SOCKETS = ("docker.sock", "podman.sock", "containerd.sock")
Mount = tuple[str, str, bool]
"""Source, target, whether read-only."""


@dataclass
class Storage:
    """What a service's hosts see, beside the machine's own files."""

    image: Settings
    """The settings of its image."""
    found: FoundImage | None = None
    """The image; None: this machine's programs stand in for it."""
    python: bool = False
    """Whether its programs need this machine's ``python3``."""
    binds: list[Mount] = field(default_factory=list)
    """Files and folders of the machine."""
    folders: list[str] = field(default_factory=list)
    """Writable folders that each replica has of its own."""
    tmpfs: dict[str, str] = field(default_factory=dict)
    """Options, by folder that has some."""
    volumes: list[Mount] = field(default_factory=list)
    """Named folders that the lab's hosts share."""
    new_folders: list[str] = field(default_factory=list)
    """Folders of the machine that are missing, and made at the start."""
    workdir: str = "/"


def of_service(service: ServiceSource) -> Storage:
    """Everything that a service's hosts see. Problems are noted in the source."""
    # Where the image is refused, the rest is checked all the same.
    storage = _image(service) or Storage(UNKNOWN.settings, found=UNKNOWN)
    _add_volumes(service, storage)
    _add_tmpfs(service, storage)
    _add_images_volumes(storage)
    _add_workdir(service, storage)
    return storage


def user_problem(user: str, *, names: bool) -> str | None:
    """Why there is no such user or group. ``names``: whether they are this machine's, and no image's."""
    name, _, group = user.partition(":")
    lookups: tuple[tuple[str, Callable[[str], object], str], ...] = (
        (name, pwd.getpwnam, "/etc/passwd"),
        (group, grp.getgrnam, "/etc/group"),
    )
    for word, look_up, database in lookups:
        digits = word.lstrip("0")
        if word.isdecimal() and (len(digits) > len(str(_MOST_ID)) or int(digits or "0") > _MOST_ID):
            return f"{word} is above {_MOST_ID}"
        if names and word and not word.isdecimal():
            try:
                look_up(word)
            except KeyError:
                return f"{shown(word)} is not in this machine's {database}"
    return None


def _image(service: ServiceSource) -> Storage | None:
    """What stands in for the image; None if it is refused or could not be read."""
    if service.local is not None:
        return _local_image(service, service.local)
    if service.unread("x-testbed", "build"):
        return None
    if "build" in service.body:
        if (built := service.images.built(service.name)) is not None:
            return Storage(built.settings, found=built)
        service.refuse(
            f"`build:` is a builder's work: {service.images.no_builder}. Install one, name an archive of the image "
            f"({_ARCHIVE}), or programs of this machine ({_PROGRAMS}), {WAY_OUT}",
            "build",
        )
        return None
    reference = str(service.body.get("image") or "")
    try:
        if (image := service.images.find(reference)) is not None:
            return Storage(image.settings, found=image)
    except (ImageBuildError, LabError) as error:
        service.refuse(f"`image: {reference}`: {error}", "image")
        return None
    service.refuse(
        f"`image: {reference}` is not found: {service.images.tried}, and the service names no archive. "
        f"{service.images.pull(reference)}, name an archive ({_ARCHIVE}), or programs of this machine ({_PROGRAMS}), "
        f"{WAY_OUT}",
        "image",
    )
    return None


def origin(body: Mapping[str, Any], images: Images) -> str:
    """Where the programs of a service are from, in words. Raises ImageBuildError, LabError."""
    local = (body.get("x-testbed") or {}).get("local")
    if local is not None:
        return f"the archive {local['image']}" if local.get("image") else "this machine's programs"
    if body.get("build") is not None:
        return f"built by {images.builder}" if images.builder else "nothing builds it"
    reference = str(body.get("image") or "")
    return f"image {image.words}" if (image := images.find(reference)) is not None else f"image {reference} is nowhere"


def _local_image(service: ServiceSource, local: Mapping[str, Any]) -> Storage | None:
    if local.get("image") is not None:
        return _archived_image(service, local)
    python = local.get("python")
    storage = Storage(Settings(workdir="/app"), python=True if python is None else python)
    if local.get("path") is None:
        return storage
    workdir = str(service.body.get("working_dir") or "/app")
    if workdir.startswith("/") and (problem := _place_problem(workdir)):
        service.refuse(f"working_dir {shown(workdir)}, where x-testbed.local.path is shown: {problem}", "working_dir")
        return storage
    folders = [local["path"]] if isinstance(local["path"], str) else local["path"]
    for number, text in enumerate(filter(None, folders)):
        path = os.path.realpath(service.file.path.parent / text)
        try:
            names = os.listdir(path)
        except OSError as error:
            why = "is no folder" if not os.path.isdir(path) else f"cannot be read: {error.strerror}"
            service.refuse(f"x-testbed.local.path {shown(text)}: {path} {why}", "x-testbed", "local", "path")
            continue
        if not number:
            storage.binds.append((path, workdir, True))
        else:  # beside what is in the first
            storage.binds += [(f"{path}/{name}", f"{workdir}/{name}", True) for name in sorted(names)]
    return storage


def _archived_image(service: ServiceSource, local: Mapping[str, Any]) -> Storage | None:
    where = "x-testbed", "local", "image"
    if others := sorted({"path", "python"} & set(local)):
        service.refuse(f"x-testbed.local has `image:` and `{others[0]}:`: the image has programs of its own", *where)
    path = Path(os.path.abspath(service.file.path.parent / local["image"]))
    try:
        image = service.images.in_archive(path, str(service.body.get("image") or service.name))
    except ImageBuildError as error:
        service.refuse(f"x-testbed.local.image {shown(local['image'])}: {error}", *where)
        return None
    return Storage(image.settings, found=image)


def is_built(body: Mapping[str, Any]) -> bool:
    """Whether a service runs in an image that is built for it."""
    return body.get("build") is not None and (body.get("x-testbed") or {}).get("local") is None


def _add_volumes(service: ServiceSource, storage: Storage) -> None:
    taken: set[str] = set()
    for volume in service.body["volumes"]:
        where = "volumes", volume["item"]
        target, read_only = str(volume["target"]), bool(volume.get("read_only"))
        source = str(volume.get("source") or "")
        a_file = volume["type"] == "bind" and os.path.isfile(source)
        problem = _place_problem(target, a_file=a_file, in_image=storage.found is not None)
        if posixpath.normpath(target) in taken:
            problem = "another volume has this place"
        taken.add(posixpath.normpath(target))
        if volume["type"] == "bind" and os.path.basename(source) in _ENGINES_SOCKETS:
            service.refuse(
                f"{shown(source)} is an engine's socket: a local lab gives no host an engine; leave the service out, "
                f"{WAY_OUT}",
                *where,
            )
            continue
        if problem:
            service.refuse(f"a volume at {shown(target)}: {problem}", *where)
            continue
        match volume["type"]:
            case "bind":
                if not os.path.exists(source):
                    if not (volume.get("bind") or {}).get("create_host_path"):
                        service.refuse(f"{shown(source)} does not exist", *where)
                    storage.new_folders.append(source)
                storage.binds.append((source, target, read_only))
            case "volume" if source and source not in service.file.config["volumes"]:
                service.refuse(f"volume {shown(source)} is not under the file's own `volumes:`", *where)
            case "volume":
                storage.volumes.append((source or f":{volume['item']}", target, read_only))
            case "tmpfs":
                storage.folders.append(target)
                storage.tmpfs[target] = _tmpfs_options(volume.get("tmpfs") or {})
            case kind:
                service.refuse(f"a volume of type {shown(kind)}; {WAY_OUT}", *where)


def _add_tmpfs(service: ServiceSource, storage: Storage) -> None:
    for number, tmpfs in enumerate(service.body.get("tmpfs") or ()):
        if tmpfs is None:
            continue
        target, _, text = str(tmpfs or "").partition(":")
        options = text.split(",") if text else []
        if unknown := [option for option in options if not _TMPFS_OPTION.fullmatch(option)]:
            service.refuse(
                f"tmpfs {shown(target)}: {shown(unknown[0])} is no option of a tmpfs; write size=64m", "tmpfs", number
            )
        if target in _SCRATCH and storage.found is None and (target == "/run" or not options):
            continue
        if problem := _place_problem(target, in_image=storage.found is not None):
            service.refuse(f"tmpfs {shown(target)}: {problem}", "tmpfs", number)
        else:
            storage.folders.append(target)
            storage.tmpfs[target] = ",".join(["mode=1777", *options])


def _tmpfs_options(settings: Mapping[str, Any]) -> str:
    """The options of a volume of type tmpfs, whose mode is a number."""
    mode = settings.get("mode")
    size = [f"size={settings['size']}"] if settings.get("size") else []
    return ",".join(["mode=1777" if mode is None else f"mode={int(mode):o}", *size])


def _add_images_volumes(storage: Storage) -> None:
    """A new volume for each folder that the image wants one for, if nothing else is mounted there."""
    taken = {*storage.folders, *(target for _, target, _ in (*storage.binds, *storage.volumes))}
    places = {posixpath.normpath(target) for target in taken}
    storage.volumes += [
        (f":image{number}", target, False)
        for number, target in enumerate(storage.image.volumes)
        if posixpath.normpath(target) not in places
    ]


def _add_workdir(service: ServiceSource, storage: Storage) -> None:
    own = service.body.get("working_dir")
    workdir = storage.workdir = str(own or storage.image.workdir)
    machines = storage.found is not None or _is_machines_folder(workdir)
    if own and not workdir.startswith("/"):
        service.refuse(f"working_dir {shown(own)}: must be an absolute path", "working_dir")
    elif not machines and (problem := _place_problem(workdir)):
        service.refuse(f"working_dir {shown(workdir)}: {problem}", "working_dir" if own else "build")
    if workdir == "/" or machines:
        return
    if not _is_shown(workdir, [*storage.folders, *(target for _, target, _ in (*storage.binds, *storage.volumes))]):
        storage.folders.append(workdir)


def _is_shown(path: str, places: Iterable[str]) -> bool:
    return any(path == place or path.startswith(f"{place}/") for place in places)


# By os.path: the methods of Path raise for what may not be read.


def _is_machines_folder(path: str) -> bool:
    """Whether it is a folder of this machine that hosts have, too."""
    return not _is_hosts_own(path) and os.path.isdir(path)


def _is_hosts_own(path: str) -> bool:
    """Whether it lies below a folder that every host has of its own."""
    places = (posixpath.normpath(path), os.path.realpath(path))
    return any(place.startswith(f"{folder}/") for place in places for folder in _SCRATCH)


def _place_problem(target: str, *, a_file: bool = False, in_image: bool = False) -> str | None:
    """Why a folder, or a file, cannot be shown at this place in a host."""
    if not target.startswith("/"):
        return "must be an absolute path"
    place = posixpath.normpath(target)
    if place in _LABS_FILES:
        return "a local lab writes this file; name hosts under `extra_hosts:`"
    if in_image:
        own = place in ("/", "/dev", "/dev/shm") or f"{place}/".startswith(("/proc/", "/sys/"))  # noqa: S108  # compared
        return f"a host of a local lab has its own there; name another folder, {WAY_OUT}" if own else None
    if place == "/" or place in _LABS_PLACES or any(place.startswith(f"{part}/") for part in _LABS_PARTS):
        return f"a host of a local lab has its own there; name another folder, {WAY_OUT}"
    if any(place.startswith(f"{folder}/") for folder in (*_SCRATCH, "/dev")):
        return None
    parents = Path(place).parents
    if file := next((path for path in parents if os.path.exists(path) and not os.path.isdir(path)), None):
        return f"{file} is no folder on this machine"
    if os.path.exists(place) and os.path.isdir(place) == a_file:
        return f"it is a {'folder' if a_file else 'file'} on this machine, and what is shown there is none"
    return None
