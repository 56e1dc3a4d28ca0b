"""What a project would test of these services, on whichever lab: each answers through a slow link, never through none.

Run by `benchmarks/labs.py`; by hand: pytest suite.py --compose-file compose.yaml
"""

from __future__ import annotations

import shlex

import pytest

from testbed import Lab

REQUESTS = {
    "redis": "redis-cli -h redis ping",
    "nginx": "curl -fs http://nginx -o /dev/null",
    "postgres": "psql -h postgres -U postgres -Atc 'select 1'",
    "mosquitto": "mosquitto_pub -h mosquitto -t topic -m text -q 1",
    "web": "curl -fs http://web:8000",
}
DELAY_S = 0.05


@pytest.mark.parametrize("service", REQUESTS)
def test_a_request_through_a_slow_link_takes_its_delay(lab: Lab, service: str) -> None:
    """Its packets meet the impairment."""
    lab.impair(f"client -> {service}", delay=f"{DELAY_S * 1e3:g}ms")
    done = lab.host("client").run(shlex.split(REQUESTS[service]), timeout="60s")
    assert done.ok, done.stderr
    assert done.duration_s >= 2 * DELAY_S, "a connection and a request, each way of them delayed once"


@pytest.mark.parametrize("service", REQUESTS)
def test_a_request_through_no_link_gets_no_answer(lab: Lab, service: str) -> None:
    """The service is asked through that link, and through no other way."""
    lab.impair(f"client -> {service}", loss="100%")
    done = lab.host("client").run(["timeout", "1", *shlex.split(REQUESTS[service])], timeout="60s")
    assert done.exit_code == 124, (done.exit_code, done.stdout, done.stderr)


@pytest.mark.parametrize("service", REQUESTS)
def test_what_must_fail_fails(lab: Lab, service: str) -> None:
    """Verdicts that agree must also agree where they are failures."""
    lab.impair(f"client -> {service}", delay=f"{DELAY_S * 1e3:g}ms")
    done = lab.host("client").run(shlex.split(REQUESTS[service]), timeout="60s")
    assert done.duration_s < DELAY_S
