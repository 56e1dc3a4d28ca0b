"""A port's path through a carried kernel, in a network namespace of the test."""

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
tool = batch.LocalTool(["tc", "-force", "-s", "-j", "-batch", "-"])
way.prepare(tool.batch(), mtu=1500, queue_packets=100)
print(Path("/sys/class/net/gate/brport/state").read_text().strip(), flush=True)
with netlink.Netlink() as here:
    here.apply([netlink.reached_through(socket.if_nametoindex("gate"), bytes.fromhex("02000000ab01"))])
print("and it is told who is behind", flush=True)
"""
_TAKE_OUT = """
gate, host, own = socket.if_nametoindex("gate"), bytes.fromhex("02000000ab01"), sorted(way.tap_macs)
assert len(own) == 2
with netlink.Netlink() as here:
    here.apply([netlink.bridge_port(gate, learning=True), netlink.reached_through(gate, own[0])])
assert {host, own[0]} <= set(detour.learned("gate")), "as the bridge learns of a tap that speaks"
way.take_out(tool.batch())
behind = set(detour.learned("veth"))  # and whatever the host has said by itself
print(host in behind, behind.isdisjoint(own))
"""


def test_the_bridge_passes_packets_at_the_gate_before_any_is_led_there() -> None:
    """The bridge notices only a second later, and refuses a forwarding entry with EPERM until then."""
    assert in_namespace(_PREPARE) == ["3", "and it is told who is behind"]


def test_a_tap_is_not_told_to_be_behind_its_host_once_the_host_is_on_the_bridge_again() -> None:
    """Otherwise the tap's address, which no host has, would stay in the bridge for minutes after the tap is gone."""
    assert in_namespace(_PREPARE + _TAKE_OUT)[2:] == ["True True"]


def in_namespace(program: str) -> list[str]:
    """The lines that it printed."""
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", "--mount", "sh", "-c",
         'mount -t sysfs none /sys && exec "$@"', "sh", sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
             "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
