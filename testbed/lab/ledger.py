"""The record of one test: what it asked of its lab, what it did, and the evidence."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from testbed.errors import ImpairmentNotAppliedError
from testbed.evidence.flows import TrafficFlow
from testbed.evidence.metric import Metric
from testbed.evidence.proof import Check, LinkEvidence
from testbed.lab.competing import CompetingTraffic
from testbed.lab.host import Program
from testbed.observe.observation import Observation
from testbed.spec.impairment import Impairment
from testbed.spec.links import LinkRef
from testbed.spec.timeline import Taken, Timeline


@dataclass(frozen=True, kw_only=True)
class Applied:
    """An impairment that the kernel holds, by its read-back."""

    link: LinkRef
    impairment: Impairment
    command: str
    """The tc line that put it there."""
    kernel: Mapping[str, Any]
    """The kernel's own account of the netem, from ``tc -j qdisc show``."""
    took_s: float
    """From the call to the verified read-back; seconds."""
    timeline: Timeline | None = None
    """The timeline that begins with ``impairment``; `Link.steps` has the steps taken."""
    profile: str = ""
    """The name of the profile; empty if it was given in words."""

    def describe(self) -> str:
        """The impairment in the user's words; for a timeline, all words that repeat it."""
        text = self.impairment.describe()
        if self.timeline is not None:
            text = f"{self.timeline.describe()}; begins with {text}"
        if self.profile:
            return f"{text} (profile {self.profile})"
        return text if self.timeline is None else f"{text}; asked: {self.timeline.words}"


@dataclass
class Ledger:
    """One test's."""

    seeds_from: str | None = None
    """What to derive the seeds of random impairments from that name none; None leaves them to the kernel."""
    metrics: dict[str, Metric] = field(default_factory=dict)
    """What the test recorded and timed, by name."""
    history: list[Applied] = field(default_factory=list)
    """Every impairment that was put on a link."""
    shaped: list[str] = field(default_factory=list)
    """Every bottleneck that was put at a port, in the user's words."""
    steps: dict[LinkRef, list[Taken]] = field(default_factory=dict)
    """The steps that were fetched, by link, in the order of their arrival."""
    traffic: list[CompetingTraffic] = field(default_factory=list)
    """The competing traffic that was started."""
    programs: list[Program] = field(default_factory=list)
    """Every program that was started in a host."""
    probed: dict[LinkRef, list[Check]] = field(default_factory=dict)
    """What probes saw of each link that was proven."""
    observed: list[Observation] = field(default_factory=list)
    """What `Lab.observe` has seen."""
    over: list[tuple[LinkEvidence, Sequence[ImpairmentNotAppliedError]]] = field(default_factory=list)
    """Evidence of links that were healed and cuts that were mended, each with the errors to raise."""
    reported: set[LinkRef] = field(default_factory=set)
    """Links whose errors were raised; they are not raised again when the link is healed."""
    evidence: list[LinkEvidence] = field(default_factory=list)
    """The latest evidence of each impaired link."""

    def begin(self, seeds_from: str | None) -> None:
        """Forget the test before."""
        self.seeds_from = seeds_from
        for known in (
            self.metrics,
            self.history,
            self.shaped,
            self.steps,
            self.programs,
            self.traffic,
            self.probed,
            self.observed,
            self.over,
            self.reported,
            self.evidence,
        ):
            known.clear()

    @property
    def flows(self) -> list[TrafficFlow]:
        """Every flow of competing traffic that has ended."""
        return [flow for traffic in self.traffic for flow in traffic.flows]

    def seed(self, ref: LinkRef, wanted: Impairment | Timeline, *, seedable: bool) -> int | None:
        """A seed per link and application, if the impairment is random, names none, and netem takes seeds."""
        if self.seeds_from is None or wanted.seed is not None or not (wanted.is_random and seedable):
            return wanted.seed
        return derived_seed(self.seeds_from, str(ref), ref.network, str(self.earlier(ref)))

    def earlier(self, ref: LinkRef) -> int:
        """How many impairments were put on a link before."""
        return sum(applied.link == ref for applied in self.history)

    def add_steps(self, ref: LinkRef, taken: Sequence[Taken]) -> None:
        """Add steps that were taken on a link."""
        self.steps.setdefault(ref, []).extend(taken)

    @property
    def stepped(self) -> dict[LinkRef, list[Taken]]:
        """The steps of each link in order of time."""
        return {ref: sorted(steps, key=lambda step: step.monotonic_s) for ref, steps in self.steps.items()}

    def step_problems(self, ref: LinkRef, *, cuts: bool) -> list[str]:
        """Problems of the steps of a link's timeline, or of its flapping (``cuts``)."""
        return [
            f"the step at {step.planned_s:.3f} s of its timeline, {step.describe()}: {step.complaint}"
            for step in self.steps.get(ref, ())
            if step.complaint is not None and (step.cut is not None) == cuts
        ]

    def last_put(self, ref: LinkRef) -> tuple[str, str]:
        """The tc line and the profile of a link's latest impairment; each may be empty."""
        applied = next((change for change in reversed(self.history) if change.link == ref), None)
        return (applied.command, applied.profile) if applied else ("", "")

    def record(self, metric: Metric) -> None:
        """Keep a metric, or add its samples to those of that name. Raises InvalidValueError."""
        self.metrics[metric.name] = self.check(metric)

    def check(self, metric: Metric) -> Metric:
        """A metric joined with the samples of that name. Raises InvalidValueError if it is a different metric."""
        known = self.metrics.get(metric.name)
        return metric if known is None else known.with_more(metric)


def derived_seed(*parts: str) -> int:
    """A seed from 0 to 2⁶³-1; the same parts give the same seed."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8]) >> 1
