"""A port's way through a carried kernel, in a network namespace of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.lab.conftest import ROOT

# The link watch looks at carriers once a second; urgent is only one that comes back to a device that is up. So when it
# has seen that of ``seen`` go, it has just looked, and the two taps' own are known to be away.
_PREPARE = """
import os, socket, time
from pathlib import Path
from testbed.agent import batch, carried, detour, netlink, taps

def awaited(path, wanted):
    deadline = time.monotonic() + 5
    while (found := Path(path).read_text().strip()) != wanted:
        assert time.monotonic() < deadline, f"{path}: {found}"
        time.sleep(0.001)

for name in ("seen", "end", "gate"):
    taps.make_tap(name)
with netlink.Netlink() as here:
    here.apply([netlink.bridge("br", 50, mtu=1500), netlink.cable("veth", 51, "far", 52, mtu=1500)])
    here.apply([netlink.enslave(51, 50), netlink.up(51), netlink.up(52)])
    held = taps.open_tap("seen")
    here.apply([netlink.up(socket.if_nametoindex("seen"))])
awaited("/sys/class/net/seen/operstate", "up")
os.close(held)
awaited("/sys/class/net/seen/operstate", "down")
opened = [taps.open_tap(name) for name in ("end", "gate")]
way = detour.Detour("veth", 51, end="end", gate="gate")
tool = batch.LocalTool(["tc", "-force", "-s", "-j", "-batch", "-"], sync=carried.TC_SYNC)
way.prepare(tool.batch(), mtu=1500, queue_packets=100)
print(Path("/sys/class/net/gate/brport/state").read_text().strip(), flush=True)
with netlink.Netlink() as here:
    here.apply([netlink.reached_through(socket.if_nametoindex("gate"), bytes.fromhex("02000000ab01"))])
print("and it is told who is behind", flush=True)
"""


def test_the_bridge_passes_packets_at_the_gate_before_any_is_led_there() -> None:
    """The bridge itself finds out a second later, and until then says EPERM to who tells it who is behind."""
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", "--mount", "sh", "-c",
         'mount -t sysfs none /sys && exec "$@"', "sh", sys.executable, "-c", _PREPARE],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
             "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.stdout.split("\n") == ["3", "and it is told who is behind", ""], done.stderr
