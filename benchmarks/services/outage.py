"""An hour without links between three services and their usual clients: these reconnect, and no answer was a lie.

Run by `benchmarks/virtual_time.py`; by hand: pytest --virtual-time outage.py --compose-file outage.compose.yaml
"""

from __future__ import annotations

import re
import time
from itertools import pairwise

import pytest

from testbed import Lab
from testbed.lab.waiting import await_condition

OUTAGE_S = 3600
_RECONNECTED_WITHIN_S = 90
_ANSWERS = 30
"""Before the outage, and after it."""

# A message a second over a connection that is kept; each prints the number of what was acknowledged. Tries to connect
# end after 30 s, and the next begins 30 s later, or at once.
_WATCH = r"insert into log default values returning n \\watch 1"
_SESSION = f"echo '{_WATCH}' | psql 'host=postgres user=postgres connect_timeout=30' -qAt"
CLIENTS = {
    "redis": "while :; do redis-cli -h redis -t 30 -r -1 -i 1 incr counter; sleep 30; done",
    "nginx": "curl -s -m 30 --rate 1/s -o /dev/null -w '%{stderr}%{http_code} %{url}\n' 'http://nginx/?[1-10000]'",
    "postgres": f"while :; do {_SESSION}; sleep 30; done",
}
PREPARATIONS = {"postgres": "psql -U postgres -qc 'create table log (n serial)'"}
ACCOUNTS = {
    "redis": "seq $(redis-cli get counter)",
    "nginx": r"sed -n 's/.*GET \/?\([0-9]*\) .*/\1/p' /var/log/nginx/access.log",
    "postgres": "psql -U postgres -Atc 'select n from log'",
}
"""What each service knows to have done, by the numbers that it gave."""
_ANSWER = re.compile(r"^(\d+) (?:200 \S+\?)?(\d+)$", re.MULTILINE)


@pytest.mark.timeout(2 * OUTAGE_S)
def test_an_hours_outage(lab: Lab) -> None:
    """What was acknowledged was done, whether before the outage or after it."""
    for service, command in PREPARATIONS.items():
        _in(lab, service, command)
    clients = {
        service: lab.host("client").start(
            ["sh", "-c", f'{command} 2>&1 | while read -r line; do echo "$(date +%s) $line"; done'],
            ready=lambda program: len(answers(program.output)) >= _ANSWERS,
            timeout="2min",
        )
        for service, command in CLIENTS.items()
    }
    lab.partition({"client"}, {*CLIENTS})
    before = {service: len(answers(client.output)) for service, client in clients.items()}
    time.sleep(OUTAGE_S)
    during = {service: len(answers(client.output)) for service, client in clients.items()}
    lost = {service: lab.link(f"client -> {service}").lost_in_cut() for service in clients}
    lab.mend()
    await_condition(
        lambda: [len(answers(client.output)) - before[service] for service, client in clients.items()],
        lambda further: min(further) >= _ANSWERS,
        deadline_s=_RECONNECTED_WITHIN_S + 2 * _ANSWERS,
    )
    for service, client in clients.items():
        times_s, numbers = zip(*answers(client.stop().stdout), strict=True)
        known = [int(number) for number in _in(lab, service, ACCOUNTS[service]).split()]
        outage_s = max(later - earlier for earlier, later in pairwise(times_s))
        lab.record(f"{service}: outage as its client saw it", outage_s, unit="s", better="lower")
        assert lost[service] > 0
        assert during[service] == before[service]
        assert OUTAGE_S <= outage_s <= OUTAGE_S + _RECONNECTED_WITHIN_S
        assert len({*numbers}) == len(numbers) >= 2 * _ANSWERS
        assert len({*known}) == len(known)
        assert {*numbers} <= {*known}, "acknowledged, and lost"
        assert len(known) - len(numbers) <= 2, "under way when the link was cut, and when the client was stopped"


def _in(lab: Lab, service: str, command: str) -> str:
    done = lab.host(service).run(["sh", "-c", command])
    assert done.ok, done.stderr
    return done.stdout


def answers(output: str) -> list[tuple[int, int]]:
    """When the client had each acknowledgement, and the number of what was done."""
    return [(int(time_s), int(number)) for time_s, number in _ANSWER.findall(output)]
