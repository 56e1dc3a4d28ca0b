"""C9, blocking structures: beside a silent client all serve but the paper's."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed import Lab
from testbed.drive.messages import STRUCTURES
from testbed.evidence.verdict import Verdict
from testbed.paper import CLAIMS, examine

pytestmark = pytest.mark.slow


def test_the_papers_structure_fails_beside_a_silent_client_and_queues_those_far_away(lab: Lab, tmp_path: Path) -> None:
    outcome = examine(CLAIMS["C9"], lab, tmp_path, quick=True)
    assert outcome.finding is Verdict.HOLDS_WITHIN, outcome
    seen = outcome.mechanism
    assert {structure: seen[f"{structure}_answered"] for structure in STRUCTURES} == {
        structure: 0 if structure == "iterative" else 5 for structure in STRUCTURES
    }
    # Twelve at once at the paper's listen(5): six find room in its queue (backlog + 1), the others do not. These time
    # out if that was so when their SYN came, and believe to have sent if the queue filled while they shook hands.
    assert seen["storm_printed_beside"] == 0, outcome
    assert 6 <= seen["storm_printed"] < 12, outcome  # more than six where one came so late that it found room
    assert 6 <= seen["storm_believed"] <= 12, outcome
    assert min(seen["storm_overflows"], seen["storm_drops"]) >= 6, outcome
    # Far away all handshakes end at once, when the queue has room for six: the others believe, and are reset.
    assert (seen["far_storm_believed"], seen["far_storm_printed"]) == (12, 6), outcome
    assert min(seen["far_storm_resets"], seen["far_storm_overflows"]) >= 6, outcome
    # Ten clients, one after the other, two transits each, against two round trips for all of the others together.
    assert seen["queueing"] > 10 / 4, outcome
    assert seen["fork_client_bytes"] > 4 * seen["threads_client_bytes"], outcome
