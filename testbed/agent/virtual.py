"""A kernel whose clock is simulated, as a machine: it runs a program with this machine's files.

The agent has two roles here. `outside` enters namespaces of its own and becomes the kernel. `first` is that kernel's
first process: it sets the machine up, runs the program, and powers off. The program sees this machine's files below an
overlay in the kernel's memory, so what it writes vanishes with the kernel, except for the outputs that the description
names. Its clock stands still while anything runs, and jumps when everything waits.

Two runs shall be the same to the last bit. So all that the kernel mixes into its random numbers is the same text in all
runs, and on all machines: its command line names paths in `_BOOT` only, and the first process is of the fetched root.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import struct
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from . import booting, kernelcalls
from .processes import reap_until

# In the root file system that the kernel starts from; all of it is this machine's memory, and ends with the kernel.
_BOOT = Path("/run")
_FILES, _COMPILED, _STAGE, _NEW, _LAYER = (_BOOT / name for name in ("files", "compiled", "stage", "new", "layer"))
_INIT, _NEXT = "init", "next"
# That root has no Python that could mount: its shell makes this machine's files the root, and starts Python there.
# Between the files and what programs write is a layer of compiled modules (`testbed.kernel.bytecode`).
_INIT_SCRIPT = f"""#!/bin/sh
{{ read -r python; read -r agent; read -r description; }} <{_BOOT}/{_NEXT}
mount -t tmpfs -o noatime layer {_LAYER} && mkdir {_LAYER}/upper {_LAYER}/work &&
layers="lowerdir={_COMPILED}:{_FILES},upperdir={_LAYER}/upper,workdir={_LAYER}/work" &&
mount -t overlay -o "noatime,$layers" files {_NEW} &&
cd {_NEW} && mount --move . / && export PYTHONPATH="$agent" &&
exec chroot . "$python" -S -B -m agent --machine "$description" simulated
"""
_KEPT = Path("/var/tmp/testbed-kept")  # noqa: S108  # the machine's own
_OWN = {"/proc": "proc", "/dev": "devtmpfs", **booting.MOUNTS}
_HIDDEN = ("/run", "/tmp", "/var/tmp", "/dev/shm")  # noqa: S108
_LINKS = {"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1",
          "/dev/stderr": "/proc/self/fd/2"}  # fmt: skip
_TIMER_ABSTIME = 1  # time.h
_FURNISHED_NS = 10**9
DESCRIPTION, CONSOLE, STDOUT, STDERR, STATUS, OUTPUTS = "description", "console", "stdout", "stderr", "status", "out"
"""The names in the staging folder."""
STAGE, ROOT = "stage", "root"
"""The names of mounted folders of this machine."""


def outside() -> int:
    """Boot the machine that stdin describes (`testbed.kernel.virtual`), and wait until it is off."""
    machine = json.load(sys.stdin)
    return booting.in_namespaces(lambda: _become_kernel(machine))


def _become_kernel(machine: Mapping[str, Any]) -> NoReturn:
    root, stage = machine["root"], machine["stage"]
    console = os.open(f"{stage}/{CONSOLE}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    # Executable: UML maps its memory from a file here.
    kernelcalls.mount("tmpfs", f"{root}{_BOOT}", "tmpfs", 0, "mode=1777,size=90%")
    for folder in (_FILES, _COMPILED, _STAGE, _NEW, _LAYER):
        Path(f"{root}{folder}").mkdir()
    parts = (machine["python"], Path(__file__).parent.parent, f"{stage}/{DESCRIPTION}")
    Path(f"{root}{_BOOT}/{_NEXT}").write_text("".join(f"{part}\n" for part in parts), encoding="utf-8")
    init = Path(f"{root}{_BOOT}/{_INIT}")
    init.write_text(_INIT_SCRIPT, encoding="utf-8")
    init.chmod(0o755)
    kernelcalls.bind("/", f"{root}{_FILES}")
    kernelcalls.bind(machine["compiled"], f"{root}{_COMPILED}")
    kernelcalls.bind(stage, f"{root}{_STAGE}")
    kernelcalls.bind("/dev", f"{root}/dev")
    kernelcalls.mount("proc", f"{root}/proc", "proc")
    for source, target in ((os.open(os.devnull, os.O_RDONLY), 0), (console, 1), (console, 2)):
        os.dup2(source, target)
    os.chroot(root)
    os.chdir("/")
    argv = [
        "linux", f"mem={machine['memory']}", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro",
        f"uml_dir={_BOOT}/", "umid=virtual", "con=null", "con0=null,fd:1", "quiet", "print-fatal-signals=1",
        "seccomp=auto", "time-travel=inf-cpu", f"time-travel-start={machine['start_ns']}",
        f"init={_BOOT}/{_INIT}",
    ]  # fmt: skip
    environment = {"TMPDIR": str(_BOOT), "PATH": booting.PATH, **machine["kernel_environment"]}
    os.execve(f"{_FILES}{machine['kernel']}", argv, environment)  # noqa: S606  # no shell is wanted


def first(path: str) -> NoReturn:
    """The first process of the machine that a file describes; powers the machine off at the end."""

    def work() -> None:
        machine = json.loads(Path(path).read_text(encoding="utf-8"))
        _furnish(machine)
        _wait_until(machine["start_ns"] + _FURNISHED_NS)
        status = _run(machine)
        for number, file in enumerate(machine["files"]):
            if Path(file).is_file():
                shutil.copyfile(file, _KEPT / STAGE / OUTPUTS / f"file-{number}")
        (_KEPT / STAGE / STATUS).write_text(str(status), encoding="utf-8")

    booting.be_first_and_power_off(work)


def _furnish(machine: Mapping[str, Any]) -> None:
    """Mount what is the kernel's own, and provide tools; the root is this machine's files, below an overlay."""
    kernelcalls.mount("tmpfs", _BOOT, "tmpfs", 0, "mode=1777")  # first it holds what the others would hide
    hidden = [folder for folder in machine["folders"] if any(folder.startswith(f"{top}/") for top in _HIDDEN)]
    for number, folder in enumerate(hidden):
        (_BOOT / str(number)).mkdir()
        kernelcalls.bind(folder, _BOOT / str(number))
    booting.mount_own(_OWN)
    for link, aim in _LINKS.items():
        Path(link).symlink_to(aim)
    for number, folder in enumerate(hidden):
        Path(folder).mkdir(parents=True, exist_ok=True)
        kernelcalls.bind(_BOOT / str(number), folder)
    for seen, folder in machine["instead"].items():
        kernelcalls.bind(folder, seen)
    kernelcalls.mount("tmpfs", _BOOT, "tmpfs", 0, "mode=1777")  # the local lab's
    for name, shared, flags in ((STAGE, str(_STAGE), 0), (ROOT, "/", kernelcalls.MS_RDONLY)):
        (_KEPT / name).mkdir(parents=True)
        kernelcalls.mount("hostfs", _KEPT / name, "hostfs", flags, shared)
    for number, written in enumerate(machine["written"]):
        Path(written).mkdir(parents=True, exist_ok=True)
        kernelcalls.bind(_KEPT / STAGE / OUTPUTS / f"folder-{number}", written)
    booting.provide_tools(_KEPT / ROOT)


def _wait_until(time_ns: int) -> None:
    """Begin at the same moment, whatever was to be mounted and made before: that takes some microseconds."""
    moment = struct.pack("=qq", *divmod(time_ns, 10**9))
    ctypes.CDLL(None).clock_nanosleep(time.CLOCK_REALTIME, _TIMER_ABSTIME, moment, None)


def _run(machine: Mapping[str, Any]) -> int:
    """Run the program, reap orphans; returns the program's exit status, negative for a signal."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    out = os.open(_KEPT / STAGE / STDOUT, flags)
    err = out if machine["one_output"] else os.open(_KEPT / STAGE / STDERR, flags)
    staged = {variable: str(_KEPT / STAGE / name) for variable, name in machine["staged"].items()}
    program = booting.start({**machine, "environment": {**machine["environment"], **staged}}, stdout=out, stderr=err)
    program.returncode = reap_until(program.pid)
    return program.returncode
