"""What of this machine goes into the head of the results: its kernel, its processor, versions, the commit."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import stat
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from testbed.kernel import variables

_GIT_WITHIN_S = 5.0
_MOST_FILES = 50_000
_UNREAD_BYTES = 64 << 20
"""Of a larger file, its size counts."""


@cache
def fingerprint(root: Path) -> Mapping[str, Any]:
    """The machine's facts, without a lab's, as they are when a process asks first; ``root``: where pytest runs."""
    return {
        "kernel": os.uname().release,
        "processor": next(_cpu_models(), None),
        "processors": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "congestion_control": _read("/proc/sys/net/ipv4/tcp_congestion_control"),
        "versions": {
            "testbed": version("pytest-testbed"),
            "python": platform.python_version(),
            "pytest": version("pytest"),
        },
        "git": _git(root),
        "lab": None,
        "netem": None,
        "virtual": variables.facts() if variables.is_inside() else None,
    }


def revision(root: Path, *, without: Iterable[Path]) -> str | None:
    """A digest of the files of a project as they are, by content; None if there are too many, or git takes too long.

    With git, of those that it knows or does not ignore. ``without``: folders and files that runs write.
    """
    written = [path.absolute() for path in without]
    try:
        paths = sorted(islice(_files(root), _MOST_FILES + 1))
    except subprocess.TimeoutExpired:
        return None
    if len(paths) > _MOST_FILES:
        return None
    digest = hashlib.sha256()
    for path in paths:
        if not any(path.is_relative_to(place) for place in written):
            digest.update(b"%s %s\n" % (os.fsencode(path.relative_to(root)), _content(path)))
    return digest.hexdigest()[:16]


def _content(path: Path) -> bytes:
    """What stands for a file: a digest, the size of a large one, why it cannot be read."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return b"no file"
        if status.st_size > _UNREAD_BYTES:
            return b"%d" % status.st_size
        return hashlib.sha256(path.read_bytes()).hexdigest().encode()
    except OSError as error:
        return b"error %d" % (error.errno or 0)


def _files(root: Path) -> Iterator[Path]:
    """Raises TimeoutExpired. Of a folder that git ignores it lists nothing; an installed package lies in one."""
    if listed := _said_by_git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"):
        yield from (root / os.fsdecode(name) for name in listed.split(b"\0") if name)
        return
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".") and name != "__pycache__"]
        yield from (Path(folder, name) for name in names)


def _cpu_models() -> Iterator[str]:
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            yield value.strip()


def _read(path: str) -> str | None:
    """What the kernel says in a file; None where it has none."""
    with contextlib.suppress(OSError):
        return Path(path).read_text(encoding="utf-8").strip()
    return None


def _git(root: Path) -> dict[str, Any] | None:
    """The commit, and whether files that git knows were changed; None outside of a repository, or without git."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        commit = _said_by_git(root, "rev-parse", "HEAD")
        changed = _said_by_git(root, "status", "--porcelain", "--untracked-files=no") if commit else None
        if commit and changed is not None:
            return {"commit": commit.decode().strip(), "dirty": bool(changed.strip())}
    return None


def _said_by_git(root: Path, *arguments: str) -> bytes | None:
    """Raises TimeoutExpired."""
    # No lock: another git at work there must not fail because of us.
    argv = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    try:
        done = subprocess.run(argv, capture_output=True, check=False, timeout=_GIT_WITHIN_S)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None
