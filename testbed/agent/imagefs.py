"""The root file system of a host with an image: the image's files below, and above them what the host changes.

All of this runs in the host's first process, in the host's mount namespace.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from . import kernelcalls
from .protocol import Refused

_SYSTEM = ("proc", "sys", "dev")


def mount_root(root: Path, image: str, own: Path) -> None:
    """Mount an image's files, which stay as they are, with changes kept in ``own``, a folder that is the host's."""
    own.mkdir(parents=True)
    for name in ("upper", "work"):
        (own / name).mkdir()
    status = os.stat(image)
    os.chmod(own / "upper", stat.S_IMODE(status.st_mode))
    os.chdir(os.path.dirname(image))  # so that no character of the path has a meaning in the options
    options = f"lowerdir={os.path.basename(image)},upperdir={own}/upper,workdir={own}/work"
    try:
        kernelcalls.mount("overlay", root, "overlay", kernelcalls.MS_NODEV, options)
    except OSError as error:
        raise Refused(f"the image's files cannot be shown: {error}; an overlay needs Linux 5.11 or root") from None
    os.chdir("/")
    for name in _SYSTEM:
        place = root / name
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            place.unlink()
        place.mkdir(exist_ok=True)


def fill(volume: Path, source: Path) -> None:
    """Fill a new volume with what the image has at its place, and give it that folder's owner and mode."""
    if any(volume.iterdir()) or not source.is_dir():
        return
    for folder, names, files in os.walk(source):
        inner = volume / os.path.relpath(folder, source)
        for name in names + files:
            place, copy = Path(folder, name), inner / name
            if place.is_symlink() or not place.is_dir():
                if place.is_symlink() or place.is_file():
                    shutil.copy2(place, copy, follow_symlinks=False)
                    _as(place, copy)
            else:
                copy.mkdir()
        _as(Path(folder), inner)


def _as(place: Path, copy: Path) -> None:
    """Give a copy the owner and the mode of what it was copied from."""
    status = place.lstat()
    os.chown(copy, status.st_uid, status.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(copy, stat.S_IMODE(status.st_mode))
