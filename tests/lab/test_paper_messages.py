"""The paper's client and server over the first profiles: the line of figure 4 appears exactly once."""

from __future__ import annotations

import pytest

from testbed import Lab
from testbed.lab.waiting import await_condition

FIRST_PROFILES = ("clean", "lan", "latency", "lossy", "lossy-latency", "awful")
FIGURE_4 = "Message Test message"
# Under `awful` TCP may lose a segment seven times in a row, once in some thousand runs; each doubles its waiting time.
PATIENCE_S = 300


@pytest.mark.timeout(4 * PATIENCE_S)
@pytest.mark.impair_each("client <-> server", *FIRST_PROFILES)
def test_the_papers_message_arrives_exactly_once_and_figure_4_is_printed(lab: Lab, profile: str) -> None:
    client, server = lab.hosts["client"], lab.hosts["server"]

    def printed() -> int:
        return server.logs().splitlines().count(FIGURE_4)

    before = printed()
    sent = client.run(["python3", "paper_client.py", "server"], timeout=f"{PATIENCE_S}s")
    assert sent.ok, sent.stderr
    await_condition(printed, lambda count: count > before, deadline_s=PATIENCE_S)
    # The server reads one client after the other, so once a later message is there, so is any copy of ours.
    sentinel = f"after {profile} {before}"
    with server.follow() as log:
        after = client.run(["python3", "paper_client.py", "server", "8888", sentinel], timeout=f"{PATIENCE_S}s")
        assert after.ok, after.stderr
        assert log.when(f"Message {sentinel}", PATIENCE_S) is not None, server.logs()

    assert printed() == before + 1
    for link in ("client -> server", "server -> client"):
        assert lab.link(link).counters().sent_packets > 0, f"nothing of this went through the netem of {link}"


def test_figure_4_is_printed_byte_for_byte(lab: Lab) -> None:
    with lab.hosts["server"].follow() as log:
        assert lab.hosts["client"].run(["python3", "paper_client.py", "server", "8888"]).ok
        assert log.when("Message Test message", 10) is not None


def test_the_papers_server_ends_on_ctrl_c_and_closes_its_socket(lab: Lab) -> None:
    server = lab.hosts["server"]
    second = server.start(["python3", "paper_server.py", "", "8889"], ready=8889)
    result = second.stop("SIGINT")
    assert (result.exit_code, result.stderr) == (0, "")
    again = server.start(["python3", "paper_server.py", "", "8889"], ready=8889)  # the port is free again
    assert again.stop("SIGINT").ok
