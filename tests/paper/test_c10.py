"""C10, games: TCP delivers every update, and stands still longer on long lossy links."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed import Lab
from testbed.evidence.verdict import Verdict
from testbed.paper import CLAIMS, examine

pytestmark = pytest.mark.slow


def test_tcp_completes_the_game_and_freezes_it(lab: Lab, tmp_path: Path) -> None:
    outcome = examine(CLAIMS["C10"], lab, tmp_path, quick=True)
    assert outcome.finding is Verdict.FAILS, outcome
    held = {row.name: row.held for row in outcome.rows}
    assert (held["clean"], held["lossy-latency"]) == (True, False), outcome
    seen = outcome.mechanism
    assert (seen["tcp_incomplete"], seen["tcp_better"]) == (0, 0), outcome
    assert seen["udp_incomplete"] >= 1, outcome
    # A round trip of 100 ms: no loss can be mended without a freeze of as much.
    assert seen["tcp_longest_freeze_s"] > 0.1, outcome
