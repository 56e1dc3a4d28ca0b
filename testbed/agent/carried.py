"""A carried kernel: User-Mode Linux as an ordinary process, with netem, for machines whose kernel has none.

Its root file system is ours, read-only (hostfs); its first process is ``guest-init`` beside this file. Network
devices are plugged in through UML's management console; each opens a tap of this network namespace, which is
gone when the kernel is, however it dies.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

from . import guest_folder, kernelcalls, qdiscs, splice
from .batch import Batch, in_root
from .protocol import Refused

TC_SYNC = "filter show dev lo"
"""A show of tc that always succeeds and looks at nothing else; one of qdiscs goes over those of every device."""

_MEMORY = "192M"
_BOOT_DEADLINE_S = 30.0

# Debian's kernel finds out at each start which way of computing RAID 6 is the fastest: 0.85 s of its 1.2 s.
_NOT_NEEDED = "raid6_select_algo"

WAKE_EVERY_S = 0.002

# Its share of a processor, before all that share one fairly: without, packets wait for whatever else is busy.
# The first that is to be had: where many kernels run, or few processors, a quarter is not (EBUSY). Less than a tenth
# would be worse than a turn among the others: beyond its share, one of many that are all busy does not run at all.
_RUNTIMES_NS, _PERIOD_NS = (500_000, 200_000), 2_000_000
_WAKER_RUNTIMES_NS = (20_000,)

# arch/um/drivers/mconsole.h
_MCONSOLE_MAGIC = 0xCAFEBABE
_MCONSOLE_VERSION = 2
_MCONSOLE_DATA = 512


# Of a device that no port has.
CLOCK_DEVICE = "vec9999"
CLOCK_MTU = 1500
CLOCK_DELAY_S = 0.03
FRAME_BYTES = 60
"""Of each frame below: the shortest that Ethernet has."""
CLOCK_ETHERTYPE, QUEUE_ETHERTYPE = 0x88B5, 0x88B6
"""Both for local experiments (linux/if_ether.h): of the clock's frame, and of frames that wait in a port's queue."""


def find_kernel(root: Path | None = None) -> str | None:
    """The path of a User-Mode Linux on this machine, or in another root file system, or None."""
    if root is None:
        return shutil.which("linux.uml")
    return "/usr/bin/linux.uml" if (root / "usr/bin/linux.uml").is_file() else None


def start_first(
    argv: Sequence[str], *, runtimes_ns: Sequence[int], period_ns: int = _PERIOD_NS, root: Path | None = None,
    pass_fds: Sequence[int] = (), stdout: int = subprocess.DEVNULL,
) -> tuple[subprocess.Popen[bytes], str]:  # fmt: skip
    """Start a program that runs before others, for the first of these runtimes that is to be had in each period.

    Returns it, and the reason why it runs when its turn comes; an empty one if it does not. ``root``: its root file
    system; ``stdout``: where its output and its errors go.

    The child asks for itself before it becomes the program: a process that forks while another sets its policy may
    see EAGAIN, for the copy of it is half old and half new (`sched_fork` of kernel/sched/core.c).
    """
    reasons, reason = os.pipe()
    enter = in_root(root)

    def prepare() -> None:
        os.write(reason, _run_first(runtimes_ns, period_ns).encode())
        if enter is not None:
            enter()

    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stdout, pass_fds=pass_fds, start_new_session=True,
            preexec_fn=prepare,
        )  # fmt: skip
    finally:
        os.close(reason)
        with open(reasons, "rb") as pipe:
            why = pipe.read().decode()
    return process, why


def _run_first(runtimes_ns: Iterable[int], period_ns: int) -> str:
    why = ""
    for runtime_ns in runtimes_ns:
        try:
            kernelcalls.run_first(runtime_ns=runtime_ns, period_ns=period_ns)
        except OSError as error:
            why = error.strerror or str(error)
        else:
            return ""
    return why


def _waker(pid: int) -> tuple[subprocess.Popen[bytes], str]:
    """Start who sends a kernel the signals that it misses: see `wake`."""
    program = [sys.executable, "-I", "-S", str(Path(__file__).with_name("wake.py")), str(pid), str(WAKE_EVERY_S)]
    return start_first(program, runtimes_ns=_WAKER_RUNTIMES_NS)


def _inside(root: Path | None, name: str) -> str:
    """The path of one of our files as the kernel sees it."""
    return str(Path(__file__).with_name(name)) if root is None else f"/{guest_folder()}/{name}"


class CarriedKernel:
    """One running kernel and the two tools in it."""

    def __init__(self, *, name: str, tables: Path | None = None, root: Path | None = None) -> None:
        """Boot; raises Refused with the kernel's last lines if it is not up in time.

        ``tables``: the folder where its tc finds tables of delays. ``root``: a root file system that has a User-Mode
        Linux and its own tc, where this machine has none. It holds our files in `guest_folder`, and shows
        the machine's /dev and /proc; ``tables`` is below one of them.
        """
        binary = find_kernel(root)
        if binary is None:
            raise Refused(f"no user-mode-linux here: linux.uml is not {'on PATH' if root is None else f'in {root}'}")
        self.name = name
        self.clock: str | None = None
        """The tap of `open_clock`, once it is there."""
        self.waits_its_turn: str
        """Why it runs when its turn comes, as other processes do; empty if it runs before them."""
        # UML holds its memory in a file that it maps executable: TMPDIR must not be mounted noexec.
        self._folder = Path(tempfile.mkdtemp(prefix=f"testbed-{name}-"))
        self._log = self._folder / "console"
        tc_in, ip_in, helper_in = os.pipe(), os.pipe(), os.pipe()
        tc_out, ip_out, helper_out = os.pipe(), os.pipe(), os.pipe()
        ours = (tc_in[1], tc_out[0], ip_in[1], ip_out[0], helper_in[1], helper_out[0])
        theirs = (tc_in[0], tc_out[1], ip_in[0], ip_out[1], helper_in[0], helper_out[1])
        self._descriptors = ours
        started = time.monotonic()
        with self._log.open("wb") as log:
            self._process, self.waits_its_turn = start_first(
                [
                    binary, f"mem={_MEMORY}", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "quiet",
                    f"umid={name}", f"uml_dir={self._folder}/", f"initcall_blacklist={_NOT_NEEDED}",
                    "con=null", f"con0=null,fd:{log.fileno()}",
                    f"con1=fd:{tc_in[0]},fd:{tc_out[1]}", f"con2=fd:{ip_in[0]},fd:{ip_out[1]}",
                    f"con3=fd:{helper_in[0]},fd:{helper_out[1]}",
                    # What a kernel does not know and has the form of a variable goes into its init's environment.
                    *([f"TC_LIB_DIR={tables}"] if tables else []),
                    f"GUEST_PYTHON={sys.executable if root is None else '/usr/bin/python3'}",
                    f"GUEST_HELPER={_inside(root, 'guesthelper.py')}",
                    "init=/bin/sh", "--", _inside(root, "guest-init"),
                ],
                runtimes_ns=_RUNTIMES_NS, root=root, pass_fds=(*theirs, log.fileno()), stdout=log.fileno(),
            )  # fmt: skip
        for descriptor in theirs:
            os.close(descriptor)
        self._waker: subprocess.Popen[bytes] | None = None
        self.tc = Batch(tc_in[1], tc_out[0], "tc", sync=TC_SYNC, alive=self.died)
        self.ip = Batch(ip_in[1], ip_out[0], "ip", sync="link show dev lo", alive=self.died)
        helper = qdiscs.Relayed(helper_in[1], helper_out[0], alive=self.died)
        self.qdiscs = qdiscs.Qdiscs(helper)
        self._tools = [self.ip, self.tc]
        try:
            for tool in self._tools:
                tool.await_ready(deadline_s=_BOOT_DEADLINE_S)
                tool.synchronise(deadline_s=_BOOT_DEADLINE_S)
            helper.await_ready(deadline_s=_BOOT_DEADLINE_S)
            self.boot_s = time.monotonic() - started
            self.release = self._mconsole("version").split()[2]
            # Not before: without a handler, the signal would end it.
            self._waker, waits = _waker(self._process.pid)
            self.waits_its_turn = self.waits_its_turn or waits
        except BaseException:
            self.kill()
            raise

    def died(self) -> str | None:
        """What it died of, with its last lines; None while it lives."""
        if self._process.poll() is None:
            return None
        with self._log.open(errors="replace") as log:
            last = " | ".join(line.strip() for line in deque(log, maxlen=8) if line.strip())
        return f"the carried kernel exited with status {self._process.returncode}; its last lines: {last}"

    def plug(self, device: str, tap: str, *, mtu: int) -> None:
        """Give the kernel a network device that opens the tap of this name when it is set up; ``mtu`` in bytes."""
        # gro would hand several packets to netem as one; a deep queue is what carries throughput. The MTU sizes
        # the driver's buffers and cannot grow later.
        self._mconsole(f"config {device}:transport=tap,ifname={tap},depth=128,gro=0,mtu={mtu}")

    def thread(self, device: str) -> None:
        """Have a device that is up take its packets in a thread, which other work in there comes between.

        Without, they are taken where the interrupt is (NAPI's softirq), and a saturated flow leaves tc, the consoles
        and all else no time for seconds. Documentation/networking/napi.rst, threaded NAPI.
        """
        if reason := self.qdiscs.write(f"/sys/class/net/{device}/threaded", "1"):
            raise Refused(f"carried kernel, threads for {device}: {reason}")

    def open_clock(self, tap: str) -> None:
        """Have a device of its own send back, `CLOCK_DELAY_S` later, whatever the tap of this name brings.

        How late that is, is how late all else in there is: a packet is taken in, waits for a timer, and goes out.
        See `passage`.
        """
        self.plug(CLOCK_DEVICE, tap, mtu=CLOCK_MTU)
        back = splice.Redirect(source=CLOCK_DEVICE, target=CLOCK_DEVICE)
        self.ip.checked([f"link set dev {CLOCK_DEVICE} promisc on up"])
        self.thread(CLOCK_DEVICE)
        netem = f"qdisc add dev {CLOCK_DEVICE} root netem limit 1000 delay {CLOCK_DELAY_S}s"
        self.tc.checked([netem, *splice.lines([back])])
        self.clock = tap

    @property
    def stopped(self) -> bool:
        """Whether its process is stopped, by SIGSTOP or a debugger (proc_pid_stat(5))."""
        try:
            stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        except OSError:  # it died: `died` says so
            return False
        return stat.rpartition(")")[2].split()[0] in "Tt"

    def go_on(self) -> None:
        """Have it go on where it was stopped.

        Itself alone: it traces its programs, and dies of a SIGCONT that it sees one of them get.
        """
        if self.stopped:
            self._process.send_signal(signal.SIGCONT)

    def links(self, devices: Iterable[str]) -> dict[str, str]:
        """Of each of its devices: ``up``, ``down`` or ``gone``."""
        names = list(devices)
        shown = self.ip.run([f"link show dev {name}" for name in names]).shown
        flags = {each["ifname"]: each["flags"] for array in shown for each in array}
        return {name: "gone" if name not in flags else "up" if "UP" in flags[name] else "down" for name in names}

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Have the kernel stand still while a block of some milliseconds runs: what comes to its taps waits there."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def unplug(self, device: str) -> None:
        """Take a network device out again; its tap goes with it."""
        self._mconsole(f"remove {device}")

    def _mconsole(self, command: str) -> str:
        """One command of UML's management console (Documentation/virt/uml)."""
        own = self._folder / "client"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as console:
            console.bind(str(own))
            try:
                console.settimeout(5.0)
                data = command.encode()
                request = struct.pack(f"<III{_MCONSOLE_DATA}s", _MCONSOLE_MAGIC, _MCONSOLE_VERSION, len(data), data)
                console.sendto(request, str(self._folder / self.name / "mconsole"))
                answer = console.recv(4096)
            except OSError as error:
                raise Refused(f"carried kernel, `{command}`: {self.died() or error}") from None
            finally:
                own.unlink()
        failed, _more, length = struct.unpack_from("<III", answer)
        text = answer[12 : 12 + length].rstrip(b"\0").decode(errors="replace")
        if failed:
            raise Refused(f"carried kernel, `{command}`: {text}")
        return text

    def end(self) -> None:
        """End the kernel at once; if it died, what outlived it: each of its processes holds its taps open.

        Of a kernel that died, its processes are left to the first one here. If that is us, we reap them: a container
        has a limit for them.
        """
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with contextlib.suppress(ChildProcessError):  # none is left, or none to us
            while True:
                os.waitpid(-self._process.pid, 0)
        if self._waker is not None:
            self._waker.wait()  # it finds nobody to wake

    def kill(self) -> None:
        """End the kernel at once, and forget it. Its taps vanish."""
        self.end()
        for tool in self._tools:
            tool.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        shutil.rmtree(self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.kill()
