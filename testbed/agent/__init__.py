"""The agent: a standard-library program that runs where the ports are, or where a host's sockets are.

It imports nothing from the rest of testbed, so that the image needs nothing but this folder. It speaks JSON
lines: a request ``{"id": 1, "op": "attach", …}`` on stdin, an answer ``{"id": 1, "ok": true, "result": …}`` or
``{"id": 1, "ok": false, "error": "…"}`` on stdout, and puts everything back the moment stdin closes.

``python3 -m agent ports``  beside the network: ports, kernels, tc (testbed.agent.ports)
``python3 -m agent capture`` beside the network, with CAP_NET_RAW and no more: packets (testbed.agent.capture)
``python3 -m agent inside`` in one host's network namespace: interfaces, offloads, counters (testbed.agent.inside),
    its TCP sockets over time (testbed.agent.sockets)
``python3 -m agent signal`` in one host's process namespace: end a program that was started there
``python3 -m agent files``  in the same: write and read a host's files, as its programs see them (testbed.agent.files)
``python3 -m agent local``  the switch and all hosts of a local lab (testbed.agent.namespaces)
``python3 -m agent machine`` a carried kernel that runs a program; ``first`` in that kernel (testbed.agent.machine)
"""

import os
import sys
import zlib
from pathlib import Path

_START = (
    "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); runpy.run_module('agent', run_name='__main__', "
    "alter_sys=True)"
)

GUEST_FILES = ("guest-init", "guesthelper.py")
"""What runs inside a carried kernel, beside this file."""
_SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def search_path() -> str:
    """PATH, and behind it where tc, ip and ethtool are, which Debian leaves out of an ordinary user's."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join([*folders, *(each for each in _SYSTEM_FOLDERS if each not in folders)])


def guest_folder() -> str:
    """Name of the folder in a root of a carried kernel where `GUEST_FILES` are.

    It tells their version: several may share one root, and the files of one would not do for another's agent.
    """
    whole = b"".join(Path(__file__).with_name(name).read_bytes() for name in GUEST_FILES)
    return f"testbed-{zlib.crc32(whole):08x}"


def command(*arguments: str) -> list[str]:
    """What starts the agent on this machine: as a package of its own, which is up in half the time."""
    return [sys.executable, "-I", "-S", "-c", _START, str(Path(__file__).parent.parent), *arguments]
