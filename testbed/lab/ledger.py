"""What a test asked of its lab, what it did there, and what was found."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from testbed.errors import ImpairmentNotAppliedError
from testbed.evidence.metric import Metric
from testbed.evidence.proof import Check, LinkEvidence
from testbed.lab.host import Program
from testbed.spec.impairment import Impairment
from testbed.spec.links import LinkRef
from testbed.spec.timeline import Taken, Timeline


@dataclass(frozen=True, kw_only=True)
class Applied:
    """An impairment that the kernel was read back to hold."""

    link: LinkRef
    impairment: Impairment
    command: str
    """The tc line that put it there."""
    kernel: Mapping[str, Any]
    """The kernel's own account of the netem, from ``tc -j qdisc show``."""
    took_s: float
    """From the call to the verified read-back; seconds."""
    timeline: Timeline | None = None
    """The timeline whose beginning ``impairment`` is; `Lab.steps` has the steps that were taken."""
    profile: str = ""
    """The profile that asked it; empty if words did."""

    def describe(self) -> str:
        """What was asked, in the user's words: of a timeline, all that it takes to ask the same again."""
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
    """What the seeds of random impairments that name none are derived from; None leaves them to the kernel."""
    metrics: dict[str, Metric] = field(default_factory=dict)
    """What the test recorded and timed, by name."""
    history: list[Applied] = field(default_factory=list)
    """Every impairment that was put on a link."""
    steps: dict[LinkRef, list[Taken]] = field(default_factory=dict)
    """The steps of each link that has or had a timeline, or flaps, as far as they were fetched; as they came."""
    programs: list[Program] = field(default_factory=list)
    """Every program that was started in a host."""
    probed: dict[LinkRef, list[Check]] = field(default_factory=dict)
    """What probes saw of each link that was proven."""
    over: list[tuple[LinkEvidence, Sequence[ImpairmentNotAppliedError]]] = field(default_factory=list)
    """What was found of links as they were healed and of cuts as they were mended, and what of it is to be raised."""
    reported: set[LinkRef] = field(default_factory=set)
    """Links that were found wrong: what was raised is not raised again once they are healed."""
    evidence: list[LinkEvidence] = field(default_factory=list)
    """What was found of each impaired link, last."""

    def begin(self, seeds_from: str | None) -> None:
        """Forget all that is of the test before."""
        self.seeds_from = seeds_from
        for known in (
            self.metrics,
            self.history,
            self.steps,
            self.programs,
            self.probed,
            self.over,
            self.reported,
            self.evidence,
        ):
            known.clear()

    def seed(self, ref: LinkRef, wanted: Impairment | Timeline, *, seedable: bool) -> int | None:
        """A seed of its own for each link and each time, if it is random, names none, and seeds work here."""
        if self.seeds_from is None or wanted.seed is not None or not (wanted.is_random and seedable):
            return wanted.seed
        earlier = sum(applied.link == ref for applied in self.history)
        return derived_seed(self.seeds_from, str(ref), ref.network, str(earlier))

    def add_steps(self, ref: LinkRef, taken: Sequence[Taken]) -> None:
        """Add steps that were taken on a link."""
        self.steps.setdefault(ref, []).extend(taken)

    @property
    def stepped(self) -> dict[LinkRef, list[Taken]]:
        """The same as `steps`, each link's in order."""
        return {ref: sorted(steps, key=lambda step: step.monotonic_s) for ref, steps in self.steps.items()}

    def step_problems(self, ref: LinkRef, *, cuts: bool) -> list[str]:
        """What went wrong with steps of a link's timeline, or of its coming and going."""
        return [
            f"the step at {step.planned_s:.3f} s of its timeline, {step.describe()}: {step.complaint}"
            for step in self.steps.get(ref, ())
            if step.complaint is not None and (step.cut is not None) == cuts
        ]

    def last_put(self, ref: LinkRef) -> tuple[str, str]:
        """How a link was impaired last: the tc line, and the profile that asked it; each may be empty."""
        applied = next((change for change in reversed(self.history) if change.link == ref), None)
        return (applied.command, applied.profile) if applied else ("", "")

    def record(self, metric: Metric) -> None:
        """Keep a metric; of one that is there already, the samples are added. Raises InvalidValueError."""
        self.metrics[metric.name] = self.check(metric)

    def check(self, metric: Metric) -> Metric:
        """A metric with the samples of it that are there already. Raises InvalidValueError if it is another."""
        known = self.metrics.get(metric.name)
        return metric if known is None else known.with_more(metric)


def derived_seed(*parts: str) -> int:
    """A seed from 0 to 2⁶³-1 that the same parts always give."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8]) >> 1
