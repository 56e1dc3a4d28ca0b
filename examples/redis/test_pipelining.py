"""Fifty commands: one after the other they cost fifty round trips; in a pipeline, two or three."""

import pytest

COMMANDS = 50
HOW = {
    "one by one": ["redis-cli", "-h", "server", "-r", str(COMMANDS), "incr", "counter"],
    "pipeline": ["sh", "-c", f"yes incr counter | head -n {COMMANDS} | redis-cli -h server --pipe"],
}


def time_s(lab, how):
    """How long fifty commands take."""
    with lab.timed(how):
        done = lab.host("client").run(HOW[how])
    assert done.ok, done.stderr
    return done.duration_s


@pytest.mark.parametrize("round_trip_s", [0.02, 0.06], ids=["20 ms", "60 ms"])
def test_fifty_commands(lab, round_trip_s):
    lab.impair("client <-> server", delay=f"{round_trip_s / 2}s")
    one_by_one, pipeline = time_s(lab, "one by one"), time_s(lab, "pipeline")
    assert one_by_one > COMMANDS * round_trip_s
    assert pipeline < one_by_one / 3
