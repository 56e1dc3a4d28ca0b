"""Ports: where impairments live. Attach one, run tc on it, read it, put it back.

With the ``host`` engine a port is the host-side veth itself. With the ``carried`` engine the veth is taken
off its bridge and spliced through a carried kernel::

    [bridge]—tapB=[vecB <-> vecA]=tapA <-> [veth]—container

where ``<->`` is a tc redirect of everything, both ways. (A bridge in place of the outer redirect would send
the frames through iptables where net.bridge.bridge-nf-call-iptables is 1.) What goes to the container leaves
through vecA, and there the qdiscs are. ARP, which nothing impairs, goes past the carried kernel: tapB <-> veth. A
broadcast goes to every port, and of some hundred hosts that ask for each other a carried kernel would have nothing else
to do.
"""

from __future__ import annotations

import base64
import itertools
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

from . import carried, devices, leftover, offloads, paths, qdiscs, splice, trials
from .attached import Port
from .batch import Batch, LocalTool, Outcome
from .detour import Detour, learned
from .netlink import Netlink, up
from .noise import noise
from .protocol import Operation, Refused
from .qdiscs import Line, Qdiscs
from .rejecting import Rejecting, make_tap
from .schedule import Schedules
from .trials import Trials

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# Where distributions put iproute2's tables; tc looks in one folder alone, and that must also hold the user's own.
_TABLES = (*Path("/usr/lib").glob("*-linux-*/tc"), Path("/usr/lib/tc"), Path("/usr/lib64/tc"), Path("/usr/share/tc"))

# Docker's veths have no queue length, and a classful qdisc takes its children's from the device.
_QUEUE_PACKETS = 1000

# UML's driver has eight interrupts for all its devices, and asks each that shares one: what a packet costs grows with
# the ports of its kernel. And a kernel runs on one processor.
_PORTS_A_KERNEL = 64


class Ports:
    """Every port that this agent has attached, and the kernels that carry them."""

    def __init__(self, *, tag: str, files_in: str = "/tmp", own_net: bool = False) -> None:  # noqa: S108  # made by mkdtemp
        """``tag`` goes into device names; a few letters. ``files_in``: where files for tc are kept.

        ``own_net``: whether this network namespace ends with us. Then taps are left to its end: one by one, as kernels
        close them, they take the kernel 20 ms each.
        """
        self._tag = tag
        self._own_net = own_net
        self.carried_root: Path | None = None
        """Where the kernel to carry is, if not on this machine's PATH: see `carried.CarriedKernel`."""
        self._ports: dict[str, Port] = {}
        self._attached = 0
        self._own_macs: set[str] = set()
        """Of every tap that was ever a port's: a bridge remembers them for minutes."""
        self._kernels: list[carried.CarriedKernel] = []
        self._booted = 0
        self._buried = ""
        self._kept: Any = None
        # Not TMPDIR: that may be /dev/shm, and a carried kernel has a /dev of its own.
        self._files = Path(tempfile.mkdtemp(prefix=f"testbed-{tag}-", dir=files_in))
        for folder in _TABLES:
            for table in folder.glob("*.dist"):
                shutil.copy(table, self._files)
        self._host_tc = self._tool(None)
        self._trials = Trials(tag, lambda: self._host_tc.batch())
        self._host_qdiscs = Qdiscs(qdiscs.OwnKernel())
        self._schedules = Schedules(self._run)
        self._rejecting = Rejecting()
        # The kernel takes mark and priority off whatever comes from another network namespace (____dev_forward_skb),
        # and in our own nobody knows the number.
        self._mark = secrets.randbits(32) | 1
        self._tapped = 0

    def operations(self) -> dict[str, Operation]:
        """The protocol's operations."""
        return {
            "capabilities": self.capabilities,
            "noise": noise,
            "boot": self.boot,
            "attach": self.attach,
            "release": self.release,
            "tc": self.tc,
            "sides": self.sides,
            "carried": self.carried,
            "paths": self.paths,
            "heard": self.heard,
            "repair": self.repair,
            "clocks": self.clocks,
            "rejecting": self.rejecting,
            "rejected": self.rejected,
            "store": self.store,
            "try_program": self.try_program,
            "heal": self.heal,
            "sweep": self.sweep,
            "put_right": self.put_right,
            "keep": self.keep,
            "recall": self.recall,
            **self._schedules.operations(),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._schedules.close()
        self.heal()
        self._rejecting.close()
        for kernel in self._kernels:
            kernel.kill()
        self._kernels.clear()
        self._host_tc.close()
        shutil.rmtree(self._files, ignore_errors=True)

    def _tool(self, root: Path | None) -> LocalTool:
        return LocalTool(
            ["tc", "-force", "-s", "-j", "-batch", "-"], sync=carried.TC_SYNC, root=root,
            environment={**os.environ, "TC_LIB_DIR": str(self._files)},
        )  # fmt: skip

    def carry_from(self, root: Path) -> None:
        """Take the kernel to carry, and tc, from another root: see `carried.CarriedKernel`."""
        self.carried_root = root
        self._host_tc.close()
        self._host_tc = self._tool(root)

    # --- operations --------------------------------------------------------------------------------

    def capabilities(self) -> dict[str, Any]:
        """What this place can do, each found by trying."""
        return {
            "kernel": os.uname().release,
            **self._trials.host_netem(),
            "tun": trials.no_tun(),
            "carried_kernel": carried.find_kernel(self.carried_root),
            "tc": trials.run("tc", "-V").strip(),
        }

    def boot(self) -> dict[str, Any]:
        """Start a carried kernel, unless one runs; returns how long it took, and why it runs in turns, if so."""
        self._bury()
        kernel = self._kernels[0] if self._kernels else self._boot_another()
        return {"boot_s": kernel.boot_s, "release": kernel.release, "waits_its_turn": kernel.waits_its_turn}

    def _boot_another(self) -> carried.CarriedKernel:
        if reason := trials.no_tun():
            raise Refused(f"a carried kernel needs taps: {reason}")
        name = f"tb{self._tag}{f'k{self._booted}' if self._booted else ''}"
        kernel = carried.CarriedKernel(name=name, tables=self._files, root=self.carried_root)
        self._booted += 1
        self._kernels.append(kernel)
        return kernel

    def _kernel_with_room(self) -> carried.CarriedKernel:
        """The running kernel that carries the fewest ports; another one where those are many."""
        carries = {id(kernel): 0 for kernel in self._kernels}
        for port in self._ports.values():
            if port.kernel is not None:
                carries[id(port.kernel)] += 1
        emptiest = min(self._kernels, key=lambda kernel: carries[id(kernel)], default=None)
        if emptiest is None or carries[id(emptiest)] >= _PORTS_A_KERNEL:
            return self._boot_another()
        return emptiest

    def attach(self, *, port: str, ifindex: int, engine: str) -> dict[str, Any]:
        """Make the veth with this index impairable; ``engine`` is host or carried. Twice is once.

        Says on which ``device`` of which ``kernel`` (None: this one) its qdiscs are, and what feeds it (``entry``).
        Packets go there from the first `tc` with ``resume`` on.
        """
        self._bury()
        known = self._ports.get(port)
        if known is not None and known.ifindex == ifindex and known.engine == engine and known.exists:
            return known.where()
        if known is not None:
            self._detach(known)
        veth = devices.name_of(ifindex)
        if engine == "host":
            attached = Port(port, engine, veth, ifindex, veth, device_index=ifindex)
            steps: Callable[[Port], None] = self._attach_host
        elif engine == "carried":
            attached = Port(port, engine, veth, ifindex, f"vec{2 * self._attached}", kernel=self._kernel_with_room())
            steps = self._attach_carried
        else:
            raise Refused(f"engine {engine!r}: must be host or carried")
        others = [other.found for other in self._ports.values() if other.ifindex == ifindex]
        attached.found = others[0] if others else leftover.found(veth, ifindex)
        with ExitStack() as undo_on_failure:
            undo_on_failure.callback(attached.undo.close)
            steps(attached)
            undo_on_failure.pop_all()
        self._ports[port] = attached
        return attached.where()

    def tc(
        self, *, port: str, lines: Sequence[Line], needs: Sequence[int] = (), deadline_s: float = 5.0,
        at_gate: bool = False, resume: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """Run a batch of lines in the port's kernel; shows come back parsed, complaints line by line.

        ``at_gate``: in this kernel, where the port's gate is, whoever executes netem. ``resume``: and have the packets
        of a port that is new, or was released, go where its qdiscs are.
        A line is one of tc's, or the read-back of one qdisc: see `qdiscs.Line`.

        Refused as ``gone``, before any line is run, if the port's veth or an interface of ``needs`` (ifindex: the
        ports of the hosts that the lines tell apart) no longer exists, or the kernel that carried it.
        """
        self._bury()
        try:
            if not resume:
                return self._run(port, lines, needs, deadline_s, at_gate=at_gate)
            attached = self._there(port, needs)
            if attached.detour is None:
                self._resume(attached)
            answer = self._run(port, lines, needs, deadline_s, at_gate=at_gate)
            # With its root already there: a device that is given one loses packets meanwhile.
            self._resume(attached)
            return answer
        except Refused as refused:
            self._bury()
            raise Refused(str(refused), kind=refused.kind if port in self._ports else "gone") from None

    def sweep(self) -> list[str]:
        """Put away every port whose veth went with its host; their names.

        Its tap would stay on the bridge, which would go on sending there what is for the host's MAC address.
        """
        gone = [port for port in self._ports.values() if not port.exists]
        for port in gone:
            self._detach(port)
        return [port.name for port in gone]

    def put_right(self, *, veths: Sequence[Mapping[str, Any]]) -> list[str]:
        """Have veths be as an agent that died had `leftover.found` them; the names of those that are there."""
        return leftover.put_right(veths, self._host_tc.batch())

    def release(self, *, ports: Sequence[str]) -> dict[str, list[str]]:
        """Take what is ours out of the way of these ports' packets, as if they had never been attached.

        A carried port's qdiscs stay in its kernel, and `tc` resumes it quickly; the root qdisc of a port of the host
        engine goes. Returns those that are ``released`` now: none that does not exist.
        """
        self._bury()
        done = [port for name in ports if (port := self._ports.get(name)) is not None and port.exists]
        for port in done:
            if not port.released:
                if port.detour is not None:
                    port.detour.take_out(self._host_tc.batch())
                else:
                    port.undo.close()
                    port.gated = False
                port.released = True
        return {"released": [port.name for port in done]}

    def _resume(self, port: Port) -> None:
        if not port.released:
            return
        if port.detour is not None and port.kernel is not None:
            port.detour.put_in(self._host_tc.batch(), port.kernel.held())
        else:
            self._attach_host(port)
        port.released = False

    def try_program(self, *, path: str) -> str | None:
        """See `Trials.program`."""
        return self._trials.program(path)

    def heal(self) -> dict[str, int]:
        """Stop every timeline and put every port back as it was found."""
        self._schedules.clear()
        healed = len(self._ports)
        with ExitStack() as steps:
            for key in self._rejecting.keys:
                steps.callback(self._rejecting.shut, key)
            for port in list(self._ports.values()):
                steps.callback(self._detach, port)
        return {"healed": healed}

    def keep(self, *, state: Any) -> None:
        """Keep what the lab knows of its ports, for the next process that takes the lab up."""
        self._kept = state

    def recall(self) -> Any:
        """What was kept last, or None."""
        return self._kept

    def rejecting(self, *, port: str, ifindex: int) -> dict[str, Any]:
        """Have ready what rejects packets to a port's host, coming from the host whose own veth has this index.

        Returns the port's ``gate``, for the filters to be put at, the ``tap`` where they are to redirect to, by which
        ``mark`` answers are told at the gate (None: none come there), and what became of this sender's packets so far,
        as `rejected`.
        """
        self._bury()
        attached = self._there(port, [ifindex])
        for key in self._rejecting.keys:
            known = self._rejecting.known(key)
            # Its sender was started again; or it was deleted behind our back.
            if known is not None and (not devices.is_interface(key) or devices.index_of(known.name) is None):
                self._rejecting.shut(key)
        tap = self._rejecting.known(ifindex)
        if tap is None:
            tap = self._rejecting.open(ifindex, f"tb{self._tag}r{self._tapped}")
            self._tapped += 1
            with ExitStack() as undo_on_failure:
                undo_on_failure.callback(self._rejecting.shut, ifindex)
                devices.have_up(tap.name, mtu=carried.CLOCK_MTU, queue_packets=_QUEUE_PACKETS)
                first = f"{trials.mark(self._mark)} pipe " if attached.engine == "host" else ""
                redirect = splice.Redirect(source=tap.name, target=devices.name_of(ifindex), first=first)
                self._host_tc.batch().checked(list(splice.lines([redirect])))
                undo_on_failure.pop_all()
        if not attached.gated:
            self._host_tc.batch().checked([f"qdisc add dev {attached.gate} clsact"])
            attached.gated = True
            attached.undo.callback(self._clear_gate, attached)
        mark = self._mark if attached.engine == "host" else None
        return {"gate": attached.gate, "tap": tap.name, "mark": mark, "counts": dict(tap.counts)}

    def rejected(self, *, ifindex: int) -> dict[str, int] | None:
        """What became of the packets of this host that were rejected, at all gates together: see `rejecting.Tap`."""
        return self._rejecting.counts(ifindex)

    # --- how ---------------------------------------------------------------------------------------

    def _run(
        self,
        port: str,
        lines: Sequence[Line],
        needs: Sequence[int],
        /,
        deadline_s: float = 5.0,
        *,
        at_gate: bool = False,
    ) -> dict[str, Any]:
        """Run lines on a port, also in the timelines' thread: changes nothing of what is known here."""
        attached = self._there(port, needs)
        outcome = Outcome()
        for is_for_tc, some in itertools.groupby(lines, lambda line: isinstance(line, str)):
            if is_for_tc:
                tool = self._host_tc.batch() if at_gate else self._tc_of(attached)
                tool.run([line for line in some if isinstance(line, str)], outcome, deadline_s=deadline_s)
            else:
                reads = [line for line in some if not isinstance(line, str)]
                self._read_qdiscs(attached, reads, outcome, deadline_s)
        return {"shown": outcome.shown, "complaints": outcome.complaints, "notes": outcome.notes}

    def _there(self, port: str, needs: Sequence[int]) -> Port:
        """The port of this name. Refused as ``gone`` if it, or an interface of ``needs``, does not exist."""
        attached = self._ports.get(port)
        if attached is None:
            names = ", ".join(self._ports) or "none"
            raise Refused(f"port {port!r} is not attached; attached: {names}{self._buried}", kind="gone")
        if not attached.exists:
            gone = f"port {port!r} is gone: its veth {attached.veth} (index {attached.ifindex}) no longer exists"
            raise Refused(gone, kind="gone")
        for ifindex in needs:
            if not devices.is_interface(ifindex):
                gone = (
                    f"port {port!r}: a host that sends to it was started again, or left the network: "
                    f"its old interface (index {ifindex}) no longer exists"
                )
                raise Refused(gone, kind="gone")
        return attached

    def _read_qdiscs(self, port: Port, lines: Sequence[Mapping[str, Any]], outcome: Outcome, deadline_s: float) -> None:
        """Read back single qdiscs of a port."""
        ours: list[Mapping[str, Any]] = []
        places: list[tuple[int, int]] = []
        for line in lines:
            place = line["read_qdisc"]
            if place["device"] == port.device:
                ours.append(line)
                places.append((port.device_index, place["parent"]))
            else:
                outcome.complaints.append({"line": line, "text": f"the device of port {port.name} is {port.device}"})
        for line, account in zip(ours, self._qdiscs_of(port).get(places, deadline_s=deadline_s), strict=True):
            if isinstance(account, str):
                outcome.complaints.append({"line": line, "text": account})
            else:
                outcome.shown.append([] if account is None else [account])

    def sides(self, *, port: str) -> dict[str, str | None]:
        """Where packets toward the port's host pass ``before`` its qdiscs and ``after`` them, as interfaces here.

        ``before`` is None where the veth itself has the qdiscs: there they pass the senders' own ports. Both are None
        for a port that is not attached, or released, or gone.
        """
        attached = self._ports.get(port)
        if attached is None or attached.released or not attached.exists:
            return {"before": None, "after": None}
        if attached.detour is None:
            return {"before": None, "after": attached.veth}
        return {"before": attached.detour.gate, "after": attached.detour.end}

    def carried(self, *, ports: Sequence[str]) -> dict[str, dict[str, dict[str, int]]]:
        """What went into the carried kernel at each port and came out, each way, since it is there; none without one.

        What its taps said themselves as they came up is left out.

        ``refused_packets`` found its queue full and did not go in.
        """
        passed = {}
        for name in ports:
            attached = self._ports.get(name)
            if attached is not None and attached.detour is not None:
                with suppress(OSError):  # its taps went with its kernel
                    passed[name] = {
                        way: {what: count - attached.before[way][what] for what, count in counts.items()}
                        for way, counts in paths.passed(attached.detour).items()
                    }
        return passed

    def paths(self, *, ports: Sequence[str]) -> dict[str, dict[str, Any]]:
        """What is ``amiss`` with the way that packets take through each port: nothing if all is as it was attached.

        And whether the port is ``gone``: its host was started again, or the kernel that carried it died.

        Asks the carried kernels, unless they stand still, for what is in there.
        """
        self._bury()
        attached = {name: self._ports.get(name) for name in ports}
        return paths.amiss(attached, self._kernels, self._host_tc.batch(), buried=self._buried)

    def heard(self, *, ifindex: int) -> dict[str, float]:
        """The MAC addresses that the switch has seen behind the veth with this index, and how many seconds ago, each.

        Nothing of a veth that is gone, or on no bridge.
        """
        if not devices.is_interface(ifindex):
            return {}
        gates = (port.gate for port in self._ports.values() if port.ifindex == ifindex and port.outer)
        device = next(gates, devices.name_of(ifindex))
        if not (devices.SYS_NET / device / "brport").exists():
            return {}
        # Our own taps speak a little, too, when they come up.
        return {name: age_s for mac, age_s in learned(device).items() if (name := mac.hex(":")) not in self._own_macs}

    def repair(self, *, port: str) -> list[str]:
        """Take a port whose path is broken out, as if it had never been attached; what cannot be put right by us."""
        self._bury()
        attached = self._ports.get(port)
        if attached is None:
            return []
        if attached.kernel is not None:
            attached.kernel.go_on()
        self._detach(attached)
        if not attached.exists:
            return []  # the lab attaches the new one
        if (flags := devices.device(attached.veth).flags) is not None and not flags & splice.IFF_UP:
            with Netlink() as here:
                here.apply([up(attached.ifindex)])
        return splice.amiss(devices.device(attached.veth), master=attached.bridge, far_end=paths.FAR_END)

    def clocks(self) -> dict[str, str]:
        """By the name of each carried kernel, the tap that shows how late it is; see `CarriedKernel.clock`."""
        self._bury()
        for kernel in self._kernels:
            if kernel.clock is None and not kernel.stopped:
                tap = f"{kernel.name}c"
                if self._own_net:
                    make_tap(tap)
                kernel.open_clock(tap)
                devices.have_up(tap, mtu=carried.CLOCK_MTU, queue_packets=_QUEUE_PACKETS)
        return {kernel.name: kernel.clock for kernel in self._kernels if kernel.clock is not None}

    def store(self, *, name: str, data: str) -> dict[str, str]:
        """Keep a file that tc is to read, a table of delays or a program, until we end; ``data`` in base 64."""
        if not _FILE_NAME.fullmatch(name):
            raise Refused(f"{name!r} is no name of a file")
        path = self._files / name
        path.write_bytes(base64.b64decode(data))
        return {"path": str(path)}

    def _bury(self) -> None:
        """Put back the ports of every carried kernel that has died: their cables end in nothing."""
        for kernel in list(self._kernels):
            reason = kernel.died()
            if reason is None:
                continue
            self._buried = f" ({reason})"
            kernel.end()
            for port in [port for port in self._ports.values() if port.kernel is kernel]:
                self._detach(port)
            kernel.kill()
            self._kernels.remove(kernel)

    def _tc_of(self, port: Port) -> Batch:
        if port.engine == "host":
            return self._host_tc.batch()
        if port.kernel is None:
            raise Refused("the carried kernel is not running")
        return port.kernel.tc

    def _qdiscs_of(self, port: Port) -> Qdiscs:
        if port.engine == "host":
            return self._host_qdiscs
        if port.kernel is None:
            raise Refused("the carried kernel is not running")
        return port.kernel.qdiscs

    def _attach_host(self, port: Port) -> None:
        port.bridge = devices.device(port.veth).master
        before = int((devices.SYS_NET / port.veth / "tx_queue_len").read_text())
        if before != _QUEUE_PACKETS:
            devices.set_queue(port.ifindex, _QUEUE_PACKETS)
            port.undo.callback(_quietly, self._set_queue_back, port, before)
        port.undo.callback(self._clear_root, port)

    @staticmethod
    def _set_queue_back(port: Port, packets: int) -> None:
        if port.exists:  # it may have gone with its container
            devices.set_queue(port.ifindex, packets)

    def _clear_root(self, port: Port) -> None:
        if port.exists:
            self._host_tc.batch().run([f"qdisc delete dev {port.veth} root"])  # none there is as good

    def _clear_gate(self, port: Port) -> None:
        if devices.index_of(port.gate) is not None:
            self._host_tc.batch().run([f"qdisc delete dev {port.gate} clsact"])

    def _attach_carried(self, port: Port) -> None:
        kernel = port.kernel
        if kernel is None:
            raise Refused("the carried kernel is not running")
        number = self._attached
        self._attached += 1
        vec_a, vec_b = f"vec{2 * number}", f"vec{2 * number + 1}"
        port.entry = vec_b
        tap_a, tap_b = f"tb{self._tag}{number}a", f"tb{self._tag}{number}b"
        mtu = int((devices.SYS_NET / port.veth / "mtu").read_text())
        for vec, tap in ((vec_a, tap_a), (vec_b, tap_b)):
            if self._own_net:
                make_tap(tap)
                port.undo.callback(_quietly, devices.delete_tap, tap)
            kernel.plug(vec, tap, mtu=mtu)
            port.undo.callback(_quietly, kernel.unplug, vec)
            port.undo.callback(_quietly, kernel.ip.run, [f"link set dev {vec} down"])
        lines = [f"link set dev {vec} txqueuelen {_QUEUE_PACKETS} promisc on up" for vec in (vec_a, vec_b)]
        (shown,) = kernel.ip.checked([*lines, f"link show dev {vec_a}"]).shown
        port.device_index = shown[0]["ifindex"]
        for vec, tap in ((vec_a, tap_a), (vec_b, tap_b)):
            kernel.thread(vec)
            # Its driver asks for super-packets when it opens the tap, and has buffers for single ones.
            offloads.switch_off(tap)
            self._own_macs.add((devices.SYS_NET / tap / "address").read_text().strip())
        kernel.tc.checked(list(splice.lines(port.inner)))
        port.detour = Detour(port.veth, port.ifindex, end=tap_a, gate=tap_b)
        port.bridge = port.detour.bridge
        port.gated = True
        port.detour.prepare(self._host_tc.batch(), mtu=mtu, queue_packets=_QUEUE_PACKETS)
        port.before = paths.passed(port.detour)
        port.undo.callback(self._splice_out, port)
        port.released = True

    def _splice_out(self, port: Port) -> None:
        if port.detour is not None and port.exists:
            _quietly(port.detour.remove, self._host_tc.batch())

    def _detach(self, port: Port) -> None:
        del self._ports[port.name]
        port.undo.close()


def _quietly(step: Callable[..., object], *arguments: Any) -> None:
    """Carry out one step of putting things back: a failure is told on stderr and does not stop the others."""
    try:
        step(*arguments)
    except (Refused, OSError) as error:
        os.write(2, f"agent: while putting back: {error}\n".encode())
