"""The built-in traces: their generator writes them again to the byte, and profiles can use all of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from testbed.errors import InvalidValueError
from testbed.netem.profiles import checked_side, load_profiles, parse_profile, read_trace
from testbed.netem.schedule import compile_timeline
from testbed.resources import resource
from testbed.spec.timeline import Phase, Timeline

FOLDER = resource("netem") / "traces"
TRACES = sorted(path for path in FOLDER.iterdir() if path.suffix not in (".py", ".pyc") and path.is_file())


def test_the_generator_writes_the_same_bytes_again(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(FOLDER / "generate.py"), str(tmp_path)], check=True, timeout=60)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in TRACES
    }
    assert len(TRACES) >= 4


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.name)
def test_every_trace_can_be_run_and_changes_something(path: Path) -> None:
    side = checked_side({"trace": f"traces/{path.name}", **({"repeat": "200s"} if path.suffix == ".csv" else {})})
    assert isinstance(side, Timeline)
    assert len(compile_timeline(side, seed=1).moments) > 10
    assert not side.is_clean


def test_every_trace_has_a_profile_that_uses_it() -> None:
    used = {
        side.trace
        for profile in load_profiles().values()
        for side in (profile.forward, profile.reverse)
        if isinstance(side, Timeline)
    }
    assert {f"traces/{path.name}" for path in TRACES} <= used


def test_a_profiles_trace_is_looked_for_beside_it_first_and_then_among_ours(tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "tunnel.csv").write_text("time_s,delay_ms\n0,1\n5,2\n")
    (tmp_path / "mine.yaml").write_text("both: {trace: traces/tunnel.csv}\n")
    (tmp_path / "theirs.yaml").write_text("both: {trace: traces/train.csv}\n")
    profiles = load_profiles(tmp_path)
    assert isinstance(profiles["mine"].forward, Timeline)
    assert len(profiles["mine"].forward.phases) == 2
    assert isinstance(profiles["theirs"].forward, Timeline)
    assert len(profiles["theirs"].forward.phases) > 100
    assert read_trace("traces/tunnel.csv") == (FOLDER / "tunnel.csv").read_text()


def test_a_file_that_changed_is_read_anew_and_so_is_its_trace(tmp_path: Path) -> None:
    profile, trace = tmp_path / "mine.yaml", tmp_path / "mine.csv"
    profile.write_text("both: {trace: mine.csv}\n")
    trace.write_text("time_s,delay_ms\n0,1\n5,2\n")

    def phases() -> tuple[Phase, ...]:
        side = load_profiles(tmp_path)["mine"].forward
        assert isinstance(side, Timeline)
        return side.phases

    first = phases()
    assert phases() is first
    trace.write_text("time_s,delay_ms\n0,1\n5,3\n")
    assert [phase.impairment.delay_s for phase in phases()] == [0.001, 0.003]
    profile.write_text("both: {trace: mine.csv, loss: 1%}\n")
    assert {phase.impairment.loss_ratio for phase in phases()} == {0.01}
    trace.unlink()
    with pytest.raises(InvalidValueError, match=r"mine\.yaml: both: trace 'mine\.csv': no such file"):
        load_profiles(tmp_path)["mine"]


def test_a_trace_that_is_nowhere_is_refused_with_the_places(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("both: {trace: traces/none.csv}\n")
    with pytest.raises(Exception, match=r"mine\.yaml: both: trace 'traces/none\.csv': no such file in .*netem"):
        load_profiles(tmp_path)["mine"]


def test_a_files_steps_are_refused_with_their_lines() -> None:
    with pytest.raises(Exception, match=r"forward: step 2 \(line 3\): delay=5: a duration needs a unit"):
        parse_profile("x", "forward:\n  - {delay: 1ms}\n  - {at: 1s, delay: 5}\n")


def test_steps_that_cannot_follow_each_other_are_refused_when_the_profile_is_read() -> None:
    with pytest.raises(Exception, match=r"both: corrupt is not the same at 0s and at 1s"):
        parse_profile("x", "both:\n  - {corrupt: 1%}\n  - {at: 1s, corrupt: null, delay: 1ms}\n")
