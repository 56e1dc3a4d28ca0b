"""Run a program as an ordinary user who may open /dev/net/tun: ``as_ordinary.py UID FOLDER [SOURCE TARGET]… -- ARGV…``.

As root. Where root alone may open taps, the program sees a device of its own; nothing of the machine is changed. Each
SOURCE is shown at TARGET, so that the user reaches what lies below a folder closed to him. FOLDER is made his, and his
home: for the program he has an account, and subordinate ids (subuid(5)) where the machine knows such.
"""

import ctypes
import os
import stat
import sys
from pathlib import Path

_NEWNS, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x00020000, 0x1000, 0x4000, 0x40000
_SUBORDINATE = 1_000_000
"""The first of the user's subordinate ids."""
_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, flags: int) -> None:
    """Bind, or change what is passed on."""
    if _libc.mount(source.encode(), target.encode(), None, ctypes.c_ulong(flags), None):
        sys.exit(f"mount {source} on {target}: {os.strerror(ctypes.get_errno())}")


def main() -> None:
    """Set up, become the user, become the program."""
    split = sys.argv.index("--")
    uid, folder, shown, argv = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:split], sys.argv[split + 1 :]
    if _libc.unshare(_NEWNS):
        sys.exit(f"unshare: {os.strerror(ctypes.get_errno())}")
    mount("none", "/", _MS_REC | _MS_PRIVATE)
    tun = Path("/dev/net/tun")
    if not tun.stat().st_mode & stat.S_IWOTH:
        own = folder / "tun"
        os.mknod(own, stat.S_IFCHR, os.makedev(10, 200))
        own.chmod(0o666)
        mount(str(own), str(tun), _MS_BIND)
    for source, target in zip(shown[::2], shown[1::2], strict=True):
        Path(target).mkdir(parents=True, exist_ok=True)
        mount(source, target, _MS_BIND | _MS_REC)
    for name, line in (
        ("passwd", f"ordinary:x:{uid}:{uid}::{folder}:/bin/sh\n"),
        ("group", f"ordinary:x:{uid}:\n"),
        ("subuid", f"ordinary:{_SUBORDINATE}:65536\n"),
        ("subgid", f"ordinary:{_SUBORDINATE}:65536\n"),
    ):
        known = Path("/etc", name)
        if known.exists():
            own = folder / name
            own.write_text(known.read_text() + line)
            mount(str(own), str(known), _MS_BIND)
    os.chown(folder, uid, uid)
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    os.execvp(argv[0], argv)  # noqa: S606  # that is its purpose


if __name__ == "__main__":
    main()
