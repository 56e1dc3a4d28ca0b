"""The agent: a standard-library program that runs where the ports are, or where a host's sockets are.

It imports nothing from the rest of testbed, so its image needs only this folder. It speaks JSON lines: a request
``{"id": 1, "op": "attach", …}`` on stdin, a reply ``{"id": 1, "ok": true, "result": …}`` or ``{"id": 1, "ok": false,
"error": "…"}`` on stdout. As soon as stdin closes it puts everything back.

``python3 -m agent ports``   beside the network: ports, kernels, tc (testbed.agent.ports)
``python3 -m agent capture`` beside the network, with CAP_NET_RAW only: packets (testbed.agent.capture)
``python3 -m agent inside``  in one host's network namespace: interfaces, offloads, counters (testbed.agent.inside), its
    TCP sockets over time (testbed.agent.sockets)
``python3 -m agent signal``  in one host's process namespace: signal a program (testbed.agent.processes)
``python3 -m agent files``   in the same: write and read a host's files, as its programs see them (testbed.agent.files)
``python3 -m agent local``   the switch and all hosts of a local lab (testbed.agent.namespaces)
``python3 -m agent owners``  files of images in a user's own user namespace (testbed.agent.subordinate)
``python3 -m agent machine`` a carried kernel that runs a program; ``first`` in that kernel (testbed.agent.machine)
``python3 -m agent virtual`` the same with a simulated clock; ``simulated`` in that kernel (testbed.agent.virtual)
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
"""The files beside this one that run inside a carried kernel."""
_SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def search_path() -> str:
    """PATH, and after it the folders of tc, ip and ethtool, which Debian leaves out of an ordinary user's PATH."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join([*folders, *(folder for folder in _SYSTEM_FOLDERS if folder not in folders)])


def guest_folder() -> str:
    """The folder of `GUEST_FILES` in the root file system of a carried kernel.

    Its name contains their checksum: agents of several versions may share one root file system.
    """
    content = b"".join(Path(__file__).with_name(name).read_bytes() for name in GUEST_FILES)
    return f"testbed-{zlib.crc32(content):08x}"


def command(*arguments: str) -> list[str]:
    """The command that starts the agent on this machine: as a top-level package, which halves the time to start."""
    return [sys.executable, "-I", "-S", "-c", _START, str(Path(__file__).parent.parent), *arguments]
