"""A host's files as its programs see them: what is mounted is seen, links are followed, a new file appears whole."""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import stat
from pathlib import Path

from .protocol import Operation, Refused

_INIT_ROOT = "/proc/1/root"


def operations() -> dict[str, Operation]:
    """The protocol's operations, in the process namespace of a container: the root of its first process becomes ours.

    The engine's own way into a container's files goes past what is mounted while it runs, a tmpfs above all.
    """
    os.chroot(_INIT_ROOT)
    os.chdir("/")
    return {"put": put, "get": get}


def put(*, path: str, data: str, mode: int) -> None:
    """Write a file; ``data`` in base64. Raises Refused."""
    try:
        write(path, base64.b64decode(data), mode)
    except OSError as error:
        raise refused(error) from None


def get(*, path: str) -> str:
    """A file, in base64. Raises Refused, as ``missing`` if there is none and as ``folder`` if it is one."""
    try:
        return base64.b64encode(read(path)).decode()
    except OSError as error:
        raise refused(error) from None


def refused(error: OSError) -> Refused:
    """What to answer where a file cannot be read or written."""
    kind = {errno.ENOENT: "missing", errno.EISDIR: "folder"}.get(error.errno or 0, "refused")
    return Refused(error.strerror or str(error), kind=kind)


def write(path: str, content: bytes, mode: int) -> None:
    """Put a file there that is complete, mode included, in the moment it is seen; its folder must exist.

    What cannot be replaced, such as a file that is mounted or one in a folder that is read-only, is written in place.
    """
    target = os.path.realpath(path)
    if (seen := _mode(target)) is not None and not stat.S_ISREG(seen):
        number = errno.EISDIR if stat.S_ISDIR(seen) else errno.EINVAL
        raise OSError(number, "Is a directory" if stat.S_ISDIR(seen) else "Is no regular file", path)
    beside = f"{os.path.dirname(target)}/.testbed-{os.urandom(8).hex()}"
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if seen is None:
            raise OSError(error.errno, error.strerror, path) from None
        _overwrite(target, content, mode)
        return
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(content)
        os.rename(beside, target)
    except OSError as error:
        with contextlib.suppress(OSError):  # whoever empties the folder may have been faster
            os.unlink(beside)
        if error.errno != errno.EBUSY:
            raise OSError(error.errno, error.strerror, path) from None
        _overwrite(target, content, mode)  # rename(2): something is mounted on it


def _mode(path: str) -> int | None:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None


def _overwrite(path: str, content: bytes, mode: int) -> None:
    with open(path, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)


def read(path: str) -> bytes:
    """All of a file. Raises OSError, also for what is neither a file nor a link to one: it might never end."""
    seen = os.stat(path).st_mode
    if not (stat.S_ISREG(seen) or stat.S_ISDIR(seen)):
        raise OSError(errno.EINVAL, "Is no regular file", path)
    return Path(path).read_bytes()
