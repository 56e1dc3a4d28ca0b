"""The face of a lab and its parts, on fake agents: what is put on links, what is found, and what is forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from testbed import ImpairmentNotAppliedError, InvalidValueError, Lab, LabError
from testbed.evidence.proof import AtTaps
from testbed.evidence.verdict import Verdict
from testbed.lab.host import Program
from testbed.lab.ledger import Ledger
from testbed.lab.ports import Port, Reading
from testbed.lab.recording import Recording
from testbed.netem import qdisc
from testbed.spec.impairment import CLEAN, Impairment
from testbed.spec.links import LinkRef
from testbed.spec.profile import Profile
from tests.unit.fakes import FakeHost, FakeLab

LINK = "client -> server"
REF = LinkRef("client", "server", "lan")
BACK = LinkRef("server", "client", "lan")


@pytest.fixture
def lab() -> Iterator[FakeLab]:
    lab = FakeLab()
    lab.lifecycle.begin("seeds")
    yield lab
    lab.lifecycle.end()


def passed(lab: FakeLab, packets: int, drops: int = 0, parent: str = "1:10") -> None:
    """As if the netem had seen them."""
    lab.agent.netems[parent] |= {"packets": packets, "drops": drops}


# --- the face ------------------------------------------------------------------------------------------


def test_a_lab_has_in_public_what_the_reference_teaches_and_nothing_else() -> None:
    reference = (Path(__file__).parents[2] / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    _, _, members = reference.partition(".. autoclass:: testbed.Lab\n   :members: ")
    taught = {name.strip() for name in members.partition("\n\n")[0].split(",")}
    assert {name for part in (Lab, Recording) for name in vars(part) if not name.startswith("_")} | {"hosts"} == taught


# --- ports ---------------------------------------------------------------------------------------------


def test_a_change_of_an_impaired_link_is_one_request_and_asks_no_host(
    lab: FakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.impair(LINK, delay="10ms")
    lab.agent.calls.clear()
    monkeypatch.setattr(FakeHost, "mac", lambda _host, _network: pytest.fail("a request to an engine or a host"))
    lab.impair(LINK, delay="20ms")
    assert lab.agent.calls == ["tc"]


def test_links_that_are_healed_together_are_verified_by_one_reading_of_their_port(
    lab: FakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.impair("* -> server", delay="10ms")
    readings: list[int] = []
    read = lab.ports.read

    def counted(port: Port, refs: Sequence[LinkRef]) -> Reading:
        readings.append(len(refs))
        return read(port, refs)

    monkeypatch.setattr(lab.ports, "read", counted)
    lab.agent.netems.clear()  # somebody else's work
    lab.heal()
    assert readings == [2]
    assert [(evidence.link, evidence.read_back) for evidence, _ in lab.ledger.over] == [
        ("client -> server", Verdict.FAILS),
        ("other -> server", Verdict.FAILS),
    ]


def test_of_links_that_are_healed_together_one_whose_end_is_gone_is_told_alone(
    lab: FakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.impair("* -> server", delay="10ms")
    read = lab.ports.read

    def read_without_client(port: Port, refs: Sequence[LinkRef]) -> Reading:
        if REF in refs:
            raise ImpairmentNotAppliedError(f"{REF}: its end is gone")
        return read(port, refs)

    monkeypatch.setattr(lab.ports, "read", read_without_client)
    lab.heal()
    errors_of = {evidence.link: [str(error) for error in errors] for evidence, errors in lab.ledger.over}
    assert errors_of == {"client -> server": ["client -> server: its end is gone"], "other -> server": []}


def test_a_link_is_impaired_at_its_receivers_port_and_read_back(lab: FakeLab) -> None:
    (applied,) = lab.impair(LINK, delay="40ms")
    assert applied.command == "tc qdisc replace dev veth1 parent 1:10 handle 10: netem limit 41000 delay 40ms"
    assert lab.impairer.impairments() == {REF: Impairment(delay_s=0.04)}
    assert {filter_["options"]["classid"] for filter_ in lab.agent.filters.values() if filter_["pref"] > 2} == {"1:10"}
    lab.heal()
    assert lab.impairer.impairments() == {}
    assert lab.agent.netems == {}


def _misled(line: qdisc.TcLine) -> qdisc.TcLine:
    return line.replace("src_ip 172.18.0.2", "src_ip 172.18.0.9") if isinstance(line, str) else line


def test_what_the_kernel_holds_otherwise_is_refused_and_the_other_half_taken_off(
    lab: FakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = lab.agent.call

    def other(operation: str, **arguments: Any) -> Any:
        if operation == "tc":
            arguments["lines"] = [_misled(line) for line in arguments["lines"]]
        return real(operation, **arguments)

    monkeypatch.setattr(lab.agent, "call", other)
    with pytest.raises(ImpairmentNotAppliedError, match=r"client -> server.*asked filter src_ip 172\.18\.0\.2"):
        lab.impair("server <-> client", delay="40ms")
    assert lab.ports.impaired == [REF], "what the kernel holds in its place is known"
    lab.heal()
    assert lab.agent.netems == {}


def test_two_senders_and_two_parts_of_one_have_classes_of_their_own(lab: FakeLab) -> None:
    for link in (LINK, "other -> server", "client -> server tcp/80", "client -> server tcp/81"):
        lab.impair(link, delay="5ms")
    sources = lab.ports.attached("server", "lan").sources
    assert [(source.minor, source.part) for source in sources.values()] == [(16, 0), (17, 0), (18, 0), (19, 1)]
    assert sorted(lab.agent.netems) == ["1:10", "1:11", "1:12", "1:13"]


def test_a_port_that_begins_anew_has_all_that_was_on_it_again(lab: FakeLab) -> None:
    lab.impair(LINK, delay="40ms")
    lab.cut("other -> server")
    lab.agent.netems.clear()
    lab.agent.filters.clear()
    lab.ports.renew(REF)
    lab.verifier.verify()
    assert lab.impairer.impairments() == {REF: Impairment(delay_s=0.04)}
    assert [str(ref) for ref in lab.ports.cut] == ["other -> server"]
    lab.mend()


def test_a_port_goes_to_another_process_as_it_is(lab: FakeLab) -> None:
    lab.impair(LINK, delay="40ms", loss="2%")
    lab.cut("other -> server tcp/80")
    other = FakeLab()
    other.agent = lab.agent
    other.ports.take_up(lab.ports.state(), lab.capture_agent())
    assert other.impairer.impairments() == lab.impairer.impairments()
    assert other.ports.cut == lab.ports.cut
    other.verifier.verify()
    other.heal()
    assert lab.agent.netems.keys() <= {"1:4011"}, "a cut's class stays, with nothing led to it"


# --- what a test asked and what was found ------------------------------------------------------------


def test_what_was_found_is_in_the_evidence(lab: FakeLab) -> None:
    lab.impair(LINK, delay="40ms", loss="2%")
    lab.cut("other -> server")
    passed(lab, 90, 10)
    lab.verifier.verify()
    link, cut = lab.ledger.evidence
    assert (link.link, link.read_back, link.counters, link.met_packets) == (LINK, Verdict.HOLDS, Verdict.HOLDS, 100)
    assert cut.warnings == ["no packet met the cut"]
    lab.impair("server -> client", delay="1ms")
    lab.heal()
    lab.verifier.verify()
    assert [link.link for link in lab.ledger.evidence] == [LINK, "server -> client", "other -> server"]


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        (lambda lab: lab.agent.netems.clear(), "none on this link"),
        (lambda lab: lab.agent.netems["1:10"]["options"]["delay"].update(delay=0.1), "kernel reports 100ms"),
        (lambda lab: lab.agent.filters.clear(), "asked filter src_ip"),
        (lambda lab: passed(lab, 10, 900_000), "queue overflowed"),
        (lambda lab: lab.agent.amiss.update({"server@lan": ["a tap is down"]}), "path .* is broken: a tap is down"),
    ],
)
def test_what_does_not_hold_is_raised_once_and_not_again_by_healing(
    lab: FakeLab, broken: Callable[[FakeLab], None], text: str
) -> None:
    lab.impair(LINK, delay="40ms")
    lab.verifier.verify()
    broken(lab)
    with pytest.raises(ImpairmentNotAppliedError, match=text):
        lab.verifier.verify()
    assert [Verdict.FAILS in (link.read_back, link.counters) for link in lab.ledger.evidence] == [True]
    lab.agent.amiss.clear()
    lab.lifecycle.begin(None)
    lab.verifier.verify()


def test_a_reason_that_links_share_is_told_once_and_each_links_own_with_it(
    lab: FakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    for link in (LINK, "other -> server", "server -> client", "server -> other"):
        lab.impair(link, delay="40ms")
    lab.agent.netems["1:10"]["options"]["limit"] = 1
    monkeypatch.setattr(lab.carriage, "timed", lambda evidence, *_, **__: (evidence, ["the machine was late"]))
    with pytest.raises(ImpairmentNotAppliedError) as raised:
        lab.verifier.verify()
    own, shared = str(raised.value).splitlines()
    assert own.startswith("port of `server` on `lan` (client -> server), engine host: asked limit 41000")
    assert shared == (
        "client -> server on `lan`, other -> server on `lan`, server -> client on `lan` and 1 more: "
        "the machine was late"
    )


def test_what_is_healed_in_mid_test_is_looked_at_before(lab: FakeLab) -> None:
    lab.impair(LINK, delay="40ms")
    lab.agent.netems["1:10"]["options"]["limit"] = 1
    lab.link(LINK).heal()
    with pytest.raises(ImpairmentNotAppliedError, match="asked limit 41000, the kernel reports 1"):
        lab.verifier.verify()
    lab.verifier.verify()  # once


# --- between tests -------------------------------------------------------------------------------------


def delay(lab: FakeLab) -> None:
    lab.impair(LINK, delay="1ms")


def cut(lab: FakeLab) -> None:
    lab.cut(LINK)


def ended() -> Program:
    return cast("Program", SimpleNamespace(ended=True))


STATE: dict[str, tuple[Sequence[Callable[[FakeLab], object]], Callable[[FakeLab], Any], Any]] = {
    "impairment": ([delay], lambda lab: lab.impairer.impairments(), {}),
    "cut": ([cut], lambda lab: lab.ports.cut, []),
    "history": ([delay], lambda lab: lab.ledger.history, []),
    "record": ([lambda lab: lab.record("n", 1, unit="s", better="lower")], lambda lab: lab.ledger.metrics, {}),
    "program": ([lambda lab: lab.ledger.programs.append(ended())], lambda lab: lab.ledger.programs, []),
    "probed": ([lambda lab: lab.ledger.probed.update({REF: []})], lambda lab: lab.ledger.probed, {}),
    "step": ([lambda lab: lab.ledger.add_steps(REF, [])], lambda lab: lab.ledger.steps, {}),
    "told": ([lambda lab: lab.ledger.reported.add(REF)], lambda lab: lab.ledger.reported, set()),
    "evidence": ([delay, lambda lab: lab.verifier.verify()], lambda lab: lab.ledger.evidence, []),
    "over": ([cut, FakeLab.mend], lambda lab: lab.ledger.over, []),
    "suspended": ([cut, lambda lab: lab.suspensions.suspend("server")], lambda lab: lab.suspensions.links, {}),
    "met a cut": (
        [cut, lambda lab: passed(lab, 0, 3, "1:4010"), FakeLab.mend],
        lambda lab: lab.ports.known(REF)[1].met_cut,
        False,
    ),
    "offloads": ([delay], lambda lab: lab.ports.per_packet.state(), []),
    "released": ([delay], lambda lab: {port.released for port in lab.ports}, {True}),
    "seeds": ([], lambda lab: lab.ledger.seeds_from, "the next"),
    "carriage": ([delay], lambda lab: any(map(lab.carriage.used, lab.ports)), False),
    "left over": (
        [lambda lab: setattr(lab.lifecycle, "left_over", "a connection")],
        lambda lab: lab.lifecycle.left_over,
        "",
    ),
}


@pytest.mark.parametrize("what", STATE)
def test_the_next_test_knows_nothing_of_the_one_before(lab: FakeLab, what: str) -> None:
    steps, look, fresh = STATE[what]
    for step in steps:
        step(lab)
    assert look(lab) != fresh, "or this test could not fail"
    lab.lifecycle.end()
    lab.lifecycle.begin("the next")
    assert look(lab) == fresh


def test_what_a_healed_link_was_is_not_the_next_tests_finding(lab: FakeLab) -> None:
    lab.impair(LINK, delay="40ms")
    lab.agent.netems["1:10"]["options"]["limit"] = 1
    lab.lifecycle.end()
    lab.lifecycle.begin(None)
    lab.verifier.verify()
    assert lab.ledger.evidence == []


def test_a_seed_is_the_links_and_the_times_own_and_the_same_in_the_next_run(lab: FakeLab) -> None:
    first = [applied.impairment.seed for applied in (*lab.impair(LINK, loss="1%"), *lab.impair(LINK, loss="2%"))]
    (other,) = lab.impair("other -> server", loss="1%")
    assert len({*first, other.impairment.seed}) == 3
    lab.lifecycle.begin("seeds")
    assert [
        applied.impairment.seed for applied in (*lab.impair(LINK, loss="1%"), *lab.impair(LINK, loss="2%"))
    ] == first
    (named,) = lab.impair(LINK, loss="1%", seed=7)
    assert named.impairment.seed == 7
    assert Ledger().seed(REF, Impairment(loss_ratio=0.1), seedable=True) is None, "nothing to derive it from"


def test_a_sequence_begins_with_the_body_only_where_packets_came_before(lab: FakeLab) -> None:
    lab.impair(LINK, loss="2%")
    handle = lab.agent.netems["1:10"]["handle"]
    before = lab.agent.calls.count("tc")
    lab.lifecycle.begin_body()
    assert lab.agent.calls.count("tc") == before + 1, "looked at, and nothing put"
    passed(lab, 5)
    lab.lifecycle.begin_body()
    assert lab.agent.calls.count("tc") > before + 2
    assert lab.agent.netems["1:10"]["handle"] == handle, "in place: what is queued stays"


# --- the face --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda lab: lab.host("srver"), "host 'srver': unknown; did you mean 'server'"),
        (lambda lab: lab.link("client <-> server"), "names 2 links"),
        (lambda lab: lab.impair("client -> srver", dely="1ms"), "dely"),
        (lambda lab: lab.cut(LINK, reject="yes"), "reject='yes': must be True or False"),
        (lambda lab: lab.flap(LINK, up="1ms", down="soon"), "up='1ms': at least 50ms"),
        (lambda lab: lab.partition({"client"}, {"client"}), "in two groups"),
        (lambda lab: lab.link(LINK).impair(Impairment(), delay="1ms"), "not both"),
        (lambda lab: lab.record("", float("nan"), unit="s", better="up"), "finite number"),
        (lambda lab: lab.capture("server", limit_bytes=0), "numbers of bytes above 0"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_done(
    lab: FakeLab, call: Callable[[FakeLab], object], text: str
) -> None:
    with pytest.raises(InvalidValueError) as refused:
        call(lab)
    assert text in str(refused.value)
    assert (lab.ports.impaired, lab.ports.cut, lab.agent.netems) == ([], [], {})


def test_a_partition_cuts_both_ways_and_a_mended_one_leaves_nothing_led(lab: FakeLab) -> None:
    cut = lab.partition({"client"}, {"server", "other"})
    assert sorted(map(str, cut)) == [
        "client -> other",
        "client -> server",
        "other -> client",
        "server -> client",
    ]
    passed(lab, 0, 3, "1:4010")
    assert lab.link(LINK).lost_in_cut() == 3
    lab.mend()
    assert lab.ports.cut == []
    assert [filter_ for filter_ in lab.agent.filters.values() if filter_["pref"] > 2] == []


def test_a_cut_lies_over_an_impairment_that_stays(lab: FakeLab) -> None:
    link = lab.link(LINK)
    link.impair(delay="40ms")
    link.cut()
    assert link.impairment == Impairment(delay_s=0.04)
    link.mend()
    link.heal()
    assert link.impairment is None
    with pytest.raises(LabError, match="is not impaired"):
        link.counters()


def test_what_a_stopped_host_had_is_put_back_when_it_runs(lab: FakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.impair(LINK, delay="40ms")
    lab.cut("server -> client")
    lab.suspensions.suspend("server")
    assert (lab.ports.impaired, lab.ports.cut) == ([], [])
    monkeypatch.setattr(lab.whole, "running", lambda _host: True)
    lab.suspensions.resume(lab.whole.running)
    assert (lab.ports.impaired, lab.ports.cut) == ([REF], [BACK])


def test_what_was_healed_while_its_host_stood_still_does_not_come_back(
    lab: FakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.impair(LINK, delay="40ms")
    lab.suspensions.suspend("server")
    lab.link(LINK).heal()
    monkeypatch.setattr(lab.whole, "running", lambda _host: True)
    lab.suspensions.resume(lab.whole.running)
    assert lab.ports.impaired == []


def test_an_impairment_of_nothing_is_still_one(lab: FakeLab) -> None:
    lab.impair(LINK, Profile(name="clean"))
    assert lab.impairer.impairments() == {REF: CLEAN}
    lab.verifier.verify()
    (link,) = lab.ledger.evidence
    assert (link.counters, link.met_packets, link.at_taps) == (Verdict.SHOWN, 0, None)
    assert AtTaps(3, 1) - AtTaps(2, 1) == AtTaps(1, 0)
