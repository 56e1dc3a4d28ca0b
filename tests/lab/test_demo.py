"""The demonstration distinguishes a message that is still being sent from a lost one."""

from __future__ import annotations

from testbed import Lab
from testbed.paper import demo

CONNECT_THEN_SEND = """
import socket
client = socket.create_connection(("server", 8888))
print(client.getsockname()[1], flush=True)
open("/tmp/go").read()
client.send(b"late")
client.close()
"""


def test_a_client_that_cannot_connect_is_still_connecting_and_not_lost(lab: Lab) -> None:
    run = demo.run(lab, ["blackhole"], messages=1, see=lambda _done, _current: None, patience_s=3.0)
    (message,) = run.profiles[0].messages
    assert (message.delivery_s, message.under_way) == (None, "the client was still connecting")
    assert (run.lost, run.under_way) == (0, 1)
    assert run.profiles[0].dropped_packets > 0


def test_a_message_that_the_kernel_sends_again_is_found_there_and_when_it_came_nowhere(lab: Lab) -> None:
    client, server = lab.hosts["client"], lab.hosts["server"]
    client.run(["rm", "-f", "/tmp/go"])
    assert client.run(["mkfifo", "/tmp/go"]).ok
    with server.follow() as log:
        program = client.start(["python3", "-c", CONNECT_THEN_SEND], ready="\n")
        port = int(program.output)
        assert demo.whereabouts(client, server, port) is not None  # connected: both kernels know it
        lab.cut("client -> server")
        assert client.run(["sh", "-c", "echo > /tmp/go"]).ok
        assert program.wait().ok
        assert "the client's kernel" in (demo.whereabouts(client, server, port) or "")
        lab.mend()
        assert log.when("Message late", 60) is not None
    assert demo.whereabouts(client, server, 1) is None
