"""A proof fails where the link is not as requested, and does not disturb a test where it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testbed import ComposeLab, ImpairmentNotAppliedError, InvalidValueError, Lab
from testbed.evidence.proof import Check
from testbed.evidence.verdict import Verdict
from testbed.lab.waiting import await_condition
from testbed.netem import qdisc, readback
from testbed.netem.profiles import Tables
from testbed.spec.impairment import Impairment
from tests.lab.conftest import Datagrams, as_one_test, await_quiet, of_links

BELOW_THE_LAB = True


@pytest.fixture
def wide(three: Lab) -> Iterator[Lab]:
    """Its hosts `other` and `server` share two networks."""
    yield from as_one_test(three)


def tc(lab: Lab, line: str) -> None:
    """Run a line of tc without the lab's knowledge."""
    port = lab.ports.attached("server", "lan")
    answer = port.channel.call("tc", port=port.name, lines=[line.replace("DEVICE", port.device)])
    assert answer["complaints"] == []


# --- counters -----------------------------------------------------------------------------------------


def test_traffic_that_takes_another_path_makes_the_test_invalid(wide: Lab) -> None:
    wide.impair("other -> server on lan", delay="20ms")
    Datagrams(wide.hosts["other"], wide.hosts["server"], "back").arrived(20)
    with pytest.raises(ImpairmentNotAppliedError, match=r"no packet crossed it, but \d+ packets took `back`"):
        wide.verifier.verify()
    assert [link.counters for link in wide.ledger.evidence] == [Verdict.FAILS]


def test_traffic_on_both_paths_is_only_told(wide: Lab) -> None:
    wide.impair("other -> server on lan", delay="20ms")
    Datagrams(wide.hosts["other"], wide.hosts["server"], "back").arrived(5)
    Datagrams(wide.hosts["other"], wide.hosts["server"], "lan").arrived(5)
    wide.verifier.verify()
    assert any("took `back`, unimpaired" in warning for warning in wide.ledger.evidence[0].warnings)


def stray(lab: Lab, count: int) -> None:
    """Send from `other` to the server over `lan`, from the address that `other` has on `back`."""
    own, target = lab.hosts["other"].addresses("back")[0], lab.hosts["server"].addresses("lan")[0]
    lab.host("other").run(["python3", "-c", _STRAY, own, target, str(count)])


_STRAY = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((sys.argv[1], 0))
for _ in range(int(sys.argv[3])): s.sendto(b"word", (sys.argv[2], 9))
"""


def test_packets_from_an_address_that_nobody_told_us_are_packets_of_the_link(wide: Lab) -> None:
    wide.impair("other -> server on lan", delay="20ms")
    stray(wide, 3)
    wide.verifier.verify()
    (evidence,) = wide.ledger.evidence
    assert evidence.tally is not None
    assert evidence.tally.arrived_packets == 3, "also if the engine's NAT gives them another address"


def test_what_went_the_other_way_before_is_not_held_against_the_test(wide: Lab) -> None:
    Datagrams(wide.hosts["other"], wide.hosts["server"], "back").arrived(5)
    wide.impair("other -> server on lan", delay="20ms")
    wide.verifier.verify()
    assert wide.ledger.evidence[0].warnings[0] == "no packet crossed it"


def test_other_hosts_on_the_other_path_are_nobodys_business(wide: Lab) -> None:
    wide.impair("other -> server on lan", delay="20ms")
    Datagrams(wide.hosts["server"], wide.hosts["other"], "back").arrived(5)
    Datagrams(wide.hosts["client"], wide.hosts["server"], "lan").arrived(5)
    with pytest.raises(ImpairmentNotAppliedError, match="took `back`"):
        wide.verifier.verify()  # the receiver answers the sender's end: two datagrams of `other -> server`
    wide.heal()
    wide.impair("client -> server", delay="20ms")
    Datagrams(wide.hosts["other"], wide.hosts["server"], "back").arrived(5)
    wide.verifier.verify()


def test_a_queue_that_overflows_though_neither_rate_nor_limit_was_asked_makes_the_test_invalid(
    lab: Lab, datagrams: Datagrams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With netem's own limit of 1000 and a delay of 4 s, 2000 datagrams in 1 s overflow: what `limit` is sized for."""
    monkeypatch.setattr(qdisc, "MOST_PACKETS_PER_S", 0.0)
    lab.impair("client -> server", delay="4s")
    datagrams.arrived(2000, pace_s=0.0005)
    with pytest.raises(ImpairmentNotAppliedError, match=r"its queue overflowed and dropped \d+ of \d+ packets.*1000"):
        lab.verifier.verify()
    lab.heal()


@pytest.mark.parametrize("words", [{"rate": "100kbit", "limit": 20}, {"delay": "100ms", "limit": 5}])
def test_a_queue_may_overflow_where_it_was_asked_for(lab: Lab, datagrams: Datagrams, words: dict[str, Any]) -> None:
    lab.impair("client -> server", **words)
    datagrams.arrived(200, pace_s=0)
    lab.verifier.verify()
    (evidence,) = lab.ledger.evidence
    assert evidence.tally is not None
    drops = evidence.tally.tail_drops
    assert drops.low == drops.high == evidence.tally.dropped_packets > 0


def test_injected_losses_are_no_overflow(lab: Lab, datagrams: Datagrams) -> None:
    lab.impair("client -> server", loss="20%", delay="5ms")
    datagrams.arrived(1500, pace_s=0.0005)
    lab.verifier.verify()
    (evidence,) = lab.ledger.evidence
    assert evidence.tally is not None
    assert evidence.tally.dropped_packets > 100
    assert str(evidence.tally.tail_drops) == "0"


def test_an_idle_link_is_no_failure_but_a_warning(lab: Lab) -> None:
    lab.impair("client -> server", delay="5ms")
    lab.verifier.verify()
    assert lab.ledger.evidence[0].warnings[0] == "no packet crossed it"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("filter delete dev DEVICE parent 1:", r"asked filter .* led to 1:"),
        ("qdisc delete dev DEVICE parent 1:MINOR", r"asked netem delay=5ms, the kernel reports none on this link"),
        ("qdisc delete dev DEVICE root", r"asked netem delay=5ms, the kernel reports none on this link"),
        ("qdisc replace dev DEVICE parent 1:MINOR pfifo limit 9", r"asked netem delay=5ms, .* none on this link"),
        ("qdisc replace dev DEVICE root handle 9: netem delay 5ms", r"asked netem delay=5ms, .* none on this link"),
    ],
)
def test_what_is_deleted_or_replaced_in_mid_test_makes_it_invalid(lab: Lab, line: str, text: str) -> None:
    link = lab.link("client -> server")
    link.impair(delay="5ms")
    tc(lab, line.replace("MINOR", f"{lab.ports.attached('server', 'lan').sources[link.ref].minor:x}"))
    with pytest.raises(ImpairmentNotAppliedError, match=text):
        lab.verifier.verify()
    assert [link.read_back for link in lab.ledger.evidence] == [Verdict.FAILS]
    lab.ports.renew(link.ref)
    lab.heal()


def test_a_link_that_was_healed_before_the_tests_end_is_proven_as_it_was(lab: Lab, datagrams: Datagrams) -> None:
    link = lab.link("client -> server")
    link.impair(delay="5ms")
    datagrams.arrived(10)
    link.heal()
    lab.verifier.verify()
    (evidence,) = lab.ledger.evidence
    assert (evidence.link, evidence.asked, evidence.read_back) == ("client -> server", {"delay": "5ms"}, Verdict.HOLDS)
    assert evidence.counters == Verdict.HOLDS
    assert evidence.tally is not None
    assert evidence.tally.sent_packets >= 10
    link.impair(delay="5ms")
    tc(lab, f"qdisc delete dev DEVICE parent 1:{lab.ports.attached('server', 'lan').sources[link.ref].minor:x}")
    lab.heal()
    with pytest.raises(ImpairmentNotAppliedError, match=r"asked netem delay=5ms, .* none on this link"):
        lab.verifier.verify()
    lab.verifier.verify()  # told once


# --- probes --------------------------------------------------------------------------------------------


def test_probes_see_what_was_asked_in_both_directions(lab: Lab) -> None:
    lab.impair("client <-> server", delay="20ms", loss="10%", prove=True)
    for checks in lab.ledger.probed.values():
        assert {check.field: check.verdict for check in checks} == {"delay": Verdict.HOLDS, "loss": Verdict.HOLDS}
        assert {check.kernel for check in checks} == {"20ms", "10%"}
    lab.verifier.verify()
    assert [link.probe for link in lab.ledger.evidence] == [Verdict.HOLDS, Verdict.HOLDS]


@pytest.mark.parametrize(
    "words",
    [
        {"loss": "5%", "burst": 3},
        {"delay": "60ms", "jitter": "10ms", "distribution": "normal"},
        {"delay": "60ms", "jitter": "10ms", "distribution": "pareto", "reorder_by_jitter": True},
        {"rate": "5mbit"},
        {"delay": "20ms", "reorder": "15%"},
        {"duplicate": "15%"},
        {"corrupt": "15%"},
    ],
    ids=str,
)
def test_every_word_that_probes_can_judge_holds(lab: Lab, words: dict[str, Any]) -> None:
    def judged() -> bool:
        lab.impair("client -> server", prove=True, **words)
        (checks,) = lab.ledger.probed.values()
        assert {check.verdict for check in checks} <= {Verdict.HOLDS, Verdict.SHOWN}
        if any("too short to tell" in check.how for check in checks):
            return False
        assert len([check for check in checks if check.verdict == Verdict.HOLDS]) >= 2
        return True

    # A busy machine may delay the probes of the clean path for as long as the link does.
    await_condition(judged, bool, deadline_s=100, every_s=0)


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("qdisc replace dev DEVICE parent 1:10 handle 10: netem limit 9000 delay 2.56ms", "delay: asked 40ms"),
        ("qdisc replace dev DEVICE parent 1:10 handle 10: netem limit 9000 delay 40ms loss 3%", "loss: asked 0%"),
        ("filter delete dev DEVICE parent 1:", "delay: asked 40ms"),
    ],
)
def test_probes_condemn_a_link_that_does_something_else(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, line: str, field: str
) -> None:
    """As if read-back had been fooled: after each impairment, the kernel is changed without the lab's knowledge."""
    lab.impair("client -> server", delay="40ms")
    put = lab.impairer.rewrite

    def tampered(ref: object, impairment: object) -> None:
        put(ref, impairment)  # type: ignore[arg-type]  # passed on as they came
        tc(lab, line.replace("handle 10:", ""))

    with monkeypatch.context() as behind_our_back:
        behind_our_back.setattr(lab.impairer, "rewrite", tampered)
        with pytest.raises(ImpairmentNotAppliedError, match=field):
            lab.prove("client -> server")
    lab.ports.renew(lab.link("client -> server").ref)
    lab.heal()


def test_a_proof_does_not_put_there_again_what_is_not_there_any_more(lab: Lab) -> None:
    link = lab.link("client -> server")
    link.impair(delay="5ms")
    tc(lab, f"qdisc delete dev DEVICE parent 1:{lab.ports.attached('server', 'lan').sources[link.ref].minor:x}")
    with pytest.raises(ImpairmentNotAppliedError, match="asked netem delay=5ms, the kernel reports none on this link"):
        lab.prove("client -> server")
    assert lab.ports.netem(link.ref) is None, "left as it was found"
    with pytest.raises(ImpairmentNotAppliedError, match="asked netem delay=5ms, the kernel reports none on this link"):
        lab.verifier.verify()
    lab.heal()


def test_a_fast_rate_that_is_too_low_is_found(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.impair("client -> server", rate="40mbit")
    ref, put = lab.link("client -> server").ref, lab.impairer.rewrite

    def rate() -> Check:
        check = next(check for check in lab.prober.probe(ref) if check.field == "rate")
        if check.verdict == Verdict.SHOWN or (check.verdict == Verdict.HOLDS and "would not" in check.how):
            pytest.skip(f"this machine cannot judge it now: {check.how}")
        return check

    assert rate().verdict == Verdict.HOLDS

    def slower(ref: object, impairment: Impairment) -> None:
        real = replace(impairment, rate_bps=34e6) if impairment.rate_bps else impairment
        put(ref, real)  # type: ignore[arg-type]  # passed on as it came

    try:
        with monkeypatch.context() as behind_our_back:
            behind_our_back.setattr(lab.impairer, "rewrite", slower)
            slowed = rate()
    finally:
        lab.ports.renew(ref)
        lab.heal()
    assert (slowed.asked, slowed.verdict) == ("40mbit", Verdict.FAILS)


def test_what_netem_makes_of_words_together_is_told_and_judged(lab: Lab) -> None:
    lab.impair("client -> server", loss="30%", duplicate="50%", prove=True)
    lab.verifier.verify()
    (evidence,) = lab.ledger.evidence
    assert any("15% are lost, not 30%, about 24.5% arrive twice" in warning for warning in evidence.warnings)
    assert {check.field: check.verdict for check in evidence.checks if check.field in ("loss", "duplicate")} == {
        "loss": Verdict.HOLDS,
        "duplicate": Verdict.HOLDS,
    }
    lab.impair("client -> server", rate="1mbit", delay="20ms", reorder="50%", prove=True)
    lab.verifier.verify()
    evidence = lab.ledger.evidence[-1]
    assert any("up to 2 Mbit/s pass in all" in warning for warning in evidence.warnings)
    assert {check.field: check.verdict for check in evidence.checks}["rate"] == Verdict.HOLDS


def test_no_probe_of_ours_is_sent_into_a_cut(lab: Lab) -> None:
    lab.cut("client -> server")
    lab.impair("client -> server", delay="3ms")
    for ask in (lambda: lab.prove("client -> server"), lambda: lab.impair("client -> server", loss="1%", prove=True)):
        with pytest.raises(InvalidValueError, match="server: cannot be probed while client -> server is cut"):
            ask()
    with pytest.raises(InvalidValueError, match="server udp: cannot be probed while client -> server is cut"):
        lab.prove("client -> server udp")
    (cut,) = [lab.cutter.evidence(ref) for ref in lab.ports.cut]
    assert of_links(cut.warnings) == ["no packet met the cut"]
    lab.mend()
    lab.prove("client -> server")


def test_a_proof_does_not_change_which_packets_are_lost(lab: Lab, datagrams: Datagrams) -> None:
    await_quiet(datagrams.src, datagrams.dst)
    lost = []
    for prove in (False, True):
        lab.impair("client -> server", loss="20%", seed=7, prove=prove)
        lost.append(set(range(400)) - set(datagrams.arrived(400, pace_s=0.001)))
        lab.heal()
    assert lost[0] == lost[1]
    assert len(lost[0]) > 20


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ({"rate": "2mbit", "bucket": "20kB"}, "rate"),
        ({"drop_every": 10, "loss": "5%"}, "lost by number"),
        ({"slot": "5ms 10ms", "loss": "10%"}, "loss"),
    ],
    ids=str,
)
def test_probes_know_buckets_slots_and_numbers(lab: Lab, words: dict[str, Any], field: str) -> None:
    lab.impair("client -> server", prove=True, **words)
    (checks,) = lab.ledger.probed.values()
    assert {check.field: check.verdict for check in checks}[field] == Verdict.HOLDS


def test_a_kernel_whose_tc_counts_in_other_units_is_found_out_at_once(
    three: ComposeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if tc had set 1/15.625 of the delay, and reported the whole."""
    lab = three
    if lab.netem_engine != "carried":
        pytest.skip("no kernel is carried here")
    lab.heal()
    real, truth = qdisc.netem, readback.differences
    with monkeypatch.context() as broken:
        broken.setattr(lab.prober, "clocks_proven", set())
        broken.setattr(
            qdisc,
            "netem",
            lambda impairment: real(replace(impairment, delay_s=(impairment.delay_s or 0) / 15.625 or None)),
        )
        broken.setattr(readback, "differences", lambda *_: [])
        with pytest.raises(ImpairmentNotAppliedError, match=r"a delay of 10 ms took \d(\.\d+)? ms.*psched"):
            lab.impair("client -> server", delay="40ms")
    assert truth is readback.differences
    assert lab.impairer.impairments() == {}
    lab.impair("client -> server", delay="40ms")
    lab.heal()


def test_second_copies_are_counted_apart(lab: Lab, datagrams: Datagrams) -> None:
    lab.impair("client -> server", duplicate="20%", delay="5ms")
    came = datagrams.arrived(1000, pace_s=0.0005)
    lab.verifier.verify()
    (evidence,) = lab.ledger.evidence
    assert evidence.tally is not None
    copies = evidence.tally.duplicated
    assert len(came) > 1100
    if lab.netem_engine == "carried":  # counted at the port's root: with the word that ends it, said up to 30 times
        assert copies.low == copies.high
        assert 0 <= copies.low - (len(came) - 1000) <= 30
    assert evidence.tally.corrupted.high == 0


def test_an_impairment_that_no_longer_held_when_another_took_its_place_is_told(lab: Lab, datagrams: Datagrams) -> None:
    lab.impair("client -> server", delay="20ms")
    datagrams.arrived(5)
    minor = lab.ports.attached("server", "lan").sources[lab.link("client -> server").ref].minor
    tc(lab, f"qdisc delete dev DEVICE parent 1:{minor:x}")
    lab.impair("client -> server", delay="30ms")
    with pytest.raises(ImpairmentNotAppliedError, match="asked netem delay=20ms, the kernel reports none on this link"):
        lab.verifier.verify()
    lab.verifier.verify()  # told once
    lab.heal()


def test_what_cannot_be_probed_is_refused_before_anything_is_changed(wide: Lab) -> None:
    wide.impair("client -> server", delay="3ms")
    before = dict(wide.impairer.impairments())
    with pytest.raises(InvalidValueError, match="tcp/80: cannot be probed: probes are UDP datagrams"):
        wide.impair("client -> server tcp/80", delay="5ms", prove=True)
    with pytest.raises(InvalidValueError, match="client -> server: a timeline cannot be probed"):
        wide.impair("client -> server", [{"at": "1s", "loss": "1%"}], prove=True)
    assert dict(wide.impairer.impairments()) == before
    assert len(wide.ledger.history) == 1


def test_a_broken_table_hides_no_other_problem_of_what_is_asked(
    wide: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "measured.dist").write_text("one 2\n")
    monkeypatch.setattr(type(wide), "tables", Tables(tmp_path))
    with pytest.raises(InvalidValueError) as caught:
        wide.impair("client -> nobody", delay="5ms", jitter="1ms", distribution="measured.dist")
    assert [problem.partition(": ")[0] for problem in caught.value.problems] == [
        "link 'client -> nobody'",
        f"{tmp_path}/measured.dist:1",
    ]
    wide.impair("client -> server", delay="5ms")
