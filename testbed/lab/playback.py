"""A timeline on a link, as the lab sees it: sent to the agent, begun, and its steps checked.

The agent plays it alone. Afterwards its steps are fetched, and the read-back of each is compared with the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from testbed.lab.channel import Channel
from testbed.netem import qdisc, readback
from testbed.netem.schedule import RESOLUTION_S, Moment, Schedule
from testbed.spec.impairment import Impairment
from testbed.spec.timeline import Taken

Differences = Callable[[Impairment, Any], Sequence[readback.Difference]]


@dataclass
class Playback:
    """The timeline of one link."""

    name: str
    """What the agent knows it by."""
    schedule: Schedule
    fetched: int = 0
    """Number of steps that were fetched."""
    begun: bool = False
    cuts: bool = False
    """Whether its steps cut and mend the link, instead of changing its impairment."""

    def prepare(
        self,
        channel: Channel,
        *,
        port: str,
        lines: Sequence[Sequence[str]],
        show: qdisc.TcLine,
        needs: Sequence[int],
        parent: str = "",
        filters: Sequence[tuple[int, int]] = (),
        at_gate: bool = False,
    ) -> None:
        """Send it to the agent. ``lines``: the tc lines of each moment.

        Each step is read back: the qdisc of the class ``parent``, or these ``filters``, by priority and handle. The
        first moment of one that cuts is in force before it begins. ``at_gate``: the lines are for the port's gate.
        """
        channel.call(
            "arm",
            name=self.name,
            port=port,
            at_s=[moment.at_s for moment in self.schedule.moments],
            lines=list(map(list, lines)),
            show=show,
            parent=parent,
            filters=list(map(list, filters)),
            repeat_s=self.schedule.repeat_s,
            needs=list(needs),
            in_force=self.cuts,
            at_gate=at_gate,
        )

    def look(self, channel: Channel, differences: Differences = readback.differences) -> Look:
        """The steps since the last look, and the impairment in force.

        ``differences``: compares a step's impairment with its read-back.
        """
        return self._read(channel.call("look", name=self.name, since=self.fetched), differences)

    def halt(self, channel: Channel, differences: Differences = readback.differences) -> Look:
        """Stop it. Returns the steps since the last look."""
        answer = channel.call("halt", name=self.name, since=self.fetched)
        return Look() if answer is None else self._read(answer, differences)

    def _read(self, answer: Mapping[str, Any], differences: Differences) -> Look:
        moments, begun_s = self.schedule.moments, answer["begun_s"]
        taken = [self._taken(record, begun_s, answer["seen"], differences) for record in answer["records"]]
        self.fetched = answer["recorded"]
        in_force = answer["in_force"]
        return Look(
            taken=taken,
            impairment=moments[in_force or 0].impairment,
            kernel=answer.get("now"),
            played=in_force is not None,
        )

    def state(self) -> dict[str, Any]:
        """As JSON."""
        moments = [[moment.at_s, moment.impairment.words()] for moment in self.schedule.moments]
        return {
            "name": self.name,
            "fetched": self.fetched,
            "begun": self.begun,
            "cuts": self.cuts,
            "moments": moments,
            "repeat_s": self.schedule.repeat_s,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Playback:
        """As another process left it."""
        moments = tuple(Moment(at_s=at_s, impairment=Impairment.parse(words)) for at_s, words in state["moments"])
        schedule = Schedule(moments=moments, repeat_s=state["repeat_s"])
        return cls(
            name=state["name"], schedule=schedule, fetched=state["fetched"], begun=state["begun"], cuts=state["cuts"]
        )

    def _taken(self, record: Mapping[str, Any], begun_s: float, seen: Sequence[Any], differences: Differences) -> Taken:
        impairment = self.schedule.moments[record["index"]].impairment
        complaint = record["complaint"]
        passed_over = record["passed_over"]
        if passed_over and _matters(record["index"], self.schedule):
            complaint = "passed over: it came so late that the next step was due, too"
        elif complaint is None and not passed_over:
            complaint = "; ".join(map(str, differences(impairment, seen[record["seen"]]))) or None
        return Taken(
            planned_s=record["planned_s"],
            actual_s=record["monotonic_s"] - begun_s,
            monotonic_s=record["monotonic_s"],
            unix_s=record["unix_s"],
            impairment=impairment,
            complaint=complaint,
            passed_over=passed_over,
            cut=impairment.loss_ratio == 1 if self.cuts else None,
        )


def begin_together(armed: Iterable[tuple[Channel, Playback]]) -> None:
    """Begin what is prepared, all of one agent at the same moment."""
    by_channel: dict[int, tuple[Channel, list[Playback]]] = {}
    for channel, running in armed:
        by_channel.setdefault(id(channel), (channel, []))[1].append(running)
    for channel, together in by_channel.values():
        channel.call("play", names=[running.name for running in together])
        for running in together:
            running.begun = True


@dataclass(frozen=True)
class Look:
    """The agent's account of a timeline."""

    taken: list[Taken] = field(default_factory=list)
    impairment: Impairment | None = None
    """Of the step in force."""
    kernel: Mapping[str, Any] | None = None
    """The kernel's account at the same moment."""
    played: bool = False
    """Whether any of its steps was taken."""


def _matters(index: int, schedule: Schedule) -> bool:
    """Whether a missing step matters: more than one late stair of a ramp or a trace."""
    moments = schedule.moments
    end_s = moments[index + 1].at_s if index + 1 < len(moments) else schedule.repeat_s
    return (
        moments[index].impairment.loss_ratio == 1
        or end_s is None
        or end_s - moments[index].at_s > RESOLUTION_S * (1 + 1e-6)
    )
