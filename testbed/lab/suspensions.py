"""The impairments and cuts of a stopped host's links: kept, and applied again when it runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

from testbed.errors import LabError
from testbed.lab import severed
from testbed.lab.cutter import Cutter
from testbed.lab.impairer import Impairer
from testbed.lab.playback import Playback
from testbed.lab.ports import Ports
from testbed.lab.verifier import Verifier
from testbed.spec.impairment import Impairment
from testbed.spec.links import LinkRef, PortRef


@dataclass(frozen=True, kw_only=True)
class Suspended:
    """The impairment and the cut that a link had."""

    impairment: Impairment | None
    """Of a timeline, its beginning."""
    running: Playback | None = None
    how: str = ""
    """Of a cut: `severed.DROP` or `severed.REJECT`; empty if there was none."""
    up_s: float = 0.0
    down_s: float = 0.0
    """Of a link that flaps, how long it is cut; else 0."""

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "impairment": self.impairment and self.impairment.words(),
            "running": self.running and self.running.state(),
            "how": self.how,
            "up_s": self.up_s,
            "down_s": self.down_s,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """As another process left it."""
        impairment, running = state["impairment"], state["running"]
        return cls(
            **{
                **state,
                "impairment": None if impairment is None else Impairment.parse(impairment),
                "running": None if running is None else Playback.from_state(running),
            }
        )


class Suspensions:
    """The links of a lab whose hosts are stopped."""

    def __init__(self, ports: Ports, impairer: Impairer, cutter: Cutter, verifier: Verifier) -> None:
        self._ports = ports
        self._impairer = impairer
        self._cutter = cutter
        self._verifier = verifier
        self.links: dict[LinkRef, Suspended] = {}
        """What impaired them."""

    def suspend(self, host: str) -> None:
        """Heal and mend every link of a host that is about to stop. The evidence has what held until now.

        Otherwise the impairment would vanish with the host's port, and look as if it had not held.
        """
        self._suspend(lambda ref: host in (*ref.hosts, ref.to))

    @contextmanager
    def moved(self, port: PortRef) -> Iterator[None]:
        """Suspend a port's links while a block moves their qdiscs to another device.

        Raises LabError if one of them has a timeline, or flaps: that would begin anew.
        """
        here = [ref for ref in (*self._ports.impaired, *self._ports.cut) if ref.receivers_port == port]
        for ref in here:
            _, source = self._ports.known(ref)
            if source.running is not None or (source.cut is not None and source.cut.flapping is not None):
                raise LabError(f"{ref} has a timeline, or flaps, which would begin anew: shape its port before that")
        self._suspend(lambda ref: ref in here, idle=False)
        try:
            yield
        finally:
            self.resume(lambda _host: True, here)

    def _suspend(self, meant: Callable[[LinkRef], bool], *, idle: bool = True) -> None:
        for port in self._ports:
            for ref, source in list(port.sources.items()):
                if not meant(ref) or (source.impairment is None and source.cut is None):
                    continue
                running, cut = source.running, source.cut
                self.links[ref] = Suspended(
                    impairment=source.impairment if running is None else running.schedule.moments[0].impairment,
                    running=running and Playback(name=running.name, schedule=running.schedule),
                    how=cut.how if cut else "",
                    up_s=cut.up_s if cut else 0.0,
                    down_s=cut.down_s if cut else 0.0,
                )
                self._verifier.take_leave({ref}, idle=idle)
                self._impairer.clear(ref)
                self._cutter.mend(ref)

    def resume(self, running: Callable[[str], bool], refs: Collection[LinkRef] | None = None) -> None:
        """Apply again what was suspended, on links whose ends are ``running``; timelines begin anew.

        ``refs``: on these alone. Raises ImpairmentNotAppliedError.
        """
        for ref, kept in list(self.links.items()):
            if (refs is not None and ref not in refs) or not all(running(end) for end in (*ref.hosts, ref.to) if end):
                continue
            del self.links[ref]
            if kept.impairment is not None:
                self._impairer.restore(ref, kept.impairment, kept.running)
            if kept.down_s:
                self._cutter.flap([ref], kept.up_s, kept.down_s, reject=kept.how == severed.REJECT)
            elif kept.how:
                self._cutter.cut([ref], reject=kept.how == severed.REJECT)
        self._impairer.play()

    def heal(self, ref: LinkRef) -> None:
        """Drop what was kept of a link."""
        self.links.pop(ref, None)

    def mend(self, ref: LinkRef) -> None:
        """Drop the cut that was kept of a link."""
        if ref in self.links:
            self.links[ref] = replace(self.links[ref], how="", down_s=0.0)
