"""A Docker engine, a Compose stack and testbed with netem on the host, all in a kernel that has netem.

Runs as the first program of a carried kernel, whose root is a container with dockerd in it; needs a kernel that nobody
else uses. Arguments: the checkout, and a `docker save` of the images of its stack and its agent. Prints a line
behind SEEN for each step that it has finished, and one JSON object behind RESULT.
"""

import ctypes
import json
import os
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)
_DAEMON_LOG = Path("/tmp/dockerd.log")  # a file system of this kernel's own
_MODULES = (
    "overlay", "bridge", "br_netfilter", "veth", "tun", "sch_netem", "sch_htb", "cls_u32",
    # For the engine's rules, which the resolver in a Compose network also needs. iptables must be the legacy one:
    # Debian's user-mode kernel has no nf_tables for IPv4.
    "ip_tables", "iptable_nat", "iptable_filter", "xt_addrtype", "xt_conntrack", "xt_MASQUERADE",
)  # fmt: skip
# Where, what, with what options; in this order. The kernel itself has mounted /dev.
_MOUNTS = (
    ("/proc", "proc", ""),
    ("/sys", "sysfs", ""),
    ("/dev/pts", "devpts", ""),
    ("/dev/shm", "tmpfs", ""),
    ("/sys/fs/cgroup", "cgroup2", ""),
    ("/run", "tmpfs", ""),
    ("/tmp", "tmpfs", ""),
    ("/var/lib/docker", "tmpfs", "size=90%"),
)


def mount(target: str, kind: str, options: str) -> None:
    """mount(2) of a virtual file system."""
    os.makedirs(target, exist_ok=True)
    if _LIBC.mount(kind.encode(), target.encode(), kind.encode(), 0, options.encode()):
        raise OSError(ctypes.get_errno(), f"mount {kind} on {target}")


def run(*argv: str) -> str:
    """Run a program; its output."""
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout


def netems() -> list[dict[str, Any]]:
    """Every netem of this kernel's own devices, in tc's words: asked of tc itself, past testbed."""
    shown: list[dict[str, Any]] = json.loads(run("tc", "-j", "qdisc", "show"))
    return [line for line in shown if line["kind"] == "netem"]


def veths() -> list[str]:
    """The host's ends of every container's link."""
    return [row["ifname"] for row in json.loads(run("ip", "-j", "link", "show", "type", "veth"))]


class Steps:
    """What has been done so far and when, told as it is done."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def done(self, step: str) -> None:
        """Say that a step is finished."""
        self.seconds[step] = round(time.monotonic(), 1)  # since this kernel's start
        print("SEEN", f"{self.seconds[step]:6.1f} s", step, flush=True)


def start_engine() -> None:
    """Start dockerd and wait until it answers."""
    from testbed.backends.docker.engine import Engine
    from testbed.errors import EnvironmentUnfitError
    from testbed.lab.waiting import await_condition

    with _DAEMON_LOG.open("w") as log:
        daemon = subprocess.Popen(["dockerd", "--ip6tables=false", "--storage-driver=overlay2"], stdout=log, stderr=log)

    def silent() -> str:
        if daemon.poll() is not None:
            raise RuntimeError(f"dockerd ended with status {daemon.returncode}")
        try:
            Engine()
        except EnvironmentUnfitError as error:
            return str(error)
        return ""

    await_condition(silent, lambda reason: not reason, deadline_s=180, every_s=0.5)


def drive(checkout: str, steps: Steps) -> dict[str, Any]:
    """The stack up, a message, delay, loss, heal, down; what was seen."""
    from testbed import ComposeLab
    from tests.lab.conftest import Datagrams, prepare

    seen: dict[str, Any] = {}
    lab = ComposeLab(f"{checkout}/compose.yaml", netem="host", up_deadline="300s")
    with lab:
        steps.done("the stack is up")
        client, server = lab.hosts["client"], lab.hosts["server"]
        seen["engine"] = lab.engine.describe()
        seen["netem_engine"] = lab.netem_engine
        sent = client.run(["python3", "paper_client.py", "server"], timeout="60s")
        seen["message"] = {"exit_code": sent.exit_code, "stderr": sent.stderr, "server_log": server.logs()}
        steps.done("the paper's message is there")

        prepare(client, server)
        datagrams = Datagrams(client, server)
        seen["clean"] = {"round_trips_s": datagrams.round_trips(10), "netems": netems()}
        steps.done("clean round trips")

        lab.impair("client <-> server", delay="50ms")
        seen["delay"] = {"round_trips_s": datagrams.round_trips(10), "netems": netems()}
        lab.verifier.verify()
        steps.done("delayed round trips")

        lab.heal()
        link = lab.link("client -> server")
        seen["loss"] = []
        for _attempt in range(2):
            link.impair(loss="20%", seed=7)
            before = link.counters().dropped_packets  # the netem is changed in place and counts on
            arrived = datagrams.arrived(200)
            dropped = link.counters().dropped_packets - before
            seen["loss"].append({"arrived": arrived, "dropped": dropped, "netems": netems()})
        lab.verifier.verify()
        steps.done("lost datagrams, twice")

        lab.heal()
        seen["healed"] = {"round_trips_s": datagrams.round_trips(10), "netems": netems()}
        steps.done("healed round trips")
        # So that there is something to take down.
        lab.impair("client <-> server", delay="50ms", loss="1%")
        seen["veths"] = {"up": veths()}
    seen["veths"]["down"] = veths()
    seen["left"] = [
        str(container.name)
        for container in (*lab.engine.containers(testbed_run=lab.run_id), *lab.engine.networks(testbed_run=lab.run_id))
    ]
    steps.done("the stack is down")
    return seen


def main(checkout: str, images: str) -> dict[str, Any]:
    """Make this kernel a machine with an engine, and drive a lab on it."""
    steps = Steps()
    for target, kind, options in _MOUNTS:
        mount(target, kind, options)
    run("modprobe", "-a", *_MODULES)
    run("ip", "link", "set", "lo", "up")
    os.environ["HOME"] = "/tmp"
    os.chdir("/")
    sys.path.insert(0, checkout)
    sys.dont_write_bytecode = True
    steps.done("the kernel is ready")
    start_engine()
    steps.done("the engine answers")

    import docker

    with open(images, "rb") as archive:
        docker.from_env(timeout=600).images.load(archive)
    steps.done("the images are loaded")
    return {"kernel": os.uname().release, **drive(checkout, steps), "seconds": steps.seconds}


def tell() -> None:
    """Run it all and print the result, or all that may say why there is none."""
    try:
        checkout, images = sys.argv[1:3]  # the kernel may add words of its own
        print("RESULT", json.dumps(main(checkout, images)), flush=True)
    except Exception as error:  # noqa: BLE001  # nobody else could tell what it died of
        print("".join(traceback.format_exception(error)), getattr(error, "stderr", ""), flush=True)
        with suppress(OSError):
            print("dockerd's last lines:", *_DAEMON_LOG.read_text().splitlines()[-20:], sep="\n", flush=True)


def power_off() -> None:
    """End the carried kernel."""
    _LIBC.sync()
    _LIBC.reboot(0x4321FEDC)  # LINUX_REBOOT_CMD_POWER_OFF


if __name__ == "__main__":
    os.environ["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"  # the kernel gives its first program none
    # The first program also inherits every process whose parent has ended, and must wait for it.
    child = os.fork()
    if child == 0:
        tell()
        sys.stdout.flush()
        os._exit(0)
    while os.wait()[0] != child:
        pass
    power_off()
