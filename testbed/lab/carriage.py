"""Whether packets were carried in time and along the whole path; broken ports are repaired.

The path of every attached port is read before and after a test. During the test, the agent that captures measures how
late each carried kernel is (`testbed.agent.echoes`); on the host's engine, how late its own timer is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from testbed.errors import AgentError, ImpairmentNotAppliedError, LabError
from testbed.evidence.proof import LinkEvidence
from testbed.judge import lateness
from testbed.lab.backend import Backend
from testbed.lab.channel import Channel
from testbed.lab.ports import Port, Ports
from testbed.spec.impairment import Impairment
from testbed.spec.links import LinkRef

# For so long, one reading serves several links that are examined one after the other.
_FRESH_S = 0.5
_MACHINE = "this machine's timer"


@dataclass(frozen=True, kw_only=True)
class PortPath:
    """The path of packets through a port, as it was read."""

    amiss: tuple[str, ...]
    """What is wrong with it, in words."""
    gone: bool
    """Whether the port that was attached is gone."""


class Carriage:
    """How a lab's packets are carried, in one test."""

    def __init__(self, ports: Ports, backend: Backend) -> None:
        self._ports = ports
        self._backend = backend
        ports.use, ports.suspect = self.watch, self.suspect
        self._testing = False
        self._watched: set[str] = set()
        """Carried kernels whose lateness is measured; the empty name is this machine's own timer."""
        self._used: set[str] = set()
        self._suspect: set[str] = set()
        self._watching: dict[int, tuple[Channel, dict[str, Any]]] = {}
        """The agents that measure lateness, by identity, and the clock of each carried kernel that one of them watches.

        There is no clock with the host's engine.
        """
        self._clocked: dict[int, Channel] = {}
        """The agents whose kernels' clocks run, by identity."""
        self._passages: dict[str, Any] = {}
        self._fetched_at = 0.0
        self._unknown = ""
        self._lost: dict[str, str] = {}
        """By kernel, why nothing is known of it: its agent has ended."""
        self._beyond_repair: dict[str, list[str]] = {}
        self.warn_only = False
        """Whether a lateness below `lateness.STOOD_STILL_S` is only a warning."""

    # --- begin and end ---------------------------------------------------------------------------

    def begin(self) -> None:
        """Before a test: repair every broken port, and forget earlier lateness."""
        self._testing = True
        self._watched.clear()
        self._used.clear()
        self._passages, self._fetched_at, self._unknown = {}, 0.0, ""
        self._lost.clear()
        self._beyond_repair = {}
        self._watching.clear()
        self._clocked.clear()
        self.repair(self.paths(self._ports))

    def end(self) -> None:
        """After a test: remove broken ports, and stop measuring lateness."""
        broken = self.paths(port for port in self._ports if port.name in self._used)
        self.repair(broken)
        if self._watched and self._unknown == "":
            self._of_all(lambda agent, _: agent.call("rest"))
        for channel in self._clocked.values():
            with suppress(AgentError):  # its kernels, and their clocks, went with it
                channel.call("clocks", running=False)
        self._testing = False

    def watch_no_more(self, reason: str) -> None:
        """Lateness cannot be measured in this test. ``why``: the reason."""
        self._unknown = self._unknown or reason

    def suspect(self, port: Port) -> None:
        """Note a port that did not hold its impairment: it is removed at the end of the test."""
        self._suspect.add(port.name)

    def repair(self, paths: Mapping[str, PortPath]) -> None:
        """Remove every broken port, so that it is attached anew on demand; ports beyond repair are kept."""
        suspect, self._suspect = self._suspect, set()
        for port in self._ports:
            path = paths.get(port.name)
            if path is None or path.gone or not (path.amiss or port.name in suspect):
                continue  # a new one is attached for one that is gone, as ever
            self._ports.forget(port)
            try:
                left = port.channel.call("repair", port=port.name)
            except AgentError as error:
                left = [str(error)]
            if left:
                self._beyond_repair[port.name] = left

    # --- the path --------------------------------------------------------------------------------

    def paths(self, ports: Iterable[Port]) -> dict[str, PortPath]:
        """The paths of these ports as they are now, by name."""
        by_agent: dict[int, list[Port]] = {}
        for port in ports:
            by_agent.setdefault(id(port.channel), []).append(port)
        ways: dict[str, PortPath] = {}
        for some in by_agent.values():
            try:
                answer = some[0].channel.call("paths", ports=[port.name for port in some])
            except AgentError as error:
                ways |= {port.name: PortPath(amiss=(f"it cannot be read: {error}",), gone=False) for port in some}
                continue
            ways |= {name: PortPath(amiss=tuple(way["amiss"]), gone=way["gone"]) for name, way in answer.items()}
        return ways

    def used(self, port: Port) -> bool:
        """Whether a link of the port was impaired or cut since `begin`."""
        return port.name in self._used

    # --- time ------------------------------------------------------------------------------------

    def watch(self, port: Port) -> None:
        """Measure the lateness of a port's kernel from now on. Does nothing if that is measured already.

        Raises ImpairmentNotAppliedError for a port whose path is beyond repair.
        """
        if left := self._beyond_repair.get(port.name):
            raise ImpairmentNotAppliedError(f"port {port.name}: its path is beyond repair: {'; '.join(left)}")
        self._used.add(port.name)
        kernel = port.kernel or ""
        if not self._testing or kernel in self._watched or self._unknown:
            return
        try:
            agent = self._backend.capture_agent(port.ref.host)
            _, clocks = self._watching.get(id(agent), (agent, {}))
            if kernel:
                self._clocked[id(port.channel)] = port.channel
                clocks = port.channel.call("clocks")
            agent.call("watch_passages", clocks=clocks, anew=id(agent) not in self._watching)
            self._watching[id(agent)] = agent, clocks
            self._watched |= clocks.keys() | {kernel}
        except LabError as error:
            self._unknown = str(error)

    def settle(self) -> None:
        """Start the measurement again once all impairments are in force: applying them keeps a kernel busy."""
        if self._watched and not self._unknown:
            self._of_all(lambda agent, clocks: agent.call("watch_passages", clocks=clocks))

    def _of_all(self, call: Callable[[Channel, Mapping[str, Any]], Any]) -> list[Any]:
        """The answers of the agents that measure. One within a host may have ended with it: its kernels are `_lost`."""
        answers = []
        for key, (agent, clocks) in list(self._watching.items()):
            try:
                answers.append(call(agent, clocks))
            except AgentError as error:
                del self._watching[key]
                self._lost |= dict.fromkeys(clocks or ("",), str(error))
        return answers

    def look(self) -> None:
        """Fetch the lateness up to now."""
        self._fetched_at = 0.0

    def timed(
        self,
        evidence: LinkEvidence,
        ref: LinkRef,
        port: Port,
        impairment: Impairment | None,
        *,
        nothing_passes: bool = False,
    ) -> tuple[LinkEvidence, list[str]]:
        """A link's evidence with the lateness of its carrier, and whether the test does not count because of it.

        ``nothing_passes``: the link loses everything, so only a carrier that stood still matters.
        """
        if not self._testing:
            return evidence, []
        kernel = port.kernel or ""
        tolerance_s = lateness.AT_ONCE_S if nothing_passes else lateness.tolerance_s(impairment)
        carrier = f"carried kernel {kernel}" if kernel else _MACHINE
        try:
            passages = self._fetched()
        except LabError as error:
            self._unknown = str(error)
        if why := self._unknown or self._lost.get(kernel) or ("" if kernel in self._watched else "it was not watched"):
            return replace(
                evidence,
                warnings=[*evidence.warnings, f"how late {carrier} was is not known: {why}"],
                checks=[*evidence.checks, lateness.not_measured(carrier=carrier, tolerance_s=tolerance_s, why=why)],
            ), []
        if kernel:
            seen = passages["kernels"].get(kernel, {"passages_ns": [], "missing_ns": []})
            measured = lateness.lateness(
                [ns / 1e9 for ns in seen["passages_ns"]],
                missing_s=[ns / 1e9 for ns in seen["missing_ns"]],
                carrier=carrier,
                due_s=passages["due_ns"] / 1e9,
                tolerance_s=tolerance_s,
            )
        else:
            late_s = [ns / 1e9 for ns in passages["overslept_ns"]]
            measured = lateness.lateness(late_s, carrier=carrier, due_s=0.0, tolerance_s=tolerance_s)
        counts = bool(kernel) and not (self.warn_only and measured.worst_s < lateness.STOOD_STILL_S)
        row = lateness.check(measured, counts=counts)
        waited = lateness.queue_warning(self._waits_s(ref, kernel), tolerance_s=tolerance_s)
        problem = f"{measured.problem}: {measured.remedy}" if counts and measured.problem else None
        warning = measured.warning if counts else measured.problem or measured.warning
        return replace(
            evidence,
            checks=[*evidence.checks, row],
            lateness=measured.as_json(),
            warnings=[*evidence.warnings, *(text for text in (warning, waited) if text)],
        ), [problem] if problem else []

    def _waits_s(self, ref: LinkRef, kernel: str) -> list[float]:
        """How long frames waited in the queues on the way to this kernel; seconds."""
        ways = {(str(ref.receivers_port), "to_host"), (str(ref.senders_port), "from_host")}
        queues = self._passages.get("kernels", {}).get(kernel, {}).get("queues", ())
        return [ns / 1e9 for queue in queues if (queue["port"], queue["way"]) in ways for ns in queue["late_ns"]]

    def _fetched(self) -> dict[str, Any]:
        if self._watched and time.monotonic() - self._fetched_at > _FRESH_S:
            seen = self._of_all(lambda agent, _: agent.call("passages"))
            kernels = {name: kernel for passages in seen for name, kernel in passages["kernels"].items()}
            self._passages = {**(seen[0] if seen else {}), "kernels": kernels}
            self._fetched_at = time.monotonic()
        return self._passages
