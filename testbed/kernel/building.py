"""The kernel with a simulated clock: building it from Debian's source, and finding it in the cache.

It is a User-Mode Linux with time travel, which no distribution ships. All that a build needs, the compiler included,
comes from Debian's archive into a folder of its own, so that every machine builds the same. A build is a folder of the
cache, named by the recipe's digest and the source's version; it appears there whole or not at all.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from testbed.errors import EnvironmentUnfitError, UserError
from testbed.kernel import SUITE, cache
from testbed.kernel.archive import Archive, group_that_dies_with_us

OWN_KERNEL = "TESTBED_KERNEL"
"""The variable that names a kernel of the user's own."""
SEED_VARIABLE = "TESTBED_KERNEL_SEED"
"""In the kernel's environment: the seed of all its random numbers, in decimal."""

_NEXT_SUITE = "testing"
"""Its kernels are newer, and several times faster: User-Mode Linux without ptrace (seccomp) came with 6.16."""
_SOURCES = r"linux-source-[0-9.]+"
_NUMBER = re.compile(r"[0-9]+")
_TOOLS = (
    "bash", "bc", "bison", "coreutils", "dash", "diffutils", "findutils", "flex", "gcc", "grep", "gzip", "hostname",
    "libc6-dev", "m4", "make", "mawk", "perl-base", "python3-minimal", "sed", "tar", "xz-utils",
)  # fmt: skip
_NEEDED = ("apt-get", "apt-cache", "dpkg-deb", "unshare", "mount", "chroot")
_NEEDED_BYTES = 4_500_000_000
_PREFIX, _UNFINISHED, _KERNEL, _DESCRIPTION = "virtual-", "build-", "linux", "kernel.json"
_TREE = "/source"
_LEFT_OUT = (
    "Documentation/*/*", "tools/testing/*", "sound/*.[ch]", "drivers/gpu/*.[ch]", "drivers/media/*.[ch]",
    "drivers/net/ethernet/*.[ch]", "drivers/net/wireless/*.[ch]", "drivers/scsi/*.[ch]", "drivers/staging/*.[ch]",
    "arch/arm*/boot/*", "arch/mips/boot/*", "arch/powerpc/boot/*",
)  # fmt: skip
"""Sources that such a kernel does not need: a third of what is unpacked."""

_RANDOM_FILE = "arch/um/os-Linux/util.c"
_RANDOM_CALL = "\treturn getrandom(buf, len, flags);\n"
_SEEDED = """\
	/* testbed: the same numbers for the same seed (SplitMix64). The seed is not on the command line. */
	static unsigned long long state;
	static int seeded;
	const char *seed = getenv("%s");
	unsigned char *out = buf;

	if (!seed)
		return getrandom(buf, len, flags);
	if (!seeded) {
		state = strtoull(seed, NULL, 10);
		seeded = 1;
	}
	for (size_t i = 0; i < len; i++) {
		unsigned long long z = (state += 0x9e3779b97f4a7c15ull);

		z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
		z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
		out[i] = (unsigned char)(z ^ (z >> 31));
	}
	return len;
"""
_IN_ROOT = 'mount --rbind /dev "$1/dev" && { mount -t proc proc "$1/proc" || mount --rbind /proc "$1/proc"; } 2>&1 && '
_IN_ROOT += 'root=$1 && shift && exec chroot "$root" /usr/bin/env -i "$@" 2>&1'
_ENVIRONMENT = (
    "PATH=/usr/bin:/bin:/usr/sbin:/sbin", "HOME=/", "LC_ALL=C", "TZ=UTC", "KBUILD_BUILD_TIMESTAMP=@0",
    "KBUILD_BUILD_USER=testbed", "KBUILD_BUILD_HOST=testbed", "KBUILD_BUILD_VERSION=1",
)  # fmt: skip
_COMPILED = ("CC", "AS", "HOSTCC")
_PROGRESS_EVERY_S = 10.0
_BUILD_DEADLINE_S = 3600.0
_ASK_DEADLINE_S = 20.0
_VERSION = 1
"""Incremented when kernels are built differently in a way that the recipe's digest does not see."""


@dataclass(frozen=True, kw_only=True)
class VirtualKernel:
    """A kernel with a simulated clock."""

    path: Path
    source: str
    """Package and version of its source; of a kernel of one's own: its version."""
    sha256: str
    seconds: float | None = None
    """How long the build took; None of a kernel of one's own."""
    own: bool = False
    """Whether TESTBED_KERNEL named it."""

    def as_json(self) -> dict[str, object]:
        """As `testbed kernel status --json` prints it."""
        return {**asdict(self), "path": str(self.path)}


def configuration() -> list[str]:
    """The options that the kernel is built with, a line each."""
    text = Path(__file__).with_name("virtual.config").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def recipe() -> str:
    """The digest of all that a build depends on, except for its source."""
    parts = [_VERSION, SUITE, _TOOLS, configuration(), _SEEDED % SEED_VARIABLE, _ENVIRONMENT]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def find() -> VirtualKernel | None:
    """The kernel of the user's own, or the newest that was built by this recipe; None if there is none.

    Raises UserError if the user's own is no such kernel.
    """
    if own := os.environ.get(OWN_KERNEL):
        return _own(Path(own))
    kernels = [kernel for folder in _builds() if (kernel := _whole(folder)) is not None]
    return max(kernels, key=lambda kernel: _order(kernel.source), default=None)


def ensure(say: Callable[[str], None]) -> VirtualKernel:
    """The kernel to use; built if there is none. Raises UserError, EnvironmentUnfitError."""
    return find() or build(say)


def build(say: Callable[[str], None]) -> VirtualKernel:
    """Build a kernel from the newest source that apt can get, unless that was done before.

    ``say``: takes a line of progress. Raises EnvironmentUnfitError, naming all that is missing.
    """
    _check_machine()
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, say):
        for left in folder.glob(f"{_UNFINISHED}*"):  # of a process that was killed
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=folder) as temporary:
            return _build(Path(temporary), folder, say)


def remove() -> list[Path]:
    """Remove the kernels of this cache, of whatever recipe, and what killed builds left; returns their folders."""
    folders = [*_builds(recipe_digest="*"), *cache().glob(f"{_UNFINISHED}*")]
    if folders:
        with _locked(cache(), lambda _text: None):
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
    return folders


def _order(source: str) -> tuple[list[int], ...]:
    """Packages by the numbers of their names, then by those of their versions: 7.2.9 comes before 7.2.12."""
    package, _, version = source.partition(" ")
    return tuple([int(number) for number in _NUMBER.findall(text)] for text in (package, version))


def _builds(recipe_digest: str | None = None) -> list[Path]:
    return sorted(cache().glob(f"{_PREFIX}{recipe_digest or recipe()}-*"))


def _whole(folder: Path) -> VirtualKernel | None:
    """What a build's folder holds; None if it is cut off or was changed."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        described = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
        kernel = folder / _KERNEL
        if hashlib.sha256(kernel.read_bytes()).hexdigest() == described["sha256"] and os.access(kernel, os.X_OK):
            return VirtualKernel(path=kernel, **{name: described[name] for name in ("source", "sha256", "seconds")})
    return None


def _own(path: Path) -> VirtualKernel:
    def refused(reason: str) -> UserError:
        return UserError(
            f"{OWN_KERNEL}={str(path)[:200]!r}: {reason}; unset it, or name a User-Mode Linux that "
            "`testbed kernel build` made"
        )

    try:
        content = path.read_bytes()
        options = set(_answer(path, "--showconfig").splitlines())
        version = _answer(path, "--version").strip()
    except (OSError, subprocess.SubprocessError) as error:
        raise refused(str(error)[:200]) from None
    wanted = {line for line in configuration() if not line.endswith("=n")}
    if missing := sorted(wanted - options):
        names = ", ".join(line.partition("=")[0] for line in missing[:8])
        raise refused(f"it was not built with {names}{' …' if missing[8:] else ''}")
    if SEED_VARIABLE.encode() not in content:
        raise refused(f"its random numbers do not follow {SEED_VARIABLE}, so no two runs would be the same")
    return VirtualKernel(path=path.resolve(), source=version, sha256=hashlib.sha256(content).hexdigest(), own=True)


def _answer(kernel: Path, option: str) -> str:
    """What a User-Mode Linux prints for an option; it ends at once."""
    return subprocess.run(
        [kernel.resolve(), option],
        capture_output=True,
        text=True,
        check=True,
        timeout=_ASK_DEADLINE_S,
        stdin=subprocess.DEVNULL,
    ).stdout


# --- building ---------------------------------------------------------------------------------------


def _check_machine() -> None:
    """Raise EnvironmentUnfitError with all that is missing."""
    problems = []
    if (machine := os.uname().machine) != "x86_64":
        problems.append(f"virtual time needs an x86-64 machine, and this is {machine}")
    if missing := [tool for tool in _NEEDED if shutil.which(tool, path=_search_path()) is None]:
        problems.append(f"missing here: {', '.join(missing)} (of apt, dpkg, util-linux, coreutils)")
    existing = next(folder for folder in (cache(), *cache().parents) if folder.is_dir())
    if (free := shutil.disk_usage(existing).free) < _NEEDED_BYTES:
        problems.append(f"{existing} has {free / 1e9:.1f} GB free, and a build takes {_NEEDED_BYTES / 1e9:.1f} GB")
    if problems:
        raise EnvironmentUnfitError(
            f"no kernel with a simulated clock can be built: {'; '.join(problems)}. "
            f"{OWN_KERNEL}=FILE takes one from another machine; without --virtual-time tests run in real time"
        )


def _search_path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


@contextmanager
def _locked(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    with (folder / "build.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process builds a kernel: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(temporary: Path, folder: Path, say: Callable[[str], None]) -> VirtualKernel:
    began = time.monotonic()
    archive, package = _newest(temporary, say)
    source = f"{package} {archive.version(package)}"
    final = folder / f"{_PREFIX}{recipe()}-{source.replace(' ', '-').replace(':', '.')}"
    if (ready := _whole(final)) is not None:
        return ready
    say(f"source: {source}, the newest that apt can get here")
    say(f"fetching it and a compiler from Debian's archive (250 MB, into {temporary})")
    root = temporary / "root"
    (temporary / "tools").mkdir()
    Archive(temporary / "tools", (SUITE,)).unpack(_TOOLS, root)
    (root / "usr/bin/awk").symlink_to("mawk")
    archive.unpack_alone(package, root)
    say("unpacking the source")
    (root / _TREE[1:]).mkdir()
    left_out = [word for pattern in _LEFT_OUT for word in ("--exclude", f"*/{pattern}")]
    tarball = f"/usr/src/{package}.tar.xz"
    unpack = ["tar", "--extract", "--file", tarball, "--directory", _TREE, "--strip-components=1", "--wildcards"]
    in_root(root, [*unpack, *left_out])
    (root / tarball[1:]).unlink()
    _seed_random(root / _TREE[1:] / _RANDOM_FILE, source)
    (root / _TREE[1:] / "virtual.config").write_text("\n".join([*configuration(), ""]), encoding="utf-8")
    make = ["make", "-C", _TREE, "ARCH=um"]
    in_root(root, [*make, "KCONFIG_ALLCONFIG=virtual.config", "allnoconfig"])
    _check_options(root / _TREE[1:] / ".config", source)
    processors = len(os.sched_getaffinity(0))
    say(f"compiling on {processors} processors: about six minutes of processor time")
    in_root(root, [*make, f"-j{processors}", "linux"], say)
    new = temporary / "new"
    new.mkdir()
    kernel = new / _KERNEL
    in_root(root, ["strip", "--strip-debug", f"{_TREE}/linux"])
    shutil.copyfile(root / _TREE[1:] / "linux", kernel)
    kernel.chmod(0o755)
    _answer(kernel, "--version")
    digest = hashlib.sha256(kernel.read_bytes()).hexdigest()
    described = {"source": source, "sha256": digest, "seconds": round(time.monotonic() - began, 1)}
    (new / _DESCRIPTION).write_text(json.dumps(described), encoding="utf-8")
    shutil.rmtree(final, ignore_errors=True)  # cut off, or changed
    new.rename(final)
    if (built := _whole(final)) is None:
        raise EnvironmentUnfitError(f"the kernel that was just built is not whole in {final}; is the disk full?")
    return built


def _newest(temporary: Path, say: Callable[[str], None]) -> tuple[Archive, str]:
    """The newest source that apt can get, and where."""
    for suites in ((_NEXT_SUITE, SUITE), (SUITE,)):
        lists = temporary / f"lists-{len(suites)}"
        lists.mkdir()
        try:
            archive = Archive(lists, suites)
        except EnvironmentUnfitError as error:
            if suites == (SUITE,):
                raise
            say(f"no lists of Debian's next suite to be had, so no newer kernel: {str(error)[-200:]}")
            continue
        if names := archive.names(_SOURCES):
            return archive, max(names, key=_order)
    raise EnvironmentUnfitError("Debian's archive has no package linux-source-VERSION")


def _seed_random(file: Path, source: str) -> None:
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    if text.count(_RANDOM_CALL) != 1:
        raise EnvironmentUnfitError(f"{source}: {_RANDOM_FILE} is not as expected; its random numbers cannot be seeded")
    file.write_text(text.replace(_RANDOM_CALL, _SEEDED % SEED_VARIABLE), encoding="utf-8")


def _check_options(file: Path, source: str) -> None:
    """Raise EnvironmentUnfitError if the source does not know an option: its netem would be missing in silence."""
    there = set(file.read_text(encoding="utf-8").splitlines())
    if missing := [line for line in configuration() if not line.endswith("=n") and line not in there]:
        raise EnvironmentUnfitError(f"{source} does not take these options: {', '.join(missing)}")


def in_root(root: Path, argv: list[str], say: Callable[[str], None] | None = None) -> None:
    """Run a program on the tools' root file system, as root there. Raises EnvironmentUnfitError with its last lines."""
    as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    enter = ["unshare", *as_root, "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _IN_ROOT, "sh", str(root)]
    last: deque[str] = deque(maxlen=12)
    began = reported = time.monotonic()
    compiled = 0
    with (
        group_that_dies_with_us() as group,
        subprocess.Popen(
            [*enter, *_ENVIRONMENT, *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=group,
            env={"PATH": _search_path()},
        ) as program,
    ):
        # Also of a program that prints nothing any more.
        ends = threading.Timer(_BUILD_DEADLINE_S, os.killpg, (group, signal.SIGKILL))
        ends.start()
        try:
            for line in program.stdout or ():
                last.append(line.strip())
                compiled += line.split()[:1] in ([word] for word in _COMPILED)
                now = time.monotonic()
                if say is not None and now - reported >= _PROGRESS_EVERY_S:
                    reported = now
                    say(f"compiling: {compiled} files, {now - began:.0f} s")
        finally:
            late = not ends.is_alive()
            ends.cancel()
    if late:
        raise EnvironmentUnfitError(
            f"building a kernel: `{' '.join(argv)}` did not end within {_BUILD_DEADLINE_S / 60:g} minutes; its last "
            f"lines: {' | '.join(last)}"
        )
    if program.returncode:
        raise EnvironmentUnfitError(
            f"building a kernel: `{' '.join(argv)}` failed with status {program.returncode}; its last lines: "
            f"{' | '.join(last)}"
        )
