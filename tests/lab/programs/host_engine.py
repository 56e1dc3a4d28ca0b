"""The agent's host engine, tried in a kernel that has netem: runs as the first program of a carried kernel.

Two network namespaces on a bridge stand for two containers. Reads the tc lines to run from the file that is its
argument, and prints one JSON object behind the word RESULT. Needs root, and a kernel that nobody else uses.
"""

import ctypes
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)
_ECHO = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("", 9)); print("ready", flush=True)
while True:
    data, peer = s.recvfrom(99); s.sendto(data, peer)
"""
_ASK = """
import socket, time, json
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(("10.9.0.2", 9)); s.settimeout(10)
times = []
for number in range(11):
    began = time.perf_counter(); s.send(b"x"); s.recv(9); times.append(time.perf_counter() - began)
print(json.dumps(times[1:]))
"""
_LOSE = """
import socket, json
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(("10.9.0.2", 9)); s.settimeout(0.3)
heard = []
for number in range(200):
    s.send(b"%d" % number)
try:
    while True: heard.append(int(s.recv(9)))
except TimeoutError: pass
print(json.dumps(sorted(heard)))
"""
_KNOCK = """
import errno, json, socket
said = []
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    s = socket.socket(socket.AF_INET, kind); s.settimeout(5)
    try:
        s.connect(("10.9.0.2", 9)); s.send(b"word"); s.recv(9); said.append("answered")
    except OSError as error: said.append(errno.errorcode.get(error.errno, str(error)))
print(json.dumps(said))
"""


def mount(kind: str, target: str) -> None:
    """mount(2) of a virtual file system."""
    if _LIBC.mount(kind.encode(), target.encode(), kind.encode(), 0, None):
        raise OSError(ctypes.get_errno(), f"mount {kind} on {target}")


def run(*argv: str) -> str:
    """Run a program; its output."""
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout


class Agent:
    """The agent, as a child process."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agent", "ports"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/opt/testbed"
        )

    def call(self, operation: str, **arguments: Any) -> Any:
        """One call; fails loudly if it is refused."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"id": 1, "op": operation, **arguments}).encode() + b"\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if not answer["ok"]:
            raise RuntimeError(answer["error"])
        return answer["result"]

    def end(self) -> None:
        """Close its stdin, as a killed test run would."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)


def in_namespace(name: str, program: str) -> Any:
    """Run a Python program in a namespace; its output as JSON."""
    return json.loads(run("ip", "netns", "exec", name, sys.executable, "-c", program))


def _index(device: str) -> int:
    return int(Path(f"/sys/class/net/{device}/ifindex").read_text())


def main() -> dict[str, Any]:
    """Set up, impair, measure, heal, and say what was seen."""
    lines: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    mount("proc", "/proc")
    mount("sysfs", "/sys")
    mount("tmpfs", "/run")
    mount("tmpfs", "/tmp")  # the agent keeps files there, and its root is read-only
    run(
        "modprobe",
        "-a",
        "sch_netem",
        "sch_htb",
        "cls_flower",
        "veth",
        "bridge",
        "tun",
        "cls_bpf",
        "cls_u32",
        "act_mirred",
        "act_skbedit",
    )
    run("ip", "link", "add", "br0", "type", "bridge")
    run("ip", "link", "set", "br0", "up")
    for name, number in (("a", 1), ("b", 2)):
        run("ip", "netns", "add", name)
        run(
            "ip", "link", "add", f"veth{name}", "txqueuelen", "0", "type", "veth", "peer", "name", "eth0", "netns", name
        )
        run("ip", "link", "set", f"veth{name}", "master", "br0", "up")
        run("ip", "-n", name, "address", "add", f"10.9.0.{number}/24", "dev", "eth0")
        run("ip", "-n", name, "link", "set", "eth0", "up")
    echo = subprocess.Popen(["ip", "netns", "exec", "b", sys.executable, "-c", _ECHO], stdout=subprocess.PIPE)
    assert echo.stdout is not None
    echo.stdout.readline()

    seen: dict[str, Any] = {"clean": in_namespace("a", _ASK)}
    agent = Agent()
    seen["capabilities"] = agent.call("capabilities")
    seen["attached"] = agent.call("attach", port="b@lan", ifindex=_index("vethb"), engine="host")
    seen["delay"] = agent.call("tc", port="b@lan", lines=lines["delay"])
    seen["delayed"] = in_namespace("a", _ASK)
    seen["lost"] = []
    for _attempt in range(2):
        seen["loss"] = agent.call("tc", port="b@lan", lines=lines["loss"])
        seen["lost"].append(in_namespace("a", _LOSE))
    began = time.monotonic()
    for _change in range(50):
        agent.call("tc", port="b@lan", lines=lines["loss"])
    seen["change_s"] = (time.monotonic() - began) / 50
    seen["attached to"] = agent.call("attach", port="a@lan", ifindex=_index("vetha"), engine="host")
    agent.call("tc", port="a@lan", lines=lines["silent"])
    seen["rejecting"] = agent.call("rejecting", port="b@lan", ifindex=_index("vetha"))
    tap, mark = seen["rejecting"]["tap"], str(seen["rejecting"]["mark"])
    reject = [line.replace("TAP", tap).replace(lines["mark"], mark) for line in lines["reject"]]
    seen["reject"] = agent.call("tc", port="b@lan", lines=reject, at_gate=True)
    seen["knocked"] = in_namespace("a", _KNOCK)
    seen["rejected"] = agent.call("rejected", ifindex=_index("vetha"))
    agent.end()
    seen["devices_after"] = os.listdir("/sys/class/net")
    seen["after"] = json.loads(run("tc", "-j", "qdisc", "show", "dev", "vethb"))
    seen["queue_length_after"] = json.loads(run("ip", "-j", "link", "show", "vethb"))[0].get("txqlen", 0)
    seen["healed"] = in_namespace("a", _ASK)
    echo.kill()
    return seen


if __name__ == "__main__":
    try:
        os.environ["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"  # the kernel gives its first program none
        print("RESULT", json.dumps(main()), flush=True)
    except Exception as error:  # noqa: BLE001  # the first program must tell whatever it died of
        traceback.print_exc()
        print(getattr(error, "stderr", ""), flush=True)
    finally:
        _LIBC.sync()
        _LIBC.reboot(0x4321FEDC)  # LINUX_REBOOT_CMD_POWER_OFF: the carried kernel ends
        os._exit(0)
