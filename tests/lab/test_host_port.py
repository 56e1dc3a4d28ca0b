"""A port whose qdiscs are on the veth itself, in a network namespace of the test."""

from __future__ import annotations

import json

import pytest

from tests.lab.test_detour import in_namespace

_FLOOD = """
import json, os, socket, threading, time
from pathlib import Path
from testbed.agent import attached, devices, localtc, netlink
from testbed.netem import qdisc

for own in Path("/proc/sys/net/ipv6/conf").glob("[ad]*/disable_ipv6"):  # the kernel itself shall send nothing
    own.write_text("1")
with netlink.Netlink() as here:
    here.apply([netlink.cable("veth", 51, "far", 52, mtu=1500)])  # no bridge: it would join a group by itself
    here.apply([netlink.up(51), netlink.up(52)])
deadline = time.monotonic() + 5
while Path("/sys/class/net/veth/operstate").read_text().strip() != "up":
    assert time.monotonic() < deadline
    time.sleep(0.001)
sender, sent, stop = socket.socket(socket.AF_PACKET, socket.SOCK_RAW), 0, threading.Event()
sender.bind(("veth", 0))
frame = bytes.fromhex("02000000ab01" "02000000ab02" "88b5").ljust(60, b"\\0")

def flood():
    global sent
    while not stop.is_set():
        sent += 1
        try:
            sender.send(frame)
        except OSError:
            pass  # it was dropped

arrived_before = devices.statistic("far", "rx_packets")
tc = localtc.LocalTc(tag="t", files_in="/tmp")
port = attached.HostPort("b@lan", "veth", 51, tc, before={})
flooding = threading.Thread(target=flood, daemon=True)
flooding.start()
while devices.statistic("veth", "tx_dropped") < 200 and time.monotonic() < deadline:
    port.prepare()
    tc.batch().checked([line for line in qdisc.root("veth") if line.startswith("qdisc ")])  # flower is not everywhere
    port.release()
stop.set()
flooding.join()
arrived = lambda: devices.statistic("far", "rx_packets") - arrived_before
until = time.monotonic() + 5
while arrived() + port.counted()["refused_packets"] != sent and time.monotonic() < until:
    time.sleep(0.001)
dropped = devices.statistic("veth", "tx_dropped")
print(json.dumps({"sent": sent, "arrived": arrived(), "dropped": dropped, **port.counted()}))
tc.close()
"""


def test_what_a_port_loses_while_it_is_given_its_qdiscs_is_counted() -> None:
    (line,) = in_namespace(_FLOOD)
    seen = json.loads(line)
    if seen["arrived"] == seen["sent"]:
        pytest.skip("on this machine nothing was lost in 5 s")
    if not seen["dropped"]:
        pytest.skip("this machine's kernel does not count what it drops while a device is given a qdisc")
    assert seen["came_packets"] == seen["sent"]
    assert seen["refused_packets"] == seen["sent"] - seen["arrived"]
