"""The kernel that testbed carries: finding it, and fetching it where there is none.

A *root* is a folder with a User-Mode Linux and the few programs that its first process needs, from Debian's archive.
apt-get verifies every signature and checksum, dpkg-deb unpacks; neither needs root privileges.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import testbed.agent
from testbed.errors import EnvironmentUnfitError
from testbed.kernel.archive import Archive, run

SUITE = "trixie"
"""Debian 13: the first whose User-Mode Linux (6.12) and iproute2 (6.15) support netem's seed."""

_PACKAGES = ("user-mode-linux", "iproute2", "dash", "coreutils", "kmod", "mount", "python3-minimal")
_RECIPE = 4
"""Incremented when roots are assembled differently."""
_UNFINISHED = "fetch-"
_FILE_FOR_ALL, _FOLDER_FOR_ALL = 0o644, 0o755


def cache() -> Path:
    """The folder of roots: ``testbed`` in XDG_CACHE_HOME."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "testbed"


def root_folder() -> Path:
    """The root of this machine, which may not exist yet."""
    return cache() / f"kernel-{SUITE}-{os.uname().machine}-{_RECIPE}"


def present() -> bool:
    """Whether it exists."""
    return (root_folder() / "usr/bin/linux.uml").is_file()


def ensure_root(say: Callable[[str], None]) -> Path:
    """The root of the kernel to carry; fetched the first time (50 MB). Raises EnvironmentUnfitError."""
    root = root_folder()
    if present():
        if any(_unfinished(root)):
            with suppress(OSError), _locked(root, fcntl.LOCK_EX | fcntl.LOCK_NB):  # later, or by another user
                _clear_up(root)
    else:
        root.parent.mkdir(parents=True, exist_ok=True)
        with _locked(root, fcntl.LOCK_EX):
            _clear_up(root)
            if not present():
                say(f"fetching a kernel to carry from Debian's archive, once (50 MB, into {root})")
                _fetch(root)
    folder = root / testbed.agent.guest_folder()
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=root) as temporary:
            for name in testbed.agent.GUEST_FILES:
                shutil.copyfile(Path(testbed.agent.__file__).with_name(name), Path(temporary, name))
                Path(temporary, name).chmod(_FILE_FOR_ALL)
            Path(temporary).chmod(_FOLDER_FOR_ALL)
            with suppress(OSError):  # another process has just done the same
                Path(temporary).rename(folder)
                Path(temporary).mkdir()  # for its removal
    return root


@contextmanager
def _locked(root: Path, operation: int) -> Iterator[None]:
    with (root.parent / "lock").open("w") as lock:
        fcntl.flock(lock, operation)
        yield


def _clear_up(root: Path) -> None:
    """Remove the folders of processes that were killed while fetching. Needs the lock, which one at work would hold."""
    for folder in _unfinished(root):
        shutil.rmtree(folder)


def _unfinished(root: Path) -> Iterator[Path]:
    return root.parent.glob(f"{_UNFINISHED}*")


def fetched() -> str:
    """How far a kernel is fetched, in words, while another thread does it."""
    size_bytes = 0
    for path in cache().glob(f"{_UNFINISHED}*/**/*"):
        with suppress(OSError):  # it was moved meanwhile
            size_bytes += path.lstat().st_size
    return f"fetching the kernel to carry, {size_bytes / 1e6:.0f} MB on the disk so far"


def _fetch(root: Path) -> None:
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise EnvironmentUnfitError(
                f"a kernel to carry comes from Debian's archive, and this machine has no {tool}. "
                f"Use a machine whose own kernel has netem (modprobe sch_netem), or --lab compose"
            )
    with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=root.parent) as folder:
        new = Path(folder) / "root"
        Archive(Path(folder), (SUITE,)).unpack(_PACKAGES, new)
        (new / "usr/lib/modules").mkdir(exist_ok=True)
        for modules in (new / "usr/lib/uml/modules").iterdir():
            (new / "usr/lib/modules" / modules.name).symlink_to(f"../uml/modules/{modules.name}")
        # In an ordinary user's lab root's files are nobody's to the guest, and a setuid mount refuses.
        run(["chmod", "--recursive", "u+rwX,ug-s", str(new)])
        new.rename(root)
