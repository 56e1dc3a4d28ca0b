"""Engines of their own, each on a machine of its own: network, mounts, processes, images. They end with their owner."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from testbed import ComposeLab
from testbed.backends.docker.images import ensure_netem
from testbed.lab.waiting import await_condition

_ALONE = """
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -p /run/docker /run/lock
ip link set lo up
exec >"$0/log" 2>&1
"""
DOCKER = """
dockerd --data-root "$0/data" --exec-root "$0/run" --pidfile "$0/pid" --cgroup-parent "$1" -H "unix://$0/socket" \\
    --default-address-pool "base=10.$2.0.0/16,size=24" &
wait
"""
NAMED = (
    """
hostname "machine$2"
"""
    + DOCKER
)
REMAPPED = DOCKER.replace("dockerd", "dockerd --userns-remap=default")
# It may set no limit above this process's, and there is no systemd.
_PODMANS_LIMITS = """
printf '[containers]\\ndefault_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]\\n' > "$0/containers.conf"
export CONTAINERS_CONF="$0/containers.conf"
"""
PODMAN = (
    _PODMANS_LIMITS
    + """
podman --root "$0/data" --runroot "$0/run" --tmpdir "$0/tmp" \\
    --network-config-dir "$0/networks" --cgroup-manager cgroupfs --events-backend file \\
    system service -t 0 "unix://$0/socket" &
wait
"""
)
# An ordinary user of this machine alone, with subordinate ids and the way to make taps.
_AS_A_USER = """
mkdir -p "$0/home" /run/user/21234
chown 21234:21234 "$0" "$0/home" /run/user/21234
{ cat /etc/passwd; echo "somebody:x:21234:21234::$0/home:/bin/sh"; } > "$0/passwd"
{ cat /etc/group; echo "somebody:x:21234:"; } > "$0/group"
echo somebody:2000000:65536 | tee "$0/subuid" > "$0/subgid"
for file in passwd group subuid subgid; do mount --bind "$0/$file" "/etc/$file"; done
mknod -m 666 "$0/tun" c 10 200
mount --bind "$0/tun" /dev/net/tun
export HOME="$0/home" USER=somebody XDG_RUNTIME_DIR=/run/user/21234 PATH="$PATH:/usr/share/docker.io/contrib"
cd "$HOME"
set -- setpriv --reuid 21234 --regid 21234 --clear-groups
"""
ROOTLESS_DOCKER = (
    _AS_A_USER
    + """
"$@" dockerd-rootless.sh --data-root "$HOME/data" --exec-root "$XDG_RUNTIME_DIR/docker" -H "unix://$0/socket" &
wait
"""
)
ROOTLESS_PODMAN = (
    _AS_A_USER
    + _PODMANS_LIMITS
    + """
"$@" podman --cgroup-manager cgroupfs --events-backend file system service -t 0 "unix://$0/socket" &
wait
"""
)
_ANSWERS_WITHIN_S = 120


def images_of(stack: ComposeLab) -> list[str]:
    """The images that a stack needs, the agent's included."""
    of_hosts = [str(host.container.attrs["Config"]["Image"]) for host in stack.hosts.values()]
    return [ensure_netem(stack.engine, lambda _text: None), *of_hosts]


class OwnEngine:
    """One that runs."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], cgroup: str) -> None:
        self.folder, self._process, self._cgroup = folder, process, cgroup

    @property
    def url(self) -> str:
        """For DOCKER_HOST."""
        return f"unix://{self.folder}/socket"

    def answers(self) -> bool:
        """Whether it does."""
        done = subprocess.run(["docker", "-H", self.url, "version"], capture_output=True, check=False, timeout=60)
        return done.returncode == 0

    def docker(self, *words: str) -> str:
        """What docker prints of it."""
        return subprocess.run(
            ["docker", "-H", self.url, *words], capture_output=True, check=True, text=True, timeout=120
        ).stdout

    def load(self, images: Iterable[str]) -> None:
        """Give it images of the engine that this process uses."""
        with subprocess.Popen(["docker", "save", *images], stdout=subprocess.PIPE) as saved:
            argv = ["docker", "-H", self.url, "load"]
            subprocess.run(argv, stdin=saved.stdout, check=True, capture_output=True)

    def lose_power(self) -> None:
        """End it and all its containers at once."""
        self._process.kill()  # the first process of a process namespace: the kernel kills the rest
        self._process.wait(60)

    def in_its_network(self, *argv: str) -> None:
        """Run a command in its machine's network namespace."""
        enter = ["nsenter", "--target", str(self._process.pid), "--net"]
        subprocess.run([*enter, *argv], check=True, capture_output=True, timeout=60)

    def join(self, other: OwnEngine, address: str) -> None:
        """Lay a cable to the bridge ``joined`` of another one's machine; its end here has this address."""
        cable = f"to{address.split('.')[3].partition('/')[0]}"
        peer = ["peer", "name", "joined", "netns", str(self._process.pid)]
        other.in_its_network("ip", "link", "add", cable, "type", "veth", *peer)
        other.in_its_network("ip", "link", "set", cable, "master", "joined", "up")
        self.take(address)

    def take(self, address: str) -> None:
        """Give its interface ``joined`` this address."""
        self.in_its_network("ip", "address", "add", address, "dev", "joined")
        self.in_its_network("ip", "link", "set", "joined", "up")

    def clear(self) -> None:
        """Remove what is left of it on this machine."""
        for place in Path("/sys/fs/cgroup").glob(f"*/{self._cgroup}"):
            for below in [*sorted(place.rglob("*/"), reverse=True), place]:
                below.rmdir()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def swarm(folder: Path, count: int) -> Iterator[list[OwnEngine]]:
    """So many engines that are the nodes of a Swarm, the first of which manages it."""
    with engines(folder, count, start=NAMED) as started:
        first, *others = started
        first.in_its_network("ip", "link", "add", "joined", "type", "bridge")
        first.take("10.99.0.1/24")
        first.docker("swarm", "init", "--advertise-addr", "10.99.0.1")
        token = first.docker("swarm", "join-token", "--quiet", "worker").strip()
        for number, other in enumerate(others, start=2):
            other.join(first, f"10.99.0.{number}/24")
            other.docker("swarm", "join", "--advertise-addr", f"10.99.0.{number}", "--token", token, "10.99.0.1:2377")
        yield started


@contextmanager
def engines(folder: Path, count: int, *, start: str = DOCKER, first_pool: int = 220) -> Iterator[list[OwnEngine]]:
    """So many engines, each by this script. If we are killed, they are, too."""
    with ExitStack() as undo:
        started = []
        for number in range(count):
            own = folder / f"e{number}"
            own.mkdir()
            cgroup = f"testbed-engine-{folder.name}-{number}"
            kept = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--net", "--pid", "--uts", "--fork"]
            argv = [*kept, "--kill-child", "--mount-proc", "sh", "-c", _ALONE + start, str(own), f"/{cgroup}"]
            process = subprocess.Popen([*argv, str(first_pool + number)], stdin=subprocess.DEVNULL)
            engine = OwnEngine(own, process, cgroup)
            undo.callback(engine.clear)
            undo.callback(engine.lose_power)
            started.append(engine)
        for engine in started:
            await_condition(engine.answers, bool, deadline_s=_ANSWERS_WITHIN_S)
        yield started
