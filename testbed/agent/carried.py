"""A carried kernel: User-Mode Linux as an ordinary process, with netem, for machines whose kernel has none.

Its root file system is ours, read-only (hostfs); its first process is ``guest-init`` beside this file. Network devices
are plugged in through UML's management console. Each opens a tap of this network namespace, which vanishes with the
kernel, however that ends.
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

from . import guest_folder, kernelcalls, qdiscreader, splice
from .batch import Batch, in_root
from .protocol import Refused

_MEMORY = "192M"
_BOOT_DEADLINE_S = 100.0  # it may have a twentieth of a busy machine's processors; the lab waits longer

# Debian's kernel measures at each start which RAID 6 algorithm is the fastest: 0.85 s of its 1.2 s.
_SKIPPED_INITCALL = "raid6_select_algo"

WAKE_EVERY_S = 0.002

# The kernel's reservation of CPU time; without one, packets wait for any busy process. The first runtime that is
# granted counts: with many kernels or few processors a quarter is refused (EBUSY). Less than a tenth would be worse
# than none: when all kernels are busy, a kernel gets no CPU time beyond its reservation.
_RUNTIMES_NS, _PERIOD_NS = (500_000, 200_000), 2_000_000
_WAKER_RUNTIMES_NS = (40_000, 20_000)

# arch/um/drivers/mconsole.h
_MCONSOLE_MAGIC = 0xCAFEBABE
_MCONSOLE_VERSION = 2
_MCONSOLE_DATA = 512

CLOCK_DEVICE = "vec9999"  # no port has it
CLOCK_MTU = 1500
CLOCK_DELAY_S = 0.03
FRAME_BYTES = 60
"""The shortest Ethernet frame."""
CLOCK_ETHERTYPE, QUEUE_ETHERTYPE = 0x88B5, 0x88B6
"""Of the clock's frame, and of frames through a port's queue; for local experiments (linux/if_ether.h)."""


def find_kernel(root: Path | None = None) -> str | None:
    """The path of a User-Mode Linux on this machine, or in another root file system, or None."""
    if root is None:
        return shutil.which("linux.uml")
    return "/usr/bin/linux.uml" if (root / "usr/bin/linux.uml").is_file() else None


def start_first(
    argv: Sequence[str],
    *,
    runtimes_ns: Sequence[int],
    period_ns: int = _PERIOD_NS,
    root: Path | None = None,
    pass_fds: Sequence[int] = (),
    stdout: int = subprocess.DEVNULL,
) -> tuple[subprocess.Popen[bytes], str]:
    """Start a program with a reservation of CPU time: the first of these runtimes, per period, that is granted.

    Returns it, and why it has no reservation; empty if it has one. ``root``: its root file system; ``stdout``: for its
    output and errors.

    The child makes the reservation itself, before it becomes the program. If another process changed the policy of one
    that forks at that moment, the fork might fail with EAGAIN (`sched_fork` of kernel/sched/core.c).
    """
    reasons, reason = os.pipe()
    enter = in_root(root)

    def prepare() -> None:
        os.write(reason, _run_first(runtimes_ns, period_ns).encode())
        if enter is not None:
            enter()

    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stdout,
            pass_fds=pass_fds,
            start_new_session=True,
            preexec_fn=prepare,
        )
    finally:
        os.close(reason)
        with open(reasons, "rb") as pipe:
            refusal = pipe.read().decode()
    return process, refusal


def _run_first(runtimes_ns: Iterable[int], period_ns: int, pid: int = 0) -> str:
    refusal = ""
    for runtime_ns in runtimes_ns:
        try:
            kernelcalls.run_first(pid, runtime_ns=runtime_ns, period_ns=period_ns)
        except OSError as error:
            refusal = error.strerror or str(error)
        else:
            return ""
    return refusal


class _Waker:
    """The program that sends a kernel the signals it misses; see `wake`."""

    def __init__(self, pid: int) -> None:
        """Start it for the kernel of this process; it waits for `begin`."""
        program = [sys.executable, "-I", "-S", str(Path(__file__).with_name("wake.py")), str(pid), str(WAKE_EVERY_S)]
        self._line, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                program,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def begin(self) -> str:
        """Have it begin, with a reservation of CPU time; why it has none, or an empty string. Raises Refused.

        It is made once the program waits: its start alone needs some hundred times what is reserved per period.
        """
        self._line.settimeout(_BOOT_DEADLINE_S)
        try:
            started = self._line.recv(1)
        except TimeoutError:
            started = b""
        if not started:
            raise Refused(f"{Path(__file__).with_name('wake.py')} did not start: no kernel can be woken")
        refusal = _run_first(_WAKER_RUNTIMES_NS, _PERIOD_NS, self._process.pid)
        self._line.close()
        return refusal

    def end(self) -> None:
        """End it; again if it has ended."""
        self._process.kill()
        self._process.wait()
        self._line.close()


def _inside(root: Path | None, name: str) -> str:
    """The path of one of our files as the kernel sees it."""
    return str(Path(__file__).with_name(name)) if root is None else f"/{guest_folder()}/{name}"


class CarriedKernel:
    """One running kernel and the two tools in it."""

    def __init__(self, *, name: str, tables: Path | None = None, root: Path | None = None) -> None:
        """Boot. Raises Refused with the kernel's last lines if it is not up in time.

        ``tables``: the folder of delay tables for its tc. ``root``: a root file system with a User-Mode Linux and its
        own tc, if this machine has none. It must contain our files in `guest_folder`, and the machine's /dev and /proc;
        ``tables`` must be visible in it.
        """
        binary = find_kernel(root)
        if binary is None:
            raise Refused(f"no user-mode-linux here: linux.uml is not {'on PATH' if root is None else f'in {root}'}")
        self.name = name
        self.clock: str | None = None
        """The tap of `open_clock`, once it has been called."""
        self.waits_its_turn: str
        """Why it has no reservation of CPU time, and waits its turn; empty if it has one."""
        # UML maps its memory, executable, from a file in TMPDIR, which must not be mounted noexec.
        self._folder = Path(tempfile.mkdtemp(prefix=f"testbed-{name}-"))
        self._log = self._folder / "console"
        inputs, outputs = [os.pipe() for _ in range(3)], [os.pipe() for _ in range(3)]  # of tc, ip and guesthelper
        theirs = [*(read for read, _ in inputs), *(write for _, write in outputs)]
        self._descriptors = [*(write for _, write in inputs), *(read for read, _ in outputs)]
        started = time.monotonic()
        with self._log.open("wb") as log:
            console = log.fileno()
            consoles = ["con=null", f"con0=null,fd:{console}"]
            for number, ((read, _), (_, write)) in enumerate(zip(inputs, outputs, strict=True), start=1):
                consoles.append(f"con{number}=fd:{read},fd:{write}")
            argv = self._command(binary, consoles, tables=tables, root=root)
            self._process, self.waits_its_turn = start_first(
                argv, runtimes_ns=_RUNTIMES_NS, root=root, pass_fds=(*theirs, console), stdout=console
            )
        for descriptor in theirs:
            os.close(descriptor)
        self._waker: _Waker | None = None
        (tc_in, ip_in, helper_in), (tc_out, ip_out, helper_out) = self._descriptors[:3], self._descriptors[3:]
        self.tc = Batch(tc_in, tc_out, "tc", alive=self.died)
        self.ip = Batch(ip_in, ip_out, "ip", alive=self.died)
        helper = qdiscreader.RelayedKernel(helper_in, helper_out, alive=self.died)
        self.qdisc_reader = qdiscreader.QdiscReader(helper)
        self._tools = [self.ip, self.tc]
        try:
            self._waker = _Waker(self._process.pid)
            deadline = started + _BOOT_DEADLINE_S
            for tool in self._tools:
                tool.await_ready(deadline_s=deadline - time.monotonic())
            # No earlier: without a handler the signal would end the kernel. No later: it may miss a signal now, too.
            refusal = self._waker.begin()
            self.waits_its_turn = self.waits_its_turn or refusal
            for tool in self._tools:
                tool.synchronise(deadline_s=deadline - time.monotonic())
            helper.await_ready(deadline_s=deadline - time.monotonic())
            self.boot_s = time.monotonic() - started
            self.release = self._mconsole("version").split()[2]
        except Refused as refused:
            condition = "" if self.died() else f"; {self._told()}"
            self.kill()
            raise Refused(f"{refused}{condition}") from None
        except BaseException:
            self.kill()
            raise

    def _told(self) -> str:
        """What there is to see of a kernel that is not up in time: its process, and what its console shows."""
        words = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        used_s = (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
        turn = f"waits its turn ({self.waits_its_turn})" if self.waits_its_turn else "has a reservation"
        seen = f"after {used_s:.1f} s of processor time it is in state {words[0]}, {turn}"
        return f"{seen}; its last lines: {self._last_lines()}"

    def _command(self, binary: str, consoles: Sequence[str], *, tables: Path | None, root: Path | None) -> list[str]:
        # An unknown parameter that has the form of a variable goes into the first process's environment.
        environment = {
            "GUEST_PYTHON": sys.executable if root is None else "/usr/bin/python3",
            "GUEST_HELPER": _inside(root, "guesthelper.py"),
            **({"TC_LIB_DIR": str(tables)} if tables else {}),
        }
        return [
            *(binary, f"mem={_MEMORY}", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "quiet"),
            *(f"umid={self.name}", f"uml_dir={self._folder}/", f"initcall_blacklist={_SKIPPED_INITCALL}"),
            *consoles,
            *(f"{name}={value}" for name, value in environment.items()),
            *("init=/bin/sh", "--", _inside(root, "guest-init")),
        ]

    def died(self) -> str | None:
        """Its exit status and last lines; None while it lives."""
        if self._process.poll() is None:
            return None
        return f"the carried kernel exited with status {self._process.returncode}; its last lines: {self._last_lines()}"

    def _last_lines(self) -> str:
        with self._log.open(errors="replace") as log:
            return " | ".join(line.strip() for line in deque(log, maxlen=8) if line.strip())

    def plug(self, device: str, tap: str, *, mtu: int) -> None:
        """Give the kernel a network device that opens the tap of this name when it is set up; ``mtu`` in bytes."""
        # GRO would hand several packets to netem as one. Throughput needs a deep queue. The MTU determines the size of
        # the driver's buffers, and cannot grow later.
        self._mconsole(f"config {device}:transport=tap,ifname={tap},depth=128,gro=0,mtu={mtu}")

    def thread(self, device: str) -> None:
        """Have a device that is up receive in a kernel thread, so that the scheduler can run other work.

        Otherwise it receives in softirq (NAPI), and a saturated flow leaves tc, consoles and all else no CPU time for
        seconds. See Documentation/networking/napi.rst, threaded NAPI.
        """
        if reason := self.qdisc_reader.write(f"/sys/class/net/{device}/threaded", "1"):
            raise Refused(f"carried kernel, threads for {device}: {reason}")

    def open_clock(self, tap: str) -> None:
        """Give the kernel a device that sends the frames of a tap back after `CLOCK_DELAY_S`.

        A frame is received, waits for a timer, and is sent, as packets at ports are. So its lateness is theirs; see
        `echoes`.
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
        except OSError:  # it has died; see `died`
            return False
        return stat.rpartition(")")[2].split()[0] in "Tt"

    def go_on(self) -> None:
        """Let a stopped kernel continue.

        The signal goes to its main process only: it traces its programs, and dies if one of them gets a SIGCONT.
        """
        if self.stopped:
            self._process.send_signal(signal.SIGCONT)

    def links(self, devices: Iterable[str]) -> dict[str, str]:
        """The state of each of its devices: ``up``, ``down`` or ``gone``."""
        names = list(devices)
        shown = self.ip.run([f"link show dev {name}" for name in names]).shown
        flags = {link["ifname"]: link["flags"] for links in shown for link in links}
        return {name: "gone" if name not in flags else "up" if "UP" in flags[name] else "down" for name in names}

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Suspend the kernel while a block of some milliseconds runs; packets wait at its taps."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def unplug(self, device: str) -> None:
        """Remove a network device; its tap vanishes."""
        self._mconsole(f"remove {device}")

    def _mconsole(self, command: str) -> str:
        """Run a command of UML's management console (Documentation/virt/uml); returns its output."""
        own = self._folder / "client"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as console:
            console.bind(str(own))
            try:
                console.settimeout(5.0)
                data = command.encode()
                request = struct.pack(f"<III{_MCONSOLE_DATA}s", _MCONSOLE_MAGIC, _MCONSOLE_VERSION, len(data), data)
                console.sendto(request, str(self._folder / self.name / "mconsole"))
                reply = console.recv(4096)
            except OSError as error:
                raise Refused(f"carried kernel, `{command}`: {self.died() or error}") from None
            finally:
                own.unlink()
        failed, _more, length = struct.unpack_from("<III", reply)
        text = reply[12 : 12 + length].rstrip(b"\0").decode(errors="replace")
        if failed:
            raise Refused(f"carried kernel, `{command}`: {text}")
        return text

    def end(self) -> None:
        """Kill the kernel's processes, including those that outlived it, because each holds its taps open.

        The processes of a dead kernel become children of the first process here. If that is us we reap them, because a
        container has a limit of processes.
        """
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with contextlib.suppress(ChildProcessError):  # none is left, or they are not our children
            while True:
                os.waitpid(-self._process.pid, 0)
        if self._waker is not None:
            self._waker.end()

    def kill(self) -> None:
        """End the kernel and release its files and descriptors. Its taps vanish."""
        self.end()
        for tool in self._tools:
            tool.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        shutil.rmtree(self._folder)
