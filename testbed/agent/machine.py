"""A carried kernel as a machine: it runs a program with this machine's files, but with netem in its kernel.

The agent has two roles here. `outside` enters namespaces of its own and becomes a User-Mode Linux. `first` is that
kernel's first process: it sets the machine up, runs the program, and powers off. The files are this machine's,
read-only (hostfs), except for writable folders; /tmp, /var/tmp and /run belong to the machine and vanish with it. Time
is this machine's; there is one processor.
"""

from __future__ import annotations

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

from . import booting, kernelcalls
from .processes import reap_until

# In the kernel's root file system: the folder of its memory, and below that this machine's files.
_SCRATCH, _MACHINE = "/run", "/run/machine"
_DEVICES = ("ifb", "veth", "bridge", "tun")
_FILES = ("overlay",)  # a host in the files of an image
_SCHEDULERS = ("sch_netem", "sch_htb", "sch_tbf", "sch_ingress", "sch_codel", "sch_fq_codel", "sch_cake", "sch_red")
_CLASSIFIERS = ("cls_u32", "cls_flower", "cls_bpf")
_ACTIONS = ("act_mirred", "act_gact", "act_pedit", "act_skbedit")
_MOUNTS = {"/run": "tmpfs", **booting.MOUNTS}
_LAST_OUTPUT_S = 5.0


def outside(*, log: int, status: int) -> int:
    """Boot the machine that stdin describes (`testbed.kernel.machine`), and wait until it is off.

    ``log``, ``status``: descriptors for the kernel's console and the program's exit status.
    """
    machine = json.load(sys.stdin)
    return booting.in_namespaces(lambda: _become_kernel(machine, log, status))


def _become_kernel(machine: Mapping[str, Any], log: int, status: int) -> NoReturn:
    root = machine["root"]
    # Executable: UML maps its memory from a file here.
    kernelcalls.mount("tmpfs", f"{root}{_SCRATCH}", "tmpfs", 0, "mode=1777,size=90%")
    Path(f"{root}{_MACHINE}").mkdir()
    description = Path(f"{root}{_SCRATCH}/machine.json")
    description.write_text(json.dumps(machine), encoding="utf-8")
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
    files = ["root=/dev/root", "rootfstype=hostfs", f"rootflags={_MACHINE}", "ro", f"uml_dir={_SCRATCH}/"]
    consoles = ["con=null", *(f"con{number}=null,fd:{file}" for number, file in enumerate((1, out, err, status)))]
    # An unknown parameter that has the form of a variable goes into the first process's environment.
    first_process = [f"PYTHONPATH={machine['agent']}", f"init={machine['python']}", "--"]
    arguments = ["-S", "-B", "-m", "agent", "--machine", str(description), "first"]
    kernel = ["linux.uml", f"mem={machine['memory']}", "quiet", "initcall_blacklist=raid6_select_algo"]
    argv = [*kernel, *files, *consoles, *machine["parameters"], *first_process, *arguments]
    os.execve("/usr/bin/linux.uml", argv, {"TMPDIR": _SCRATCH, "PATH": booting.PATH})  # noqa: S606  # no shell is wanted


def first(path: str) -> NoReturn:
    """The first process of the machine that a file describes; powers the machine off at the end."""

    def work() -> None:
        kernelcalls.mount("proc", "/proc", "proc")
        machine = json.loads(Path(path).read_text(encoding="utf-8"))
        _furnish(machine)
        status = _run(machine)
        os.write(_raw_console(3), str(status).encode())

    booting.be_first_and_power_off(work)


def _furnish(machine: Mapping[str, Any]) -> None:
    """Mount file systems, load modules, and provide tools."""
    booting.mount_own(_MOUNTS)
    root = machine["root"]
    read_only = [(folder, kernelcalls.MS_RDONLY) for folder in (root, machine["cwd"])]  # either may be below /tmp
    writable = [(folder, 0) for folder in machine["writable"]]
    for folder, flags in (*read_only, *writable):
        Path(folder).mkdir(parents=True, exist_ok=True)
        kernelcalls.mount("hostfs", folder, "hostfs", flags, f"{_MACHINE}{folder}")
    kernelcalls.mount("proc", f"{root}/proc", "proc")
    modprobe = ["chroot", root, "/sbin/modprobe", "-a", *_DEVICES, *_FILES, *_SCHEDULERS, *_CLASSIFIERS, *_ACTIONS]
    subprocess.run(modprobe, check=True, env={"PATH": booting.PATH})
    booting.provide_tools(root)


def _run(machine: Mapping[str, Any]) -> int:
    """Run the program, relay its output, reap orphans; returns the program's exit status."""
    # Its output is a pipe, as in CI, not a terminal.
    relays, ends = [], []
    for number in (1, 2):
        console = _raw_console(number)
        read, write = os.pipe()
        relay = subprocess.Popen(["cat"], stdin=read, stdout=console, env={"PATH": booting.PATH})
        relays.append(os.pidfd_open(relay.pid))
        ends.append(write)
        os.close(read)
    program = booting.start(machine, stdout=ends[0], stderr=ends[1])
    for end in ends:
        os.close(end)
    program.returncode = reap_until(program.pid)
    deadline = time.monotonic() + _LAST_OUTPUT_S  # processes that it left behind may keep its output open
    for relay_fd in relays:
        select.select([relay_fd], [], [], max(0.0, deadline - time.monotonic()))
    return program.returncode


def _raw_console(number: int) -> int:
    console = os.open(f"/dev/tty{number}", os.O_RDWR | os.O_NOCTTY)
    tty.setraw(console)
    return console
