"""What a demonstration measured, as values."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from testbed.evidence.proof import Check


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message of the paper's client."""

    text: str
    connect_s: float | None
    """From calling connect to its return; None if it failed."""
    delivery_s: float | None
    """From calling send to the server's line in its log, as the engine stamped it; None if it never came."""
    error: str | None = None
    """What the client died of."""
    under_way: str | None = None
    """Where it was when we stopped waiting, if the kernels still worked on it."""

    @property
    def lost(self) -> bool:
        """Whether it will never come: it was not printed, and no kernel works on it any more."""
        return self.delivery_s is None and self.under_way is None


@dataclass(frozen=True, kw_only=True)
class ProfileRun:
    """All messages under one profile."""

    profile: str
    description: str
    forward: str
    """The impairment toward the server, in the user's words."""
    reverse: str
    commands: tuple[str, ...]
    """The tc lines that put them there; each was read back."""
    proof: tuple[tuple[str, tuple[Check, ...]], ...]
    """Of each direction, what probes saw before the messages were sent."""
    delay_s: float
    """The one-way delay asked toward the server; its mean, where there is jitter."""
    messages: tuple[Message, ...]
    retransmitted_segments: int
    """RetransSegs of the client's and the server's kernel namespaces together (RFC 4022)."""
    dropped_packets: int
    """Packets that netem dropped, both directions."""
    duration_s: float

    @property
    def delivered(self) -> int:
        """How many messages the server printed."""
        return sum(message.delivery_s is not None for message in self.messages)

    @property
    def under_way(self) -> int:
        """How many messages were still under way when we stopped waiting."""
        return sum(message.under_way is not None for message in self.messages)

    @property
    def delivery_times_s(self) -> list[float]:
        """Delivery times of those that came."""
        return [message.delivery_s for message in self.messages if message.delivery_s is not None]

    @property
    def connect_times_s(self) -> list[float]:
        """Connect times of those that connected."""
        return [message.connect_s for message in self.messages if message.connect_s is not None]


@dataclass(frozen=True, kw_only=True)
class DemoRun:
    """One demonstration."""

    engine: str
    """Who executed netem: host or carried."""
    started: str
    """ISO 8601, UTC."""
    profiles: tuple[ProfileRun, ...]
    server_output: str

    @property
    def lost(self) -> int:
        """How many messages will never come."""
        return sum(message.lost for run in self.profiles for message in run.messages)

    @property
    def under_way(self) -> int:
        """How many messages were still under way when we stopped waiting."""
        return sum(run.under_way for run in self.profiles)

    def as_json(self) -> dict[str, Any]:
        """As it is written to demo.json."""
        whole = asdict(self)
        for run, body in zip(self.profiles, whole["profiles"], strict=True):
            body["delivered"], body["under_way"] = run.delivered, run.under_way
            for name, times in (("connect", run.connect_times_s), ("delivery", run.delivery_times_s)):
                body[f"{name}_median_s"] = median(times)
                body[f"{name}_worst_s"] = max(times, default=None)
        return whole


def median(values: Sequence[float]) -> float | None:
    """The median, or None of nothing."""
    return statistics.median(values) if values else None
