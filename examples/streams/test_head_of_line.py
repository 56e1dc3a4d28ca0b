"""One lost packet: on a shared connection it holds all streams up, on connections of their own one of them."""

import json

import pytest

ROUND_TRIP_S = 0.2
LOST = {"one": 12, "four": 48}  # a packet in the middle, by its number: each of the four connections sends as many


@pytest.mark.impair("client -> server", delay="100ms")
@pytest.mark.parametrize(("connections", "streams_held_up"), [("one", 4), ("four", 1)], ids=["one", "four"])
def test_a_lost_packet_holds_up(lab, connections, streams_held_up):
    lab.impair("server -> client", delay="100ms", drop_packets=[LOST[connections]])
    done = lab.host("client").run(["python3", "client.py", connections])
    assert done.ok, done.stderr
    assert lab.link("server -> client").dropped_by_number() == 1
    silent_s = json.loads(done.stdout)
    lab.record("longest silence", list(silent_s.values()), unit="s", better="lower")
    assert sum(silence > ROUND_TRIP_S * 0.9 for silence in silent_s.values()) == streams_held_up, silent_s
