"""Metrics: what a test may record, what is refused, and the automatic ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from testbed.backends.docker import cgroups
from testbed.errors import InvalidValueError
from testbed.evidence.metric import AUTOMATIC, Metric, automatic, recorded
from testbed.evidence.programs import ProgramRun
from testbed.observe.connections import Received
from testbed.pytest.state import metric_groups
from tests.unit.fakes import FakeLab


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "fast", None, True, {"a": 1}, [1, "x", None]])
def test_a_sample_is_a_finite_number(value: Any) -> None:
    lab = FakeLab()
    with pytest.raises(InvalidValueError, match="must be a finite number"):
        lab.record("speed", value, unit="s", better="lower")
    assert lab.ledger.metrics == {}


@pytest.mark.parametrize(
    ("values", "kept"), [(1, (1.0,)), ([1, 2.5], (1.0, 2.5)), ((x / 2 for x in range(3)), (0.0, 0.5, 1.0))]
)
def test_one_value_or_several(values: Any, kept: tuple[float, ...]) -> None:
    lab = FakeLab()
    lab.record("speed", values, unit="s", better="lower")
    lab.record("speed", 7, unit="s", better="lower")
    assert lab.ledger.metrics["speed"].values == (*kept, 7.0)


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(InvalidValueError) as raised:
        recorded("", [], unit=3, better="fast", least_effect=0.05)
    assert list(raised.value.problems) == [
        "name='': must be text",
        "unit=3: must be text",
        "better='fast': must be 'lower' or 'higher'",
        'least_effect=0.05: a percentage needs its sign; write least_effect="0.05%" or, if that is a share of 1, "5%"',
        "record('', []): no value",
    ]
    with pytest.raises(InvalidValueError, match=r"least_effect='0%': must be more than 0"):
        recorded("a", 1, unit="s", better="lower", least_effect="0%")
    with pytest.raises(InvalidValueError, match=r"'wire: ' begins the names of metrics that come by themselves"):
        recorded("wire: mine", 1, unit="s", better="lower", least_effect="5%")


def test_the_same_name_means_the_same_metric() -> None:
    lab = FakeLab()
    lab.record("speed", 1, unit="s", better="lower")
    with pytest.raises(InvalidValueError) as raised:
        lab.record("speed", 2, unit="ms", better="higher", least_effect="1%")
    assert list(raised.value.problems) == [
        "record('speed'): unit='ms', and before 's'",
        "record('speed'): better='higher', and before 'lower'",
        "record('speed'): least_effect=0.01, and before 0.05",
    ]
    assert lab.ledger.metrics["speed"].values == (1.0,)


@pytest.mark.parametrize(
    ("unit", "values", "described"),
    [
        ("s", (0.0125,), "12.5 ms (lower is better)"),
        ("s", (0.0,), "0 ns (lower is better)"),
        ("B", (1234567.0,), "1.235 MB (lower is better)"),
        ("", (1.0, 2.0, 30000.0), "2 (median of 3, 1 to 30000) (lower is better)"),
        ("s", (4000.0, 2e-7), "2000 s (median of 2, 200 ns to 4000 s) (lower is better)"),
    ],
)
def test_a_metric_is_described_in_a_unit_that_reads_well(unit: str, values: tuple[float, ...], described: str) -> None:
    assert Metric(name="n", values=values, unit=unit, better="lower").describe() == described


def test_a_name_is_a_line_that_tables_xml_and_terminals_take() -> None:
    for name in ("a\nb", "a\x1b[31m", "x" * 201, " a"):
        with pytest.raises(InvalidValueError, match="must be one line of at most 200 printable characters"):
            recorded(name, 1, unit="s", better="lower", least_effect="5%")
    assert automatic("programs", "sh -c 'a\n\x00b'", [1], "s").name == "programs: sh -c 'a \\x00b'"


# --- lab.timed ---------------------------------------------------------------------------------------


def test_a_block_is_timed_and_one_that_raises_is_not_recorded() -> None:
    lab = FakeLab()
    for _ in range(2):
        with lab.timed("work", least_effect="1%"):
            pass
    with pytest.raises(KeyError), lab.timed("work", least_effect="1%"):
        raise KeyError
    metric = lab.ledger.metrics["work"]
    assert (metric.unit, metric.better, metric.least_effect, metric.group) == ("s", "lower", 0.01, "timed")
    assert len(metric.values) == 2
    assert all(value > 0 for value in metric.values)


def test_what_is_wrong_with_a_timed_block_is_told_before_it_runs() -> None:
    lab = FakeLab()
    lab.record("work", 1, unit="s", better="lower")
    for name in ("", "work"):
        with pytest.raises(InvalidValueError), lab.timed(name):
            pytest.fail("it ran")


# --- by themselves -----------------------------------------------------------------------------------

READINGS = {"Tcp": {"OutSegs": 10, "RetransSegs": 1}, "TcpExt": {"TCPSynRetrans": 0}}


def program(**changed: Any) -> ProgramRun:
    fields = {
        "host": "client",
        "argv": ("upload",),
        "exit_code": 0,
        "duration_s": 1.0,
        "cpu_s": 0.25,
        "stopped": False,
        "output": "",
        "output_left_out": 0,
        **changed,
    }
    return ProgramRun(**fields)


def values(lab: FakeLab, *programs: ProgramRun) -> dict[str, tuple[float, ...]]:
    return {metric.name: metric.values for metric in lab.measuring.metrics(programs, lab.ledger.evidence)}


def test_programs_that_were_awaited_are_samples_of_their_command_and_processor_time_is_each_hosts() -> None:
    lab = FakeLab()
    ran = [
        program(),
        program(duration_s=2.0),
        program(stopped=True),
        program(duration_s=None, cpu_s=None),
        program(host="server", cpu_s=None, argv=("x" * 99, "y")),
    ]
    assert values(lab, *ran) == {
        "programs: client: upload": (1.0, 2.0),
        f"programs: server: {'x' * 99}…": (1.0,),
        "cpu: client": (0.75,),
    }


def test_of_a_host_whose_programs_are_known_as_a_whole_processor_time_is_theirs() -> None:
    lab = FakeLab()
    lab.times = {"client": (1, 2.0), "server": (1, 7.0), "idle": (1, 3.0)}
    lab.lifecycle.begin_body()
    lab.times = {"client": (1, 2.5), "server": (2, 7.5), "idle": (1, 3.0)}  # the server was started again
    lab.lifecycle.end_body()
    assert values(lab, program(duration_s=None), program(host="other", duration_s=None)) == {
        "cpu: client": (0.5,),
        "cpu: other": (0.25,),
    }
    lab.lifecycle.begin("next")
    assert values(lab) == {}


def test_goodput_is_payload_by_the_time_in_which_awaited_programs_ran() -> None:
    lab = FakeLab()
    client, server = (lab.hosts[name].addresses("lan")[0] for name in ("client", "server"))
    lab.tables_of = {"client": [], "server": []}
    lab.lifecycle.begin_body()
    assert lab.counting == ["client", "server"]
    sizes = [(client, 600), (client, 300), ("203.0.113.9", 5), (server, 7)]
    lab.received = {
        "server": [Received(source=source, size_bytes=size) for source, size in sizes],
        "client": [Received(source=server, size_bytes=0)],
    }
    lab.lifecycle.end_body()
    begin, _ = lab.measuring.body_s
    lab.measuring.body_s = (begin, begin + 10)
    ran = [
        program(began_s=begin - 1, duration_s=2.0, cpu_s=None),  # a half of it before the body
        program(began_s=begin + 0.5, duration_s=1.5, cpu_s=None, host="server"),
        program(began_s=begin + 5, duration_s=1.0, cpu_s=None),
        program(began_s=begin, duration_s=9.0, cpu_s=None, host="other"),
        program(began_s=begin, duration_s=9.0, cpu_s=None, stopped=True),
        program(began_s=begin, duration_s=None, cpu_s=None),
    ]
    goodput = {name: value for name, (value, *_) in values(lab, *ran).items() if name.startswith("goodput")}
    assert goodput == {"goodput: client -> server": pytest.approx(900 / 3)}
    assert not [name for name in values(lab, *ran[3:]) if name.startswith("goodput")], "nothing ran there"


CGROUPS = [
    ("4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/docker/abc\n", "cpuacct/docker/abc", "cpuacct.usage",
     "1500000000"),
    ("0::/system.slice/docker-abc.scope/init.scope\n", "system.slice/docker-abc.scope", "cpu.stat",
     "usage_usec 1500000\nuser_usec 1\n"),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "place", "name", "content"), CGROUPS, ids=["version 1", "version 2"])
def test_a_containers_cgroup_counts_its_processor_time(
    tmp_path: Path, lines: str, place: str, name: str, content: str
) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text(lines)
    assert cgroups.folder(7, "abc", proc=tmp_path, cgroups=tmp_path / "fs") is None, "it is on another machine"
    (tmp_path / "fs" / place).mkdir(parents=True)
    (tmp_path / "fs" / place / name).write_text(content)
    counting = cgroups.folder(7, "abc", proc=tmp_path, cgroups=tmp_path / "fs")
    assert counting == tmp_path / "fs" / place
    number, used_s = cgroups.used_s(counting) or (0, 0.0)
    assert (number, used_s) == (counting.stat().st_ino, 1.5)
    for pid, container in ((7, "other"), (8, "abc")):
        assert cgroups.folder(pid, container, proc=tmp_path, cgroups=tmp_path / "fs") is None
    assert cgroups.used_s(tmp_path / "gone") is None


def test_what_netem_counted_during_the_body_is_of_the_test() -> None:
    lab = FakeLab()
    lab.lifecycle.begin("seed")
    lab.impair("client -> server", delay="1ms")
    (netem,) = lab.agent.netems.values()
    netem.update(packets=5, bytes=500, drops=0)
    lab.impair("client -> server", loss="30%")
    lab.lifecycle.begin_body()
    (netem,) = lab.agent.netems.values()
    netem.update(packets=12, bytes=1500, drops=3)
    lab.lifecycle.end_body()
    lab.verifier.verify()
    lab.heal()
    lab.lifecycle.end_body()
    lab.verifier.verify()
    assert values(lab) == {
        "wire: packets client -> server on lan": (10.0,),
        "wire: bytes client -> server on lan": (1000.0,),
        "netem: drops client -> server on lan": (3.0,),
    }


def test_what_a_hosts_kernel_counted_during_the_body_is_of_the_test() -> None:
    lab = FakeLab()
    lab.tables_of = {"client": [], "server": [], "other": []}
    lab.counted = dict.fromkeys(lab.tables_of, READINGS)
    lab.lifecycle.begin("seed")
    lab.lifecycle.begin_body()
    lab.counted = {
        "client": {"Tcp": {"OutSegs": 30, "RetransSegs": 3}, "TcpExt": {"TCPSynRetrans": 1}},
        "server": {"Tcp": {"OutSegs": 2, "RetransSegs": 0}, "TcpExt": {"TCPSynRetrans": 0}},  # it was started again
        "other": READINGS,
    }
    lab.lifecycle.end_body()
    lab.verifier.verify()
    expected = {
        "tcp: segments sent by client": (20.0,),
        "tcp: segments sent again by client": (2.0,),
        "tcp: SYN time-outs of client": (1.0,),
    }
    assert values(lab) == expected
    lab.measuring.groups = {"wire"}
    assert values(lab) == {}
    lab.lifecycle.begin("next")
    lab.measuring.groups = AUTOMATIC
    assert values(lab) == {}, "nothing of the test before"


def test_of_many_hosts_only_those_at_an_impaired_link_are_read() -> None:
    lab = FakeLab()
    lab.tables_of = {host: [] for host in (*(f"host{number}" for number in range(40)), "client", "server")}
    lab.counted = dict.fromkeys(lab.tables_of, READINGS)
    lab.lifecycle.begin("seed")
    lab.impair("client -> server", delay="1ms")
    lab.lifecycle.begin_body()
    lab.lifecycle.end_body()
    lab.verifier.verify()
    assert set(lab.measuring.counted) == {"client", "server"}


@pytest.mark.parametrize(("text", "groups"), [("all", set(AUTOMATIC)), ("none", set()), ("wire, tcp", {"wire", "tcp"})])
def test_groups_can_be_switched_off(text: str, groups: set[str]) -> None:
    assert metric_groups(text) == groups


def test_an_unknown_group_is_refused_before_anything_runs(pytester: pytest.Pytester) -> None:
    done = pytester.runpytest_subprocess("--testbed-metrics", "wires,tcp,packets")
    assert done.ret == 2
    done.stderr.fnmatch_lines(
        [
            "*'wires': unknown; did you mean 'wire'? Known: programs, cpu, wire, goodput, *",
            "*'packets': unknown; known: *",
        ]
    )
