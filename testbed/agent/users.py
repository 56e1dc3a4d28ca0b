"""Users and groups of programs in a local lab, by the machine's /etc/passwd and /etc/group."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd

from .protocol import Refused


def identity(user: str) -> tuple[int, int]:
    """The user and group numbers of ``user`` or ``user:group``. Raises Refused."""
    name, _, group = user.partition(":")
    gid = 0
    try:
        if name.isdecimal():
            uid = int(name)
            with contextlib.suppress(KeyError):
                gid = pwd.getpwuid(uid).pw_gid
        else:
            entry = pwd.getpwnam(name or "root")
            uid, gid = entry.pw_uid, entry.pw_gid
    except KeyError:
        raise Refused(f"user {name!r} is not in the machine's /etc/passwd") from None
    try:
        return uid, int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid if group else gid
    except KeyError:
        raise Refused(f"group {group!r} is not in the machine's /etc/group") from None


def home(user: str) -> str:
    """The user's HOME, as the engine sets it."""
    name = user.partition(":")[0] or "0"
    try:
        return (pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)).pw_dir
    except KeyError:
        return "/"


def become(user: str) -> None:
    """Give this process the user, the group and the further groups of ``user`` or ``user:group``. Raises Refused."""
    uid, gid = identity(user)
    name, _, group = user.partition(":")
    if name.isdecimal():
        with contextlib.suppress(KeyError):  # groups list names
            name = pwd.getpwuid(uid).pw_name
    os.setgroups([] if group else [entry.gr_gid for entry in grp.getgrall() if name in entry.gr_mem])
    os.setgid(gid)
    os.setuid(uid)
