"""How the experiments of C7, C9, C10 and C12 judge their numbers, on figures written by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from testbed.evidence.verdict import Verdict
from testbed.judge.metrics import Distribution
from testbed.observe.packet import Layer, layers
from testbed.paper import c07, c09, c10, c12
from testbed.paper.outcomes import ClaimOutcome
from testbed.paper.staleness import staleness
from testbed.paper.structures import Served
from tests.unit.frames import CLIENT, CLIENT_PORT, SERVER, SERVER_PORT, ipv4, tcp

MS = 10**6

# --- C7 --------------------------------------------------------------------------------------------


def deliveries(
    delay_ms: float, loss: str = "", *, slow_ms: Sequence[int] = (), sent: int = 100, **more: int
) -> c07.MessageStream:
    """Messages that take the link's delay, but for the first few."""
    link = c07.GridLink(delay_ms=delay_ms, loss=loss)
    plain = [int((delay_ms + 1) * MS)] * (sent - len(slow_ms))
    counts = {"dropped": 0, "resent": 0, "window_full": 0, "lost": 0, **more}
    return c07.MessageStream(
        link=link,
        sent=sent + counts["lost"],
        application=Distribution([*(slow_m * MS for slow_m in slow_ms), *plain]),
        wire=Distribution([int(delay_ms * MS)] * sent),
        head_of_line=Distribution([0] * sent),
        late=tuple(n for n, delay in enumerate(slow_ms) if delay / 1e3 > c07.late_after_s(link)),
        dropped=counts["dropped"],
        resent=counts["resent"],
        initial_window=10,
        window_full=counts["window_full"],
    )


def test_a_late_message_is_tcps_only_where_the_kernel_shows_why() -> None:
    assert not deliveries(50, slow_ms=[400]).delayed_by_tcp, "a busy machine"
    assert not deliveries(50, dropped=3).delayed_by_tcp, "only acknowledgements were lost"
    assert deliveries(50, slow_ms=[400], dropped=1).delayed_by_tcp
    assert deliveries(50, slow_ms=[400], window_full=1).delayed_by_tcp
    assert deliveries(50, lost=1).delayed_by_tcp, "what never came is late"


def test_late_is_over_two_delays_and_an_interval() -> None:
    assert deliveries(50, slow_ms=[109, 111], dropped=1).late == (1,)


def test_no_delays_holds_on_a_short_link_alone() -> None:
    verdict = c07.judge(
        [deliveries(0), deliveries(50, slow_ms=[150], window_full=3), deliveries(50, "5%", slow_ms=[300], dropped=2)]
    )
    assert verdict.finding is Verdict.HOLDS_WITHIN
    assert [row.held for row in verdict.rows] == [True, False, False]
    assert "10 segments may go before the first acknowledgement (RFC 6928), and message 1 waits" in verdict.sentence
    assert "1 of 100 messages took more than 110 ms, the longest 0.30 s" in verdict.sentence


def test_no_delays_is_invalid_where_the_link_did_not_do_what_it_was_asked() -> None:
    assert c07.judge([deliveries(50, "5%")]).finding is Verdict.INVALID
    too_quick = replace(deliveries(0), link=c07.GridLink(delay_ms=50))
    assert c07.judge([too_quick]).finding is Verdict.INVALID


# --- C9 --------------------------------------------------------------------------------------------

STORM = c09.Storm(clients=12, believed=6, printed_beside=0, printed=6, overflows=18, drops=18, resets=0)


def crowd(situation: str, delay_ms: int, clients: int, iterative_s: Sequence[float], others_s: float) -> c09.Crowd:
    others = [
        Served(structure=structure, clients=clients, waits_s=(others_s,) * clients, cpu_s=clients * cost_s)
        for structure, cost_s in (("threads", 0.0002), ("selectors", 0.0001))
    ]
    papers = Served(structure="iterative", clients=clients, waits_s=tuple(iterative_s), cpu_s=clients * 0.0003)
    return c09.Crowd(situation=situation, delay_ms=delay_ms, served=(papers, *others))


def structures(lost: int = 0) -> ClaimOutcome:
    far = replace(STORM, believed=12, printed=12 - lost, resets=lost)
    memory = [
        c09.Memory(structure=name, delay_ms=0, connected=100, client_bytes=size)
        for name, size in (("fork", 1024.0 * 1024), ("threads", 2048.0))
    ]
    crowds = [
        crowd(c09.SILENT, 0, 12, [], 0.01),
        crowd(c09.AT_ONCE, 0, 50, [0.02] * 50, 0.01),
        crowd(c09.AT_ONCE, 100, 10, [0.4, 2.2] * 5, 0.4),
    ]
    return c09.judge({0: STORM, 100: far}, crowds, memory)


def test_it_matters_which_structure_as_the_papers_fails_beside_a_silent_client() -> None:
    outcome = structures()
    assert outcome.finding is Verdict.HOLDS_WITHIN
    assert [row.held for row in outcome.rows] == [False, True, False, True, True, None, None, None]
    assert outcome.rows[2].values["preferable"] == "threads, selectors"
    assert outcome.rows[3].values["preferable"] == "any"
    near, far, memory = outcome.rows[5:]
    assert (near.values["iterative"], near.values["preferable"]) == ("0.30 ms, of 50", "selectors")
    assert far.values["threads"] == "0.20 ms, of 10"
    assert (memory.values["fork"], memory.values["threads"]) == ("1,024 KiB", "2 KiB")
    assert outcome.mechanism["queueing"] == pytest.approx(2.2 / 0.4)
    assert "lost without an error" not in outcome.sentence


def test_messages_that_the_queue_destroyed_are_named() -> None:
    outcome = structures(lost=6)
    assert "12 clients believed to have sent, and 6 messages were lost without an error (6 resets)" in outcome.sentence
    assert outcome.mechanism["far_storm_lost"] == 6


def test_without_anybody_who_answers_all_there_is_nothing_to_compare_the_papers_with() -> None:
    silent = Served(structure="threads", clients=1, waits_s=())
    assert c09.Crowd(situation="", delay_ms=0, served=(silent,)).queueing == math.inf
    assert not c09.Crowd(situation="", delay_ms=0, served=(silent,)).held


# --- C10 -------------------------------------------------------------------------------------------


def played(*, missing: Sequence[int] = (), stuck_ms: int = 0, dropped: int = 1, sent: int = 300) -> c10.Game:
    """Updates every 16 ms; those sent while it was stuck, from the hundredth on, come at its end."""
    begin, end = 100 * 16 * MS, (100 * 16 + stuck_ms) * MS
    updates = [(n, n * 16 * MS, end if begin <= n * 16 * MS < end else n * 16 * MS) for n in range(sent)]
    return c10.Game(
        sent=sent,
        dropped=dropped,
        seen=staleness([update for update in updates if update[0] not in missing], sent * 16 * MS),
    )


def match(udp: c10.Game, tcp: c10.Game) -> c10.Match:
    return c10.Match(profile="some", udp=udp, tcp=tcp)


def test_tcp_is_worse_where_its_picture_stands_still_for_longer() -> None:
    verdict = c10.judge([match(played(missing=[50]), played(stuck_ms=900))])
    assert (verdict.finding, verdict.rows[0].held) == (Verdict.FAILS, False)
    assert verdict.mechanism["udp_incomplete"] == verdict.mechanism["tcp_worse"] == 1
    assert (verdict.mechanism["tcp_incomplete"], verdict.mechanism["udp_freezes"]) == (0, 0)
    assert "the picture stood still for 19 % of the time, with UDP for 0 %" in verdict.sentence


def test_a_short_freeze_more_is_no_difference() -> None:
    verdict = c10.judge([match(played(), played(stuck_ms=200))])
    assert verdict.rows[0].values["frozen less"] == "neither"
    assert verdict.finding is Verdict.FAILS, "it solves nothing"


def test_tcp_solves_it_only_where_udp_froze_and_tcp_does_not() -> None:
    burst = played(missing=range(100, 160))
    assert c10.judge([match(burst, played())]).finding is Verdict.HOLDS
    assert c10.judge([match(burst, played()), match(played(), played(stuck_ms=900))]).finding is Verdict.HOLDS_WITHIN


@pytest.mark.parametrize(("dropped", "plays"), [(0, 4), (1, 2)])
def test_a_link_over_which_one_stood_still_is_played_over_again_and_more_often_if_it_lost_nothing(
    dropped: int, plays: int
) -> None:
    frozen_ms = iter([900, 700, 800, 950])
    playing = [match(played(dropped=dropped), played(stuck_ms=ms, dropped=dropped)) for ms in frozen_ms]
    left = iter(playing)
    assert c10.least_differing(lambda: next(left)) is playing[1]
    assert len(list(left)) == 4 - plays


def test_a_link_over_which_none_stood_still_is_played_over_once_or_until_then() -> None:
    playing = [match(played(dropped=0), played(stuck_ms=ms, dropped=0)) for ms in (900, 900, 0, 0)]
    left = iter(playing)
    assert c10.least_differing(lambda: next(left)) is playing[2]
    assert c10.least_differing(lambda: next(left)) is playing[3]


def test_games_are_not_judged_without_losses_or_without_updates() -> None:
    assert c10.judge([match(played(dropped=0), played(dropped=0))]).finding is Verdict.INVALID
    assert c10.judge([match(played(missing=range(300)), played())]).finding is Verdict.INVALID


# --- C12 -------------------------------------------------------------------------------------------

COSTS = [
    c12.Cost(message_bytes=1, frame_bytes=67, session_bytes=600, frames=9),
    c12.Cost(message_bytes=1024, frame_bytes=1090, session_bytes=1568, frames=8),
]


def frame(payload: bytes) -> tuple[Layer, ...]:
    return layers(ipv4(CLIENT, SERVER, 6, tcp(CLIENT_PORT, SERVER_PORT, payload=payload)))


def test_each_header_is_of_one_layer_and_two_layers_of_osi_have_none() -> None:
    verdict = c12.judge(frame(b"Test message"), COSTS)
    assert verdict.finding is Verdict.HOLDS_WITHIN
    assert "5 session and 6 presentation have no header of their own" in verdict.sentence
    assert verdict.mechanism["message_bytes"] == 12
    assert verdict.mechanism["frame_bytes"] == sum(verdict.mechanism[f"{name}_bytes"] for name in ("header", "message"))


def test_a_length_that_does_not_agree_breaks_it() -> None:
    ethernet, internet, transport, payload = frame(b"Test message")
    shorter = replace(payload, data=payload.data[:-1])
    assert not c12.agrees([ethernet, internet, transport, shorter])
    assert c12.judge([ethernet, internet, transport, shorter], COSTS).finding is Verdict.FAILS
    assert not c12.agrees([ethernet, internet, payload])
