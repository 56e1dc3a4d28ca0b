"""What impairs the links of a host that is stopped: kept, and put back when it runs again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from testbed.labs import cutting
from testbed.labs.timelines import Running
from testbed.model.impairment import Impairment
from testbed.model.topology import LinkRef

if TYPE_CHECKING:
    from testbed.labs.lab import Lab


@dataclass(frozen=True, kw_only=True)
class Suspended:
    """What a link was impaired with, and how it was cut."""

    impairment: Impairment | None
    """Of a timeline, its beginning."""
    running: Running | None = None
    how: str = ""
    """Of a cut: `cutting.DROP` or `cutting.REJECT`; empty if there was none."""
    up_s: float = 0.0
    down_s: float = 0.0
    """Of a link that flaps, how long it is cut; else 0."""

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "impairment": self.impairment and self.impairment.words(), "running": self.running and self.running.state(),
            "how": self.how, "up_s": self.up_s, "down_s": self.down_s,
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """As another process left it."""
        impairment, running = state["impairment"], state["running"]
        return cls(**{
            **state, "impairment": None if impairment is None else Impairment.parse(impairment),
            "running": None if running is None else Running.from_state(running),
        })  # fmt: skip


def suspend(lab: Lab, host: str) -> dict[LinkRef, Suspended]:
    """Heal and mend every link of a host that is about to stop; what each was. What held until now is in the evidence.

    A port that goes with the host would take its impairment with it, and it would look as if it had not held.
    """
    kept: dict[LinkRef, Suspended] = {}
    for port in list(lab.ports):
        for ref, source in list(port.sources.items()):
            if host not in (ref.src, ref.dst, ref.to) or (source.impairment is None and source.cut is None):
                continue
            running, cut = source.running, source.cut
            kept[ref] = Suspended(
                impairment=source.impairment if running is None else running.schedule.moments[0].impairment,
                running=running and Running(name=running.name, schedule=running.schedule),
                how=cut.how if cut else "", up_s=cut.up_s if cut else 0.0, down_s=cut.down_s if cut else 0.0,
            )  # fmt: skip
            lab.heal_link(ref)
            lab.mend_link(ref)
    return kept


def resume(lab: Lab, ref: LinkRef, kept: Suspended) -> None:
    """Put back what was kept of a link. A timeline, or what flaps, begins anew. Raises ImpairmentNotAppliedError."""
    if kept.impairment is not None:
        lab.put_back(ref, kept.impairment, time.perf_counter(), kept.running)
    if kept.down_s:
        lab.flap_again(ref, kept.up_s, kept.down_s, kept.how)
    elif kept.how:
        lab.cut_link(ref, reject=kept.how == cutting.REJECT)
