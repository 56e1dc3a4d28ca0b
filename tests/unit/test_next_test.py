"""State that is reset between two tests, each piece by itself, after a test that ended or was broken off."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from testbed import ImpairmentNotAppliedError, LabError
from testbed.errors import AgentError
from testbed.evidence.hoststate import EXITED, PAUSED, RUNNING, HostState
from testbed.evidence.metric import AUTOMATIC
from testbed.lab.elsewhere import Watched
from testbed.lab.host import Program
from testbed.lab.succession import CAPTURE
from testbed.observe.connections import Connection, Received
from testbed.observe.tcp_info import Endpoint
from testbed.pytest.running import RUN, RunningAttempt, end_captures
from testbed.spec.links import LinkRef
from testbed.spec.steps import parse_steps
from tests.unit.fakes import FakeLab

LINK, REF = "client -> server", LinkRef("client", "server", "lan")


@pytest.fixture
def lab() -> Iterator[FakeLab]:
    lab = FakeLab()
    lab.lifecycle.begin("one")
    yield lab
    lab.lifecycle.end()


def unread(lab: FakeLab) -> None:
    """Have the netem see packets, or nothing is judged."""
    lab.agent.netems["1:10"] |= {"packets": 10}


# --- by the end of a test alone ----------------------------------------------------------------------


def test_at_the_end_links_are_healed_programs_killed_and_nobody_watches_any_more(lab: FakeLab) -> None:
    stopped: list[str] = []
    lab.ledger.programs.append(cast("Program", SimpleNamespace(ended=False, stop=stopped.append)))
    lab.impair(LINK, delay="1ms")
    lab.cut("other -> server")
    lab.lifecycle.end()
    assert (lab.ports.impaired, lab.ports.cut, stopped) == ([], [], ["SIGKILL"])
    assert lab.agent.calls.count("rest") == 1


def test_at_the_end_a_paused_host_goes_on_before_anything_in_it_is_ended(lab: FakeLab) -> None:
    lab.states["server"] = HostState(status=RUNNING)
    lab.whole.up()
    lab.whole.pause("server")
    ran: list[str] = []
    program = SimpleNamespace(ended=False, stop=lambda _signal: ran.append(lab.states["server"].status))
    lab.ledger.programs.append(cast("Program", program))
    lab.lifecycle.end()
    assert ran == [RUNNING]


def test_at_the_end_a_broken_path_is_taken_out(lab: FakeLab) -> None:
    lab.impair(LINK, delay="1ms")
    lab.agent.amiss["server@lan"] = ["a tap is down"]
    lab.lifecycle.end()
    assert lab.agent.calls.count("repair") == 1
    assert lab.ports.at("server", "lan") is None


def test_out_of_a_test_a_healed_port_is_given_back_at_once_in_one_before_the_next(lab: FakeLab) -> None:
    lab.impair(LINK, delay="1ms")
    lab.heal()
    assert not lab.ports.attached("server", "lan").released
    lab.lifecycle.end()
    watched = lab.agent.calls.count("watch_passages")
    lab.impair(LINK, delay="1ms")
    lab.heal()
    assert lab.ports.attached("server", "lan").released
    assert lab.agent.calls.count("watch_passages") == watched, "nobody asks how late anything is"
    lab.impair(LINK, delay="1ms")
    lab.verifier.verify()
    assert not [check for check in lab.ledger.evidence[-1].checks if check.field == "lateness"]
    lab.heal()
    lab.lifecycle.begin("next")
    lab.impair(LINK, delay="1ms")
    lab.link(LINK).heal()
    assert not lab.ports.attached("server", "lan").released


def test_where_an_agent_died_the_test_ends_all_the_same(lab: FakeLab) -> None:
    lab.impair(LINK, delay="1ms")
    lab.agent.die()
    lab.lifecycle.end()
    assert list(lab.ports) == []
    lab.agent.lives = lab.agent.answers = True
    lab.impair(LINK, delay="1ms")
    lab.heal()
    assert lab.ports.attached("server", "lan").released, "no test runs"
    lab.lifecycle.begin("next")
    assert lab.left


def test_where_an_agent_died_programs_that_outlive_it_are_killed(lab: FakeLab) -> None:
    stopped: list[str] = []
    lab.ledger.programs.append(cast("Program", SimpleNamespace(ended=False, stop=stopped.append)))
    lab.agent.die()
    lab.lifecycle.end()
    assert stopped == ["SIGKILL"]


def test_at_the_end_an_agent_without_ports_that_died_is_let_go_of(lab: FakeLab) -> None:
    lab.capturing.die()
    lab.lifecycle.end()
    assert lab.forgotten == [CAPTURE]


def test_at_the_end_each_host_releases_what_the_test_alone_needed(
    lab: FakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[str] = []
    for host in lab.hosts.values():
        monkeypatch.setattr(host, "end_test", lambda name=host.name: released.append(name))
    lab.lifecycle.end()
    assert set(released) == set(lab.hosts)


def test_the_clocks_of_a_carried_kernel_stop_with_the_test_and_are_not_the_next_ones(lab: FakeLab) -> None:
    port = lab.ports.attached("server", "lan")
    port.kernel, lab.agent.carries, lab.agent.clocks = "tbk", True, {"tbk": 1}
    lab.impair(LINK, delay="1ms")
    lab.lifecycle.end()
    assert (lab.agent.clocks_watched, lab.agent.clocks_run) == ({"tbk": 1}, [True, False])
    lab.lifecycle.begin("next")
    port.kernel = None
    lab.impair(LINK, delay="1ms")
    lab.lifecycle.end()
    assert (lab.agent.clocks_watched, lab.agent.clocks_run) == ({}, [True, False])


def test_a_timeline_begins_with_the_body(lab: FakeLab) -> None:
    lab.impairer.apply(REF, parse_steps([{"delay": "1ms"}, {"at": "1s", "loss": "5%"}]))  # as markers do
    assert "play" not in lab.agent.calls
    lab.lifecycle.begin_body()
    assert "play" in lab.agent.calls


def connection(number: int, state: str = "FIN_WAIT1") -> Connection:
    """One that no program has."""
    return Connection(
        host="client",
        id=f"c{number}",
        local=Endpoint(address="172.18.0.2", port=number),
        remote=Endpoint(address="172.18.0.3", port=80),
        state=state,
        owned=False,
        unacknowledged_bytes=1,
        segments_sent=1,
    )


def test_connections_of_a_test_end_with_it_and_those_before_it_live_on(lab: FakeLab) -> None:
    lab.tables_of = {"client": [], "server": []}
    lab.lifecycle.begin("next")
    lab.tables_of["client"].append(connection(1))
    lab.lifecycle.end()
    assert lab.tables_of["client"] == []
    lab.tables_of["client"].append(connection(2))
    lab.lifecycle.begin("third")  # it was there before
    lab.tables_of["client"].append(connection(3))
    lab.lifecycle.end()
    assert [known.id for known in lab.tables_of["client"]] == ["c2"]


def test_what_a_connection_from_before_the_test_sends_in_its_body_is_counted(lab: FakeLab) -> None:
    def sent(segments: int) -> list[Connection]:
        return [replace(connection(1, "ESTABLISHED"), segments_sent=segments)]

    lab.tables_of = {"client": sent(1), "server": []}
    lab.lifecycle.begin("next")
    lab.impair(LINK, delay="1ms")
    lab.tables_of |= {"client": sent(3), "other": [connection(2)]}  # of a host that could not be read before
    lab.lifecycle.begin_body()
    lab.tables_of["client"] = sent(8)
    unread(lab)
    lab.verifier.verify()
    assert lab.ledger.evidence[0].earlier_packets == 5


def test_the_captures_of_a_test_are_not_paused_for_what_the_next_impairs(lab: FakeLab) -> None:
    item = cast("pytest.Item", SimpleNamespace(stash=pytest.Stash()))
    dropped: list[str] = []
    captures = SimpleNamespace(drop=lambda: dropped.append("captures"), putting=lambda *_: pytest.fail("paused"))
    item.stash[RUN] = run = RunningAttempt(seed=1)
    run.lab, run.captures = lab, cast("Any", captures)
    lab.impairer.putting = captures.putting
    end_captures(item, save=False)
    assert (dropped, run.captures) == (["captures"], None)
    lab.impair(LINK, delay="1ms")


# --- by the beginning of the next, also where the one before never ended -----------------------------


def test_a_test_that_broke_off_leaves_no_finding(lab: FakeLab) -> None:
    lab.cut(LINK)  # healed by the next one's beginning, which finds what it was
    lab.lifecycle.left_over = "a connection"
    lab.lifecycle.begin("next")
    assert (lab.ledger.over, lab.lifecycle.left_over, lab.ports.cut) == ([], "", [])


def test_what_is_told_of_a_test_whose_beginning_fails_is_not_of_the_one_before(
    lab: FakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.impair(LINK, delay="1ms")
    lab.record("n", 1, unit="s", better="lower")
    with monkeypatch.context() as broken:
        broken.setattr(lab.whole, "begin", lambda: pytest.fail("no host"))
        with pytest.raises(pytest.fail.Exception):
            lab.lifecycle.begin("next")
    assert (lab.ledger.metrics, lab.ledger.history, lab.ledger.seeds_from) == ({}, [], "next")


def test_what_was_counted_in_a_body_that_never_ended_is_not_the_next_ones(lab: FakeLab) -> None:
    lab.tables_of = {"client": [], "server": []}
    lab.counted = {"client": {"Tcp": {"RetransSegs": 1}}, "server": {"Tcp": {"RetransSegs": 1}}}
    lab.times = {"client": (1, 2.0)}
    lab.received = {"server": [Received(source="172.18.0.2", size_bytes=9)]}
    lab.measuring.groups = AUTOMATIC
    lab.lifecycle.begin_body()
    lab.lifecycle.end_body()
    assert (set(lab.measuring.counted), set(lab.measuring.used_s)) == ({"client", "server"}, {"client"})
    assert lab.measuring.received
    lab.lifecycle.begin_body()
    assert (lab.measuring.counted, lab.measuring.body_s[1]) == ({}, math.inf)
    lab.lifecycle.end_body()
    lab.lifecycle.begin_body()
    lab.lifecycle.begin("next")
    assert (lab.measuring.counted, lab.measuring.used_s, lab.measuring.received) == ({}, {}, {})
    lab.received = {}
    lab.lifecycle.end_body()  # of a body that did not begin
    assert (lab.measuring.counted, lab.measuring.used_s) == ({}, {})


def test_a_port_that_cannot_be_read_as_the_test_begins_has_refused_nothing(
    lab: FakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_port: object) -> Any:
        raise AgentError("the port is gone", kind="gone")

    port = lab.ports.attached("server", "lan")
    port.refused = 5
    monkeypatch.setattr(lab.ports, "entry", gone)
    lab.lifecycle.begin("next")
    assert port.refused == 0


def test_who_counts_on_another_path_of_a_link_that_is_healed_counts_no_more(lab: FakeLab) -> None:
    port = lab.ports.attached("server", "lan")
    lab.elsewhere.watched[REF] = Watched(port=port, minor=1)
    lab.lifecycle.begin("next", [REF])
    assert lab.elsewhere.watched
    lab.lifecycle.begin("third")
    assert not lab.elsewhere.watched
    assert port.released


def test_a_host_that_a_test_left_stopped_runs_again(lab: FakeLab) -> None:
    lab.states["server"] = HostState(status=RUNNING)
    lab.whole.up()
    lab.states["server"] = HostState(status=EXITED, exit_code=1)
    lab.lifecycle.begin("next")
    assert lab.states["server"].status == RUNNING


def test_another_agent_is_given_what_the_dead_one_held_and_the_death_is_told_once(lab: FakeLab) -> None:
    lab.impair(LINK, delay="1ms")
    lab.agent.die()
    with pytest.raises(ImpairmentNotAppliedError, match="the agent that holds the impairments ended"):
        lab.verifier.verify()
    lab.lifecycle.begin("next")
    assert len(lab.left) == 1
    lab.verifier.verify()
    lab.impair("server -> client", delay="1ms")
    lab.agent.die()
    lab.left = []
    lab.lifecycle.begin(
        "third"
    )  # what the first left is put right, and not handed on: this one held the client's port alone
    assert len(lab.left) == 1


def test_an_agent_that_died_and_holds_no_ports_is_let_go_of(lab: FakeLab) -> None:
    lab.capturing.die()
    lab.lifecycle.begin("next")
    assert lab.forgotten == [CAPTURE]


def test_a_broken_path_is_put_right_and_one_beyond_repair_refused_in_that_test_alone(lab: FakeLab) -> None:
    lab.impair(LINK, delay="1ms")
    lab.agent.amiss["server@lan"], lab.agent.beyond_repair = ["a tap is gone"], ["the bridge is gone"]
    lab.lifecycle.begin("next")
    with pytest.raises(ImpairmentNotAppliedError, match="beyond repair: the bridge is gone"):
        lab.impair(LINK, delay="1ms")
    lab.agent.amiss.clear()
    lab.lifecycle.begin("third")
    lab.impair(LINK, delay="1ms")


def test_lateness_is_watched_anew_and_known_though_it_was_not_before(
    lab: FakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_host: str) -> Any:
        raise LabError("no agent captures")

    with monkeypatch.context() as broken:
        broken.setattr(lab, "capture_agent", fails)
        lab.impair(LINK, delay="1ms")
        unread(lab)
        lab.verifier.verify()
        assert any("no agent captures" in warning for link in lab.ledger.evidence for warning in link.warnings)
    for name in ("next", "third"):
        lab.lifecycle.begin(name)
        before = lab.agent.calls.count("watch_passages")
        lab.impair(LINK, delay="1ms")
        unread(lab)
        lab.verifier.verify()
        assert lab.agent.calls.count("watch_passages") == before + 1
        (link,) = lab.ledger.evidence
        assert [check.kernel for check in link.checks if check.field == "lateness"] == ["this machine's timer"]


def test_a_test_that_does_not_count_for_lateness_says_what_to_do(lab: FakeLab) -> None:
    lab.ports.attached("server", "lan").kernel = "tbk"
    lab.agent.carries, lab.agent.passages_ns = True, {"tbk": [500_000_000]}
    lab.impair(LINK, delay="1ms")
    unread(lab)
    with pytest.raises(
        ImpairmentNotAppliedError, match=r"500ms late.*run fewer tests at once.*--testbed-lateness=warn"
    ):
        lab.verifier.verify()


@pytest.mark.parametrize("text", ["impaired", "cut"])
def test_a_network_to_which_both_ends_were_connected_between_two_tests_is_told(lab: FakeLab, text: str) -> None:
    lab.states |= {name: HostState(status=RUNNING, endpoints={"lan": name}) for name in ("client", "server", "other")}
    lab.whole.up()
    lab.lifecycle.end()
    for name in ("client", "server"):
        lab.states[name] = HostState(status=RUNNING, endpoints={"lan": name, "by hand": name})
    lab.lifecycle.begin("next")
    for link in (LINK, "other -> server"):
        if text == "cut":
            lab.cut(link)
        else:
            lab.impair(link, delay="1ms")
    with pytest.raises(
        ImpairmentNotAppliedError, match="`client` and `server` are connected to 'by hand' too"
    ) as raised:
        lab.verifier.verify()
    assert "`other`" not in str(raised.value)


def test_what_was_refused_before_the_carrier_and_at_the_port_is_the_test_befores(lab: FakeLab) -> None:
    lab.impair(LINK, delay="1ms")
    port = lab.ports.attached("server", "lan")
    port.kernel, port.entry, lab.agent.carries = "tbk", "veth0", True
    lab.agent.at_taps = {"to_host": {"in_packets": 10, "refused_packets": 90}, "from_host": {}}
    lab.agent.at_taps["from_host"] = dict.fromkeys(("in_packets", "refused_packets"), 0)
    lab.agent.entry = [{"options": {"actions": [{"kind": "mirred", "stats": {"packets": 500, "overlimits": 400}}]}}]
    lab.lifecycle.begin("next")
    assert port.refused == 400
    lab.impair(LINK, delay="1ms")
    unread(lab)
    lab.verifier.verify()
    (link,) = lab.ledger.evidence
    assert link.at_taps is not None
    assert (link.at_taps.came_packets, link.at_taps.refused_packets) == (0, 0)


def test_what_a_port_lost_as_it_was_given_its_qdiscs_is_in_the_evidence_of_that_test_alone(lab: FakeLab) -> None:
    lab.impair(LINK, delay="1ms")
    unread(lab)
    lab.agent.at_port = {"came_packets": 400, "refused_packets": 5}
    lab.verifier.verify()
    assert any(
        "5 of 400 packets" in warning and "not by netem" in warning for warning in lab.ledger.evidence[0].warnings
    )
    lab.lifecycle.begin("next")
    lab.impair(LINK, delay="1ms")
    unread(lab)
    lab.verifier.verify()
    assert not any("not by netem" in warning for warning in lab.ledger.evidence[0].warnings)


def test_a_port_that_was_given_back_is_made_anew_from_its_root(lab: FakeLab) -> None:
    lab.impair(LINK, delay="1ms", loss="2%")
    lab.impair(LINK, delay="1ms")  # a field vanished: the spare handle
    (source,) = lab.ports.attached("server", "lan").sources.values()
    source.beyond_before = 3
    lab.lifecycle.begin("next")
    assert not source.led
    assert not source.spare
    assert source.beyond_before is None
    lines: list[Any] = []
    call = lab.agent.call

    def heard(operation: str, **arguments: Any) -> Any:
        lines.extend(arguments.get("lines", ()))
        return call(operation, **arguments)

    lab.agent.call = heard
    lab.impair(LINK, delay="1ms")
    assert any("root handle 1: htb" in line for line in lines if isinstance(line, str))
    unread(lab)
    lab.verifier.verify()


def test_a_paused_host_is_not_forgotten_where_the_test_broke_off(lab: FakeLab) -> None:
    lab.states["server"] = HostState(status=RUNNING)
    lab.whole.up()
    lab.whole.pause("server")
    assert lab.states["server"].status == PAUSED
    lab.lifecycle.begin("next")
    assert lab.states["server"].status == RUNNING
