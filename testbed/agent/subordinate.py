"""Users without root who have subordinate ids: a user namespace of theirs with many users; subuid(5), newuidmap(1)."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from . import kernelcalls

UNMAPPED = 4
"""Exit status of `give_owners` where there are no subordinate ids, or newuidmap refuses them."""
_CAPABILITY = "security.capability"


def become_root() -> bool:
    """Enter a user namespace as its root; returns whether it has further users. Raises OSError."""
    uid, gid = os.geteuid(), os.getegid()
    tools = [
        [tool, str(os.getpid()), "0", str(own), "1", "1", *ids]
        for name, own, path in (("newuidmap", uid, "/etc/subuid"), ("newgidmap", gid, "/etc/subgid"))
        if (tool := shutil.which(name)) and (ids := ids_in(path, uid))
    ]
    if len(tools) == 2 and _mapped_by(tools):
        return True
    if len(tools) != 2:
        kernelcalls.unshare(kernelcalls.NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        Path(f"/proc/self/{name}").write_text(text, encoding="ascii")
    return False


def ids_in(path: str, uid: int) -> Sequence[str]:
    """The first of a user's subordinate ids, and how many there are; none if the file names none."""
    try:
        names = {str(uid), pwd.getpwuid(uid).pw_name}
    except KeyError:
        names = {str(uid)}
    try:
        rows = [line.split(":") for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except OSError:
        return ()
    return next((row[1:3] for row in rows if len(row) == 3 and row[0] in names), ())


def _mapped_by(tools: Sequence[Sequence[str]]) -> bool:
    """Enter a new user namespace, whose users these programs map; they must run outside. Returns whether they did."""
    entered, enter = os.pipe()
    outside = os.fork()
    if outside == 0:
        os.close(enter)
        os.read(entered, 1)  # until its end
        done = all(subprocess.run(tool, check=False, stderr=subprocess.DEVNULL).returncode == 0 for tool in tools)
        os._exit(0 if done else 1)
    kernelcalls.unshare(kernelcalls.NEWUSER)
    for end in (enter, entered):
        os.close(end)
    return os.waitpid(outside, 0)[1] == 0


def give_owners() -> int:
    """Give files their owners, modes and capabilities, as stdin says in JSON, and remove a folder.

    ``root``, ``files`` (path below it, user, group, mode, capability in hexadecimal or empty), ``remove``. Prints how
    many files have a user that is not among the subordinate ids.
    """
    if not become_root():
        return UNMAPPED
    task = json.load(sys.stdin)
    lost = 0
    for path, uid, gid, mode, capability in task["files"]:
        place = f"{task['root']}/{path}"
        try:
            os.chown(place, uid, gid, follow_symlinks=False)
        except OSError:
            lost += 1
            continue
        if not os.path.islink(place):
            os.chmod(place, mode)
        if capability:
            os.setxattr(place, _CAPABILITY, bytes.fromhex(capability), follow_symlinks=False)
    if task["remove"]:
        shutil.rmtree(task["remove"])
    sys.stdout.write(f"{lost}\n")
    return 0
