"""A time-out that is shorter than the link is slow: each order is worked on five times, and none is answered."""

import pytest

ORDERS, TRIES = 20, 5


@pytest.mark.impair("server -> client", delay="1200ms")  # beyond the client's time-out, of half a second
@pytest.mark.parametrize(
    ("timeouts", "answered", "most_work"),
    [("constant", 0, ORDERS * TRIES), ("doubling", ORDERS, ORDERS * 4)],
    ids=["constant time-out", "doubling time-out"],
)
def test_the_work_that_retries_make(lab, timeouts, answered, most_work):
    before = lab.host("server").logs().count("worked on")
    done = lab.host("client").run(["python3", "client.py", timeouts], timeout="60s")
    assert done.ok, done.stderr
    work = lab.host("server").logs().count("worked on") - before
    lab.record("work per order", work / ORDERS, unit="", better="lower")
    assert int(done.stdout) == answered
    assert ORDERS <= work <= most_work
