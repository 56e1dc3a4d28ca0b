"""The agent's timelines on a kernel that is a dictionary: order, repetition, lateness, and errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from testbed.agent.protocol import Refused
from testbed.agent.schedule import Schedules
from testbed.lab.waiting import await_condition


class Kernel:
    """Takes ``set NAME``, and shows the name as the options of a netem on class 1:10."""

    def __init__(self) -> None:
        self.holds: str | None = None
        self.took: list[str] = []
        self.stuck = threading.Event()
        self.stuck.set()
        self.entered = threading.Event()
        self.breaks: Exception | None = None

    def run(self, port: str, lines: Sequence[Any], needs: Sequence[int], *, at_gate: bool) -> dict[str, Any]:
        self.entered.set()
        self.stuck.wait(5)
        if self.breaks is not None:
            raise self.breaks
        complaints, shown = [], []
        for line in lines:
            word, _, name = line.partition(" ")
            if word == "show":
                shown.append([{"parent": "1:10", "kind": "netem", "packets": 7, "options": {"name": self.holds}}])
            elif name == "refused":
                complaints.append({"line": line, "text": "no such name"})
            else:
                self.holds = name
                self.took.append(name)
        return {"shown": shown, "complaints": complaints, "notes": []}


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def schedules(kernel: Kernel) -> Iterator[Schedules]:
    playing = Schedules(kernel.run)
    yield playing
    kernel.stuck.set()
    playing.close()


def arm(schedules: Schedules, *steps: tuple[float, str], repeat_s: float | None = None, name: str = "x") -> None:
    schedules.arm(
        name=name,
        port="p",
        at_s=[at_s for at_s, _ in steps],
        lines=[[f"set {word}"] for _, word in steps],
        show="show",
        parent="1:10",
        repeat_s=repeat_s,
        needs=[],
    )


def records(schedules: Schedules, count: int) -> list[dict[str, Any]]:
    """The first records, once there are so many."""
    look: Callable[[], Any] = lambda: schedules.look(name="x")  # noqa: E731  # a name for what is awaited
    seen = await_condition(look, lambda answer: answer["recorded"] >= count, deadline_s=5)
    first: list[dict[str, Any]] = seen["records"][:count]
    return first


def test_steps_are_taken_in_order_and_none_early(schedules: Schedules, kernel: Kernel) -> None:
    arm(schedules, (0, "a"), (0.2, "b"), (0.5, "c"))
    begun_s = schedules.play(names=["x"])["monotonic_s"]
    taken = records(schedules, 3)
    # Where the machine is busy, a step may be passed over.
    assert kernel.took == ["abc"[step["index"]] for step in taken if not step["passed_over"]]
    assert kernel.took[-1] == "c"
    assert [step["planned_s"] for step in taken] == [0, 0.2, 0.5]
    assert all(step["monotonic_s"] >= begun_s + step["planned_s"] for step in taken)
    assert all(step["complaint"] is None for step in taken)
    assert abs(time.time() - taken[-1]["unix_s"]) < 60


def test_what_is_armed_waits_for_play(schedules: Schedules, kernel: Kernel) -> None:
    arm(schedules, (0, "a"))
    arm(schedules, (0, "b"), name="y")
    schedules.play(names=["y"])
    await_condition(lambda: kernel.took, lambda took: took == ["b"], deadline_s=5)
    assert schedules.look(name="x")["records"] == []


def test_it_repeats_until_halted_and_then_nothing_more_is_taken(schedules: Schedules, kernel: Kernel) -> None:
    arm(schedules, (0, "a"), (0.01, "b"), repeat_s=0.03)
    schedules.play(names=["x"])
    taken = records(schedules, 5)
    assert [step["index"] for step in taken] == [0, 1, 0, 1, 0]
    assert [step["planned_s"] for step in taken] == pytest.approx([0, 0.01, 0.03, 0.04, 0.06])
    halted = schedules.halt(name="x")
    assert halted is not None
    assert len(kernel.took) <= halted["recorded"]
    before = list(kernel.took)
    time.sleep(0.06)  # two periods: what must not happen has no condition to wait for
    assert kernel.took == before
    assert schedules.halt(name="x") is None


def test_each_step_is_read_back_and_the_same_account_is_kept_once(schedules: Schedules) -> None:
    arm(schedules, (0, "a"), (0.005, "b"), repeat_s=0.01)
    schedules.play(names=["x"])
    look: Callable[[], Any] = lambda: schedules.look(name="x")  # noqa: E731  # a name for what is awaited
    # Where the machine is busy, either may be passed over many times.
    answer = await_condition(look, lambda seen: seen["recorded"] >= 6 and len(seen["seen"]) >= 2, deadline_s=10)
    assert sorted(state["options"]["name"] for state in answer["seen"]) == ["a", "b"]
    assert "packets" not in answer["seen"][0]
    read = [record for record in answer["records"] if not record["passed_over"]]  # where the machine is busy
    assert all(answer["seen"][row["seen"]]["options"]["name"] == "ab"[row["index"]] for row in read)


def test_what_is_in_force_is_looked_at_between_steps(schedules: Schedules) -> None:
    arm(schedules, (0, "a"), (0.002, "b"), (0.003, "c"), repeat_s=0.004)
    schedules.play(names=["x"])
    records(schedules, 1)
    for _ in range(200):
        answer = schedules.look(name="x", since=10**9)
        assert answer["now"]["options"]["name"] == "abc"[answer["in_force"]]


def test_only_new_records_are_fetched(schedules: Schedules) -> None:
    arm(schedules, (0, "a"), (0.01, "b"))
    schedules.play(names=["x"])
    records(schedules, 2)
    assert [record["index"] for record in schedules.look(name="x", since=1)["records"]] == [1]
    assert schedules.look(name="x", since=2)["records"] == []


def test_a_refused_step_is_told_and_the_next_ones_are_taken(schedules: Schedules, kernel: Kernel) -> None:
    arm(schedules, (0, "a"), (0.2, "refused"), (0.4, "c"))
    schedules.play(names=["x"])
    taken = records(schedules, 3)
    assert [step["complaint"] for step in taken] == [None, "no such name", None]
    assert kernel.took == ["a", "c"]


@pytest.mark.parametrize("error", [Refused("port 'p' is gone", kind="gone"), ValueError("nobody expects it")])
def test_a_port_that_is_gone_and_even_a_crash_are_told_in_the_record(
    schedules: Schedules, kernel: Kernel, error: Exception
) -> None:
    arm(schedules, (0, "a"), (0.3, "b"))
    kernel.breaks = error
    schedules.play(names=["x"])
    taken = records(schedules, 2)
    assert all(str(error.args[0]) in step["complaint"] for step in taken)
    assert schedules.look(name="x")["in_force"] is None


def test_a_step_that_is_due_with_the_one_behind_it_is_passed_over_and_told(
    schedules: Schedules, kernel: Kernel
) -> None:
    arm(schedules, (0, "a"), (0.5, "b"), (0.51, "c"))
    kernel.stuck.clear()
    schedules.play(names=["x"])
    assert kernel.entered.wait(5)
    time.sleep(0.6)  # until all are due
    kernel.stuck.set()
    taken = records(schedules, 3)
    assert kernel.took == ["a", "c"]
    assert [step["passed_over"] for step in taken] == [False, True, False]
    assert taken[2]["monotonic_s"] - taken[0]["monotonic_s"] >= 0


def test_timelines_that_are_played_together_begin_at_the_same_moment(schedules: Schedules) -> None:
    arm(schedules, (0, "a"))
    arm(schedules, (0, "b"), name="y")
    schedules.play(names=["x", "y"])
    assert schedules.look(name="x")["begun_s"] == schedules.look(name="y")["begun_s"]


def test_what_cannot_be_played_is_refused(schedules: Schedules) -> None:
    with pytest.raises(Refused, match="z: not armed"):
        schedules.play(names=["z"])
    with pytest.raises(Refused, match="needs a time for each of 2 lines"):
        arm(schedules, (0.5, "a"), (0.2, "b"))
    with pytest.raises(Refused, match="not here; running: none"):
        schedules.look(name="x")


def test_closing_ends_the_thread(kernel: Kernel) -> None:
    schedules = Schedules(kernel.run)
    arm(schedules, (0, "a"), repeat_s=0.01)
    schedules.play(names=["x"])
    schedules.close()
    assert "timelines" not in [thread.name for thread in threading.enumerate()]


def test_filters_are_put_and_taken_off_and_the_first_step_needs_no_line_the_first_time() -> None:
    there: list[dict[str, Any]] = [{"pref": 24, "kind": "flower", "options": {"handle": 16}}]  # another's
    own = {"pref": 10, "kind": "flower", "options": {"handle": 16, "classid": "1:4010"}}
    ran: list[str] = []

    def run(_port: str, lines: Sequence[Any], _needs: Sequence[int], **_where: bool) -> dict[str, Any]:
        ran.extend(line for line in lines if line != "show")
        for line in lines:
            if line == "put":
                there.append(own)
            elif line == "delete":
                there.remove(own)
        return {"shown": [list(there)] if "show" in lines else [], "complaints": [], "notes": []}

    schedules = Schedules(run)
    try:
        schedules.arm(
            name="x",
            port="p",
            at_s=[0, 1],  # so far apart that none is passed over where the machine is busy
            lines=[["delete"], ["put"]],
            show="show",
            filters=[(10, 16)],
            repeat_s=2,
            needs=[],
            in_force=True,
        )
        schedules.play(names=["x"])
        taken, seen = records(schedules, 3), schedules.look(name="x")["seen"]
    finally:
        schedules.close()
    assert ran[:2] == ["put", "delete"]
    assert [step["complaint"] for step in taken] == [None] * 3
    assert [seen[step["seen"]] for step in taken] == [[], [own], []]


def test_a_filter_at_the_gate_is_read_back_without_what_it_has_counted() -> None:
    """tc writes a bpf filter's handle in hexadecimal, and its action has an index and times of its own."""
    shows = iter(range(100))
    at_gate: set[bool] = set()

    def run(_port: str, lines: Sequence[Any], _needs: Sequence[int], **where: bool) -> dict[str, Any]:
        at_gate.update(where.values())
        counted = next(shows)
        action = {
            "kind": "mirred",
            "mirred_action": "redirect",
            "to_dev": "tb0r1",
            "index": counted,
            "last_used": counted,
            "stats": {"packets": counted},
        }
        shown = [{"pref": 7, "kind": "bpf", "options": {"handle": "0x11", "actions": [action]}}, {"pref": 7}]
        return {"shown": [shown] if "show" in lines else [], "complaints": [], "notes": []}

    schedules = Schedules(run)
    try:
        schedules.arm(
            name="x",
            port="p",
            at_s=[0, 0.02],
            lines=[["delete"], ["put"]],
            show="show",
            filters=[(7, 17)],
            repeat_s=0.04,
            needs=[],
            in_force=True,
            at_gate=True,
        )
        schedules.play(names=["x"])
        records(schedules, 4)
        (seen,) = schedules.look(name="x")["seen"]
    finally:
        schedules.close()
    does = {"kind": "mirred", "mirred_action": "redirect", "to_dev": "tb0r1"}
    assert seen == [{"pref": 7, "kind": "bpf", "options": {"handle": "0x11", "actions": [does]}}]
    assert at_gate == {True}
