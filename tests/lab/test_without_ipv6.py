"""A kernel without IPv6: carried as a machine (``scripts/in-carried --no-ipv6``)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.conftest import HERE

_SCRIPT = [sys.executable, str(HERE.parents[1] / "scripts/in-carried")]

_WITHOUT_IPV6 = """
import json, socket, sys
from testbed import LocalLab
from testbed.errors import EnvironmentUnfitError

told = {}
try:
    socket.socket(socket.AF_INET6)
except OSError as error:
    told["inet6"] = error.strerror
with LocalLab("compose.yaml", netem="host") as lab:
    client, link = lab.host("client"), lab.link("client -> server")

    def tried(port=8888):
        connect = f"import socket; socket.create_connection(('server', {port}), 2)"
        return (client.run(["python3", "-c", connect]).stderr or "connected").splitlines()[-1]

    told["clean"] = tried()
    lab.impair("client -> server", delay="30ms", loss="5%", seed=7)
    told["proof"] = sorted({check.verdict for checks in lab.prove("client -> server", most_s=3).values()
                            for check in checks})
    lab.heal()
    lab.cut("client -> server")
    told["cut"] = tried()
    told["lost"] = link.lost_in_cut()
    lab.mend()
    with lab.capture("client -> server") as capture:
        told["mended"] = tried()
    told["flows"] = len(capture.flows())
    lab.cut("client -> server tcp/8888", reject=True)
    told["rejected"], told["beside"] = tried(), tried(9)
    lab.verifier.verify()
    told["evidence"] = [check.seen for each in lab.ledger.evidence for check in each.checks]
open("/tmp/compose.yaml", "w").write(sys.argv[1])
try:
    LocalLab("/tmp/compose.yaml", netem="host").up()
except EnvironmentUnfitError as error:
    told["asked"] = str(error)
print(json.dumps(told))
"""


@pytest.mark.slow
@pytest.mark.skipif(Path("/proc/exitcode").exists(), reason="this is a carried kernel already")
def test_where_the_kernel_knows_no_ipv6_links_are_impaired_cut_narrowed_captured_and_proven() -> None:
    networks = {"lan": {"enable_ipv6": True, "ipam": {"config": [{"subnet": "fd00:fc::/64"}]}}}
    services = {"one": {"image": "x", "x-testbed": {"local": {"path": "."}}, "networks": ["lan"]}}
    file = json.dumps({"services": services, "networks": networks})
    done = subprocess.run(
        [*_SCRIPT, "--no-ipv6", sys.executable, "-c", _WITHOUT_IPV6, file],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["inet6"] == "Address family not supported by protocol"
    assert document["clean"] == document["mended"] == "connected"
    assert document["proof"] == ["holds"]
    assert "timed out" in document["cut"]
    assert document["lost"] > 0
    assert document["flows"] == 1
    assert "Connection refused" in document["rejected"]
    assert "Connection refused" in document["beside"]  # nobody listens there: the server itself says so
    assert any("told by 1 reset" in link for link in document["evidence"])
    assert "has no IPv6" in document["asked"]
    assert "fd00:fc::1/64" in document["asked"]
