"""A host's files as its programs see them: with mounts, through links; a written file appears complete."""

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
    """The protocol's operations, in a container's process namespace; enters the root of its first process.

    The engine's own access to a container's files ignores what is mounted while it runs, such as a tmpfs.
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
    """A file, in base64. Raises Refused: ``missing`` if there is none, ``folder`` if it is a folder."""
    try:
        return base64.b64encode(read(path)).decode()
    except OSError as error:
        raise refused(error) from None


def refused(error: OSError) -> Refused:
    """The exception for a file that cannot be read or written."""
    kind = {errno.ENOENT: "missing", errno.EISDIR: "folder"}.get(error.errno or 0, "refused")
    return Refused(error.strerror or str(error), kind=kind)


def write(path: str, content: bytes, mode: int) -> None:
    """Replace a file by a complete one, with its mode, in one step; its folder must exist.

    A file that cannot be replaced, because it is a mount or its folder is read-only, is overwritten in place.
    """
    target = os.path.realpath(path)
    if (present := _mode(target)) is not None and not stat.S_ISREG(present):
        number = errno.EISDIR if stat.S_ISDIR(present) else errno.EINVAL
        raise OSError(number, "Is a directory" if stat.S_ISDIR(present) else "Not a regular file", path)
    beside = f"{os.path.dirname(target)}/.testbed-{os.urandom(8).hex()}"
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if present is None:
            raise OSError(error.errno, error.strerror, path) from None
        _overwrite(target, content, mode)
        return
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(content)
        os.rename(beside, target)
    except OSError as error:
        with contextlib.suppress(OSError):  # another process may have removed it
            os.unlink(beside)
        if error.errno != errno.EBUSY:
            raise OSError(error.errno, error.strerror, path) from None
        _overwrite(target, content, mode)  # EBUSY: it is a mount, see rename(2)


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
    """A file's content. Raises OSError, also for a device or a pipe, whose content might never end."""
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "Not a regular file", path)
    return Path(path).read_bytes()
