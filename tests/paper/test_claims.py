"""Each claim of the paper: its verdict and the mechanism behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from testbed import Lab
from testbed.evidence.verdict import Verdict
from testbed.lab.waiting import await_condition
from testbed.paper import CLAIMS, examine
from testbed.paper.context import PAPER_PORT, ExperimentContext
from testbed.paper.outcomes import ClaimOutcome

EXPECTED: dict[str, Verdict] = {  # C7, C9, C10 and C12 have modules of their own
    "C1": Verdict.HOLDS,
    "C2": Verdict.HOLDS_WITHIN,
    "C3": Verdict.HOLDS,
    "C4": Verdict.HOLDS,
    "C5": Verdict.HOLDS,
    "C6": Verdict.HOLDS,
    "C8": Verdict.HOLDS_WITHIN,
    "C11": Verdict.HOLDS_WITHIN,
}
EXACTLY: dict[str, dict[str, float]] = {
    "C1": {"syns_dropped": 1},
    # 1,025 bytes deliver 1,024 and the client is told nothing; of three small pieces the first error is on the third.
    "C2": {"arrived_of_1024": 1024, "aborts_on_close_of_1024": 0, "arrived_of_1025": 1024, "informed_of_1025": 0,
           "aborts_on_close_of_1025": 1, "first_error_at_piece": 3, "arrived_of_pieces": 3, "arrived_of_3072": 1024,
           "reset_heard": 1, "arrived_outage_shorter": 1, "arrived_outage_longer": 0},
    "C5": {"unacked_at_end": 0},
    "C6": {"timeouts": 0, "sent_again": 0},
    "C8": {"losing": 5, "unheard": 1},
    "C11": {"profiles": 5, "printed": 4},
}  # fmt: skip
BESIDES: dict[str, Callable[[Mapping[str, float]], object]] = {
    "C1": lambda seen: seen["connect_after_lost_syn_s"] >= 1 and abs(seen["round_trips"] - 1) < 0.15,
    # Twelve clients at listen(5): the queue holds six, so it overflows.
    "C2": lambda seen: 6 <= seen["storm_delivered"] < 12 and seen["listen_overflows"] and seen["lost_in_outage"] > 1,
    "C3": lambda seen: seen["out_of_order"] > 100 and seen["twice"] > 20,
    "C4": lambda seen: seen["fast"] >= 1 and seen["timeouts"] >= 1 and seen["backoffs"] >= 3,
    "C5": lambda seen: seen["sent_again"] >= seen["lost_segments"] > 0 and seen["with_sack"] > 0,
    "C6": lambda seen: seen["zero_windows"] > 0 and seen["lost_updates"] > 0 and seen["window_probes"] > 0,
}


@pytest.mark.parametrize(
    "names",
    [
        ("C2", "C8"),  # which is C2, read for one thing
        *((name,) for name in EXPECTED if name not in ("C2", "C8")),
    ],
    ids=" ".join,
)
def test_a_claim_is_found_as_it_is_and_by_its_mechanism(lab: Lab, names: tuple[str, ...], tmp_path: Path) -> None:
    earlier: dict[str, ClaimOutcome] = {}
    for name in names:
        outcome = earlier[name] = examine(CLAIMS[name], lab, tmp_path, quick=True, earlier=earlier)
        assert outcome.finding is EXPECTED[name], (outcome.sentence, *outcome.rows)
        wanted = EXACTLY.get(name, {})
        assert {number: outcome.mechanism[number] for number in wanted} == wanted, outcome
        assert BESIDES.get(name, bool)(outcome.mechanism), outcome
        assert all((tmp_path / file).stat().st_size > 0 for file in outcome.evidence)


_HALF_CLOSED = """
import signal, socket
listener = socket.create_server(("127.0.0.1", 8888))
closed, open_still = socket.create_connection(("127.0.0.1", 8888)), listener.accept()[0]
closed.close()
open_still.recv(1)
print("ready", flush=True)
signal.pause()
"""


def test_a_connection_that_only_waits_for_a_lost_fin_holds_no_claim_up(lab: Lab, tmp_path: Path) -> None:
    client = lab.host("client")
    client.start(["python3", "-c", _HALF_CLOSED], ready="ready")

    def states() -> list[str]:
        return [end["state"] for end in client.connections() if end["remote_port"] == PAPER_PORT]

    # The FIN's acknowledgement may be under way. An earlier test may indeed have left another one.
    await_condition(states, lambda seen: "FIN-WAIT-2" in seen, deadline_s=20)
    context = ExperimentContext(lab=lab, folder=tmp_path)
    context.paper_client("not held up")
    context.await_closed(PAPER_PORT, deadline_s=20)
