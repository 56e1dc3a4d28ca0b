"""C12, layers: one header per layer, and two layers of OSI without one."""

from __future__ import annotations

from pathlib import Path

from testbed import Lab
from testbed.evidence.verdict import Verdict
from testbed.paper import CLAIMS, examine


def test_the_frame_is_its_headers_and_the_message(lab: Lab, tmp_path: Path) -> None:
    outcome = examine(CLAIMS["C12"], lab, tmp_path, quick=True)
    assert outcome.finding is Verdict.HOLDS_WITHIN, outcome
    seen = outcome.mechanism
    assert (seen["message_bytes"], seen["Ethernet_bytes"], seen["IPv4_bytes"]) == (len("Test message"), 14, 20), outcome
    assert seen["header_bytes"] + seen["message_bytes"] == seen["frame_bytes"]
    assert seen["lengths_agree"] == 1
    assert b"Test message" in (tmp_path / "C12.pcapng").read_bytes()
    assert outcome.frame is not None
    assert sum(part.size_bytes for part in outcome.frame.parts) == seen["frame_bytes"]
