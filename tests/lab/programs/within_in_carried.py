"""Attach a port within a network namespace, where this kernel's own netem is run; prints what was seen as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import testbed

_CONNECT = """
import socket, time
def took_s():
    began = time.monotonic()
    try:
        socket.create_connection(("10.99.0.2", 9), 20)
    except ConnectionRefusedError:
        return time.monotonic() - began
print(min(took_s() for _ in range(3)))
"""
_MADE = """
link add near type veth peer name far
link set near netns tbt1
link set far netns tbt2
"""
_DEVICE = "tbs{}.in"


def run(*argv: str, given: str = "") -> str:
    return subprocess.run(argv, input=given, capture_output=True, check=True, text=True).stdout


def within(namespace: str, *argv: str) -> str:
    return run("ip", "netns", "exec", namespace, *argv)


def took_s() -> float:
    """The shortest of three handshakes that are refused."""
    return float(within("tbt1", sys.executable, "-c", _CONNECT))


def main() -> None:
    for name in ("tbt1", "tbt2"):
        run("ip", "netns", "add", name)
    run("ip", "-batch", "-", given=_MADE)
    for number, name in enumerate(("near", "far"), 1):
        within(f"tbt{number}", "ip", "address", "add", f"10.99.0.{number}/24", "dev", name)
        # Without an IPv6 address, no end greets the other with packets of its own.
        within(f"tbt{number}", "ip", "link", "set", name, "addrgenmode", "none", "up")
    (far,) = json.loads(within("tbt2", "ip", "-j", "link", "show", "far"))
    argv = ["ip", "netns", "exec", "tbt2", sys.executable, "-B", "-m", "agent", "within"]
    folder = Path(testbed.__file__).parent
    seen: dict[str, Any] = {"before_s": took_s()}
    with subprocess.Popen(argv, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdin is not None
        assert agent.stdout is not None

        def call(operation: str, **arguments: Any) -> Any:
            assert agent.stdin is not None
            assert agent.stdout is not None
            print(json.dumps({"id": 1, "op": operation, **arguments}), file=agent.stdin, flush=True)
            answer = json.loads(agent.stdout.readline())
            assert answer["ok"], answer
            return answer["result"]

        port = "host@lan"
        place = call("attach", port=port, ifindex=far["ifindex"], engine="host")
        netem = f"qdisc replace dev {place['device']} root netem delay 30ms"
        call("tc", port=port, lines=[netem], resume=True)
        seen["impaired_s"] = took_s()
        seen["paths"] = call("paths", ports=[port])[port]
        seen["came"] = call("dropped", ports=[port])[port]
        call("release", ports=[port])
        seen["released_s"] = took_s()
        call("tc", port=port, lines=[netem], resume=True)
        within("tbt2", "tc", "filter", "delete", "dev", "far", "ingress")
        seen["broken"] = call("paths", ports=[port])[port]["amiss"]
        agent.stdin.close()
        agent.wait()
    seen["after_s"] = took_s()
    seen["left"] = [link["ifname"] for link in json.loads(within("tbt2", "ip", "-j", "link"))]
    seen["qdiscs"] = [qdisc["kind"] for qdisc in json.loads(within("tbt2", "tc", "-j", "qdisc", "show", "dev", "far"))]
    print(json.dumps(seen))


if __name__ == "__main__":
    began = time.monotonic()
    main()
    print(f"{time.monotonic() - began:.1f} s", file=sys.stderr)
