"""A carried kernel as a machine: it runs a program with this machine's files, as if its own kernel had netem.

Twice the agent. `outside`, in namespaces of its own, it becomes a User-Mode Linux; as that kernel's `first` process it
makes a machine of it, runs the program, and goes off. The files are this machine's, read-only (hostfs), but for folders
that may be written; /tmp, /var/tmp and /run are its own and go with it. Time is this machine's, the processor is one.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import subprocess
import sys
import time
import tty
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from . import kernelcalls
from .namespaces import UNFIT, enter
from .processes import reap_until

# In the root of the kernel: where its memory is, and below that this machine's files.
_SCRATCH, _MACHINE = "/run", "/run/machine"
_TOOLS = Path("/var/tmp/testbed-tools")  # noqa: S108  # of its own; /run is the local lab's
_MODULES = (
    "veth", "bridge", "tun", "sch_netem", "sch_htb", "sch_tbf", "sch_ingress", "cls_u32", "cls_flower", "cls_bpf",
    "act_mirred", "act_gact", "act_pedit", "act_skbedit",
)  # fmt: skip
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_POWER_OFF = 0x4321FEDC  # linux/reboot.h
_LAST_OUTPUT_S = 5.0


def outside(*, log: int, status: int) -> int:
    """Boot the machine that stdin describes (`testbed.kernel.machine`), and wait until it is off.

    ``log``, ``status``: descriptors that get what the kernel says and the program's exit status.
    """
    asked = json.load(sys.stdin)
    try:
        kernelcalls.die_with_parent()
        enter()
        child = os.fork()
        if child == 0:
            _be_first(asked, log, status)
    except OSError as error:
        os.write(2, f"{error}\n".encode())
        return UNFIT
    _, how = os.waitpid(child, 0)
    return max(os.waitstatus_to_exitcode(how), 0)


def _be_first(asked: Mapping[str, Any], log: int, status: int) -> NoReturn:
    """The first process of a namespace, with which the kernel ends: one that is first itself cannot even abort."""
    outcome = UNFIT
    try:
        kernelcalls.die_with_parent()
        kernel = os.fork()
        if kernel == 0:
            _become(asked, log, status)
        outcome = reap_until(kernel)
    except OSError as error:
        os.write(2, f"{error}\n".encode())
    os._exit(outcome)


def _become(asked: Mapping[str, Any], log: int, status: int) -> NoReturn:
    """Become the kernel."""
    try:
        root = asked["root"]
        kernelcalls.mount("none", "/", "", kernelcalls.MS_REC | kernelcalls.MS_PRIVATE)
        # Executable: UML maps its memory from a file here.
        kernelcalls.mount("tmpfs", f"{root}{_SCRATCH}", "tmpfs", 0, "mode=1777,size=90%")
        Path(f"{root}{_MACHINE}").mkdir()
        described = Path(f"{root}{_SCRATCH}/machine.json")
        described.write_text(json.dumps(asked), encoding="utf-8")
        kernelcalls.bind("/", f"{root}{_MACHINE}")
        kernelcalls.bind("/dev", f"{root}/dev")
        kernelcalls.mount("proc", f"{root}/proc", "proc")
        out, err = os.dup(1), os.dup(2)
        for descriptor in (out, err, status):
            os.set_inheritable(descriptor, True)
        for source, target in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.chroot(root)
        os.chdir("/")
        argv = [
            "linux.uml", f"mem={asked['memory']}", "root=/dev/root", "rootfstype=hostfs", f"rootflags={_MACHINE}", "ro",
            "quiet", f"uml_dir={_SCRATCH}/", "initcall_blacklist=raid6_select_algo",
            "con=null", "con0=null,fd:1", f"con1=null,fd:{out}", f"con2=null,fd:{err}", f"con3=null,fd:{status}",
            # What a kernel does not know and has the form of a variable goes into its first process's environment.
            *asked["parameters"], f"PYTHONPATH={asked['agent']}", f"init={asked['python']}", "--",
            "-S", "-B", "-m", "agent", "--machine", str(described), "first",
        ]  # fmt: skip
        os.execve("/usr/bin/linux.uml", argv, {"TMPDIR": _SCRATCH, "PATH": _PATH})  # noqa: S606  # no shell is wanted
    except OSError as error:
        os.write(2, f"{error}\n".encode())
    os._exit(UNFIT)


def first(path: str) -> NoReturn:
    """The first process of the machine that a file describes; the machine goes off when it is done."""
    try:
        kernelcalls.mount("proc", "/proc", "proc")
        asked = json.loads(Path(path).read_text(encoding="utf-8"))
        _furnish(asked)
        status = _run(asked)
        os.write(_raw_console(3), str(status).encode())
    except Exception as error:  # noqa: BLE001  # nobody else could tell what it died of
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    os.sync()
    ctypes.CDLL(None).reboot(_POWER_OFF)
    os._exit(1)


def _furnish(asked: Mapping[str, Any]) -> None:
    """Mount, load, and set up what a machine has."""
    for target, kind in (
        ("/sys", "sysfs"), ("/dev/pts", "devpts"), ("/dev/shm", "tmpfs"), ("/sys/fs/cgroup", "cgroup2"),  # noqa: S108
        ("/run", "tmpfs"), ("/tmp", "tmpfs"), ("/var/tmp", "tmpfs"),  # noqa: S108  # its own
    ):  # fmt: skip
        Path(target).mkdir(exist_ok=True)
        kernelcalls.mount(kind, target, kind, 0, "mode=1777" if kind == "tmpfs" else "")
    root = asked["root"]
    shown = [(root, kernelcalls.MS_RDONLY), (asked["cwd"], kernelcalls.MS_RDONLY)]  # either may lie below /tmp
    for folder, flags in (*shown, *((each, 0) for each in asked["writable"])):
        Path(folder).mkdir(parents=True, exist_ok=True)
        kernelcalls.mount("hostfs", folder, "hostfs", flags, f"{_MACHINE}{folder}")
    kernelcalls.mount("proc", f"{root}/proc", "proc")
    modprobe = ["chroot", root, "/sbin/modprobe", "-a", *_MODULES]
    subprocess.run(modprobe, check=True, env={"PATH": _PATH})
    # The machine's own may be older than the kernel, and know no seed.
    _TOOLS.mkdir()
    loader = f"{root}/lib64/ld-linux-x86-64.so.2 --library-path {root}/lib/x86_64-linux-gnu"
    for name in ("tc", "ip"):
        tool = _TOOLS / name
        tool.write_text(f'#!/bin/sh\nexec {loader} {root}/sbin/{name} "$@"\n', encoding="utf-8")
        tool.chmod(0o755)
    subprocess.run([_TOOLS / "ip", "link", "set", "lo", "up"], check=True)


def _run(asked: Mapping[str, Any]) -> int:
    """Run the program, pass on what it prints, wait for whatever loses its parent, too; the program's exit status."""
    # Its output is a pipe, as a program's in CI is, and no terminal.
    passers, ends = [], []
    for number in (1, 2):
        console = _raw_console(number)
        read, write = os.pipe()
        passer = subprocess.Popen(["cat"], stdin=read, stdout=console, env={"PATH": _PATH})
        passers.append(os.pidfd_open(passer.pid))
        ends.append(write)
        os.close(read)
    environment = asked["environment"]
    program = subprocess.Popen(
        asked["argv"], cwd=asked["cwd"], env={**environment, "PATH": f"{_TOOLS}:{environment.get('PATH', _PATH)}"},
        stdin=subprocess.DEVNULL, stdout=ends[0], stderr=ends[1], start_new_session=True,
    )  # fmt: skip
    for end in ends:
        os.close(end)
    program.returncode = reap_until(program.pid)
    deadline = time.monotonic() + _LAST_OUTPUT_S  # whom it left behind may hold its output open
    for each in passers:
        select.select([each], [], [], max(0.0, deadline - time.monotonic()))
    return program.returncode


def _raw_console(number: int) -> int:
    console = os.open(f"/dev/tty{number}", os.O_RDWR | os.O_NOCTTY)
    tty.setraw(console)
    return console
