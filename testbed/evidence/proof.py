"""The evidence about a link: what was asked, what the kernel held, what was seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from testbed.evidence.verdict import Verdict, worst
from testbed.spec.timeline import Taken

MOST_STEPS = 10_000
"""The most steps of one link that the results file has."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One field of an impairment."""

    field: str
    """The user's word, or else what was measured."""
    asked: str = "—"
    kernel: str = "—"
    """Reported by ``tc qdisc show``."""
    seen: str = "—"
    """Measured by counters or probes."""
    verdict: Verdict = Verdict.SHOWN
    how: str = ""
    """The test that gave the verdict, with its figures; or why there is none."""
    cause: str = ""
    """The probable cause of a failure."""
    maybe_busy: bool = False
    """Whether a busy machine causes the same failure, so that the probes should be repeated."""

    def __str__(self) -> str:
        how = f" ({self.how})" if self.how else ""
        cause = f"; {self.cause}" if self.cause else ""
        return f"{self.field}: asked {self.asked}, the kernel holds {self.kernel}, seen {self.seen}{how}{cause}"

    def as_json(self) -> dict[str, str]:
        """As the results file has it."""
        names = ("field", "asked", "kernel", "seen", "how", "cause")
        return {**{name: getattr(self, name) for name in names}, "verdict": str(self.verdict)}


def of_probes(checks: Iterable[Check]) -> Verdict:
    """Level 3 of a link's evidence, from the checks of probes; `NOT_ASKED` if there are none."""
    verdicts = [check.verdict for check in checks]
    return worst(Verdict.HOLDS, *verdicts) if verdicts else Verdict.NOT_ASKED


@dataclass(frozen=True)
class Span:
    """Number of packets affected, as an interval."""

    low: int
    """The least."""
    high: int
    """The most; equal to ``low`` if the number is known."""
    how: str
    """The source: a counter, or what it was derived from."""

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low} to {self.high}"

    def as_json(self) -> dict[str, Any]:
        """As the results file has it."""
        if self.low == self.high:
            return {"packets": self.low, "from": self.how}
        return {"at_least": self.low, "at_most": self.high, "from": self.how}


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What the netem of a link counted, by kind as far as that is known."""

    sent_packets: int
    dropped_packets: int
    """Lost by injected loss or a full queue: netem counts both together."""
    queued_packets: int
    sent_bytes: int | None = None
    """Of the packets that were sent, their Ethernet headers included; None where that is not known."""
    tail_drops: Span
    """Packets among the dropped ones that a full queue dropped."""
    duplicated: Span
    """Copies that netem made."""
    reordered: Span
    """Packets that netem sent ahead of waiting ones."""
    corrupted: Span
    """Packets in which netem changed a bit."""

    @property
    def arrived_packets(self) -> int:
        """Packets that netem received, its own duplicates included."""
        return self.sent_packets + self.dropped_packets + self.queued_packets

    def as_json(self) -> dict[str, Any]:
        """As the results file has it."""
        low, high = self.tail_drops.low, self.tail_drops.high
        drops = {
            "tail_drops": low if low == high else {"at_least": low, "at_most": high},
            "tail_drops_from": self.tail_drops.how,
        }
        spans = {name: getattr(self, name).as_json() for name in ("duplicated", "reordered", "corrupted")}
        return {**asdict(self), **drops, **spans}


@dataclass(frozen=True)
class AtTaps:
    """Packets at the queues in front of the carried kernels on a link's path, those of other links included."""

    came_packets: int
    """All that arrived."""
    refused_packets: int
    """Lost because a queue was full; netem never received them."""

    def __sub__(self, other: AtTaps) -> AtTaps:
        return AtTaps(self.came_packets - other.came_packets, self.refused_packets - other.refused_packets)


@dataclass(frozen=True, kw_only=True)
class QueueCounts:
    """What a bottleneck has counted since it was made."""

    sent_packets: int
    sent_bytes: int
    """Ethernet headers included."""
    dropped_packets: int
    """By the queue: because it was full, or to tell a flow to slow down."""
    marked_packets: int
    """Packets that were marked as having met congestion (ECN), and passed on."""
    waiting_packets: int

    @property
    def arrived_packets(self) -> int:
        """All that were led to it."""
        return self.sent_packets + self.dropped_packets + self.waiting_packets

    def __sub__(self, earlier: QueueCounts) -> QueueCounts:
        """What was counted after an earlier reading; what waits is what waits now."""
        return QueueCounts(
            sent_packets=self.sent_packets - earlier.sent_packets,
            sent_bytes=self.sent_bytes - earlier.sent_bytes,
            dropped_packets=self.dropped_packets - earlier.dropped_packets,
            marked_packets=self.marked_packets - earlier.marked_packets,
            waiting_packets=self.waiting_packets,
        )


@dataclass(frozen=True, kw_only=True)
class LinkEvidence:
    """The evidence about one impaired link, or about one bottleneck, during one test."""

    link: str
    network: str
    asked: Mapping[str, Any]
    """In the user's words; with the seed, even if testbed chose it."""
    command: str
    checks: Sequence[Check] = ()
    read_back: Verdict = Verdict.HOLDS
    """Level 1: every field in the kernel equals the asked value, before and after the test."""
    counters: Verdict = Verdict.SHOWN
    """Level 2: netem received the link's packets, and its queue did not overflow by itself."""
    probe: Verdict = Verdict.NOT_ASKED
    """Level 3: probes measured the asked values."""
    tally: Tally | None = None
    queue: QueueCounts | None = None
    """Of a bottleneck, which has no netem; None of a link."""
    at_taps: AtTaps | None = None
    """None without a carried kernel."""
    lateness: Mapping[str, Any] | None = None
    """How late the carried kernel was; None if that was not watched."""
    problems: Sequence[str] = field(default_factory=tuple)
    """Why the test's result must not count."""
    earlier_packets: int | None = None
    """Packets of connections that began before the test, a lower bound; None if there were none."""
    met_packets: int | None = None
    """Packets that reached the impairment, lost ones included; None if that is not known."""
    profile: str = ""
    """The name of its profile; empty if it is from words."""
    warnings: Sequence[str] = field(default_factory=tuple)
    steps: Sequence[Taken] = field(default_factory=tuple)
    """Steps taken of its timeline, or of its flapping, in order."""

    @property
    def failures(self) -> list[Check]:
        """The failed checks."""
        return [check for check in self.checks if check.verdict is Verdict.FAILS]

    def as_json(self) -> dict[str, Any]:
        """As the results file has it."""
        return {
            "link": self.link,
            "network": self.network,
            "profile": self.profile,
            "asked": dict(self.asked),
            "command": self.command,
            "proof": {"read_back": str(self.read_back), "counters": str(self.counters), "probe": str(self.probe)},
            "checks": [check.as_json() for check in self.checks],
            "counters": None if self.tally is None else self.tally.as_json(),
            "queue": None if self.queue is None else asdict(self.queue),
            "at_taps": None if self.at_taps is None else asdict(self.at_taps),
            "lateness": None if self.lateness is None else dict(self.lateness),
            "problems": list(self.problems),
            "earlier_packets": self.earlier_packets,
            "met_packets": self.met_packets,
            "warnings": list(self.warnings),
            "steps": [step.as_json() for step in self.steps[:MOST_STEPS]],
            "steps_left_out": max(len(self.steps) - MOST_STEPS, 0),
        }
