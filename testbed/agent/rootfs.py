"""The root file system of a host of a local lab: mostly the machine's, read-only, plus the host's own files.

All of this runs in the host's first process, in the host's mount namespace.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import imagefs, kernelcalls
from .protocol import Refused

SCRATCH = Path("/run")
"""The agent's own tmpfs, in its own mount namespace. Not /tmp, which may contain the project; nor below /dev, because a
carried kernel, which reads files here, has a /dev of its own."""
_NEW_ROOT = SCRATCH / "root"
_VOLUMES = SCRATCH / "volumes"
_BELOW = SCRATCH / "below"
_HOSTS = SCRATCH / "hosts"

# A host has its own of these; the rest of the machine's file system is visible read-only.
_OWN = frozenset({"proc", "sys", "dev", "tmp", "run", "lost+found"})
_HIDDEN = ("proc", "sys", "dev")
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")

# The machine's name servers are unreachable from here, so resolvers would wait; loopback refuses at once.
_NO_NAME_SERVER = "nameserver 127.0.0.1\n"
_FLAGS = {"ro": kernelcalls.MS_RDONLY, "noexec": kernelcalls.MS_NOEXEC}
"""Of a tmpfs's options without a value, those that a host's programs notice."""
_LINKS_FOLLOWED = 40  # path_resolution(7)


def prepare(volumes: Iterable[str], shared_memory: Mapping[str, int]) -> None:
    """Make what hosts share, once, before any of them is furnished: these volumes, and a /dev/shm by name, in bytes."""
    _NEW_ROOT.mkdir(exist_ok=True)
    for name, size_bytes in shared_memory.items():
        _shm(name).mkdir(parents=True, exist_ok=True)
        _tmpfs(_shm(name), "1777", f"size={size_bytes}")
    for name in volumes:
        _volume(name).mkdir(parents=True, exist_ok=True)


def furnish(settings: Mapping[str, Any], hosts_file: str) -> None:
    """Give the host whose first process this is its file system."""
    kernelcalls.sethostname(settings["hostname"])
    root, image = _NEW_ROOT, settings["image"]
    own = _HOSTS / settings["name"] if image else root / "run/testbed"
    if image:
        imagefs.mount_root(root, image, own)
    else:
        _machines_root(root)
    _system(root, settings["shm_bytes"])
    if not image:
        _add_python(root, settings["python"])
    for name, target, _ in settings["volumes"] if image else ():  # as the engine, before anything is mounted over that
        imagefs.fill(_volume(name), place_for(root, target))
    options = dict(settings["folders"])
    mounts: list[tuple[str, str, bool]] = [("", target, False) for target in options]
    mounts += [(str(_volume(name)), target, read_only) for name, target, read_only in settings["volumes"]]
    mounts += settings["binds"]
    for source, target, read_only in sorted(mounts, key=lambda mount: _depth(mount[1])):  # in the engine's order
        if source:
            kernelcalls.bind(source, place_for(root, target, a_file=not os.path.isdir(source)), read_only=read_only)
        else:
            _tmpfs(place_for(root, target), "755", options[target])
    if settings["shm_of"]:
        kernelcalls.bind(_shm(settings["shm_of"]), root / "dev/shm")
    for number, (target, content, mode, uid, gid) in enumerate(settings["given"]):
        _give(own / f"given{number}", place_for(root, target, a_file=True), content, mode, (uid, gid))
    resolver = settings["resolver"] or _NO_NAME_SERVER
    contents = {"hosts": hosts_file, "hostname": settings["hostname"] + "\n", "resolv.conf": resolver}
    if any(posixpath.normpath(target) == "/etc/resolv.conf" for _, target, _ in settings["binds"]):
        del contents["resolv.conf"]
    for name, content in contents.items():
        place = place_for(root, f"/etc/{name}", a_file=True) if image else root / "etc" / name
        _own_file(own, place, content, read_only=not image)
    if image:
        place_for(root, settings["workdir"])
    if not image or settings["read_only"]:
        read_only_root = kernelcalls.MS_REMOUNT | kernelcalls.MS_BIND | kernelcalls.MS_RDONLY
        kernelcalls.mount("none", root, "", read_only_root)
    kernelcalls.pivot_root(root)


def _machines_root(root: Path) -> None:
    """Show the machine's files, read-only."""
    _tmpfs(root, "755")
    _mirror(Path("/"), root, read_only=True, leave_out=_OWN)
    for name in ("proc", "sys", "dev", "tmp", "run"):
        (root / name).mkdir()
    _tmpfs(root / "tmp", "1777")
    _tmpfs(root / "run", "755")


def _system(root: Path, shm_bytes: int) -> None:
    """Mount what every host has of its own: devices, /proc and /sys."""
    _tmpfs(root / "dev", "755")
    _devices(root / "dev", shm_bytes)
    kernelcalls.mount("proc", root / "proc", "proc", kernelcalls.MS_NOSUID | kernelcalls.MS_NODEV)
    kernelcalls.bind(root / "proc/sys", root / "proc/sys", read_only=True)
    kernelcalls.mount("sysfs", root / "sys", "sysfs", kernelcalls.MS_RDONLY | kernelcalls.MS_NOSUID)


def _add_python(root: Path, python: str | None) -> None:
    """Put this machine's Python beside its files."""
    bin_folder = root / "run/testbed/bin"
    bin_folder.mkdir(parents=True)
    if python is not None:
        for name in ("python3", "python"):
            (bin_folder / name).symlink_to(python)


def renew(settings: Mapping[str, Any]) -> None:
    """Renew, for a host that was halted, what is new at each start: /proc and the tmpfs of its folders."""
    # Over the old /proc, whose processes are gone: an ordinary user may mount one only where one is visible.
    kernelcalls.mount("proc", "/proc", "proc", kernelcalls.MS_NOSUID | kernelcalls.MS_NODEV)
    kernelcalls.bind("/proc/sys", "/proc/sys", read_only=True)
    for target, options in settings["folders"]:
        kernelcalls.unmount(target)
        _tmpfs(Path(target), "755", options)
    if not settings["shm_of"]:
        kernelcalls.unmount("/dev/shm")  # noqa: S108  # the host's own
        _tmpfs(Path("/dev/shm"), "1777", f"size={settings['shm_bytes']}")  # noqa: S108  # likewise


def _shm(host: str) -> Path:
    """A host's /dev/shm that others share."""
    return SCRATCH / "shm" / host


def _give(own: Path, place: Path, content: str, mode: int, owner: tuple[int, int]) -> None:
    """Bind a file with this content at a place."""
    own.write_text(content)
    own.chmod(mode)
    if owner != (0, 0):
        try:
            os.chown(own, *owner)
        except OSError as error:
            raise Refused(f"{place}: owner {owner[0]}:{owner[1]}: {error.strerror}") from None
    kernelcalls.bind(own, place, read_only=True)


def _volume(name: str) -> Path:
    """A volume's folder; its name may be any."""
    return _VOLUMES / f"volume-{name}"


def _depth(target: str) -> int:
    return len(Path(posixpath.normpath(target)).parts)


def _tmpfs(target: Path, mode: str, options: str = "") -> None:
    """Mount a tmpfs. ``options``: mount(8)'s, such as ``size=64m,noexec``; a mode there replaces this one."""
    flags, data = kernelcalls.MS_NOSUID | kernelcalls.MS_NODEV, [f"mode={mode}"]
    for option in filter(None, options.split(",")):
        if "=" in option:
            data.append(option)
        else:
            flags |= _FLAGS.get(option, 0)
    kernelcalls.mount("tmpfs", target, "tmpfs", flags, ",".join(data))


def _mirror(source: Path, target: Path, *, read_only: bool = False, leave_out: frozenset[str] = frozenset()) -> None:
    """Bind all entries of a folder into another one; symbolic links are copied."""
    for entry in sorted(os.scandir(source), key=lambda entry: entry.name):
        place = target / entry.name
        if entry.name in leave_out:
            continue
        if entry.is_symlink():
            place.symlink_to(os.readlink(entry.path))
        elif entry.is_dir() or entry.is_file():
            place.mkdir() if entry.is_dir() else place.touch()
            kernelcalls.bind(entry.path, place, read_only=read_only)


def place_for(root: Path, path: str, *, a_file: bool = False) -> Path:
    """A folder, or a file, to mount on in the new root; created if the machine has none."""
    place = _inside(root, path)
    _refuse_hidden(root, place, path)
    if not place.exists():
        folder = next(parent for parent in place.parents if parent.is_dir())
        if not os.access(folder, os.W_OK) or _read_only(folder):
            _open_up(folder)
        if a_file:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
        else:
            place.mkdir(parents=True)
    return place


def _inside(root: Path, path: str) -> Path:
    """Where a path leads in the new root, with symbolic links resolved as for a program there."""
    left, place, links = path.split("/")[::-1], root, 0
    while left:
        name = left.pop()
        if name in ("", "."):
            continue
        if name == "..":
            place = place if place == root else place.parent
            continue
        _make_searchable(place)
        inner = place / name
        if not inner.is_symlink():
            place = inner
            continue
        links += 1
        if links > _LINKS_FOLLOWED:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink(inner)
        place = root if target.startswith("/") else place
        left += target.split("/")[::-1]
    return place


def _make_searchable(folder: Path) -> None:
    if folder.is_dir() and not os.access(folder, os.X_OK):
        _open_up(folder)


def _refuse_hidden(root: Path, place: Path, path: str) -> None:
    """Raise Refused if a path leads through a link to /proc, /sys or /dev.

    Files bound from the machine's /dev are the machine's: a write, chown or chmod there would change them.
    """
    top = place.relative_to(root).parts[:1]
    if top and top[0] in _HIDDEN and posixpath.normpath(path).split("/")[1] != top[0]:
        raise Refused(f"{path} leads to /{place.relative_to(root)}, and a host has its own there")


def _open_up(folder: Path) -> None:
    """Mount a tmpfs over a folder that shows the folder's entries, so that new ones can be added.

    If we may not read it, as in an ordinary user's lab, it appears empty: no program there could read it either.
    """
    before, readable = folder.stat(), os.access(folder, os.R_OK | os.X_OK)
    _BELOW.mkdir(exist_ok=True)
    kernelcalls.bind(folder, _BELOW)
    _tmpfs(folder, f"{stat.S_IMODE(before.st_mode):o}")
    with contextlib.suppress(OSError):  # an ordinary user cannot
        os.chown(folder, before.st_uid, before.st_gid)
    if readable:
        _mirror(_BELOW, folder)
    kernelcalls.unmount(_BELOW)


def _read_only(folder: Path) -> bool:
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def _devices(folder: Path, shm_bytes: int) -> None:
    for name in _DEVICES:
        if Path("/dev", name).exists():
            (folder / name).touch()
            kernelcalls.bind(f"/dev/{name}", folder / name)
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        (folder / name).symlink_to(f"/proc/self/fd{target}")
    (folder / "pts").mkdir()
    (folder / "shm").mkdir()
    _tmpfs(folder / "shm", "1777", f"size={shm_bytes}")
    with contextlib.suppress(OSError):  # most programs need no terminal; `Programs.terminal` reports that there is none
        kernelcalls.mount("devpts", folder / "pts", "devpts", kernelcalls.MS_NOSUID, "newinstance,ptmxmode=0666")
        (folder / "ptmx").symlink_to("pts/ptmx")


def _own_file(own: Path, place: Path, content: str, *, read_only: bool) -> None:
    """Bind the host's own version over a file; not over a link, nor where there is no file."""
    if place.is_symlink() or not place.is_file():
        return
    (own / place.name).write_text(content)
    kernelcalls.bind(own / place.name, place, read_only=read_only)
