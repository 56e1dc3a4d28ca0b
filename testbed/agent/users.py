"""Users and groups of programs in a local lab, by /etc/passwd and /etc/group of the host that they run in.

The files are read here, and not by the C library: in an image's files that would load the image's libraries into us.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import setgid, setgroups, setuid

from . import kernelcalls
from .protocol import Refused

_PASSWD, _GROUP = "/etc/passwd", "/etc/group"


def identity(user: str) -> tuple[int, int]:
    """The user and group numbers of ``user`` or ``user:group``. Raises Refused."""
    name, _, group = user.partition(":")
    entry = _user(name or "root")
    if entry is not None:
        uid, gid = int(entry[2]), int(entry[3])
    elif name.isdecimal():
        uid, gid = int(name), 0
    else:
        raise Refused(f"user {name!r} is not in the host's {_PASSWD}")
    if not group or group.isdecimal():
        return uid, int(group) if group else gid
    for line in _lines(_GROUP, 3):
        if line[0] == group:
            return uid, int(line[2])
    raise Refused(f"group {group!r} is not in the host's {_GROUP}")


def home(user: str) -> str:
    """The user's HOME, as the engine sets it."""
    entry = _user(user.partition(":")[0] or "0")
    return entry[5] if entry is not None and len(entry) > 5 and entry[5] else "/"


def become(user: str) -> None:
    """Give this process the user, the group and the further groups of ``user`` or ``user:group``. Raises Refused."""
    uid, gid = identity(user)
    name, _, group = user.partition(":")
    entry = _user(name)
    name = name if entry is None else entry[0]  # groups list names
    members = (line for line in _lines(_GROUP, 4) if name in line[3].split(","))
    setgroups([] if group else [int(line[2]) for line in members])
    setgid(gid)
    setuid(uid)


def seem(user: str) -> None:
    """Have this process see itself as ``user`` or ``user:group``, and root's files as that user's. Raises Refused.

    For labs without root, where all files of an image are root's, and nobody else is known.
    """
    uid, gid = identity(user)
    kernelcalls.unshare(kernelcalls.NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} 0 1"), ("gid_map", f"{gid} 0 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def _user(name: str) -> Sequence[str] | None:
    """The entry of a user, by name or number; see passwd(5)."""
    column = 2 if name.isdecimal() else 0
    return next((line for line in _lines(_PASSWD, 4) if line[column] == name), None)


def _lines(path: str, least: int) -> Sequence[Sequence[str]]:
    """The entries of a file that have so many fields, with numbers where they belong; none if there is no file."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.rstrip("\n").split(":") for line in file]
    except OSError:
        return ()
    numbers = (2, 3) if path == _PASSWD else (2,)
    return [line for line in lines if len(line) >= least and all(line[at].isdecimal() for at in numbers)]
