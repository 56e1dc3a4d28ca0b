"""The greeting comes over a link with delay."""

import pytest

from testbed import Lab

_ASK = "exec 3<>/dev/tcp/server/8000; echo world >&3; cat <&3"


@pytest.mark.impair("client <-> server", delay="5ms")
def test_greeting(lab: Lab) -> None:
    with lab.timed("greeting"):
        answer = lab.host("client").run(["bash", "-c", _ASK], timeout="30s")
    assert answer.stdout == "hello, world\n", answer
