"""System calls that Python's library lacks: namespaces, mounts, capabilities. Each names itself in its OSError."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
from functools import cache
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

# linux/sched.h
NEWNS, NEWUTS, NEWIPC = 0x00020000, 0x04000000, 0x08000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000

# linux/mount.h
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 0x1, 0x2, 0x4, 0x8, 0x20
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
_MNT_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_ATTR_RDONLY = 1
_SYS_CLOSE_RANGE, _SYS_MOUNT_SETATTR = 436, 442  # the same on every architecture (Linux 5.9 and 5.12)

# linux/sched.h, linux/sched/types.h: size, policy, flags, nice, priority, runtime, deadline, period
_SCHED_DEADLINE, _RESET_ON_FORK, _RECLAIM = 6, 0x1, 0x2
_SCHED_ATTR = struct.Struct("=IIQiIQQQ")
_SYS_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}

# linux/prctl.h
_PR_SET_PDEATHSIG, _PR_CAPBSET_READ, _PR_CAPBSET_DROP = 1, 23, 24

# linux/capability.h, by number
_CAPABILITIES = """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
    NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
    SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
    MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
"""
CAPABILITIES = tuple(_CAPABILITIES.split())


class _MountAttr(ctypes.Structure):
    """``struct mount_attr`` of linux/mount.h."""

    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


@cache
def clock_is_simulated() -> bool:
    """Whether this kernel's clock stands still while programs run: User-Mode Linux's time travel, on one processor."""
    return b" time-travel" in Path("/proc/cmdline").read_bytes()


def _checked(result: int, call: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave the namespaces of these kinds for new ones."""
    _checked(_libc.unshare(flags), f"unshare({flags:#x})")


def setns(descriptor: int, kind: int) -> None:
    """Enter the namespace behind a descriptor."""
    _checked(_libc.setns(descriptor, kind), f"setns({kind:#x})")


def mount(source: str, target: str | Path, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Mount a file system, or change a mount."""
    arguments = (source.encode(), str(target).encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _checked(_libc.mount(*arguments), f"mount {kind or 'bind'} {source} on {target}")


def bind(source: str | Path, target: str | Path, *, read_only: bool = False) -> None:
    """Bind a file, or a folder with all mounts below it, to another place."""
    mount(str(source), target, "", MS_BIND | MS_REC)
    if read_only:
        number, here = ctypes.c_long(_SYS_MOUNT_SETATTR), ctypes.c_int(_AT_FDCWD)
        flags, attributes = ctypes.c_uint(_AT_RECURSIVE), _MountAttr(set=_MOUNT_ATTR_RDONLY)
        size = ctypes.c_size_t(ctypes.sizeof(attributes))
        result = _libc.syscall(number, here, str(target).encode(), flags, ctypes.byref(attributes), size)
        _checked(result, f"mount_setattr {target} read-only")


def unmount(target: str | Path) -> None:
    """Detach a mount; it ends when nobody uses it any more."""
    _checked(_libc.umount2(str(target).encode(), _MNT_DETACH), f"umount2 {target}")


def pivot_root(new_root: str | Path) -> None:
    """Make a mount the root of this mount namespace, and detach the old one, as NOTES in its man page describe."""
    os.chdir(new_root)
    _checked(_libc.pivot_root(b".", b"."), f"pivot_root {new_root}")
    _checked(_libc.umount2(b".", _MNT_DETACH), "umount2 of the old root")
    os.chdir("/")


def close_from(first: int) -> None:
    """Close this descriptor and all above it."""
    number, most = ctypes.c_long(_SYS_CLOSE_RANGE), ctypes.c_uint(0xFFFFFFFF)
    _checked(_libc.syscall(number, ctypes.c_uint(first), most, ctypes.c_uint(0)), "close_range")


def sethostname(name: str) -> None:
    """Set the host name of this UTS namespace."""
    encoded = name.encode()
    _checked(_libc.sethostname(encoded, ctypes.c_size_t(len(encoded))), f"sethostname {name}")


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends; prctl(2), PR_SET_PDEATHSIG."""
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0), "prctl PR_SET_PDEATHSIG")


def keep_capabilities(names: frozenset[str]) -> None:
    """Drop all other capabilities from the bounding set of this process and its children."""
    for number, name in enumerate(CAPABILITIES):
        if name not in names and _libc.prctl(_PR_CAPBSET_READ, ctypes.c_ulong(number), 0, 0, 0) == 1:
            _checked(_libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(number), 0, 0, 0), f"drop CAP_{name}")


def run_first(pid: int, *, runtime_ns: int, period_ns: int) -> None:
    """Reserve ``runtime_ns`` of CPU time in every ``period_ns`` for a process, which then runs before others.

    It also gets time that nobody has reserved, but never all: a twentieth is left to other processes. Its children have
    no reservation. ``pid``: 0 for this process; another must not fork meanwhile. Needs CAP_SYS_NICE in the initial user
    namespace. See sched(7), SCHED_DEADLINE.

    The deadline is before the end of the period, by the twentieth that is not the process's anyway. With a deadline at
    the end, nearly each time that the process sleeps its bandwidth is still in use, and the kernel sets a timer
    (`task_non_contending` of kernel/sched/deadline.c): on a virtual machine, 25 µs each time. In return a process that
    wakes in that twentieth waits for its end.
    """
    number = _SYS_SCHED_SETATTR.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, f"sched_setattr: unknown system call number on {os.uname().machine}")
    flags = _RESET_ON_FORK | _RECLAIM
    deadline_ns = period_ns - period_ns // 20
    attributes = _SCHED_ATTR.pack(_SCHED_ATTR.size, _SCHED_DEADLINE, flags, 0, 0, runtime_ns, deadline_ns, period_ns)
    _checked(_libc.syscall(number, pid, attributes, 0), "sched_setattr SCHED_DEADLINE")
