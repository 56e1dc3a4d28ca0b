"""Debian's archive: packages, fetched and unpacked without root privileges, and without touching this machine's apt.

apt-get verifies every signature and checksum.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from testbed.errors import EnvironmentUnfitError

_KEYRINGS = ("/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp")
_MIRROR_VARIABLE = "TESTBED_DEBIAN_MIRROR"
_FETCH_DEADLINE_S = 300.0
_VERSION = re.compile(r"^Version: (.+)$", re.MULTILINE)


class Archive:
    """Suites of Debian's archive. ``folder``: an empty folder for apt's lists and the packages."""

    def __init__(self, folder: Path, suites: Sequence[str]) -> None:
        keyring = next((path for path in _KEYRINGS if Path(path).is_file()), None)
        if keyring is None:
            raise EnvironmentUnfitError(
                f"Debian's keys are missing ({_KEYRINGS[0]}): apt-get install debian-archive-keyring"
            )
        self._folder = folder
        for name in ("lists/partial", "archives/partial", "etc/sources.list.d", "etc/preferences.d", "etc/apt.conf.d"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        mirror = _mirror()
        sources = "".join(f"deb [signed-by={keyring}] {mirror} {suite} main\n" for suite in suites)
        (folder / "etc/sources.list").write_text(sources, encoding="utf-8")
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
        self._options = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        self._get = ["apt-get", "--quiet", *self._options]
        run([*self._get, "update"])

    def names(self, pattern: str) -> list[str]:
        """The packages whose whole name matches a regular expression."""
        lines = run(["apt-cache", *self._options, "search", "--names-only", f"^{pattern}$"]).splitlines()
        return [line.split(" ", 1)[0] for line in lines]

    def version(self, package: str) -> str:
        """The version that would be fetched."""
        fields = run(["apt-cache", *self._options, "show", "--no-all-versions", package])
        if (match := _VERSION.search(fields)) is None:
            raise EnvironmentUnfitError(f"Debian's archive tells no version of the package {package}")
        return match[1]

    def unpack(self, packages: Sequence[str], root: Path) -> None:
        """Unpack packages, with all that they depend on, into a new root file system; nothing is configured."""
        run([*self._get, "install", "--yes", "--download-only", *packages])
        for name in ("bin", "sbin", "lib", "lib64"):
            (root / "usr" / name).mkdir(parents=True)
            (root / name).symlink_to(f"usr/{name}")
        for path in sorted((self._folder / "archives").glob("*.deb")):
            run(["dpkg-deb", "--extract", str(path), str(root)])
            path.unlink()
        for name in ("proc", "sys", "dev", "run"):
            (root / name).mkdir(exist_ok=True)

    def unpack_alone(self, package: str, root: Path) -> None:
        """Unpack a package, without what it depends on, into a folder."""
        run([*self._get, "download", package], cwd=self._folder)
        for path in self._folder.glob(f"{package}_*.deb"):
            run(["dpkg-deb", "--extract", str(path), str(root)])
            path.unlink()


def _mirror() -> str:
    """The Debian mirror that this machine's apt is configured with, or that the environment names."""
    if mirror := os.environ.get(_MIRROR_VARIABLE):
        return mirror
    query = ["indextargets", "--format", "$(REPO_URI) $(COMPONENT) $(RELEASE)", "Created-By: Packages"]
    for line in run(["apt-get", *query]).splitlines():
        uri, component, release = line.split(" ", 2)
        if component == "main" and uri.rstrip("/").endswith("/debian") and "/" not in release:
            return uri
    raise EnvironmentUnfitError(
        f"this machine's apt has no Debian mirror to fetch a kernel from; name one: {_MIRROR_VARIABLE}=ADDRESS"
    )


def run(argv: list[str], *, cwd: Path | None = None) -> str:
    """Run a program that ends with this process, and return its output. Raises EnvironmentUnfitError."""
    try:
        with group_that_dies_with_us() as group:
            done = subprocess.run(
                argv,
                capture_output=True,
                text=True,
                check=False,
                timeout=_FETCH_DEADLINE_S,
                stdin=subprocess.DEVNULL,
                process_group=group,
                cwd=cwd,
            )
    except subprocess.TimeoutExpired:
        raise EnvironmentUnfitError(f"`{' '.join(argv)}` did not end within {_FETCH_DEADLINE_S:g} s") from None
    if done.returncode:
        output = (done.stderr or done.stdout).strip()[-1000:]
        raise EnvironmentUnfitError(f"fetching a kernel: `{' '.join(argv)}` failed: {output}")
    return done.stdout


@contextmanager
def group_that_dies_with_us() -> Iterator[int]:
    """A process group for a program and its children, killed at the end of the block or of this process.

    A parent-death signal would end the program only, but apt-get's methods may wait for a mirror for minutes. The
    group's leader waits for the end of a pipe that only this process has open.
    """
    with subprocess.Popen(["sh", "-c", "read _; kill -KILL 0"], stdin=subprocess.PIPE, process_group=0) as leader:
        yield leader.pid
