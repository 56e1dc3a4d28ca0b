"""Programs that a test started end with it."""

from __future__ import annotations

import pytest

from testbed import Lab


@pytest.mark.parametrize("time", ["first", "second"])
def test_a_program_that_a_test_left_running_is_gone_when_the_next_begins(lab: Lab, time: str) -> None:
    # Would be refused the second time: another program listens on tcp/9300 already.
    lab.host("server").start(["python3", "paper_server.py", "", "9300"], ready=9300)


def test_a_program_that_is_started_for_the_session_goes_on(stack: Lab) -> None:
    program = stack.host("server").start(["sleep", "60"])
    stack.lifecycle.begin(None)
    stack.host("server").start(["sleep", "61"])
    stack.lifecycle.end()
    assert not program.ended
    running = stack.host("server").run(["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"]).stdout
    assert "sleep 60" in running
    assert "sleep 61" not in running
    program.stop("SIGKILL")
