"""The kernel that testbed carries: finding it, and fetching it where there is none.

A *root* is a folder with a User-Mode Linux and the few programs that its first process needs, from Debian's archive.
apt-get verifies every signature and checksum, dpkg-deb unpacks; neither needs root privileges.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import testbed.agent
from testbed.errors import EnvironmentUnfitError

SUITE = "trixie"
"""Debian 13: the first whose User-Mode Linux (6.12) and iproute2 (6.15) support netem's seed."""

_PACKAGES = ("user-mode-linux", "iproute2", "dash", "coreutils", "kmod", "mount", "python3-minimal")
_RECIPE = 4
"""Incremented when roots are assembled differently."""
_KEYRINGS = ("/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp")
_MIRROR_VARIABLE = "TESTBED_DEBIAN_MIRROR"
_FETCH_DEADLINE_S = 300.0
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


def _fetch(root: Path) -> None:
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise EnvironmentUnfitError(
                f"a kernel to carry comes from Debian's archive, and this machine has no {tool}. "
                f"Use a machine whose own kernel has netem (modprobe sch_netem), or --lab compose"
            )
    with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=root.parent) as folder:
        archives = _download(Path(folder))
        new = Path(folder) / "root"
        new.mkdir()
        for name in ("bin", "sbin", "lib", "lib64"):
            (new / "usr" / name).mkdir(parents=True)
            (new / name).symlink_to(f"usr/{name}")
        for archive in archives:
            _run(["dpkg-deb", "--extract", str(archive), str(new)])
        for name in ("proc", "sys", "dev", "run"):
            (new / name).mkdir()
        (new / "usr/lib/modules").mkdir(exist_ok=True)
        for modules in (new / "usr/lib/uml/modules").iterdir():
            (new / "usr/lib/modules" / modules.name).symlink_to(f"../uml/modules/{modules.name}")
        # In an ordinary user's lab root's files are nobody's to the guest, and a setuid mount refuses.
        _run(["chmod", "--recursive", "u+rwX,ug-s", str(new)])
        new.rename(root)


def _download(folder: Path) -> list[Path]:
    """Download every package with its dependencies, verified by apt; nothing is installed."""
    keyring = next((path for path in _KEYRINGS if Path(path).is_file()), None)
    if keyring is None:
        raise EnvironmentUnfitError(
            f"Debian's keys are missing ({_KEYRINGS[0]}): apt-get install debian-archive-keyring"
        )
    for name in ("lists/partial", "archives/partial", "etc/sources.list.d", "etc/preferences.d", "etc/apt.conf.d"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    source = f"deb [signed-by={keyring}] {_mirror()} {SUITE} main\n"
    (folder / "etc/sources.list").write_text(source, encoding="utf-8")
    options = {
        "Dir::State": folder,
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder,
        "Dir::Cache::archives": folder / "archives",
        "Dir::Etc": folder / "etc",
        "Dir::Etc::sourcelist": "sources.list",
        "Dir::Etc::sourceparts": "sources.list.d",
        "Dir::Etc::parts": "apt.conf.d",
        "APT::Sandbox::User": "",
        "APT::Install-Recommends": "false",
        "Acquire::Languages": "none",
    }
    argv = ["apt-get", "--quiet", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]
    _run([*argv, "update"])
    _run([*argv, "install", "--yes", "--download-only", *_PACKAGES])
    return sorted((folder / "archives").glob("*.deb"))


def _mirror() -> str:
    """The Debian mirror that this machine's apt is configured with, or that the environment names."""
    if mirror := os.environ.get(_MIRROR_VARIABLE):
        return mirror
    query = ["indextargets", "--format", "$(REPO_URI) $(COMPONENT) $(RELEASE)", "Created-By: Packages"]
    for line in _run(["apt-get", *query]).splitlines():
        uri, component, release = line.split(" ", 2)
        if component == "main" and uri.rstrip("/").endswith("/debian") and "/" not in release:
            return uri
    raise EnvironmentUnfitError(
        f"this machine's apt has no Debian mirror to fetch a kernel from; name one: {_MIRROR_VARIABLE}=ADDRESS"
    )


def _run(argv: list[str]) -> str:
    try:
        with _group_that_dies_with_us() as group:
            done = subprocess.run(
                argv,
                capture_output=True,
                text=True,
                check=False,
                timeout=_FETCH_DEADLINE_S,
                stdin=subprocess.DEVNULL,
                process_group=group,
            )
    except subprocess.TimeoutExpired:
        raise EnvironmentUnfitError(f"`{' '.join(argv)}` did not end within {_FETCH_DEADLINE_S:g} s") from None
    if done.returncode:
        output = (done.stderr or done.stdout).strip()[-1000:]
        raise EnvironmentUnfitError(f"fetching a kernel to carry: `{' '.join(argv)}` failed: {output}")
    return done.stdout


@contextmanager
def _group_that_dies_with_us() -> Iterator[int]:
    """A process group for a program and its children, killed at the end of the block or of this process.

    A parent-death signal would end the program only, but apt-get's methods may wait for a mirror for minutes. The
    group's leader waits for the end of a pipe that only this process has open.
    """
    with subprocess.Popen(["sh", "-c", "read _; kill -KILL 0"], stdin=subprocess.PIPE, process_group=0) as leader:
        yield leader.pid
