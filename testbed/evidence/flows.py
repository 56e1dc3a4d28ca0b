"""Flows of competing traffic, as both of their ends counted them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TrafficFlow:
    """One flow of `Lab.traffic`, once it has ended."""

    link: str
    network: str
    name: str
    """``tcp 1``, ``tcp 2``, … or ``udp``."""
    sent_bytes: int
    """Of payload; of TCP, what the sender's kernel took, so that some of it may not have left."""
    received_bytes: int
    """Of payload, that the receiver's program read."""
    sent_packets: int | None
    """Datagrams; None of TCP."""
    received_packets: int | None
    duration_s: float
    """Between the first and the last payload at the receiver."""
    problem: str | None = None
    """Why it ended before it was stopped; None if it did not."""

    @property
    def goodput_bps(self) -> float:
        """Payload that arrived; bits per second. 0.0 if it did not arrive at two times."""
        return self.received_bytes * 8 / self.duration_s if self.duration_s else 0.0

    def as_json(self) -> dict[str, Any]:
        """As the results file has it."""
        return {**asdict(self), "goodput_bps": self.goodput_bps}
