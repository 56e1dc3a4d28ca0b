"""AttachedPorts: where impairments live. Attach one, run tc on it, read it, put it back."""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

from . import carried, devices, leftover, paths, splice
from .attached import FAR_END, AttachedPort, CarriedPort, HostPort
from .batch import Batch, BatchOutput
from .carried import CarriedKernel
from .detour import learned
from .kernelpool import KernelPool
from .localtc import LocalTc
from .netlink import Netlink, up
from .noise import noise
from .protocol import Operation, Refused
from .qdiscreader import BatchLine
from .rejecting import Rejecting
from .schedule import Schedules
from .taps import no_tun
from .trials import Trials, run
from .within import CarriedWithin, HostWithin


class AttachedPorts:
    """Every port that this agent has attached."""

    def __init__(
        self,
        *,
        tag: str,
        files_in: str = "/tmp",  # noqa: S108  # made by mkdtemp
        own_net: bool = False,
        within: bool = False,
    ) -> None:
        """``tag``: a few letters that go into device names. ``files_in``: where files for tc are kept.

        ``own_net``: whether this network namespace ends with the agent. Then taps are left to its end: when kernels
        close them one by one, each takes the machine's kernel 20 ms. ``within``: whether this is the network namespace
        of a host, whose own interfaces are attached: see `within`.
        """
        self._tag, self._own_net, self._within = tag, own_net, within
        self._tc = LocalTc(tag=tag, files_in=files_in)
        self._kernels = KernelPool(tag=tag, tables=self._tc.folder, own_net=own_net)
        self._ports: dict[str, AttachedPort] = {}
        self._carried_ports = itertools.count()
        self._kept: Any = None
        self._trials = Trials(tag, self._tc)
        self._schedules = Schedules(self._run)
        # The kernel clears mark and priority of packets from another network namespace (____dev_forward_skb), and
        # nobody in our own knows the number.
        self._rejecting = Rejecting(tag=tag, mark=secrets.randbits(32) | 1)

    def operations(self) -> dict[str, Operation]:
        """The protocol's operations."""
        return {
            "capabilities": self.capabilities,
            "noise": noise,
            "boot": self.boot,
            "attach": self.attach,
            "release": self.release,
            "stage": self.stage,
            "tc": self.tc,
            "sides": self.sides,
            "carried": self.carried,
            "dropped": self.dropped,
            "untaken": self.untaken,
            "paths": self.paths,
            "heard": self.heard,
            "repair": self.repair,
            "clocks": self.clocks,
            "rejecting": self.rejecting,
            "rejected": self.rejected,
            "store": self._tc.store,
            "try_program": self.try_program,
            "own_addresses": devices.own_addresses,
            "way_out": self.way_out,
            "per_packet_from_gateway": self.per_packet_from_gateway,
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
        self._kernels.kill()
        self._tc.close()

    @property
    def carried_root(self) -> Path | None:
        """The root file system that has the kernel to carry, if it is not on this machine's PATH."""
        return self._kernels.root

    def carry_from(self, root: Path) -> None:
        """Take the kernel to carry, and tc, from another root file system: see `carried.CarriedKernel`."""
        self._kernels.root = root
        self._tc.run_from(root)

    # --- operations --------------------------------------------------------------------------------

    def capabilities(self) -> dict[str, Any]:
        """What this machine can do, determined by trying."""
        return {
            "kernel": os.uname().release,
            **self._trials.host_netem(),
            "tun": no_tun(),
            "carried_kernel": carried.find_kernel(self._kernels.root),
            "tc": run("tc", "-V").strip(),
        }

    def boot(self) -> dict[str, Any]:
        """See `KernelPool.boot`."""
        self._bury()
        return self._kernels.boot()

    def attach(self, *, port: str, ifindex: int, engine: str) -> dict[str, Any]:
        """Make the veth with this index impairable, if it is not; ``engine``: host or carried.

        Returns which ``device`` of which ``kernel`` (None: this one) has its qdiscs, and which one feeds it
        (``entry``). Packets go there from the first `tc` with ``resume`` on.
        """
        self._bury()
        known = self._ports.get(port)
        if known is not None and known.ifindex == ifindex and known.engine == engine and known.exists:
            return known.where()
        if known is not None:
            self._detach(known)
        attached = self._new_port(port, ifindex, engine)
        with ExitStack() as on_failure:
            on_failure.callback(attached.undo.close)
            attached.prepare()
            on_failure.pop_all()
        self._ports[port] = attached
        return attached.where()

    def _new_port(self, name: str, ifindex: int, engine: str) -> HostPort | CarriedPort:
        veth = devices.name_of(ifindex)
        self._tc.meet(veth, ifindex)
        others = (port.before for port in self._ports.values() if port.ifindex == ifindex)
        before = next(others, None) or leftover.state_of(veth, ifindex)
        of_host, of_carried = (HostWithin, CarriedWithin) if self._within else (HostPort, CarriedPort)
        if engine == HostPort.engine:
            return of_host(name, veth, ifindex, self._tc, before=before)
        if engine == CarriedPort.engine:
            return of_carried(
                name,
                veth,
                ifindex,
                self._tc,
                before=before,
                tag=self._tag,
                persistent_taps=self._own_net,
                kernel=self._kernels.with_room(port.kernel for port in self._ports.values() if port.kernel),
                number=next(self._carried_ports),
            )
        raise Refused(f"engine {engine!r}: must be host or carried")

    def tc(
        self,
        *,
        port: str,
        lines: Sequence[BatchLine],
        needs: Sequence[int] = (),
        deadline_s: float = 5.0,
        at_gate: bool = False,
        resume: bool = False,
    ) -> dict[str, Any]:
        """Run a batch of lines in the port's kernel; returns parsed shows and the complaints, line by line.

        See `qdiscreader.BatchLine`. ``at_gate``: in this machine's
        kernel, which has the port's gate, whatever kernel has its qdiscs. ``resume``: have the packets of a port that
        is new, or was released, go to its qdiscs.

        Raises Refused of kind ``gone``, before any line is run, if the port's veth, an interface of ``needs`` (the
        ifindex of each host's port that the lines match), or the port's carried kernel no longer exists.
        """
        self._bury()
        try:
            if not resume:
                return self._run(port, lines, needs, deadline_s, at_gate=at_gate)
            attached = self._existing(port, needs)
            if attached.resumes_first:
                attached.resume()
            reply = self._run(port, lines, needs, deadline_s, at_gate=at_gate)
            attached.resume()
            return reply
        except Refused as refused:
            self._bury()
            raise Refused(str(refused), kind=refused.kind if port in self._ports else "gone") from None

    def sweep(self) -> list[str]:
        """Detach every port whose veth went with its host; returns their names.

        Its tap would stay on the bridge, which would go on sending there what is for the host's MAC address.
        """
        gone = [port for port in self._ports.values() if not port.exists]
        for port in gone:
            self._detach(port)
        return [port.name for port in gone]

    def put_right(self, *, veths: Sequence[Mapping[str, Any]]) -> list[str]:
        """Restore veths that a dead agent had attached; returns the names of those that exist. See `leftover`."""
        return leftover.put_right(veths, self._tc.batch())

    def release(self, *, ports: Sequence[str]) -> dict[str, list[str]]:
        """Have packets bypass these ports, as if they had never been attached.

        A carried port keeps its qdiscs in its kernel, and `tc` resumes it quickly; a port of the host engine loses its
        root qdisc. Returns the ports that are ``released`` now: none that does not exist.
        """
        self._bury()
        existing = [port for name in ports if (port := self._ports.get(name)) is not None and port.exists]
        for port in existing:
            if not port.released:
                port.release()
        return {"released": [port.name for port in existing]}

    def stage(self, *, port: str, staged: bool) -> dict[str, Any]:
        """Give a port a device of its own for the senders' qdiscs, or take it away: see `AttachedPort.make_stage`.

        Returns where its qdiscs are now, as `attach`.
        """
        self._bury()
        attached = self._existing(port, ())
        if staged:
            attached.make_stage()
        else:
            attached.remove_stage()
        return attached.where()

    def way_out(self, *, port: str) -> dict[str, str | None]:
        """See `AttachedPort.way_out`."""
        return self._existing(port, ()).way_out()

    def per_packet_from_gateway(self, *, port: str) -> None:
        """See `AttachedPort.send_per_packet`."""
        self._existing(port, ()).send_per_packet()

    def try_program(self, *, path: str) -> str | None:
        """See `Trials.program`."""
        return self._trials.program(path)

    def heal(self) -> dict[str, int]:
        """Stop every timeline and put every port back as it was before."""
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

    def rejecting(self, *, port: str, ifindex: int, outward: bool = False) -> dict[str, Any]:
        """Prepare to reject packets to a port's host from the one whose own veth, or bridge, has this index.

        ``outward``: packets from the port's host, as they enter at its veth. Returns the ``gate``, where the filters
        belong (see `netem.rejecting`), and the device that its packets go ``on`` to; the ``tap`` that they redirect to;
        the ``mark`` of replies at the gate (None: none pass it); the ``sender`` whose tap it is, and ``counts`` of its
        packets so far, as `rejected`.
        """
        self._bury()
        if self._within:
            raise Refused("an answer to the sender needs the switch, and this port is attached within its host: drop")
        attached = self._existing(port, [ifindex])
        passes_gate = attached.engine == HostPort.engine
        sender = attached.ifindex if outward else ifindex
        tap = self._rejecting.tap_of(sender, marked=passes_gate, tc=self._tc.batch())
        attached.open_gate()
        mark = self._rejecting.mark if passes_gate else None
        gate = {"gate": f"{attached.gate} egress", "on": ""}
        if outward:
            gate = {"gate": f"{attached.veth} ingress", "on": attached.leads_out_to}
        return {**gate, "tap": tap.name, "mark": mark, "sender": sender, "counts": self._rejecting.counts(sender)}

    def rejected(self, *, ifindex: int) -> dict[str, int] | None:
        """What became of this host's packets that were rejected, at all gates together: see `rejecting.Tap`."""
        return self._rejecting.counts(ifindex)

    def sides(self, *, port: str) -> dict[str, str | None]:
        """The devices of this machine's kernel ``before`` and ``after`` the port's qdiscs.

        ``before`` is None where the veth itself has the qdiscs: there packets pass the senders' own ports. Both are
        None for a port that is not attached, or is released, or gone.
        """
        attached = self._ports.get(port)
        if attached is None or attached.released or not attached.exists:
            return {"before": None, "after": None}
        return attached.sides()

    def carried(self, *, ports: Sequence[str]) -> dict[str, dict[str, dict[str, int]]]:
        """Packets and bytes into and out of each carried port's kernel, by way; ``refused_packets``: it was full."""
        passed = {}
        for name in ports:
            if isinstance(attached := self._ports.get(name), CarriedPort):
                with suppress(OSError):  # its taps went with its kernel
                    passed[name] = attached.passed()
        return passed

    def untaken(self, *, port: str) -> int:
        """Frames on their way through a port that its carried kernel has not taken yet; 0 without one."""
        attached = self._ports.get(port)
        taps = filter(None, attached.sides().values()) if isinstance(attached, CarriedPort) else ()
        return sum(paths.untaken(taps, self._tc.batch()).values())

    def dropped(self, *, ports: Sequence[str]) -> dict[str, dict[str, int]]:
        """What came to each of these ports that has no carried kernel, and was dropped; see `HostPort.counted`."""
        counts = {}
        for name in ports:
            if isinstance(attached := self._ports.get(name), HostPort):
                with suppress(OSError):  # its veth went with its host
                    counts[name] = attached.counted()
        return counts

    def paths(self, *, ports: Sequence[str]) -> dict[str, dict[str, Any]]:
        """What is ``amiss`` with the path of each port's packets: nothing if all is as it was attached.

        ``gone``: whether its host began anew, or its carried kernel died. Kernels that are stopped are not asked.
        """
        self._bury()
        attached = {name: self._ports.get(name) for name in ports}
        return paths.amiss(attached, self._kernels, self._tc.batch())

    def heard(self, *, ifindex: int) -> dict[str, float]:
        """The MAC addresses that the switch has learned behind the veth with this index; seconds since each was seen.

        Empty for a veth that is gone, or on no bridge.
        """
        if not devices.is_interface(ifindex):
            return {}
        port = next((port for port in self._ports.values() if port.ifindex == ifindex and port.outer), None)
        device = devices.name_of(ifindex) if port is None else port.gate
        if not (devices.SYS_NET / device / "brport").exists():
            return {}
        taps = port.tap_macs if port is not None else frozenset()
        return {mac.hex(":"): age_s for mac, age_s in learned(device).items() if mac not in taps}

    def repair(self, *, port: str) -> list[str]:
        """Detach a port whose path is broken; returns what is still wrong, and not ours to mend."""
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
        return splice.amiss(devices.device(attached.veth), master=attached.bridge, far_end=FAR_END)

    def clocks(self, *, running: bool = True) -> dict[str, dict[str, Any]]:
        """See `KernelPool.clocks`; plus the ``queues`` before each kernel, by port: see `CarriedPort.show_queues`."""
        self._bury()
        running_clocks = self._kernels.clocks(self._tc.batch(), running=running)
        clocks: dict[str, dict[str, Any]] = {name: {**clock, "queues": {}} for name, clock in running_clocks.items()}
        for port in self._ports.values():
            if isinstance(port, CarriedPort) and port.kernel.name in clocks:
                clocks[port.kernel.name]["queues"][port.name] = port.show_queues()
        return clocks

    # --- how ---------------------------------------------------------------------------------------

    def _run(
        self,
        port: str,
        lines: Sequence[BatchLine],
        needs: Sequence[int],
        /,
        deadline_s: float = 5.0,
        *,
        at_gate: bool = False,
    ) -> dict[str, Any]:
        """Run lines on a port. The timelines' thread does so, too: change nothing of this object here."""
        attached = self._existing(port, needs)
        return _run_lines(attached, self._tc.batch() if at_gate else attached.qdisc_tc, lines, deadline_s)

    def _existing(self, port: str, needs: Sequence[int]) -> AttachedPort:
        """The port of this name. Raises Refused (``gone``) if it, or an interface of ``needs``, does not exist."""
        attached = self._ports.get(port)
        if attached is None:
            names = ", ".join(self._ports) or "none"
            raise Refused(f"port {port!r} is not attached; attached: {names}{self._kernels.last_death}", kind="gone")
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

    def _bury(self) -> None:
        """Put back the ports of every carried kernel that has died."""
        self._kernels.bury(self._detach_carried_by)

    def _detach_carried_by(self, kernel: CarriedKernel) -> None:
        for port in [port for port in self._ports.values() if port.kernel is kernel]:
            self._detach(port)

    def _detach(self, port: AttachedPort) -> None:
        del self._ports[port.name]
        port.undo.close()


def _run_lines(port: AttachedPort, tool: Batch, lines: Sequence[BatchLine], deadline_s: float) -> dict[str, Any]:
    output = BatchOutput()
    for is_for_tc, group in itertools.groupby(lines, lambda line: isinstance(line, str)):
        if is_for_tc:
            tool.run([line for line in group if isinstance(line, str)], output, deadline_s=deadline_s)
        else:
            _read_qdiscs(port, [line for line in group if not isinstance(line, str)], output, deadline_s)
    return {"shown": output.shown, "complaints": output.complaints, "notes": output.notes}


def _read_qdiscs(
    port: AttachedPort, lines: Iterable[Mapping[str, Any]], output: BatchOutput, deadline_s: float
) -> None:
    """Read back single qdiscs of a port."""
    own: list[Mapping[str, Any]] = []
    for line in lines:
        if line["read_qdisc"]["device"] in port.indexes:
            own.append(line)
        else:
            output.complaints.append({"line": line, "text": f"port {port.name} has {', '.join(port.indexes)}"})
    places = [(port.indexes[line["read_qdisc"]["device"]], line["read_qdisc"]["parent"]) for line in own]
    for line, account in zip(own, port.qdisc_reader.get(places, deadline_s=deadline_s), strict=True):
        if isinstance(account, str):
            output.complaints.append({"line": line, "text": account})
        else:
            output.shown.append([] if account is None else [account])
