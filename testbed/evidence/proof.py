"""What was asked of a link, what the kernel held, what was seen: values, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from testbed.evidence.verdict import Verdict, worst
from testbed.spec.timeline import Taken

MOST_STEPS = 10_000
"""So many steps of one link are written to the results file."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One field of an impairment."""

    field: str
    """The user's word, or what was measured where there is none."""
    asked: str = "—"
    kernel: str = "—"
    """As ``tc qdisc show`` reported it."""
    seen: str = "—"
    """As counters or probes saw it."""
    verdict: Verdict = Verdict.SHOWN
    how: str = ""
    """The test that gave the verdict, with its figures; or why there is none."""
    cause: str = ""
    """Of a failure: what probably did it."""
    maybe_busy: bool = False
    """Of a failure: whether a busy machine causes the same, so that it is worth another look."""

    def __str__(self) -> str:
        how = f" ({self.how})" if self.how else ""
        cause = f"; {self.cause}" if self.cause else ""
        return f"{self.field}: asked {self.asked}, the kernel holds {self.kernel}, seen {self.seen}{how}{cause}"

    def as_json(self) -> dict[str, str]:
        """As the results file has it."""
        names = ("field", "asked", "kernel", "seen", "how", "cause")
        return {**{name: getattr(self, name) for name in names}, "verdict": str(self.verdict)}


def of_probes(checks: Iterable[Check]) -> Verdict:
    """Level 3 of a link's evidence, from what probes gave; `NOT_ASKED` of no check."""
    verdicts = [check.verdict for check in checks]
    return worst(Verdict.HOLDS, *verdicts) if verdicts else Verdict.NOT_ASKED


@dataclass(frozen=True)
class Span:
    """How many packets something befell, as far as it can be known."""

    low: int
    """At least."""
    high: int
    """At most; equal where it is known."""
    how: str
    """How it is known: counted by whom, or derived from what."""

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low} to {self.high}"

    def as_json(self) -> dict[str, Any]:
        """As the results file has it."""
        if self.low == self.high:
            return {"packets": self.low, "from": self.how}
        return {"at_least": self.low, "at_most": self.high, "from": self.how}


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What the netem of a link counted, each kind apart as far as it can be known."""

    sent_packets: int
    dropped_packets: int
    """By injected loss and a full queue together: netem counts both alike."""
    queued_packets: int
    tail_drops: tuple[int, int]
    """How many of them a full queue dropped: at least, at most. Equal where it is known."""
    tail_drops_from: str
    """How that is known."""
    duplicated: Span
    """Second copies that netem made."""
    reordered: Span
    """Packets that netem sent ahead of those that wait."""
    corrupted: Span
    """Packets of which netem changed a bit."""

    @property
    def arrived_packets(self) -> int:
        """Packets that came to the netem, its own duplicates included."""
        return self.sent_packets + self.dropped_packets + self.queued_packets

    def as_json(self) -> dict[str, Any]:
        """As the results file has it."""
        low, high = self.tail_drops
        told = {name: getattr(self, name).as_json() for name in ("duplicated", "reordered", "corrupted")}
        drops = low if low == high else {"at_least": low, "at_most": high}
        return {**asdict(self), "tail_drops": drops, **told}


@dataclass(frozen=True)
class AtTaps:
    """What the queues before the carried kernels on a link's way did with packets, whichever link they were of."""

    came_packets: int
    """Those that were refused included."""
    refused_packets: int
    """That found a queue full: lost, and netem never saw them."""

    def __sub__(self, other: AtTaps) -> AtTaps:
        return AtTaps(self.came_packets - other.came_packets, self.refused_packets - other.refused_packets)


@dataclass(frozen=True, kw_only=True)
class LinkEvidence:
    """All that is known about one impaired link during one test."""

    link: str
    network: str
    asked: Mapping[str, Any]
    """In the user's words; the seed included, whoever chose it."""
    command: str
    checks: Sequence[Check] = ()
    read_back: Verdict = Verdict.HOLDS
    """Level 1: every field in the kernel equals what was asked, before and after."""
    counters: Verdict = Verdict.SHOWN
    """Level 2: the netem saw the packets that the link carried, and its queue did not overflow by itself."""
    probe: Verdict = Verdict.NOT_ASKED
    """Level 3: probes saw what was asked."""
    tally: Tally | None = None
    at_taps: AtTaps | None = None
    """None where no kernel is carried."""
    lateness: Mapping[str, Any] | None = None
    """How late its carrier was; None where that was not watched."""
    problems: Sequence[str] = field(default_factory=tuple)
    """What its counters say against it: why the test's result must not count."""
    earlier_packets: int | None = None
    """Packets of connections that began before the test; None where none crossed it. At least so many: see checks."""
    met_packets: int | None = None
    """Packets that came to it, those that it lost included; None if that is not known."""
    profile: str = ""
    """The profile that asked for it; empty if words did."""
    warnings: Sequence[str] = field(default_factory=tuple)
    steps: Sequence[Taken] = field(default_factory=tuple)
    """What was taken of its timeline, or of its coming and going, in order."""

    @property
    def failures(self) -> list[Check]:
        """The fields that are not as asked."""
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
            "at_taps": None if self.at_taps is None else asdict(self.at_taps),
            "lateness": None if self.lateness is None else dict(self.lateness),
            "problems": list(self.problems),
            "earlier_packets": self.earlier_packets,
            "met_packets": self.met_packets,
            "warnings": list(self.warnings),
            "steps": [each.as_json() for each in self.steps[:MOST_STEPS]],
            "steps_left_out": max(len(self.steps) - MOST_STEPS, 0),
        }
