"""C7, no delays: it holds on a short link alone; the first window and each loss delay what follows."""

from __future__ import annotations

from pathlib import Path

from testbed import Lab
from testbed.evidence.verdict import Verdict
from testbed.paper import CLAIMS, examine


def test_tcp_delays_messages_for_its_first_window_and_for_each_loss(lab: Lab, tmp_path: Path) -> None:
    outcome = examine(CLAIMS["C7"], lab, tmp_path, quick=True)
    assert outcome.finding is Verdict.HOLDS_WITHIN, outcome
    assert [row.held for row in outcome.rows] == [True, False, False], outcome
    seen = outcome.mechanism
    # The eleventh message waits, as ten segments may go before the first acknowledgement (RFC 6928).
    assert (seen["initial_window"], seen["late_for_the_window"]) == (10, 11), outcome
    assert seen["dropped"] > 0, outcome
    assert seen["sent_again"] > 0, outcome
    # A lost message comes after the way of the next one, that of its acknowledgement, and its own: three delays.
    assert seen["lossy_longest_s"] >= 3 * 0.15, outcome
    assert seen["lossy_late"] > seen["sent_again"], "those behind a lost one are late too"
