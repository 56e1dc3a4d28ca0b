"""How many round trips a first byte costs: by HTTP/1.1, and over TLS 1.2 and 1.3."""

import json

import pytest

ROUND_TRIP_S = 0.2


def first_bytes(lab, *urls):
    """The round trips until curl has the first byte of each, asked for one after the other."""
    argv = ["curl", "-sk", "-w", "%{json}\n", *(word for url in urls for word in (url, "-o", "/dev/null"))]
    done = lab.host("client").run(argv)
    assert done.ok, done.stderr
    times = [json.loads(line) for line in done.stdout.splitlines()]
    return [(curl["time_starttransfer"] - curl["time_namelookup"]) / ROUND_TRIP_S for curl in times]


@pytest.mark.impair("client <-> server", delay="100ms")
@pytest.mark.parametrize(
    ("url", "round_trips"),
    [
        pytest.param("http://server:8080", 2, id="HTTP"),  # TCP's handshake, and the request
        pytest.param("https://server:8413", 3, id="TLS 1.3"),  # and TLS's handshake
        pytest.param("https://server:8412", 4, id="TLS 1.2"),  # which took two
    ],
)
def test_the_first_byte(lab, url, round_trips):
    first, again = first_bytes(lab, url, url)
    lab.record("round trips", first, unit="", better="lower")
    assert int(first) == round_trips
    assert int(again) == 1, "a connection that is kept costs the request alone"
