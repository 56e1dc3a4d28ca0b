"""Run a program in a kernel whose clock is simulated: waiting takes no time, and a seed fixes everything.

The program has this machine's files, below an overlay; what it writes vanishes with the kernel, except for the outputs
that are named. Its output goes through files, because a console would be an event from outside. See
`testbed.agent.virtual`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import testbed.agent
from testbed import kernel
from testbed.errors import EnvironmentUnfitError
from testbed.kernel import building, bytecode
from testbed.kernel.building import VirtualKernel
from testbed.kernel.processor import OneProcessor
from testbed.kernel.progress import LOOK_EVERY_S, Progress, Spinning, usages
from testbed.kernel.variables import EVENTS, INSIDE

_MEMORY = "3G"  # an upper limit: what is not used is not taken
_START_NS = 1_800_000_000 * 10**9  # 2027-01-15: in 1970 some programs refuse to work
_POLL_S = 0.02
_EVENTS = "events"
_KEEPING = threading.Lock()  # several kernels at once may have the same folders
_VOLATILE = {
    "_", "SHLVL", "OLDPWD", "PWD", "WINDOWID", "SSH_AUTH_SOCK", "SSH_CLIENT", "SSH_CONNECTION", "SSH_TTY", "DISPLAY",
    "DBUS_SESSION_BUS_ADDRESS", "DOCKER_HOST", "DOCKER_CONTEXT", "INVOCATION_ID", "JOURNAL_STREAM", "TERM_SESSION_ID",
    "PYTEST_CURRENT_TEST", "LD_PRELOAD", "XDG_SESSION_ID", "XDG_RUNTIME_DIR", "TMPDIR",
}  # fmt: skip
"""Variables that differ from one terminal to the next, or name what is not in the kernel."""
ADDITIONS = "PYTEST_ADDOPTS"
LAB_OPTIONS = ("--lab", "local", "--netem", "host")
"""The one lab, and the one netem, that there are inside."""
_FIXED = {
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONFAULTHANDLER": "1",
    "TZ": "UTC",
}


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What is kept of all that a program writes."""

    folders: Sequence[Path] = ()
    """Folders that are empty for the program at its start, and whose content is put here at its end."""
    files: Sequence[Path] = ()
    """Files that are put here at its end."""
    event: Callable[[str], None] | None = None
    """Takes each line that the program writes to a file of its own, as it comes."""
    into: Path | None = None
    """A folder that all of these are put into instead, each under its own name."""

    def place(self, path: Path) -> Path:
        """Where such a folder or file is put."""
        return path if self.into is None else self.into / path.name


class _Target(Protocol):
    """What takes output."""

    def write(self, content: bytes, /) -> object:
        """Take more of it."""

    def flush(self) -> object:
        """Pass on what was taken."""


class _EventLines:
    """Passes on whole lines."""

    def __init__(self, take: Callable[[str], None]) -> None:
        self._take, self._begun = take, b""

    def write(self, content: bytes, /) -> None:
        *lines, self._begun = (self._begun + content).split(b"\n")
        for line in lines:
            self._take(line.decode())

    def flush(self) -> None:
        """Nothing waits but a line that is not whole."""


class _Unseen(io.BytesIO):
    def __init__(self, real: BinaryIO) -> None:
        super().__init__()
        self.fileno, self.isatty = real.fileno, real.isatty  # type: ignore[method-assign]  # as the programs are told

    def write(self, content: Any, /) -> int:
        return len(memoryview(content))


def unseen(real: BinaryIO) -> BinaryIO:
    """Output that nobody sees. To the programs that write it, it is the real one."""
    return _Unseen(real)


def only(option: str, value: str, possible: str) -> str:
    """The problem of an option for another lab, or another netem, than there is inside."""
    return (
        f"{option} {value!r}: --virtual-time has {option} {possible} alone; leave {option} out, "
        "or leave --virtual-time out"
    )


def run(
    argv: Sequence[str],
    *,
    seed: int,
    cwd: Path,
    outputs: Outputs,
    environment: Mapping[str, str],
    say: Callable[[str], None],
    stdout: BinaryIO,
    stderr: BinaryIO,
    spin_limit_s: float,
    stop: threading.Event | None = None,
    instead: Mapping[Path, Path] | None = None,
    facts: Mapping[str, object] = {},
) -> int:
    """Run a program so, and relay its output; returns its exit status.

    The program has this terminal's size, and its colours where it has any.

    ``environment``: additions to this process's. ``facts``: what `variables.facts` has inside, besides the kernel.
    ``spin_limit_s``: a program that burns so much processor time while the clock stands still is ended by SIGFPE, so
    that Python prints its stack. ``stop``: another thread sets it to end the kernel early.
    ``instead``: folders that the program sees in place of others, by those.

    Raises UserError and EnvironmentUnfitError if there is no kernel, it does not start, or it does not run to its end.
    Output that was written until then is kept.
    """
    virtual_kernel, root, compiled = prepare(say)
    with ExitStack() as stack:
        stage = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="testbed-virtual-")))
        kept = stage / "out"
        for number, folder in enumerate(outputs.folders):
            (kept / f"folder-{number}").mkdir(parents=True)
            # Or it would be there in later runs alone, and take time there.
            outputs.place(folder).mkdir(parents=True, exist_ok=True)
        kept.mkdir(exist_ok=True)
        one_output = _same_file(stdout, stderr)
        names = ("stdout",) if one_output else ("stdout", "stderr")
        relays: dict[str, _Target] = dict(zip(names, (stdout, stderr), strict=False))
        if outputs.event is not None:
            relays[_EVENTS] = _EventLines(outputs.event)
        for name in (*relays, "console"):
            (stage / name).touch()
        machine = {
            "kernel": str(virtual_kernel.path),
            "kernel_environment": {building.SEED_VARIABLE: _kernel_seed(seed)},
            "root": str(root),
            "compiled": str(compiled),
            "python": os.path.realpath(sys.executable),
            "stage": str(stage),
            "memory": _MEMORY,
            "start_ns": _START_NS,
            "argv": list(argv),
            "cwd": str(cwd),
            "folders": _needed(cwd, *(instead or {}), *(instead or {}).values()),
            "instead": {str(seen): str(folder) for seen, folder in (instead or {}).items()},
            "written": [str(folder.absolute()) for folder in outputs.folders],
            "files": [str(file.absolute()) for file in outputs.files],
            "one_output": one_output,
            "staged": {} if outputs.event is None else {EVENTS: _EVENTS},
            "environment": {
                **{name: value for name, value in os.environ.items() if name not in _VOLATILE},
                **_FIXED,
                **_terminal(stdout),
                INSIDE: json.dumps({"kernel": identity(virtual_kernel), **facts}),
                **environment,
            },
        }
        try:
            spun = _watched(machine, stage, relays, spin_limit_s, stop or threading.Event())
        finally:
            with _KEEPING:
                _keep(kept, outputs)
        status = stage / "status"
        if not status.exists():
            raise EnvironmentUnfitError(
                "the kernel with the simulated clock did not run to its end"
                f"{f' ({spun})' if spun else ''}; its last lines: {_last_lines(stage / 'console')}"
            )
        if spun is not None:
            say(f"{spun}; the kernel's last lines: {_last_lines(stage / 'console')}")
        return int(status.read_text(encoding="utf-8"))


def prepare(say: Callable[[str], None]) -> tuple[VirtualKernel, Path, Path]:
    """The kernel, the root file system that it starts from, and the layer of compiled modules; made if missing.

    Raises UserError and EnvironmentUnfitError.
    """
    return building.ensure(say), kernel.ensure_root(say), bytecode.ensure(say)


def identity(of: VirtualKernel) -> dict[str, str]:
    """What tells a kernel from others."""
    return {"source": of.source, "sha256": of.sha256}


def _terminal(stdout: BinaryIO) -> dict[str, str]:
    """What programs are told of the terminal: they write to a file."""
    size = shutil.get_terminal_size()
    known = {"COLUMNS": str(size.columns), "LINES": str(size.lines)}
    if not stdout.isatty() or "NO_COLOR" in os.environ:
        return known
    return {**known, "PY_COLORS": "1", "FORCE_COLOR": "1", "TTY_INTERACTIVE": "0"}  # the latter: rich, nothing moves


def _watched(
    machine: Mapping[str, object], stage: Path, relays: Mapping[str, _Target], limit_s: float, stop: threading.Event
) -> str | None:
    """Run the machine, relay its output meanwhile; returns what is to be told of a program that spun."""
    spun: Spinning | None = None
    with ExitStack() as stack:
        sources = [(stack.enter_context((stage / name).open("rb")), target) for name, target in relays.items()]
        log = stack.enter_context((stage / "outside").open("w+b"))
        (stage / "description").write_text(json.dumps(machine), encoding="utf-8")
        process = stack.enter_context(
            subprocess.Popen(
                testbed.agent.command("virtual"),
                stdin=stack.enter_context((stage / "description").open("rb")),
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C at the terminal is ours to handle
            )
        )
        stack.callback(process.kill)  # and by that the kernel: it dies with its parent
        processor = OneProcessor(process.pid)
        progress = Progress(process.pid, Path(str(machine["kernel"])), limit_s=limit_s)
        look_at = time.monotonic() + LOOK_EVERY_S
        while True:
            over = process.poll() is not None
            for source, target in sources:
                while chunk := source.read(65536):
                    target.write(chunk)
                    target.flush()
            if over or stop.is_set():
                break
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + LOOK_EVERY_S
                everyone = usages()
                spun = progress.check(everyone) or spun
                processor.check(everyone)
            time.sleep(_POLL_S)
        log.seek(0)
        if text := log.read().decode(errors="replace").strip():
            with (stage / "console").open("a", encoding="utf-8") as console:
                console.write(f"\n{text}\n")
    return str(spun) if spun else None


def _kernel_seed(seed: int) -> str:
    """The seed of the kernel's random numbers; always of the same length."""
    number = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:8], "big")
    return f"{number:020d}"


def _needed(*own: Path) -> list[str]:
    """Folders that the program needs, wherever they are; the kernel's own /tmp and /run would hide them."""
    folders = {*map(str, own), sys.prefix, sys.base_prefix, str(Path(testbed.agent.__file__).parent.parent.parent)}
    folders |= {path for path in map(os.path.realpath, filter(None, sys.path)) if Path(path).is_dir()}
    folders.add(str(kernel.cache()))
    return sorted(folder for folder in folders if Path(folder).is_dir())


def _same_file(one: BinaryIO, other: BinaryIO) -> bool:
    with suppress(OSError, ValueError):
        return os.path.sameopenfile(one.fileno(), other.fileno())
    return False


def _keep(kept: Path, outputs: Outputs) -> None:
    """Put the outputs in their places. Raises EnvironmentUnfitError."""
    try:
        for number, folder in enumerate(map(outputs.place, outputs.folders)):
            shutil.copytree(kept / f"folder-{number}", folder, dirs_exist_ok=True, symlinks=True)
            if not any(folder.iterdir()):
                folder.rmdir()
        for number, file in enumerate(map(outputs.place, outputs.files)):
            if (source := kept / f"file-{number}").exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, file)
    except (OSError, shutil.Error) as error:
        raise EnvironmentUnfitError(f"the outputs of the run cannot be put in their places: {error}") from None


def _last_lines(console: Path) -> str:
    """The last lines on the kernel's console, without the trace of a panic."""
    text = console.read_text(encoding="utf-8", errors="replace")
    before, panic, after = text.partition("Kernel panic")
    lines = [*before.splitlines(), *(panic + after).splitlines()[:2]]
    return " | ".join(deque(filter(None, map(str.strip, lines)), maxlen=8)) or "none"
